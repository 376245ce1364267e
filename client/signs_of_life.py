"""While a worker acts on an order, its node hears that it works: as often as the worker has used its processor since.

Nobody can say how long an order takes: that is the model's, the records' and the machine's affair. But whoever works,
at whatever, uses processor time, and whoever is stuck uses none. So a worker that hangs is told from a slow one by no
number of seconds that somebody would have to choose. A worker that turns in circles is not told from one that works.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client import local_socket

BUSY = {"busy": True}  # the head of a message that only says so
_BEAT_SECONDS = 5.0
_LEAST = 0.005  # of one core: less is what waiting costs
SILENT_SECONDS = 120.0  # without a sign: even a hundredth of a busy machine gives many


@contextmanager
def signs_of_life(connection: socket.socket) -> Iterator[None]:
    """They are sent until the block ends; nothing else may be sent meanwhile."""
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(connection, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(connection: socket.socket, over: threading.Event) -> None:
    used = _processor_seconds()
    with suppress(OSError):  # the node is gone: the answer's own sending says so
        while not over.wait(_BEAT_SECONDS):
            before, used = used, _processor_seconds()
            if used - before > _LEAST * _BEAT_SECONDS:
                local_socket.send(connection, BUSY, b"")


def _processor_seconds() -> float:
    """Used by this process and by the helpers that it has now."""
    ticks = 0
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread or a helper that has ended since
            for child in path.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")
