"""Proves: what the coordinator's gateway shows reaches a running site by itself, and nothing else does."""

from pathlib import Path

import pytest

from client.enroll import NEWEST_KIT, certificate_of, follow
from common.certificates import now_utc
from common.errors import TrustError, WireError
from common.roster import Roster
from tests.consortium import People

ADLER, BUSSARD = "adler", "bussard"


@pytest.fixture
def joined(people: People) -> People:
    people.found()
    people.let_in(ADLER)
    return people


def brought(people: People, kit: bytes) -> Path:
    """As the node leaves it for the worker."""
    place = people.site(ADLER)
    (place / "run").mkdir(exist_ok=True)
    (place / NEWEST_KIT).write_bytes(kit)
    return place


def test_a_site_that_was_brought_nothing_follows_nothing(joined):
    assert follow(joined.site(ADLER), now_utc()) is None


def test_the_kit_that_is_installed_already_says_nothing_new(joined):
    place = brought(joined, joined.kit(ADLER).read_bytes())
    assert follow(place, now_utc()) is None


def test_who_joined_and_who_was_revoked_since_arrives_by_itself_and_is_taken_up_once(joined):
    joined.ask_in(BUSSARD)
    joined.server("admit", joined.site(BUSSARD) / "request.json", "--yes")
    place = brought(joined, joined.kit(ADLER).read_bytes())
    assert BUSSARD not in Roster.read(place / "roster.json").sites
    assert follow(place, now_utc()).roster.sites == (ADLER, BUSSARD)
    assert BUSSARD in Roster.read(place / "roster.json").sites
    assert follow(place, now_utc()) is None
    joined.server("revoke", BUSSARD)
    follow(brought(joined, joined.kit(ADLER).read_bytes()), now_utc())
    with pytest.raises(TrustError, match="revoked"):
        Roster.read(place / "roster.json").public_key_of(BUSSARD)


def test_a_renewed_certificate_arrives_by_itself(joined):
    before = certificate_of(joined.site(ADLER)).serial
    joined.server("renew", ADLER)
    place = brought(joined, joined.kit(ADLER).read_bytes())
    assert follow(place, now_utc()) is not None
    assert certificate_of(place).serial != before


def test_an_older_kit_is_refused_and_nothing_changes(joined):
    older = joined.kit(ADLER).read_bytes()
    joined.ask_in(BUSSARD)
    joined.server("admit", joined.site(BUSSARD) / "request.json", "--yes")
    place = brought(joined, joined.kit(ADLER).read_bytes())
    follow(place, now_utc())
    held = (place / "roster.json").read_bytes()
    with pytest.raises(TrustError, match="version"):
        follow(brought(joined, older), now_utc())
    assert (place / "roster.json").read_bytes() == held


@pytest.mark.parametrize("kit", [b"", b"{}", b"\xff" * 100])
def test_what_is_no_kit_is_refused(joined, kit):
    with pytest.raises((TrustError, WireError)):
        follow(brought(joined, kit), now_utc())
