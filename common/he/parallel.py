"""Blocks of ciphertexts spread over the cores that this process may use: itself and helper processes, one thread each.

SEAL holds the interpreter's lock, so threads would take turns. Helpers are started once per process, by the first
vector that is long enough, as fresh interpreters (never forked: a fork would copy the locks of torch's threads
half-held), and nothing waits for them: until one says that it is ready, this process works alone. Pieces lie in memory
that only the two share; a socket says what to do with them. So no key and no number ever stands in an argument, an
environment or a file, and nothing is pickled. A helper knows a task, and with it a key, while one vector is worked on.

A helper ends with its socket, so with the process that started it, however that ends. What a helper failed at, or died
of, is done again by this process: with the same result, or the very error that a single process raises.

`VEILFED_PROCESSES` limits the processes, this one included: set 1 where many sites share a machine.
"""

import atexit
import logging
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

from common.errors import ConfigError

Data = bytes | memoryview
Work = Callable[["Piece"], bytes]

_MOST = 8  # processes: one thread feeds them and collects
_WORTH = 32  # ciphertexts: fewer are done before a helper has looked
_SLOTS = 2  # pieces a helper holds, so that it need not wait
_SLOT_BYTES = 8 << 20  # 16 ciphertexts of the largest ring and modulus that parameters.py allows, both halves
_PIECE = struct.Struct(">BIIQ")  # slot, rows, used, bytes
_LONGEST_MESSAGE = 1 << 16
_TASK, _FORGET, _PIECE_MARK, _READY, _FAILED = b"T", b"F", b"P", b"R", b"E"
_PATIENCE_SECONDS = 5.0
_HELPER = (
    "import sys; from common.he.parallel import serve; from common.he.scheme import work_on; "
    "serve(int(sys.argv[1]), int(sys.argv[2]), work_on)"
)
_log = logging.getLogger("veilfed.he")


@dataclass(frozen=True)
class Piece:
    """Some ciphertexts of a vector: `rows` of them with `used` coefficients each, and the bytes to work on."""

    rows: int
    used: int
    data: Data = field(repr=False)


def spread(work: Work, task: Callable[[], bytes], pieces: Iterable[Piece], ciphertexts: int) -> Iterator[bytes]:
    """`work(piece)` for every piece, in order; pieces are taken as results are, so that few are held at once.

    Whoever does not take all results closes the iterator: until then nobody else has helpers.

    task: from which `scheme.work_on` makes the same `work` in a helper; not asked for when there is none.
    ciphertexts: in all pieces together. A few are never worth a helper.
    """
    with _helpers.borrowed(ciphertexts) as helpers:
        if helpers:
            yield from _spread(work, task(), iter(pieces), helpers)
        else:
            yield from map(work, pieces)


def processes() -> int:
    """How many processes may work on one vector, this one included."""
    limit = os.environ.get("VEILFED_PROCESSES", str(_MOST))
    if not limit.isdecimal() or int(limit) < 1:
        raise ConfigError(f"VEILFED_PROCESSES must be a number, 1 or more, got {limit!r}")
    return min(len(os.sched_getaffinity(0)), int(limit), _MOST)


def stop() -> None:
    """End the helpers of this process; the next long vector starts new ones."""
    _helpers.stop()


def serve(descriptor: int, memory: int, work_on: Callable[[bytes], Work]) -> None:
    """A helper's whole life. descriptor: its socket. memory: what it shares with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us: we end with it
    parent, work = os.getppid(), cast(Work, _nothing)
    link, shared = socket.socket(fileno=descriptor), memoryview(mmap.mmap(memory, _SLOTS * _SLOT_BYTES))
    link.send(_READY)
    while os.getppid() == parent:
        if not select.select([link], [], [], _PATIENCE_SECONDS)[0]:
            continue
        said = link.recv(_LONGEST_MESSAGE)
        if not said:
            return
        if said[:1] == _PIECE_MARK:
            link.send(_worked(work, shared, *_PIECE.unpack(said[1:])))
        else:
            work = _learned(work_on, said[1:]) if said[:1] == _TASK else _nothing


def _worked(work: Work, shared: memoryview, slot: int, rows: int, used: int, size: int) -> bytes:
    start = slot * _SLOT_BYTES
    try:
        result = work(Piece(rows, used, shared[start : start + size]))
        shared[start : start + len(result)] = result
    except Exception:  # whatever it is, it is raised where the piece is done again
        return _FAILED + _PIECE.pack(slot, 0, 0, 0)
    return _PIECE_MARK + _PIECE.pack(slot, 0, 0, len(result))


def _learned(work_on: Callable[[bytes], Work], task: bytes) -> Work:
    try:
        return work_on(task)
    except Exception:  # the same here
        return _nothing


def _nothing(piece: Piece) -> bytes:
    raise RuntimeError("a piece came without a task")


class _Place:
    """A piece's place in the order of results."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.result: bytes | None = None


class _Helper:
    def __init__(self) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("veilfed-helper")
        try:
            os.ftruncate(memory, _SLOTS * _SLOT_BYTES)
            self._shared = mmap.mmap(memory, _SLOTS * _SLOT_BYTES)
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                [sys.executable, "-P", "-c", _HELPER, str(theirs.fileno()), str(memory)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
            )
        finally:
            theirs.close()
            os.close(memory)
        self.ready, self.alive = False, True
        self.busy: dict[int, _Place] = {}

    def fileno(self) -> int:
        return self.link.fileno()

    def tell(self, message: bytes) -> None:
        try:
            self.link.send(message)
        except OSError:
            self.ready = False  # it is gone; `hear` gives back what it held

    def has_room(self) -> bool:
        return self.ready and len(self.busy) < _SLOTS

    def take(self, place: _Place) -> None:
        slot, piece = min(set(range(_SLOTS)) - set(self.busy)), place.piece
        start, size = slot * _SLOT_BYTES, len(piece.data)
        self._shared[start : start + size] = piece.data
        self.busy[slot] = place
        self.tell(_PIECE_MARK + _PIECE.pack(slot, piece.rows, piece.used, size))

    def hear(self) -> list[_Place]:
        """Take in one message. Returns what this process must do itself."""
        try:
            said = self.link.recv(_LONGEST_MESSAGE)
        except OSError:
            said = b""
        if not said:
            return self.give_up()
        if said == _READY:
            self.ready = True
            return []
        slot, _, _, size = _PIECE.unpack(said[1:])
        place, start = self.busy.pop(slot), slot * _SLOT_BYTES
        if said[:1] == _FAILED:
            return [place]
        place.result = self._shared[start : start + size]
        return []

    def close(self) -> None:
        self.ready = self.alive = False
        self.link.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def give_up(self) -> list[_Place]:
        """It is gone, or stuck. Returns what it held, for this process to do itself."""
        self.close()
        _log.warning("a helper process for encryption ended with %s; going on without it", self._process.returncode)
        held, self.busy = list(self.busy.values()), {}
        return held


class _Helpers:
    """This process's helpers. One vector at a time uses them; another thread's works alone meanwhile."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._started: list[_Helper] | None = None

    @contextmanager
    def borrowed(self, ciphertexts: int) -> Iterator[list[_Helper]]:
        count = processes() - 1 if ciphertexts >= _WORTH else 0
        if not count or not self._turn.acquire(blocking=False):
            yield []
            return
        try:
            if self._started is None:
                self._started = [_Helper() for _ in range(count)]
            self._started = [helper for helper in self._started if helper.alive]
            yield self._started[:count]
        finally:
            self._turn.release()

    def stop(self) -> None:
        in_turn = self._turn.acquire(timeout=_PATIENCE_SECONDS)  # else somebody never took the rest of a vector
        for helper in self._started or []:
            if helper.alive:
                helper.close()
        self._started = None
        if in_turn:
            self._turn.release()

    def abandon(self) -> None:
        """In a forked process: its parent's helpers are not its own, and must not outlive the parent for its sake."""
        for helper in self._started or []:
            helper.link.close()
        self.__init__()  # type: ignore[misc]


_helpers = _Helpers()
atexit.register(_helpers.stop)
os.register_at_fork(after_in_child=_helpers.abandon)


def _spread(work: Work, task: bytes, pieces: Iterator[Piece], helpers: list[_Helper]) -> Iterator[bytes]:
    places: deque[_Place] = deque()
    most = (_SLOTS + 1) * (len(helpers) + 1)
    told: set[_Helper] = set()

    def listen(seconds: float) -> None:
        spoke = select.select([helper for helper in helpers if helper.alive], [], [], seconds)[0]
        stuck = [] if spoke or not seconds else [helper for helper in helpers if helper.busy and helper.alive]
        for place in chain.from_iterable(
            [*(helper.hear() for helper in spoke), *(helper.give_up() for helper in stuck)]
        ):
            place.result = work(place.piece)

    def next_place() -> _Place | None:
        piece = next(pieces, None) if len(places) < most else None
        if piece is not None:
            places.append(_Place(piece))
        return places[-1] if piece is not None else None

    try:
        while True:
            listen(0)
            for helper in helpers:
                if helper.ready and helper not in told:
                    helper.tell(_TASK + task)
                    told.add(helper)
                while helper.has_room() and (place := next_place()):
                    helper.take(place)
            if places and places[0].result is not None:
                yield places.popleft().result or b""
            elif place := next_place():
                place.result = work(place.piece)
            elif places:
                listen(_PATIENCE_SECONDS)
            else:
                return
    finally:
        # after an error, or when nobody wants the rest
        while working := [helper for helper in helpers if helper.busy and helper.alive]:
            spoke = select.select(working, [], [], _PATIENCE_SECONDS)[0]
            for helper in spoke:
                helper.hear()
            for helper in [] if spoke else working:
                helper.give_up()
        for helper in told:
            helper.tell(_FORGET)
