"""Who ends what a supervisor leaves behind when it is killed: a process that waits for its pipe to close.

It is forked from the supervisor, holds the supervisor's lock as well, so that nobody starts beside the leftovers, and
knows the process groups by numbers in its pipe: a positive one began, a negative one is gone, zero: none is left.
"""

import os
import signal
import struct
import time
from contextlib import suppress

_NUMBER = struct.Struct("=i")
_LOOK_SECONDS = 0.05


def end_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there still was one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Undertaker:
    """Forked when made: the process that makes one must have no other threads."""

    def __init__(self, lock: int, grace_seconds: float) -> None:
        self._lock, self._grace = lock, grace_seconds
        self._groups: set[int] = set()
        self._pid, self._pipe = self._fork()

    def announce(self) -> None:
        """Called by a new group's first process, before it becomes anything else."""
        os.write(self._pipe, _NUMBER.pack(os.getpid()))

    def take(self, group: int) -> None:
        """The supervisor's own note of a group that has announced itself."""
        self._groups.add(group)

    def release(self, group: int) -> None:
        """A group is gone: its number may be another's soon."""
        self._groups.discard(group)
        self._tell(-group)

    def recount(self) -> None:
        """One announced itself and came to nothing: forget it."""
        self._tell(0, *self._groups)

    def keep(self) -> None:
        """Make another one if somebody has killed it."""
        if os.waitpid(self._pid, os.WNOHANG) != (0, 0):
            os.close(self._pipe)
            self._pid, self._pipe = self._fork()
            self._tell(*self._groups)

    def dismiss(self) -> None:
        """Let it end, after all groups were released."""
        os.close(self._pipe)
        os.waitpid(self._pid, 0)

    def _tell(self, *numbers: int) -> None:
        with suppress(BrokenPipeError):  # `keep` makes another, and tells it all
            os.write(self._pipe, b"".join(map(_NUMBER.pack, numbers)))

    def _fork(self) -> tuple[int, int]:
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(read)
            return pid, write
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # it ends after everybody else, whoever is asked to
            self._keep_only(read)
            self._wait(read)
        finally:
            os._exit(0)

    def _keep_only(self, read: int) -> None:
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        low = 3
        for kept in sorted((read, self._lock)):
            os.closerange(low, kept)
            low = kept + 1
        os.closerange(low, os.sysconf("SC_OPEN_MAX"))

    def _wait(self, read: int) -> None:
        groups: set[int] = set()
        while data := os.read(read, _NUMBER.size * 256):
            for (number,) in _NUMBER.iter_unpack(data):
                if number > 0:
                    groups.add(number)
                elif number < 0:
                    groups.discard(-number)
                else:
                    groups.clear()
        give_up = time.monotonic() + self._grace
        groups = {group for group in groups if end_group(group, signal.SIGTERM)}
        while groups and time.monotonic() < give_up:
            time.sleep(_LOOK_SECONDS)
            groups = {group for group in groups if end_group(group, 0)}
        for group in groups:
            end_group(group, signal.SIGKILL)
