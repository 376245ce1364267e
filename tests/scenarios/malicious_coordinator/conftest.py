"""The coordinator turns on the sites: with its own true key it asks real workers for what they must never give.

Every attack ends in a signed refusal with a reason code at an honest site, and in that site's audit log.
"""

import pytest

from tests.by_hand import Coordinator


def copy_with(made, out, *names):
    """What was made, in a directory of its own, with what it has by these names."""
    copied = made.copy(out / "run")
    for name in names:
        setattr(copied, name, getattr(made, name))
    return copied


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
    made = copy_with(offered, tmp_path_factory.mktemp("trained"), "first", "made")
    made.updates = made.train(2, made.made)
    return made


@pytest.fixture
def begun(joined, tmp_path):
    return copy_with(joined, tmp_path, "joined", "coming", "made_key")


@pytest.fixture
def untrained(offered, tmp_path):
    return copy_with(offered, tmp_path, "first", "made")


@pytest.fixture
def attack(trained, tmp_path):
    return copy_with(trained, tmp_path, "first", "made", "updates")
