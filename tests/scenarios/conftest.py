"""The one consortium of real processes that the tests of deployments share: it takes a minute to start."""

from collections.abc import Iterator

import pytest

from common.errors import ConfigError
from server.processes import find_nginx
from tests.deployment import Deployment, simulation


@pytest.fixture(scope="session")
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
