"""Proves: a file written atomically is the old one or the new one, never a part of either."""

import os
import stat
from pathlib import Path

import pytest

from common.files import write_atomically


def test_the_file_holds_the_bytes_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "head"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["head"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "public", b"", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_before_the_rename_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "head"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["head"]


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def fsync_seen(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes")
        fsync(descriptor)

    def replace_seen(source: Path, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync_seen)
    monkeypatch.setattr(os, "replace", replace_seen)
    write_atomically(tmp_path / "head", b"x")
    assert steps == ["bytes", "name", "directory"]


def test_one_holder_at_a_time(place: Path):
    """Many threads add one to a number, reading long before they write: with turns, none is lost."""
    import threading
    import time

    from common.files import exclusive

    counted = [0]

    def add() -> None:
        for _ in range(5):
            with exclusive(place / "turn"):
                seen = counted[0]
                time.sleep(0.001)
                counted[0] = seen + 1

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [40]
