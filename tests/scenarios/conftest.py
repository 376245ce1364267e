"""A consortium of real processes for each file of tests: what one file revokes, no other file misses."""

from collections.abc import Iterator

import pytest

from tests.deployment import Deployment, require_nginx, simulation


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    require_nginx()
    settings = simulation("privacy.epsilon=0.5")
    made = Deployment(tmp_path_factory.mktemp("c") / "c", settings, epsilon=100.0)
    made.found(settings)
    with made.running():
        yield made
