"""The coordinator turns on the sites: with its own true key it asks real workers for what they must never give.

Every attack ends in a signed refusal with a reason code at an honest site, and in that site's audit log.
"""

import pytest

from tests.by_hand import Coordinator


@pytest.fixture(scope="session")
def joined(tmp_path_factory):
    """Four sites that hold the cohort's key; no round yet."""
    return Coordinator.ready(tmp_path_factory.mktemp("joined") / "run")


@pytest.fixture(scope="session")
def offered(tmp_path_factory):
    """Round 1 is over; in round 2 every site has offered its masks."""
    made = Coordinator.ready(tmp_path_factory.mktemp("offered") / "run")
    made.first = made.whole_round(1)
    made.made = made.offers(2)
    return made


@pytest.fixture(scope="session")
def trained(offered, tmp_path_factory):
    """In round 2 every site has sent its update as well, and nothing was agreed on."""
    made = offered.copy(tmp_path_factory.mktemp("trained") / "run")
    made.first, made.made = offered.first, offered.made
    made.updates = made.train(2, made.made)
    return made


@pytest.fixture
def begun(joined, tmp_path):
    copied = joined.copy(tmp_path / "run")
    copied.joined, copied.coming, copied.made_key = joined.joined, joined.coming, joined.made_key
    return copied


@pytest.fixture
def untrained(offered, tmp_path):
    copied = offered.copy(tmp_path / "run")
    copied.first, copied.made = offered.first, offered.made
    return copied


@pytest.fixture
def attack(trained, tmp_path):
    copied = trained.copy(tmp_path / "run")
    copied.first, copied.made, copied.updates = trained.first, trained.made, trained.updates
    return copied
