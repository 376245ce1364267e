"""Proves: a request and a kit are read as they were written, and a kit only of the roots that stand for it."""

import pytest

from common.addresses import Address
from common.certificates import Authority, Certificate, now_utc
from common.enrolment import KIT_CONTEXT, Kit, Request
from common.errors import TrustError, WireError
from common.signed_json import signed_table
from common.signing import Identity
from common.tls_keys import TlsKey
from common.wire import from_json, to_json
from tests.consortium import founded, roster_of

OLD, NEW, OTHER = founded(), founded(), founded("Lung study")
SERVER, NODE = Address("fl.example.org", 8443), TlsKey.generate()


def kit_of(*roots: Authority, signers: tuple[Authority, ...] = ()) -> bytes:
    """Of adler; roots: the newest first; signers: those roots, unless others."""
    roster = roster_of(roots[0], "adler", nodes={"adler": NODE.public})
    identities = [one.identity for one in roots]
    certificate = Certificate.read(roots[0].certify_client(NODE.public, "adler", "site", now_utc()))
    signing = [one.identity for one in signers] or identities
    return Kit.make(SERVER, [one.root for one in roots], certificate, roster.signed(identities), signing)


def test_a_request_is_read_as_it_was_written():
    identity = Identity.generate()
    read = Request.read(Request.make("adler", SERVER, identity, NODE))
    assert read == Request("adler", SERVER, identity.public, NODE.public)
    other = Request("birke", SERVER, identity.public, NODE.public)
    assert read.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["coordinator", "../adler", "Adler", ""])
def test_a_request_under_an_impossible_name_is_refused(name):
    identity = Identity.generate()
    said = from_json(Request.make("adler", SERVER, identity, NODE))["said"]
    with pytest.raises(WireError):
        Request.read(to_json(signed_table("veilfed.request.v1", {**said, "name": name}, [identity])))


def test_a_kit_is_read_as_it_was_written():
    read = Kit.read(kit_of(OLD), OLD.root)
    assert (read.name, read.consortium, read.server, read.roots) == ("adler", "Heart study", SERVER, (OLD.root,))
    assert read.roster.sites == ("adler",)
    assert Kit.claimed_roots(kit_of(NEW, OLD)) == (NEW.root, OLD.root)


def test_a_kit_is_signed_by_the_root_that_is_pinned_and_by_all_that_it_brings():
    for pinned in (OLD, NEW):
        assert Kit.read(kit_of(NEW, OLD), pinned.root).roots == (NEW.root, OLD.root)
    for kit, pinned in (
        (kit_of(NEW), OLD),  # no word of the root that is pinned
        (kit_of(NEW, OLD, signers=(OLD,)), OLD),  # brings a root that does not sign
        (kit_of(NEW, OLD, signers=(NEW,)), NEW),
        (kit_of(NEW, OLD, signers=(NEW,)), OLD),
    ):
        with pytest.raises(TrustError, match="missing"):
            Kit.read(kit, pinned.root)


def test_a_kit_of_another_consortium_by_the_pinned_root_is_refused():
    """Whoever holds two roots cannot turn the members of the one consortium into members of the other."""
    with pytest.raises(TrustError, match="'Lung study'"):
        Kit.read(kit_of(OTHER, signers=(OTHER, OLD)), OLD.root)


def test_one_that_says_more_than_a_kit_is_none():
    said = {**from_json(kit_of(OLD))["said"], "run": "me"}
    with pytest.raises(WireError, match="not a kit"):
        Kit.read(to_json(signed_table(KIT_CONTEXT, said, [OLD.identity])), OLD.root)
