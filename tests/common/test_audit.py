"""Proves: what a party wrote down is what can be read later, by anyone with its public key, or the lie is found."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.site import Site
from common import audit
from common.audit import AdminCommand, Audit, Event, Opened, Refused
from common.errors import ConfigError, TrustError
from common.roster import COORDINATOR
from common.signing import Identity
from scenarios.cli import main
from scenarios.simulate import simulate
from scenarios.simulation import Workplace
from tests.by_hand import NAMES, restart, workplace

ME, STRANGER = Identity.generate(), Identity.generate()


def written(place: Path, signer: Identity = ME, events: int = 4) -> Path:
    log = Audit.open(place, signer)
    for number in range(events):
        log.note(Refused("train", "ab" * 16, number, "BudgetExceeded", f"reason {number}"))
    return place / "audit.jsonl"


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_noted_is_read_in_order_with_its_fields_and_time(place):
    log = Audit.open(place, ME)
    log.note(AdminCommand.now("lock", "cleveland"))
    log.note(Opened("ab" * 16, 3, ("a", "b"), "cd" * 32))
    first, second = (dict(entry.record) for entry in Audit.read(place, ME.public).entries())
    assert first.pop("time").endswith("+00:00")
    assert first.pop("by").startswith("uid ")
    assert first == {"event": "AdminCommand", "command": "lock", "subject": "cleveland"}
    assert (second["event"], second["sites"], second["round"]) == ("Opened", ["a", "b"], 3)


def tampered(data: list[bytes]) -> list[bytes]:
    return [data[0], data[1].replace(b"reason 1", b"reason 9"), *data[2:]]


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (tampered, "line 2"),
        (lambda data: data[:-1], "rolled back or truncated"),
        (lambda data: [], "rolled back or truncated"),
        (lambda data: [data[0], data[2], data[1], data[3]], "line 2"),
        (lambda data: [data[0], *data[2:]], "line 2"),
        (lambda data: [*data, data[3]], "line 5"),
        (lambda data: data[1:], "line 1"),
    ],
    ids=["tampered", "truncated", "emptied", "reordered", "one taken out", "one doubled", "beginning cut off"],
)
def test_whatever_was_done_to_a_log_is_found(place, harm, word):
    path = written(place)
    path.write_bytes(b"".join(harm(lines(path))))
    with pytest.raises(TrustError, match=word):
        Audit.read(place, ME.public)
    with pytest.raises(TrustError, match=word):
        Audit.open(place, ME)


@settings(deadline=None)
@given(st.data())
def test_no_single_byte_can_be_another(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("bytes")
    path = written(place, events=2)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(TrustError):
        Audit.read(place, ME.public)


def test_a_log_by_another_hand_is_found_whole_or_from_one_line_on(place, tmp_path):
    """The chain and the witness of a forger are in order; only the key is not the party's."""
    written(place, STRANGER)
    with pytest.raises(TrustError, match="line 1: not signed by the owner"):
        Audit.read(place, ME.public)
    other = tmp_path / "other"
    other.mkdir()
    written(other)
    forger = audit.AppendLog(
        other / "audit.jsonl", other / "witnesses" / "audit", sign=lambda data: STRANGER.sign(audit.CONTEXT, data)
    )
    forger.append({"time": "2026-11-24T00:00:00+00:00", "event": "Approved"})
    with pytest.raises(TrustError, match="line 5: not signed by the owner"):
        Audit.read(other, ME.public)


def test_a_signature_for_another_purpose_is_none(place):
    """A ledger's line, signed by the very party, is no audit event."""
    log = audit.AppendLog(place / "audit.jsonl", sign=lambda data: ME.sign("veilfed.ledger.v1", data))
    log.append({"time": "2026-11-24T00:00:00+00:00", "event": "Approved"})
    with pytest.raises(TrustError, match="line 1"):
        Audit.read(place, ME.public)


def test_a_witness_elsewhere_finds_a_home_that_was_put_back_whole(place, tmp_path):
    """Log and the witness beside it, both as they were yesterday: only what is kept on another disk tells."""
    elsewhere = tmp_path / "elsewhere"
    log = Audit.open(place, ME, elsewhere)
    log.note(AdminCommand.now("admit", "a"))
    yesterday = tmp_path / "yesterday"
    shutil.copytree(place, yesterday)
    log.note(AdminCommand.now("revoke", "a"))
    assert Audit.read(place, ME.public, elsewhere / "audit").head == log.head
    assert Audit.read(yesterday, ME.public)
    with pytest.raises(TrustError, match="rolled back or truncated"):
        Audit.read(yesterday, ME.public, elsewhere / "audit")


def test_what_others_wrote_is_shortened(place):
    log = Audit.open(place, ME)
    log.note(Refused("x" * 10_000, "", 0, "WireError", "y" * 10_000))
    log.note(Opened("", 1, ("z" * 10_000,), ""))
    assert len((place / "audit.jsonl").read_bytes()) < 3 * 1500


def test_every_event_has_plain_fields_and_a_name_of_its_own():
    kinds = get_args(Event)
    assert len({kind.__name__ for kind in kinds}) == len(kinds)
    plain = {str, int, float, tuple[str, ...]}
    for kind in kinds:
        assert {field.type for field in fields(kind)} <= plain, kind
        assert not {"time", "event"} & {field.name for field in fields(kind)}


def test_no_log_is_no_verdict(place):
    with pytest.raises(ConfigError, match="holds no audit log"):
        Audit.read(place, ME.public)


# The commands, on the homes of a federation that ran.


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Workplace:
    place = workplace(tmp_path_factory.mktemp("played") / "run", NAMES)
    simulate(place)
    return place


def told(capsys, *arguments: object) -> tuple[int, dict]:
    restart()
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def homes(played: Workplace) -> dict[str, Path]:
    return {COORDINATOR: played.out / "coordinator", "adler": played.sites[0]}


@pytest.mark.parametrize("name", [COORDINATOR, "adler"])
def test_either_sides_home_is_verified_by_whoever_can_read_it(played, capsys, name, tmp_path):
    """Without the private key, which an auditor never has."""
    copied = tmp_path / "home"
    shutil.copytree(homes(played)[name], copied)
    (copied / "identity.key").unlink()
    code, verdict = told(capsys, "audit", "verify", copied)
    assert (code, set(verdict)) == (0, {"verified", "subject", "signer"})
    assert (verdict["verified"], verdict["signer"]) == (True, name)
    path = copied / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":7', 1))
    for action in ("verify", "export"):
        code, verdict = told(capsys, "audit", action, copied)
        assert (code, verdict["verified"], set(verdict)) == (4, False, {"verified", "reason", "where"})
        assert verdict["where"] == str(path)


def test_a_log_under_another_partys_name_is_not_verified(played, capsys, tmp_path):
    copied = tmp_path / "home"
    shutil.copytree(played.sites[0], copied)
    shutil.copyfile(played.sites[1] / "audit.jsonl", copied / "audit.jsonl")
    shutil.copyfile(played.sites[1] / "witnesses" / "audit", copied / "witnesses" / "audit")
    code, verdict = told(capsys, "audit", "verify", copied)
    assert (code, verdict["verified"]) == (4, False)
    assert "not signed by the owner" in verdict["reason"]


def test_both_sides_tell_the_same_story(played, capsys):
    """Who took part in what, and which model came of it, in logs that neither could write for the other."""
    events = {name: told(capsys, "audit", "export", home)[1]["events"] for name, home in homes(played).items()}
    closed = [event for event in events[COORDINATOR] if event["event"] == "RoundClosed"]
    opened = [event for event in events["adler"] if event["event"] == "Opened"]
    assert [(e["round"], e["sites"], e["model"]) for e in closed] == [
        (e["round"], e["sites"], e["model"]) for e in opened
    ]
    assert [event["round"] for event in opened] == [1, 2, 3]
    released = [[e["sha256"] for e in told_by if e["event"] == "Released"] for told_by in events.values()]
    assert released[0] == released[1] != []
    sealed = [event for event in events["adler"] if event["event"] == "Sealed"]
    assert sealed[-1]["epsilon"] == told(capsys, "site", "ledger", "show", played.sites[0])[1]["epsilon"]
    names = [event["event"] for event in events[COORDINATOR]]
    assert names == ["RunSubmitted", "SitesGathered", "KeyRelayed", *["RoundClosed"] * 3, "Released", "RunEnded"]


def test_an_export_is_one_event_a_line_from_a_moment_on(played, capsys):
    main(["audit", "export", str(played.sites[0])])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert {row["signer"] for row in rows} == {"adler"}
    for since, expected in (("2020-01-01", len(rows)), ("2100-01-01T00:00:00+05:00", 0)):
        assert len(told(capsys, "audit", "export", played.sites[0], "--since", since)[1]["events"]) == expected
    assert main(["audit", "export", str(played.sites[0]), "--since", "yesterday"]) == 2


@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2K\x1b[1A", "\u2028", "\x85", "\u202e", "\x9b2J", "\x7f"])
def test_what_the_other_side_wrote_cannot_forge_a_line(played, capsys, tmp_path, evil):
    """Neither in the log, nor in an export, nor in an error that quotes it on a terminal."""
    copied = tmp_path / "home"
    shutil.copytree(played.sites[0], copied)
    site = Site.open(copied)
    before = len(lines(copied / "audit.jsonl"))
    site.audit.note(Refused("train", "", 1, "WireError", f'x{evil}{{"event":"Approved"}}'))
    assert len(lines(copied / "audit.jsonl")) == before + 1
    assert main(["audit", "export", str(copied)]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == before + 1
    assert all(character == "\n" or " " <= character <= "~" for character in shown)
    order = tmp_path / "order.toml"
    order.write_text("[federation]\n" + json.dumps(f"x{evil}veilfed: approved").replace("\x7f", "\\u007f") + " = 1\n")
    assert main(["site", "check", str(copied), "--order", str(order)]) == 2
    said = capsys.readouterr().err
    assert "veilfed: approved" in said
    assert len(said.splitlines()) == 1
    assert evil not in said.rstrip("\n")
