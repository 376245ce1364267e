"""Proves: a log loses nothing in a crash, and nobody changes, cuts, copies or rolls it back unnoticed."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.append_log import AppendLog
from common.errors import TrustError

RECORDS = [{"round": number, "note": note} for number, note in enumerate(["first", "zweite", "третья", "四"])]


def written(path: Path, witness: Path | None = None) -> AppendLog:
    log = AppendLog(path, witness)
    for record in RECORDS:
        log.append(record)
    return log


def records(log: AppendLog) -> list[object]:
    return [entry.record for entry in log.entries()]


def test_what_was_appended_is_read_back_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "below" / "log"
    log = written(path)
    for other in (AppendLog(path), AppendLog(path, read_only=True)):
        assert records(other) == RECORDS
        assert other.head == log.head
    assert [entry.index for entry in log.entries()] == [0, 1, 2, 3]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_bytes_of_a_log_are_these(tmp_path: Path) -> None:
    """Golden bytes: a later build must read and write the logs of this one."""
    AppendLog(tmp_path / "log").append({"b": 1.5, "a": [True, None]})
    assert (tmp_path / "log").read_bytes() == (
        b'{"hash":"178aba7bb4201e89860f4557cfec16a881642504f99b430f42f8a21e203172a8","index":0,"previous":'
        b'"a4605ced3a39073286e3063af264162d34fe546d9dbcc6f5ccd420b45a00d9f4","record":{"a":[true,null],"b":1.5}}\n'
    )


def test_a_record_changed_after_it_was_appended_changes_no_history(tmp_path: Path) -> None:
    log, record = AppendLog(tmp_path / "log"), {"list": [1]}
    log.append(record)
    record["list"].append(2)
    assert records(log) == [{"list": [1]}]


def test_a_reader_creates_nothing_and_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AppendLog(tmp_path / "log", read_only=True)
    AppendLog(tmp_path / "log")
    with pytest.raises(TrustError, match="reading only"):
        AppendLog(tmp_path / "log", read_only=True).append({})


def test_a_file_cut_at_any_byte_keeps_every_complete_entry(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole").path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:length])
        # a line whose end alone is missing is complete: it counts
        complete = sum(len(b"".join(lines[: number + 1])) - 1 <= length for number in range(len(lines)))
        assert records(AppendLog(path, read_only=True)) == RECORDS[:complete]
        log = AppendLog(path)
        assert records(log) == RECORDS[:complete]
        log.append({"after": "the crash"})
        assert records(AppendLog(path)) == [*RECORDS[:complete], {"after": "the crash"}]


def test_a_write_that_fails_half_way_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = written(tmp_path / "log"), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(OSError, match="20 of"):
        log.append({"lost": True})
    monkeypatch.undo()
    log.append({"kept": True})
    assert records(AppendLog(tmp_path / "log")) == [*RECORDS, {"kept": True}]


def test_an_entry_is_on_disk_before_the_witness_and_both_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AppendLog(tmp_path / "log", tmp_path / "witness")
    synced: list[bool] = []
    fsync = os.fsync

    def fsync_seen(descriptor: int) -> None:
        synced.append(os.path.samestat(os.fstat(descriptor), (tmp_path / "log").stat()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_seen)
    with log.exclusive():
        synced.clear()
        log.append({})
    assert synced[0]
    assert len(synced) >= 3  # then the witness and its directory


def test_every_changed_byte_is_found_and_its_line_named(tmp_path: Path) -> None:
    whole = written(tmp_path / "log").path.read_bytes()
    path = tmp_path / "changed"
    for place in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        line = whole[:place].count(b"\n") + 1
        with pytest.raises(TrustError, match=f"line ({line}|{line - 1}):"):
            AppendLog(path)


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line removed": lambda lines: [lines[0], *lines[2:]],
    "the first removed": lambda lines: lines[1:],
    "two swapped": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "one doubled": lambda lines: [lines[0], lines[0], *lines[1:]],
    "an empty line": lambda lines: [lines[0], b"\n", *lines[1:]],
    "blanks": lambda lines: [line.replace(b",", b", ") for line in lines],
    "a key twice": lambda lines: [lines[0].replace(b'"index":0', b'"index":0,"index":0'), *lines[1:]],
    "no record": lambda lines: [b'{"hash":"","index":0}\n'],
    "no object": lambda lines: [b"[]\n"],
    "not a number": lambda lines: [lines[0].replace(b'"round":0', b'"round":NaN'), *lines[1:]],
    "deep": lambda lines: [b'{"record":' + b"[" * 100_000 + b"\n"],
    "no text": lambda lines: [b"\xff\xfe\n"],
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_log_is_refused(tmp_path: Path, forge: Callable[[list[bytes]], list[bytes]]) -> None:
    path = written(tmp_path / "log").path
    path.write_bytes(b"".join(forge(path.read_bytes().splitlines(keepends=True))))
    for read_only in (True, False):
        with pytest.raises(TrustError, match="line"):
            AppendLog(path, read_only=read_only)


def test_a_rewritten_log_with_a_chain_of_its_own_is_refused_for_want_of_signatures(tmp_path: Path) -> None:
    owner, thief = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    verify = owner.public_key().verify
    AppendLog(tmp_path / "own", sign=owner.sign).append({"epsilon": 3})
    assert records(AppendLog(tmp_path / "own", verify=verify)) == [{"epsilon": 3}]
    AppendLog(tmp_path / "unsigned").append({"epsilon": 0})
    AppendLog(tmp_path / "foreign", sign=thief.sign).append({"epsilon": 0})
    for name in ("unsigned", "foreign"):
        with pytest.raises(TrustError, match="line 1: not signed"):
            AppendLog(tmp_path / name, verify=verify, read_only=True)


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Path, Path]:
    path, witness = tmp_path / "log", tmp_path / "elsewhere" / "witness"
    witness.parent.mkdir()
    written(path, witness)
    return path, witness


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_log_rolled_back_or_cut_is_older_than_its_witness(
    watched: tuple[Path, Path], kept: int, read_only: bool
) -> None:
    path, witness = watched
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(TrustError, match=f"rolled back or truncated: {kept} entries, .* saw 4"):
        AppendLog(path, witness, read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_log_written_anew_with_as_many_entries_is_not_the_one_witnessed(
    watched: tuple[Path, Path], tmp_path: Path, read_only: bool
) -> None:
    other = AppendLog(tmp_path / "other")
    for number in range(5):
        other.append({"round": number, "note": "cheaper"})
    with pytest.raises(TrustError, match="line 4: not the entry"):
        AppendLog(other.path, watched[1], read_only=read_only)


def test_a_crash_between_entry_and_witness_is_no_attack(watched: tuple[Path, Path]) -> None:
    path, witness = watched
    before = witness.read_bytes()
    log = AppendLog(path, witness)
    log.append({"last": True})
    witness.write_bytes(before)
    assert AppendLog(path, witness).head == log.head
    assert json.loads(witness.read_bytes()) == {"entries": 5, "head": log.head.hex()}


def test_a_witness_rolled_back_or_lost_or_broken_is_noticed(watched: tuple[Path, Path]) -> None:
    path, witness = watched
    before = witness.read_bytes()
    log = AppendLog(path, witness)
    log.append({})
    log.append({})
    for broken in (before, b"", b"[]", None):
        if broken is None:
            witness.unlink()
        else:
            witness.write_bytes(broken)
        with pytest.raises(TrustError, match="witness"):
            AppendLog(path, witness)


def test_a_log_cut_or_replaced_while_open_is_refused_at_the_next_append(tmp_path: Path) -> None:
    log = written(tmp_path / "log")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrustError, match="while in use"):
        log.append({})
    other = written(tmp_path / "other")
    other.append({})
    AppendLog(tmp_path / "longer").append({"other": "x" * len(whole)})
    os.replace(tmp_path / "longer", log.path)
    with pytest.raises(TrustError, match="line 5"):
        log.append({})


def append_many(path: Path, witness: Path, name: str, count: int) -> None:
    log = AppendLog(path, witness)
    for number in range(count):
        log.append({"who": name, "number": number})


def test_processes_take_turns(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    path, witness = tmp_path / "log", tmp_path / "witness"
    children = [spawn.Process(target=append_many, args=(path, witness, name, 25)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    entries = AppendLog(path, witness).entries()
    for name in "ab":
        assert [entry.record["number"] for entry in entries if entry.record["who"] == name] == list(range(25))


def test_two_logs_open_at_once_see_each_others_entries(tmp_path: Path) -> None:
    one, other = AppendLog(tmp_path / "log"), AppendLog(tmp_path / "log")
    one.append({"n": 1})
    other.append({"n": 2})
    one.append({"n": 3})
    with other.exclusive():
        assert [entry.record["n"] for entry in other.entries()] == [1, 2, 3]
