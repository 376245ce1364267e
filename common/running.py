"""One supervisor to a directory: a lock that goes with the last process that holds it, whatever ended them."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError

_LEFTOVERS_SECONDS = 30.0  # for what a killed supervisor left to be ended


@contextmanager
def held(directory: Path) -> Iterator[int]:
    """Hold the directory; the lock's descriptor. Raises ConfigError naming the process that holds it already."""
    descriptor = os.open(directory / "run" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        give_up = time.monotonic() + _LEFTOVERS_SECONDS
        while not _lock(descriptor):
            holder = _holder(descriptor)
            if _is_alive(holder) or time.monotonic() > give_up:
                raise ConfigError(
                    f"{directory} is running already, as process {holder}", "stop that one first, or see its status"
                )
            time.sleep(0.1)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def running(directory: Path) -> int | None:
    """The process that holds the directory now, if somebody does."""
    try:
        descriptor = os.open(directory / "run" / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _lock(descriptor, fcntl.LOCK_SH) else _holder(descriptor)  # two may look at once
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else 0


def _is_alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
