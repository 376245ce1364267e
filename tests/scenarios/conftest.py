"""A consortium of real processes for each file of tests: what one file revokes, no other file misses."""

from collections.abc import Iterator

import pytest

from common.errors import ConfigError
from server.processes import find_nginx
from tests.deployment import Deployment, simulation


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    try:
        find_nginx()
    except ConfigError as missing:
        pytest.skip(missing.message)
    settings = simulation("privacy.epsilon=0.5")
    made = Deployment(tmp_path_factory.mktemp("c") / "c", settings, epsilon=100.0)
    made.found(settings)
    with made.running():
        yield made
