"""Files that are there whole or not at all, whatever stops the machine."""

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes | Sequence[bytes | memoryview], mode: int = 0o600) -> None:
    """Make `path` hold exactly `data` (or its parts, in order), with permissions `mode`, on disk before returning.

    Whoever reads `path` at any moment, or after a crash at any moment, finds the old bytes or the new ones.
    Of two writers at once, one wins whole. A crash may leave a hidden `.NAME.*.part` file beside `path`.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # open() above was subject to the umask
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One holder at a time among all threads and processes that name `path`; the others wait. Not to be nested."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # gives up the lock as well


def sync_directory(directory: Path) -> None:
    """Put `directory`'s list of names on disk: without it a new or renamed file may be gone after a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
