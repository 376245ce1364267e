"""Proves: an administrator is told all that is wrong at once, in words, and asking changes nothing of the site."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.check import check
from common.config import load_table
from scenarios.cli import main
from scenarios.simulate import simulate
from tests.by_hand import NAMES, workplace
from tests.client.test_dry_run import everything
from tests.common.test_audit import told

NOW = datetime.now(UTC)


@pytest.fixture
def site(tmp_path) -> Path:
    return workplace(tmp_path / "run", NAMES).sites[0]


def change(site: Path, file: str, **values) -> None:
    path = site / file
    path.write_text(tomli_w.dumps(load_table(path) | values))


def certificate(site: Path, begins: datetime, ends: datetime) -> None:
    key, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "adler")])
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begins, ends)
    signed = built.sign(key, hashes.SHA384())
    (site / "node.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def test_a_site_that_is_ready_says_what_it_would_agree_to(site, capsys):
    certificate(site, NOW - timedelta(days=1), NOW + timedelta(days=90))
    before = everything(site)
    code, answer = told(capsys, "site", "check", site)
    assert (code, answer["ready"], answer["problems"], answer["notes"]) == (0, True, [], [])
    assert (answer["site"], answer["records"] + answer["held_out"], answer["sites_on_roster"]) == ("adler", 20, 4)
    assert (answer["epsilon_spent"], answer["epsilon_left"], answer["delta"]) == (0.0, 100.0, 1e-3)
    assert answer["certificate_ends"].startswith(f"{NOW + timedelta(days=90):%Y-%m-%d}")
    assert any("at most epsilon 100 at delta 0.001" in words for words in answer["agrees_to"])
    assert everything(site) == before


def test_what_was_spent_is_left_out_of_what_remains(tmp_path, capsys):
    place = workplace(tmp_path / "run", NAMES)
    simulate(place)
    before = everything(place.sites[0])
    change(place.sites[0], "policy.toml", epsilon=2.0)
    _, answer = told(capsys, "site", "check", place.sites[0])
    _, shown = told(capsys, "site", "ledger", "show", place.sites[0])
    assert answer["epsilon_spent"] == shown["epsilon"] > 1
    assert answer["epsilon_left"] == pytest.approx(2.0 - shown["epsilon"])
    changed = {path for path, was in everything(place.sites[0]).items() if before[path] != was}
    assert changed == {str(place.sites[0] / "policy.toml")}
    change(place.sites[0], "policy.toml", epsilon=1.0)
    assert any("has lost epsilon" in words for words in told(capsys, "site", "check", place.sites[0])[1]["problems"])


def test_every_problem_is_told_at_once(site, capsys):
    change(site, "policy.toml", min_cohort=1)
    change(site, "site.toml", data={"name": "d", "loader": "tests.by_hand:no_such"})
    (site / "roster.json").write_text("{}")
    (site / "identity.key").chmod(0o644)
    (site / "node.crt").write_text("nonsense")
    code, answer = told(capsys, "site", "check", site)
    assert (code, answer["ready"]) == (2, False)
    for word in ("min_cohort", "no_such", "roster.json", "mode 0644", "node.crt"):
        assert sum(word in problem for problem in answer["problems"]) == 1, word
    assert len(answer["problems"]) == 5
    assert main(["site", "check", str(site)]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("PROBLEM: ") == 5
    assert shown.err == "veilfed: 5 problems keep this site from taking part\n"


def problem(site: Path, now: datetime | None = None) -> str:
    (only,) = check(site, now or datetime.now(UTC)).problems
    return only


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda site: (site / "policy.toml").unlink(), "policy.toml"),
        (lambda site: change(site, "policy.toml", resources={"free_disk_mb": 2**39}), "are free on this site's disk"),
        (lambda site: change(site, "policy.toml", delta=0.09), "delta"),
        (lambda site: change(site, "policy.toml", colour="red"), "colour is not a known key"),
        (lambda site: (site / "roster.json").unlink(), "roster"),
        (lambda site: certificate(site, NOW - timedelta(days=9), NOW - timedelta(days=1)), "clock"),
        (lambda site: certificate(site, NOW + timedelta(hours=1), NOW + timedelta(days=1)), "clock"),
    ],
)
def test_each_problem_is_found_by_itself(site, harm, word):
    harm(site)
    assert word in problem(site)


def test_another_sites_key_is_found(site):
    (site / "identity.key").write_bytes((site.parent / "birke" / "identity.key").read_bytes())
    assert "another key for adler" in problem(site)


def test_a_clock_that_went_back_is_found_by_the_log(tmp_path):
    place = workplace(tmp_path / "run", NAMES)
    simulate(place)
    assert check(place.sites[0], datetime.now(UTC)).problems == []
    assert "clock" in problem(place.sites[0], datetime.now(UTC) - timedelta(hours=1))


def test_a_log_or_ledger_that_was_touched_is_found(tmp_path):
    place = workplace(tmp_path / "run", NAMES)
    simulate(place)
    for path in (place.sites[0] / "audit.jsonl", *(place.sites[0] / "ledgers").glob("*.jsonl")):
        before = path.read_bytes()
        path.write_bytes(b"".join(before.splitlines(keepends=True)[:-1]))
        assert "rolled back or truncated" in problem(place.sites[0])
        path.write_bytes(before)


def test_what_will_need_care_is_a_note(site):
    certificate(site, NOW - timedelta(days=1), NOW + timedelta(days=20))
    later = NOW + timedelta(hours=12)
    change(site, "policy.toml", windows=[{"start": f"{later:%H:%M}", "end": f"{later + timedelta(minutes=5):%H:%M}"}])
    found = check(site, NOW)
    assert found.problems == []
    assert [word in note for word, note in zip(("windows", "renew"), found.notes, strict=True)] == [True, True]
