"""Proves: a roster counts only as its consortium's roots signed it, the newest counts, and who was revoked does not."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from common import roster as roster_module
from common.errors import ConfigError, FederationError, TrustError, WireError
from common.files import write_atomically
from common.roster import COORDINATOR, Roster, install
from common.signing import Identity
from common.tls_keys import TlsKey
from common.wire import to_json
from tests.consortium import founded, hand_out, roster_of

ROOT, NEXT, THIRD = founded(), founded(), founded()
NODE = TlsKey.generate().public
ROSTER = roster_of(ROOT, "adler", "birke", nodes={"adler": NODE}, bundles=(bytes(32),), revoked=frozenset({"birke"}))


def read(place: Path) -> Roster:
    return Roster.read(place / "roster.json")


def test_a_signed_roster_is_read_as_it_was_written(place):
    hand_out(ROSTER, place, ROOT)
    assert read(place) == ROSTER
    assert ROSTER.sites == ("adler",)
    assert ROSTER.node_key_of("adler") == NODE


def test_who_was_revoked_is_told_from_who_was_never_there():
    assert ROSTER.public_key_of("adler") == ROSTER.keys["adler"]
    with pytest.raises(TrustError, match="'birke' was revoked"):
        ROSTER.public_key_of("birke")
    with pytest.raises(TrustError, match="'cedar' is not on the roster"):
        ROSTER.public_key_of("cedar")
    with pytest.raises(TrustError, match="'birke' was revoked"):
        ROSTER.node_key_of("birke")
    with pytest.raises(TrustError, match="no node"):
        ROSTER.node_key_of(COORDINATOR)


@pytest.mark.parametrize("key", ["version", "consortium", "keys", "nodes", "bundles", "revoked"])
def test_no_field_can_be_changed(place, key):
    hand_out(ROSTER, place, ROOT)
    path = place / "roster.json"
    table, other = json.loads(path.read_bytes()), roster_of(ROOT, "adler", "cedar", version=9)
    theirs = other.signed([ROOT.identity])["said"][key] if key != "consortium" else "Lung study"
    assert theirs != table["said"][key]
    table["said"][key] = theirs
    path.write_bytes(to_json(table))
    with pytest.raises(TrustError, match="does not hold"):
        read(place)


def test_there_is_no_unsigned_roster(place):
    hand_out(ROSTER, place, ROOT)
    path = place / "roster.json"
    table = json.loads(path.read_bytes())
    for broken in (table["said"], {**table, "signatures": {}}, {"said": table["said"]}, {**table, "more": 1}):
        path.write_bytes(to_json(broken))
        with pytest.raises(FederationError):
            read(place)
    path.write_bytes(to_json(ROSTER.signed([NEXT.identity])))
    with pytest.raises(TrustError, match="signature is missing"):
        read(place)
    path.write_bytes(to_json(table))
    (place / "roots.pem").write_bytes(NEXT.root.pem)
    with pytest.raises(TrustError):
        read(place)
    (place / "roots.pem").unlink()
    with pytest.raises(ConfigError, match=r"roots\.pem"):
        read(place)


def test_a_signature_for_something_else_is_none(place):
    hand_out(ROSTER, place, ROOT)
    table = ROSTER.signed([ROOT.identity])
    table["signatures"] = {ROOT.root.key.hex(): ROOT.identity.sign("veilfed.kit.v1", to_json(table["said"])).hex()}
    (place / "roster.json").write_bytes(to_json(table))
    with pytest.raises(TrustError, match="does not hold"):
        read(place)


def test_of_two_roots_in_force_both_must_have_signed(place):
    hand_out(ROSTER, place, NEXT, ROOT)
    assert read(place) == ROSTER
    for only in (ROOT, NEXT):
        (place / "roster.json").write_bytes(to_json(ROSTER.signed([only.identity])))
        with pytest.raises(TrustError, match="signature is missing"):
            read(place)


def test_a_root_of_another_consortium_signs_nothing_here(place):
    lung = founded("Lung study")
    with pytest.raises(TrustError, match="another consortium"):
        Roster.opened(ROSTER.signed([lung.identity]), [lung.root])


def test_an_older_roster_or_a_second_one_of_the_same_version_does_not_follow():
    newer = replace(ROSTER, version=2)
    newer.require_follows(ROSTER)
    ROSTER.require_follows(ROSTER)
    with pytest.raises(TrustError, match="version 2 is held"):
        ROSTER.require_follows(newer)
    with pytest.raises(TrustError, match="two rosters of version 1"):
        replace(ROSTER, revoked=frozenset()).require_follows(ROSTER)
    with pytest.raises(TrustError, match="Lung study"):
        replace(newer, consortium="Lung study").require_follows(ROSTER)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": {"adler": bytes(32)}},
        {"keys": {**ROSTER.keys, "cedar": ROSTER.keys["adler"]}},
        {"keys": {**ROSTER.keys, "cedar": bytes(31)}},
        {"keys": {**ROSTER.keys, "../cedar": bytes(32)}},
        {"nodes": {"cedar": NODE}},
        {"nodes": {"adler": NODE, "birke": NODE}},
        {"nodes": {COORDINATOR: NODE}},
        {"bundles": (b"x",)},
        {"revoked": frozenset({COORDINATOR})},
        {"version": 0},
        {"consortium": "Heart, OU=admin"},
    ],
)
def test_an_impossible_roster_is_never_born_nor_read(change):
    with pytest.raises(ConfigError):
        replace(ROSTER, **change)
    born = object.__new__(Roster)
    for field in ("keys", "consortium", "version", "nodes", "bundles", "revoked"):
        object.__setattr__(born, field, change.get(field, getattr(ROSTER, field)))
    with pytest.raises(WireError):
        Roster.opened(born.signed([ROOT.identity]), [ROOT.root])


ROTATIONS = [((ROOT,), (NEXT, ROOT)), ((NEXT, ROOT), (NEXT,)), ((NEXT, ROOT), (THIRD, NEXT)), ((ROOT,), (ROOT,))]


@pytest.mark.parametrize(("before", "after"), ROTATIONS)
def test_a_crash_anywhere_in_an_installation_leaves_a_pair_that_holds(place, monkeypatch, before, after):
    newer = replace(ROSTER, version=2)
    for crash_at in range(4):
        hand_out(ROSTER, place / str(crash_at), *before)
        steps = iter(range(10))

        def stopping(path, data, mode, steps=steps, at=crash_at):
            if next(steps) == at:
                raise KeyboardInterrupt
            write_atomically(path, data, mode)

        with monkeypatch.context() as patched:
            patched.setattr("common.roster.write_atomically", stopping)
            try:
                hand_out(newer, place / str(crash_at), *after)
            except KeyboardInterrupt:
                assert read(place / str(crash_at)) in (ROSTER, newer)
        hand_out(newer, place / str(crash_at), *after)
        assert read(place / str(crash_at)) == newer


def test_an_installation_between_the_reading_of_two_files_is_noticed(place, monkeypatch):
    """The reader has the old roots in its hands when both files are replaced."""
    hand_out(ROSTER, place, NEXT, ROOT)
    newer, real = replace(ROSTER, version=2), roster_module._bytes_of

    def interrupted(path: Path) -> bytes:
        data = real(path)
        monkeypatch.setattr(roster_module, "_bytes_of", real)
        hand_out(newer, place, NEXT)
        return data

    monkeypatch.setattr(roster_module, "_bytes_of", interrupted)
    assert read(place) == newer


def test_whoever_reads_while_roots_change_finds_a_pair_that_holds(place):
    """120 installations of four kinds in a row, while two threads do nothing but read."""
    stages = [(ROOT,), (NEXT, ROOT), (THIRD, NEXT), (ROOT, THIRD)]
    signed = [(replace(ROSTER, version=1 + number), stages[number % 4]) for number in range(120)]
    hand_out(signed[0][0], place, *signed[0][1])
    seen, broken, over = set(), [], threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                seen.add(read(place).version)
            except FederationError as error:
                broken.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for roster, roots in signed:
        install(place, roster.signed([one.identity for one in roots]), [one.root for one in roots])
    over.set()
    for reader in readers:
        reader.join()
    assert not broken
    assert len(seen) > 10


def test_identities_that_are_no_keys_do_not_crash_the_reader(place):
    hand_out(ROSTER, place, ROOT)
    table = json.loads((place / "roster.json").read_bytes())
    table["signatures"] = {"00": "11", Identity.generate().public.hex(): "zz"}
    (place / "roster.json").write_bytes(to_json(table))
    with pytest.raises(WireError):
        read(place)
