"""Unix sockets in directories of any depth: an address has 107 bytes on Linux, a path may have 4,096."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """An address for the socket at `path`, by its directory's descriptor (proc(5)), while the block lasts.

    Raises OSError when the directory is not there.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path, seconds: float | None = None) -> socket.socket:
    """A connection to whoever listens there. seconds: how long to wait, for connecting and after. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        with reachable(path) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection
