"""Proves: the consortium's ceremonies as its people run them, from nothing to a changed root, and who is kept out.

A ceremony changes everything or nothing, needs the root's key, and no running party is ever left with a broken pair.
"""

import shutil
import ssl
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from client.enroll import certificate_of
from client.site import Site
from common.audit import Audit
from common.certificates import LIFE, Certificate, now_utc, read_roots
from common.enrolment import Kit, Request
from common.errors import ConfigError, FederationError, TrustError
from common.files import write_atomically
from common.keystore import is_open
from common.roster import COORDINATOR
from common.signing import Identity
from common.tls_keys import TlsKey
from server.home import Home, ceremony, unlock_roots
from server.provision import admit, renew
from tests.common.test_certificates import Party, handshake
from tests.consortium import CONSORTIUM, People

ADLER, BIRKE = "adler", "birke"


def home_of(people: People) -> Home:
    return Home.open(people.home)


def roots_of(people: People):
    return unlock_roots(people.home / "root", home_of(people).roots, None)


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".ceremony"
    }


def revoked_serials(people: People) -> set[int]:
    end = b"-----END X509 CRL-----\n"
    parts = (people.home / "crl.pem").read_bytes().split(end)[:-1]
    return {one.serial_number for part in parts for one in x509.load_pem_x509_crl(part + end)}


class Gateway:
    """What TLS says when a member comes to the coordinator's gateway, by the files of both as they are now."""

    def __init__(self, people: People) -> None:
        self.people = people

    def meets(self, name: str) -> str:
        """The name in the client's certificate, as the gateway sees it; both sides have verified the other."""
        place, home = self.people.site(name), self.people.home
        ours = Party.__new__(Party)
        ours.crt, ours.key = place / "node.crt", place / "node.key"
        theirs = Party.__new__(Party)
        theirs.crt, theirs.key = home / "tls" / "gateway.crt", home / "tls" / "gateway.key"
        seen = handshake(theirs, ours, place / "roots.pem", "fl.example.org", at_server=home / "roots.pem")
        return dict(part for (part,) in seen["subject"])["commonName"]


# Founding.


def test_a_new_consortium_is_whole_and_its_secrets_are_its_owners(people):
    said = people.found()
    home = home_of(people)
    assert said["root_fingerprint"] == home.roots[0].fingerprint
    assert (said["keys_made_for"], said["to_be_admitted"]) == ("ada", "rosa")
    assert home.roster.sites == ()
    secrets = [*people.home.rglob("*.key"), people.home / "superexec.secret"]
    assert len(secrets) == 7
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(people.home.stat().st_mode) == 0o700
    assert Identity.from_private_bytes((people.home / "bundle.key").read_bytes()[-32:]).public in home.roster.bundles
    served = x509.load_pem_x509_certificate((people.home / "tls" / "gateway.crt").read_bytes())
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert Certificate.read((people.home / "admins" / "ada.crt").read_bytes()).role == "admin"
    assert not list((people.home / "researchers").iterdir())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "Heart study"', "address"),
        (CONSORTIUM + "more = 1", "more"),
        (CONSORTIUM.replace("Heart study", "Heart, OU=admin"), "Heart, OU=admin"),
        (CONSORTIUM.replace("fl.example.org:8443", "fl.example.org"), "fl.example.org"),
        (CONSORTIUM.replace("127.0.0.1", "https://a"), "https://a"),
        (CONSORTIUM.replace('"rosa"', '"ada"'), "each name once"),
        (CONSORTIUM.replace('"rosa"', '"../rosa"'), "../rosa"),
        (CONSORTIUM.replace('"rosa"', '"coordinator"'), "coordinator"),
    ],
)
def test_settings_that_do_not_hold_found_nothing(people, text, key):
    (people.place / "consortium.toml").write_text(text)
    _, said = people.say("server", "init", people.place / "consortium.toml", "--out", people.home)
    assert said["error"]["code"] == "ConfigError"
    assert key in said["error"]["message"] + said["error"]["hint"]
    assert [path.name for path in people.place.iterdir()] == ["consortium.toml"]


def test_a_consortium_is_never_founded_over_another(people):
    people.found()
    before = everything(people.home)
    code, error, _ = people.refused("server", "init", people.place / "consortium.toml", "--out", people.home)
    assert (code, error, everything(people.home)) == (2, "ConfigError", before)


# Letting in.


def test_a_whole_ceremony_ends_with_members_who_meet_the_gateway(people):
    people.found()
    people.let_in(ADLER, BIRKE)
    assert [Gateway(people).meets(name) for name in (ADLER, BIRKE)] == [ADLER, BIRKE]
    for name in (ADLER, BIRKE):
        site = Site.open(people.site(name))  # the worker starts from what was installed, and site.toml
        assert site.roster.sites == (ADLER, BIRKE)
        assert site.roster.public_key_of(COORDINATOR) == home_of(people).roster.keys[COORDINATOR]


def test_no_answer_and_no_are_no(people):
    people.found()
    request = people.ask_in(ADLER)
    before = everything(people.home)
    for answer in ("", "no\n", "y\n", "\n"):
        code, error, _ = people.refused("server", "admit", request, "--home", people.home, answer=answer)
        assert (code, error) == (2, "ConfigError")
    assert everything(people.home) == before


def refused(people: People, request: Request) -> str:
    before = everything(people.home)
    with pytest.raises(TrustError) as caught:
        admit(home_of(people), request, roots_of(people), now_utc())
    assert everything(people.home) == before
    return caught.value.message


def test_a_name_that_is_taken_and_keys_that_are_taken_are_refused(people):
    people.found()
    people.let_in(ADLER, BIRKE)
    adler, birke = (Request.read((people.site(name) / "request.json").read_bytes()) for name in (ADLER, BIRKE))
    fresh = TlsKey.generate().public
    assert "is taken, with other keys" in refused(people, replace(adler, node=fresh))
    assert "is taken, with other keys" in refused(people, replace(adler, identity=bytes(32)))
    assert "'adler' has these keys already" in refused(people, replace(adler, name="cedar", node=fresh))
    assert "'adler' has these keys already" in refused(people, replace(adler, name="cedar", identity=bytes(32)))
    assert "the name of a person" in refused(people, Request("rosa", birke.server, bytes(32), fresh))
    assert "the name of a person" in refused(people, Request("ada", birke.server, bytes(32), fresh))
    coordinator = home_of(people).roster.keys[COORDINATOR]
    assert "'coordinator' has these keys" in refused(people, Request("cedar", birke.server, coordinator, fresh))
    elsewhere = replace(birke.server, host="fl.example.com")
    assert "this one is at fl.example.org, 127.0.0.1" in refused(people, replace(adler, server=elsewhere))


def test_a_second_admission_is_a_renewal(people):
    people.found()
    people.let_in(ADLER)
    first = certificate_of(people.site(ADLER))
    said = people.server("admit", people.site(ADLER) / "request.json", "--yes")
    assert said["roster_version"] == 2
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))
    assert certificate_of(people.site(ADLER)).serial != first.serial


def test_people_get_certificates_for_their_own_keys_and_roles(people):
    people.found()
    people.let_in(ADLER)
    desk = people.place / "desk"
    asked = people.done("user", "init", desk, "--name", "rosa")
    said = people.server("admit-user", "rosa", "--role", "researcher", "--csr", desk / "rosa.csr", answer="yes\n")
    assert said["fingerprint"] == asked["fingerprint"]
    assert asked["fingerprint"] in people.asked
    made = Certificate.read(Path(said["certificate"]).read_bytes())
    assert (made.name, made.role, made.public) == ("rosa", "researcher", TlsKey.read(desk / "rosa.key").public)
    made.require_client(home_of(people).roots, now_utc())
    people.done("user", "init", desk, "--name", "otto")
    people.done("user", "init", people.place / "other", "--name", "rosa")
    shutil.copy(desk / "otto.key", desk / "adler.key")
    people.done("user", "init", desk, "--name", ADLER)
    for name, role, csr, why in (
        ("rosa", "admin", desk / "rosa.csr", "lists 'rosa' as researcher"),
        ("rosa", "researcher", people.place / "other" / "rosa.csr", "is taken"),
        ("rosa", "researcher", desk / "otto.csr", "is of 'otto'"),
        (ADLER, "auditor", desk / "adler.csr", "name of a site"),
        ("otto", "site", desk / "otto.csr", "invalid choice"),
        ("../otto", "auditor", desk / "otto.csr", "no name"),
    ):
        before = everything(people.home)
        said = people.refused(
            "server", "admit-user", name, "--role", role, "--csr", csr, "--home", people.home, "--yes"
        )
        assert why in said[2]
        assert everything(people.home) == before
    people.server("admit-user", "otto", "--role", "auditor", "--csr", desk / "otto.csr", "--yes")
    shutil.copy(desk / "otto.key", desk / "emil.key")
    people.done("user", "init", desk, "--name", "emil")
    arguments = ("emil", "--role", "auditor", "--csr", desk / "emil.csr", "--home", people.home, "--yes")
    assert "somebody else" in people.refused("server", "admit-user", *arguments)[2]
    stolen = Request(  # a site with the key of a person
        "cedar", Request.read((people.site(ADLER) / "request.json").read_bytes()).server, bytes(32), made.public
    )
    assert "'rosa' has these keys" in refused(people, stolen)


def test_a_request_of_openssl_is_as_good(people):
    people.found()
    command = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k -out r -subj /CN=rosa"
    subprocess.run(command.split(), cwd=people.place, check=True, capture_output=True)
    people.server("admit-user", "rosa", "--role", "researcher", "--csr", people.place / "r", "--yes")


# Renewing.


def test_renewal_is_for_what_is_near_its_end_or_named_and_keeps_keys(people):
    people.found()
    people.let_in(ADLER, BIRKE)
    assert people.server("renew")["renewed"] == ""
    before = everything(people.home)
    assert people.server("renew", ADLER, "gateway")["renewed"] == "adler, gateway"
    after = everything(people.home)
    changed = {name for name in after if after[name] != before.get(name) and not name.startswith("issued/")}
    assert changed - {"crl.pem", "audit.jsonl", "witnesses/audit"} == {"kits/adler.json", "tls/gateway.crt"}
    assert after["tls/gateway.key"] == before["tls/gateway.key"]
    later = now_utc() + LIFE * 0.9
    done = renew(home_of(people), (), False, roots_of(people), later)
    assert set(done.clients) == {ADLER, BIRKE, "ada"}
    assert set(done.servers) == {"gateway", "superlink"}
    for certificate in home_of(people).certificates().values():
        assert certificate.ends == later + LIFE
    assert people.refused("server", "renew", "nobody", "--home", people.home)[:2] == (2, "ConfigError")


def test_a_new_kit_is_installed_while_the_old_certificate_still_works(people):
    people.found()
    people.let_in(ADLER)
    people.server("renew", "--all")
    assert Gateway(people).meets(ADLER) == ADLER  # old certificate, new gateway
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))
    assert Gateway(people).meets(ADLER) == ADLER


# Putting out.


def test_a_revoked_site_is_on_both_lists_and_out_for_good(people):
    people.found()
    people.let_in(ADLER, BIRKE)
    people.server("renew", ADLER)  # two certificates now, and both must go
    serials = {one.serial for one in home_of(people).issued() if one.name == ADLER}
    assert len(serials) == 2
    said = people.server("revoke", ADLER)
    assert revoked_serials(people) == serials
    roster = home_of(people).roster
    assert (roster.version, roster.sites) == (said["roster_version"], (BIRKE,))
    with pytest.raises(TrustError, match="revoked"):
        roster.public_key_of(ADLER)
    people.done("site", "join", people.site(BIRKE), people.kit(BIRKE))
    with pytest.raises(TrustError, match="revoked"):
        Site.open(people.site(BIRKE)).roster.public_key_of(ADLER)
    arguments = ("server", "admit", people.site(ADLER) / "request.json", "--home", people.home, "--yes")
    assert people.refused(*arguments)[:2] == (4, "TrustError")
    shutil.rmtree(people.site(ADLER))
    people.ask_in(ADLER)
    assert "for good" in people.refused(*arguments)[2]
    assert people.refused("server", "renew", ADLER, "--home", people.home)[0] == 4
    assert people.server("revoke", ADLER)["roster_version"] == roster.version


def test_a_person_can_be_put_out_too_and_the_coordinator_cannot(people):
    people.found()
    people.server("revoke", "ada")
    assert revoked_serials(people) == {one.serial for one in home_of(people).issued() if one.name == "ada"}
    for name in (COORDINATOR, "nobody"):
        assert people.refused("server", "revoke", name, "--home", people.home)[:2] == (2, "ConfigError")


# The root.


def test_nothing_happens_without_the_roots_key(people):
    people.found()
    request = people.ask_in(ADLER)
    away = people.place / "usb"
    shutil.move(people.home / "root", away)
    before = everything(people.home)
    for word, arguments in (
        ("admit", (request, "--yes")),
        ("renew", ("--all",)),
        ("revoke", ("ada",)),
        ("rotate-root", ()),
    ):
        code, error, _ = people.refused("server", word, *arguments, "--home", people.home)
        assert (code, error) == (2, "ConfigError")
    assert everything(people.home) == before
    people.server("admit", request, "--yes", "--root", away)
    stranger = people.place / "stranger"
    people.done("server", "init", people.place / "consortium.toml", "--out", stranger)
    arguments = ("server", "revoke", "ada", "--home", people.home, "--root", stranger / "root")
    assert people.refused(*arguments)[:2] == (2, "ConfigError")


def test_the_roots_key_can_be_locked(people):
    passphrase = people.place / "root.pass"
    passphrase.write_text("correct horse battery staple\n")
    passphrase.chmod(0o600)
    people.found(CONSORTIUM, "--passphrase-file", passphrase)
    assert not is_open(people.home / "root" / "root.key")
    assert "locked" in people.refused("server", "renew", "--home", people.home)[2]
    people.server("rotate-root", "--passphrase-file", passphrase)
    assert not is_open(people.home / "root" / "root-2.key")
    people.server("rotate-root", "--finish", "--passphrase-file", passphrase)
    passphrase.write_text("wrong\n")
    arguments = ("server", "renew", "--home", people.home, "--passphrase-file", passphrase)
    assert people.refused(*arguments)[:2] == (4, "TrustError")


def test_a_root_is_replaced_with_an_overlap_in_which_everybody_works(people):
    people.found()
    people.let_in(ADLER, BIRKE)
    meets, first = Gateway(people).meets, people.fingerprint()
    people.server("rotate-root")
    assert people.fingerprint() != first
    people.server("renew", "gateway", "superlink")
    assert [meets(ADLER), meets(BIRKE)] == [ADLER, BIRKE]  # nobody has heard of it yet
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))
    assert [meets(ADLER), meets(BIRKE)] == [ADLER, BIRKE]  # one of two has
    newest, oldest = read_roots((people.site(ADLER) / "roots.pem").read_bytes())
    assert certificate_of(people.site(ADLER)).is_issued_by(newest)
    assert not certificate_of(people.site(ADLER)).is_issued_by(oldest)
    assert people.refused("server", "rotate-root", "--home", people.home)[:2] == (2, "ConfigError")
    people.let_in("cedar")  # who comes in the middle, by the new root's fingerprint
    people.server("rotate-root", "--finish")
    assert [meets(ADLER), meets("cedar")] == [ADLER, "cedar"]
    with pytest.raises(ssl.SSLError):
        meets(BIRKE)  # did not install a kit in time
    assert sorted(path.name for path in (people.home / "root").iterdir()) == ["root-2.crt", "root-2.key"]
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))
    assert [root.key for root in read_roots((people.site(ADLER) / "roots.pem").read_bytes())] == [newest.key]
    assert "signature is missing" in people.refused("site", "join", people.site(BIRKE), people.kit(BIRKE))[2]
    people.done("site", "join", people.site(BIRKE), people.kit(BIRKE), "--root-fingerprint", people.fingerprint())
    assert meets(BIRKE) == BIRKE
    assert people.refused("server", "rotate-root", "--finish", "--home", people.home)[:2] == (2, "ConfigError")


def test_a_thief_of_the_old_root_forges_no_kit_once_the_new_one_is_pinned(people):
    people.found()
    people.let_in(ADLER)
    (old,) = roots_of(people)
    people.server("rotate-root")
    people.done("site", "join", people.site(ADLER), people.kit(ADLER))
    stolen = people.place / "stolen"
    stolen.mkdir()
    home = home_of(people)
    certificate = Certificate.read(
        old.certify_client(certificate_of(people.site(ADLER)).public, ADLER, "site", now_utc())
    )
    roster = replace(home.roster, version=99, keys={**home.roster.keys, "mallory": bytes(32)})
    forged = stolen / "kit.json"
    forged.write_bytes(
        Kit.make(
            Request.read((people.site(ADLER) / "request.json").read_bytes()).server,
            [old.root],
            certificate,
            roster.signed([old.identity]),
            [old.identity],
        )
    )
    assert "signature is missing" in people.refused("site", "join", people.site(ADLER), forged)[2]


def test_every_ceremony_is_on_record(people):
    people.found()
    people.let_in(ADLER)
    people.server("renew", ADLER)
    people.server("rotate-root")
    people.server("rotate-root", "--finish")
    people.server("revoke", ADLER)
    people.refused("server", "renew", ADLER, "--home", people.home)
    entries = Audit.read(people.home, home_of(people).roster.keys[COORDINATOR]).entries()
    told = [(entry.record["command"], entry.record["subject"].split()[0]) for entry in entries]
    assert [one for one in told if one[0] != "init"] == [
        ("admit", ADLER),
        ("renew", ADLER),
        ("rotate-root", "begun"),
        ("rotate-root", "finished"),
        ("revoke", ADLER),
    ]


# Crashes.


@pytest.mark.parametrize("word", ["admit", "revoke", "rotate", "finish"])
def test_a_ceremony_that_was_cut_short_leaves_a_home_that_opens_and_can_be_asked_again(people, monkeypatch, word):
    """Stopped before each file that it writes, in turn; then asked again, which succeeds."""
    people.found()
    people.let_in(ADLER)
    if word == "finish":
        people.server("rotate-root")
    request = people.ask_in(BIRKE)
    arguments = {
        "admit": ("admit", request, "--yes"),
        "revoke": ("revoke", ADLER),
        "rotate": ("rotate-root",),
        "finish": ("rotate-root", "--finish"),
    }[word]
    kept, home = people.place / "kept", people.home
    shutil.copytree(home, kept)
    crashes = 0
    for at in range(100):
        shutil.rmtree(home)
        shutil.copytree(kept, home)
        steps = iter(range(1000))
        with monkeypatch.context() as patched:
            for module in ("server.home", "server.provision", "common.roster", "common.keystore"):
                patched.setattr(f"{module}.write_atomically", stopping_at(at, steps))
            code, _ = people.say("server", *arguments, "--home", home)
        if code == 0:
            break
        crashes += 1
        assert home_of(people).roster.version >= Home.open(kept).roster.version
        code, said = people.say("server", *arguments, "--home", home)
        if code:  # a root that is in force already is not made in force twice; `renew` finishes what is left
            assert (word, said["error"]["message"]) == ("rotate", "two roots are in force already")
            assert "veilfed server renew" in said["error"]["hint"]
            people.server("renew")
        finished = home_of(people)
        for name in finished.roster.sites:
            kit = Kit.read(people.kit(name).read_bytes(), finished.roots[-1])
            kit.certificate.require_client(finished.roots[:1], now_utc())
            assert kit.roster == finished.roster
        if word == "finish":
            assert [path.name for path in (home / "root").glob("*.key")] == ["root-2.key"]
    assert crashes >= 3


def stopping_at(at: int, steps):
    def stopping(path, data, mode=0o600):
        if next(steps) == at:
            raise KeyboardInterrupt
        write_atomically(path, data, mode)

    return stopping


def test_a_home_that_is_none_is_named(people):
    for word, arguments in (("renew", ()), ("revoke", ("a",)), ("rotate-root", ())):
        code, error, message = people.refused("server", word, *arguments, "--home", people.home)
        assert (code, error) == (2, "ConfigError")
        assert str(people.home) in message
    people.home.mkdir()
    with pytest.raises(ConfigError), ceremony(people.home):
        raise AssertionError("opened")


def test_a_home_whose_roster_was_touched_does_not_open(people):
    people.found()
    path = people.home / "roster.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(FederationError):
        home_of(people)
    assert people.refused("server", "rotate-root", "--home", people.home)[0] == 4
