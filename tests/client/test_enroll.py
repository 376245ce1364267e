"""Proves: a site's keys stay at the site, and it believes a kit only of the root that its people compared."""

import base64
import json
import re
import stat
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from client.enroll import Connection, certificate_of, join, needs_renewal
from client.site import SiteSettings
from common.certificates import LIFE, Authority, Certificate, now_utc
from common.config import fill, load_table
from common.enrolment import KIT_CONTEXT, Kit, Request
from common.errors import ConfigError, TrustError, WireError
from common.keystore import is_open, load_secret
from common.roster import Roster
from common.signed_json import signed_table
from common.signing import Identity
from common.tls_keys import TlsKey
from common.wire import from_json, to_json
from server.home import Home, unlock_roots
from server.provision import admit, revoke
from tests.consortium import People, founded

ADLER = "adler"
INSTALLED = ("node.crt", "roots.pem", "roster.json", "connection.json")


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def authorities(people: People, home: Home) -> tuple[Authority, ...]:
    return unlock_roots(people.home / "root", home.roots, None)


def resigned(people: People, data: bytes, by: Authority | None = None, **changes: object) -> bytes:
    """A kit with other contents, well signed: by the true root, unless by another one."""
    said = {**from_json(data)["said"], **changes}
    signers = [by] if by else authorities(people, Home.open(people.home))
    return to_json(signed_table(KIT_CONTEXT, said, [one.identity for one in signers]))


def refuse(people: People, kit: bytes, told: str | None = "told", now=None, name: str = ADLER) -> str:
    """What the site says to that kit; nothing of it was installed."""
    before = files_of(people.site(name))
    with pytest.raises((TrustError, WireError)) as refused:
        join(people.site(name), kit, people.fingerprint() if told == "told" else told, asks_nobody, now or now_utc())
    assert files_of(people.site(name)) == before
    return refused.value.message


def asks_nobody(root) -> None:
    raise AssertionError("a person was asked")


def test_a_new_site_has_keys_that_only_it_may_read_and_a_request(people):
    said = people.done("site", "init", people.site(ADLER), "--name", ADLER, "--server", "fl.example.org:8443")
    place = people.site(ADLER)
    for key in ("identity.key", "node.key"):
        assert stat.S_IMODE((place / key).stat().st_mode) == 0o600
    request = Request.read((place / "request.json").read_bytes())
    assert request.name == ADLER
    assert request.node == TlsKey.read(place / "node.key").public
    assert request.identity == Identity.from_private_bytes(load_secret(place / "identity.key", None)).public
    assert said["fingerprint"] == request.fingerprint
    assert len(request.fingerprint.replace(" ", "")) == 40
    settings = fill(SiteSettings, load_table(place / "site.toml"))
    assert (settings.name, settings.policy.require_privacy, settings.policy.require_encryption) == (ADLER, True, True)


def test_keys_are_never_made_twice(people):
    people.ask_in(ADLER)
    before = files_of(people.site(ADLER))
    code, error, _ = people.refused(
        "site", "init", people.site(ADLER), "--name", "birke", "--server", "fl.example.org:8443"
    )
    assert (code, error) == (2, "ConfigError")
    (people.site(ADLER) / "request.json").unlink()  # as if the first try had been stopped before its last step
    people.ask_in(ADLER)
    after = files_of(people.site(ADLER))
    assert {name: after[name] for name in before if name.endswith(".key")} == {
        name: data for name, data in before.items() if name.endswith(".key")
    }


@pytest.mark.parametrize("name", ["../adler", "a/b", ".adler", "", "Adler", "a b", "coordinator", "a" * 65, "adler\n"])
def test_a_name_that_is_no_name_makes_no_keys(people, name):
    code, error, _ = people.refused("site", "init", people.site("x"), "--name", name, "--server", "fl.example.org:8443")
    assert (code, error) == (2, "ConfigError")
    assert not people.site("x").exists()


@pytest.mark.parametrize(
    "server", ["fl.example.org", "fl.example.org:0", "fl.example.org:99999", "https://x:1", "::1:5"]
)
def test_a_server_that_is_no_address_makes_no_keys(people, server):
    assert people.refused("site", "init", people.site("x"), "--name", "x", "--server", server)[1] == "ConfigError"
    assert not people.site("x").exists()


def test_an_identity_can_be_locked_from_the_first_moment(people, tmp_path):
    passphrase = tmp_path / "adler.pass"
    passphrase.write_text("correct horse battery staple\n")
    passphrase.chmod(0o600)
    people.found()
    people.ask_in(ADLER, "--passphrase-file", passphrase)
    assert not is_open(people.site(ADLER) / "identity.key")
    assert fill(SiteSettings, load_table(people.site(ADLER) / "site.toml")).passphrase_file == str(passphrase)
    people.server("admit", people.site(ADLER) / "request.json", "--yes")
    people.done("site", "join", people.site(ADLER), people.kit(ADLER), "--root-fingerprint", people.fingerprint())
    people.done("site", "renew", people.site(ADLER))
    inside = people.site("birke") / "pass"
    inside.parent.mkdir(parents=True)
    passphrase.rename(inside)
    code, _, message = people.refused(
        "site", "init", people.site("birke"), "--name", "birke", "--server", "a:1", "--passphrase-file", inside
    )
    assert code == 2
    assert "own directory" in message
    assert not (people.site("birke") / "identity.key").exists()


def test_private_keys_never_travel(people):
    """What goes between site and coordinator, and all that the coordinator keeps, holds no key of the site."""
    people.found()
    people.let_in(ADLER, "birke")
    people.done("site", "renew", people.site(ADLER))
    node = TlsKey.read(people.site(ADLER) / "node.key")
    number = node.key.private_numbers().private_value.to_bytes(48, "big")[8:40]
    secrets = (number, load_secret(people.site(ADLER) / "identity.key", None))
    home = [path for path in people.home.rglob("*") if path.is_file()]
    travels = [people.site(ADLER) / "request.json", *home, *people.site("birke").iterdir()]
    assert len(travels) > 20
    for path in travels:
        assert not holds(path, secrets), path
    assert [path.name for path in people.site(ADLER).iterdir() if holds(path, secrets[:1])] == ["node.key"]
    assert [path.name for path in people.site(ADLER).iterdir() if holds(path, secrets[1:])] == ["identity.key"]


def holds(path: Path, secrets: Sequence[bytes]) -> bool:
    """As bytes, in hexadecimal, or in base64, also of PEM inside JSON."""
    data = path.read_bytes()
    joined = data.replace(b"\\n", b"\n").replace(b"\n", b"")
    decoded = b"|".join(base64.b64decode(part) for part in re.findall(rb"(?:[A-Za-z0-9+/]{4}){4,}", joined))
    return any(secret in text for secret in secrets for text in (data, decoded, bytes_of_hex(data)))


def bytes_of_hex(data: bytes) -> bytes:
    return b"|".join(bytes.fromhex(part.decode()) for part in re.findall(rb"(?:[0-9a-fA-F]{2}){16,}", data))


def test_joining_installs_what_the_people_compared(people):
    people.found()
    people.server("admit", people.ask_in(ADLER), answer="yes\n")
    assert Request.read((people.site(ADLER) / "request.json").read_bytes()).fingerprint in people.asked
    code, error, _ = people.refused("site", "join", people.site(ADLER), people.kit(ADLER), answer="no\n")
    assert (code, error) == (2, "ConfigError")
    assert people.fingerprint() in people.asked
    assert not {path.name for path in people.site(ADLER).iterdir()} & set(INSTALLED)
    people.refused("site", "join", people.site(ADLER), people.kit(ADLER))  # nobody there to answer
    said = people.done("site", "join", people.site(ADLER), people.kit(ADLER), answer="yes\n")
    assert said["root_fingerprint"] == people.fingerprint()
    roster = Roster.read(people.site(ADLER) / "roster.json")
    assert roster == Home.open(people.home).roster
    assert roster.sites == (ADLER,)
    connection = Connection.read(people.site(ADLER))
    assert (connection.consortium, str(connection.server)) == ("Heart study", "fl.example.org:8443")
    assert certificate_of(people.site(ADLER)).name == ADLER
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))  # again, and nobody is asked


def test_a_fingerprint_that_does_not_match_installs_nothing(people):
    people.found()
    people.server("admit", people.ask_in(ADLER), "--yes")
    wrong = people.fingerprint().replace("1", "2").replace("3", "4")
    assert "not the one that was told" in refuse(people, people.kit(ADLER).read_bytes(), wrong)
    spaced = people.fingerprint().replace(" ", "-")
    join(people.site(ADLER), people.kit(ADLER).read_bytes(), spaced, asks_nobody, now_utc())
    with pytest.raises(ConfigError, match="no fingerprint"):
        join(people.site(ADLER), people.kit(ADLER).read_bytes(), "yes", asks_nobody, now_utc())


@pytest.fixture
def asking(people) -> People:
    """Adler was admitted and has not joined; birke is a member."""
    people.found()
    people.let_in("birke")
    people.server("admit", people.ask_in(ADLER), "--yes")
    return people


@pytest.mark.parametrize("key", ["server", "roots", "certificate", "roster"])
def test_a_kit_that_was_touched_is_refused(asking, key):
    table = from_json(asking.kit(ADLER).read_bytes())
    stranger = founded()
    other = Kit.read(asking.kit("birke").read_bytes(), Home.open(asking.home).roots[0])
    table["said"][key] = {
        "server": "evil.example.org:8443",
        "roots": stranger.root.pem.decode() + table["said"]["roots"],
        "certificate": other.certificate.pem.decode(),
        "roster": Roster({**other.roster.keys, "mallory": bytes(32)}, "Heart study", 9).signed([stranger.identity]),
    }[key]
    for told in ("told", asking.fingerprint()):
        refuse(asking, to_json(table), told)


def test_a_kit_of_a_wrong_root_is_refused_before_and_after_joining(asking):
    mallory = founded()
    kit = asking.kit(ADLER).read_bytes()
    theirs = Roster.read(asking.home / "roster.json").signed([mallory.identity])
    public = certificate(asking).public
    forged = resigned(
        asking,
        kit,
        mallory,
        roots=mallory.root.pem.decode(),
        roster=theirs,
        certificate=mallory.certify_client(public, ADLER, "site", now_utc()).decode(),
    )
    refuse(asking, forged)
    asking.done("site", "join", asking.site(ADLER), asking.kit(ADLER), "--root-fingerprint", asking.fingerprint())
    assert "signature is missing" in refuse(asking, forged, None)


def certificate(people: People, name: str = ADLER) -> Certificate:
    return Home.open(people.home).certificates()[name]


def test_a_kit_for_somebody_else_is_refused(asking):
    assert "the kit is for site 'birke'" in refuse(asking, asking.kit("birke").read_bytes())
    root = authorities(asking, Home.open(asking.home))[0]
    kit, public = asking.kit(ADLER).read_bytes(), certificate(asking).public
    as_admin = root.certify_client(public, ADLER, "admin", now_utc()).decode()
    assert "admin" in refuse(asking, resigned(asking, kit, certificate=as_admin))
    other_key = root.certify_client(TlsKey.generate().public, ADLER, "site", now_utc()).decode()
    assert "another node.key" in refuse(asking, resigned(asking, kit, certificate=other_key))
    by_stranger = founded().certify_client(public, ADLER, "site", now_utc()).decode()
    assert "not issued" in refuse(asking, resigned(asking, kit, certificate=by_stranger))
    as_server = root.certify_server(public, [ADLER], now_utc()).decode()
    assert "not for a client" in refuse(asking, resigned(asking, kit, certificate=as_server))


def test_a_roster_with_other_keys_for_this_site_is_refused(asking):
    home = Home.open(asking.home)
    root, roster = authorities(asking, home)[0], home.roster
    for changed, why in (
        ({"keys": {**roster.keys, ADLER: Identity.generate().public}}, "another identity"),
        ({"nodes": {**roster.nodes, ADLER: TlsKey.generate().public}}, "another node.key"),
        ({"nodes": {}}, "no node"),
        ({"revoked": frozenset({ADLER})}, "revoked"),
    ):
        values = {"keys": roster.keys, "nodes": roster.nodes, "revoked": roster.revoked, **changed}
        other = Roster(values["keys"], roster.consortium, 9, values["nodes"], (), values["revoked"])
        signed = other.signed([root.identity])
        assert why in refuse(asking, resigned(asking, asking.kit(ADLER).read_bytes(), roster=signed))


def test_an_older_roster_is_never_taken_back(asking):
    older = asking.kit("birke").read_bytes()
    asking.done("site", "join", asking.site("birke"), asking.kit("birke"))
    earlier = asking.kit("birke").read_bytes()
    assert earlier == older
    asking.server("admit", asking.ask_in("cedar"), "--yes")
    asking.done("site", "join", asking.site("birke"), asking.kit("birke"))
    assert "version 4 is held already" in refuse(asking, older, None, name="birke")
    assert "version 4 is held already" in refuse(asking, older, name="birke")  # a fingerprint does not help either


def test_an_expired_certificate_is_refused_and_one_near_its_end_is_seen(asking):
    kit, later = asking.kit(ADLER).read_bytes(), now_utc() + LIFE
    assert "ended on" in refuse(asking, kit, now=later + timedelta(hours=2))
    assert "begins on" in refuse(asking, kit, now=now_utc() - timedelta(hours=3))
    with pytest.raises(ConfigError, match="not joined"):
        needs_renewal(asking.site(ADLER), now_utc())
    join(asking.site(ADLER), kit, asking.fingerprint(), asks_nobody, now_utc())
    assert not needs_renewal(asking.site(ADLER), now_utc())
    assert needs_renewal(asking.site(ADLER), later - LIFE / 6)


def test_a_site_renews_with_the_keys_it_has(asking):
    asking.done("site", "join", asking.site("birke"), asking.kit("birke"))
    before, keys = certificate_of(asking.site("birke")), files_of(asking.site("birke"))
    asking.done("site", "renew", asking.site("birke"), "--server", "127.0.0.1:8443")
    asking.server("admit", asking.site("birke") / "request.json", "--yes")
    asking.done("site", "join", asking.site("birke"), asking.kit("birke"))
    after = certificate_of(asking.site("birke"))
    assert (after.public, after.name) == (before.public, before.name)
    assert after.serial != before.serial
    assert [keys[key] for key in ("identity.key", "node.key", "site.toml")] == [
        files_of(asking.site("birke"))[key] for key in ("identity.key", "node.key", "site.toml")
    ]


def test_a_revoked_site_cannot_join_again(asking):
    home = Home.open(asking.home)
    kit = asking.kit(ADLER).read_bytes()
    changed = revoke(home, ADLER, authorities(asking, home), now_utc())
    assert not asking.kit(ADLER).exists()
    signed = changed.roster.signed([authorities(asking, home)[0].identity])
    assert "'adler' was revoked" in refuse(asking, resigned(asking, kit, roster=signed))
    request = Request.read((asking.site(ADLER) / "request.json").read_bytes())
    with pytest.raises(TrustError, match="revoked, for good"):
        admit(changed, request, authorities(asking, home), now_utc())


@pytest.mark.parametrize("key", ["name", "server", "identity", "csr"])
def test_a_request_that_was_touched_is_refused(people, key):
    people.found()
    table = json.loads(people.ask_in(ADLER).read_bytes())
    other = json.loads(people.ask_in("birke").read_bytes())
    value = "127.0.0.1:8443" if key == "server" else other["said"][key]
    assert value != table["said"][key]
    table["said"][key] = value
    bad = people.place / "bad.json"
    bad.write_bytes(to_json(table))
    assert people.refused("server", "admit", bad, "--home", people.home, "--yes")[:2] == (4, "TrustError")


def test_each_of_both_keys_must_have_signed_a_request(people):
    """The identity's thief without the node's key, and the other way round."""
    people.found()
    mine, theirs = (json.loads(people.ask_in(name).read_bytes())["said"] for name in (ADLER, "birke"))
    identity = Identity.from_private_bytes(load_secret(people.site(ADLER) / "identity.key", None))
    swapped = {**mine, "csr": theirs["csr"]}
    with pytest.raises(TrustError, match="another name or identity"):
        Request.read(to_json(signed_table("veilfed.request.v1", swapped, [identity])))
    renamed = {**mine, "name": "cedar"}
    with pytest.raises(TrustError, match="another name or identity"):
        Request.read(to_json(signed_table("veilfed.request.v1", renamed, [identity])))
    claimed = {**mine, "identity": theirs["identity"]}
    with pytest.raises(TrustError, match="signature is missing"):
        Request.read(to_json(signed_table("veilfed.request.v1", claimed, [identity])))
    as_kit = to_json(signed_table("veilfed.kit.v1", mine, [identity]))
    with pytest.raises(TrustError, match="does not hold"):
        Request.read(as_kit)
