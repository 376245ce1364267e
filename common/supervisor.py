"""Keeps one directory's processes running: starts them, starts them again, and leaves none behind.

One thread, one loop: every process is started by the supervisor itself, in a process group of its own, with an
environment that is said and not inherited. Whatever ends a process, the rest of its group is killed before it starts
again. Whatever ends the supervisor, `common/undertaker.py` ends the groups. A process that opens a session of its own
escapes both.
"""

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.errors import ConfigError
from common.files import write_atomically
from common.process_logs import ProcessLog
from common.running import held, running
from common.undertaker import Undertaker, end_group

_ATTEMPTS = 3  # of a process that has never been ready
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 30.0
_HEALTHY_SECONDS = 60.0  # who ran that long starts again as if for the first time
_TICK_SECONDS = 0.25
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_DIR", "SSL_CERT_FILE")
_OUR_CODE = Path(__file__).parents[1]
# For processes that carry long messages in parts and compute nothing: what glibc frees goes back to the system at once.
CARRIES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def environment(passed: Sequence[str] = (), **more: str) -> dict[str, str]:
    """What a process is told: a few words of ours and those `passed`, where our code is, and what is given."""
    inherited = {name: os.environ[name] for name in (*_INHERITED, *passed) if name in os.environ}
    return {**inherited, "PYTHONPATH": str(_OUR_CODE), "PYTHONUNBUFFERED": "1", **more}


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """How to run a module of ours: by this Python, and never by what lies in the working directory."""
    return (sys.executable, "-P", "-m", name, *arguments)


@dataclass(frozen=True)
class Child:
    """One process. ready: a quick look whether it does its work. limits: RLIMIT_... -> the most of it.

    reload_on: when one of these files changes, it gets SIGHUP. restart_on: then it is ended and started again.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    ready: Callable[[], bool] = lambda: True
    reload_on: tuple[Path, ...] = ()
    restart_on: tuple[Path, ...] = ()
    limits: Mapping[int, int] = field(default_factory=dict)


def supervise(
    directory: Path, children: Callable[[], Sequence[Child]], report: Callable[[str], None], grace_seconds: float = 10.0
) -> None:
    """Run the children in their order, each after those before it were ready, until SIGTERM or SIGINT; leave none.

    children: is asked once, when the directory is held and nothing runs in it.
    Raises ConfigError when another supervisor holds the directory, or when a child ends three times before it was ever
    ready; its last words are in the message.
    """
    (directory / "run").mkdir(mode=0o700, exist_ok=True)
    (directory / "logs").mkdir(mode=0o700, exist_ok=True)
    os.umask(0o077)
    with held(directory) as lock, _woken_by_signals() as (wake, asked_to_stop):
        _Supervisor(directory, children(), report, grace_seconds, lock, wake, asked_to_stop).run()


def status(directory: Path) -> Mapping[str, Any]:
    """Whether a directory is `running`, and what its supervisor last wrote of its children: `rows`."""
    holder = running(directory)
    try:
        written = json.loads((directory / "run" / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        written = {"pid": None, "rows": []}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}/run/status.json cannot be read: {error}") from None
    current = written["pid"] == holder  # else it is of an earlier one
    return {"running": holder is not None, "pid": holder, "rows": written["rows"] if current else []}


def require_ready(found: Mapping[str, Any], how_to_start: str) -> None:
    """Returns if all that `status` found is ready. Raises ConfigError naming what is not."""
    if not found["running"]:
        raise ConfigError("it is not running", how_to_start)
    late = [one for one in found["rows"] if one["state"] != "ready"]
    if late or not found["rows"]:
        told = (
            "it has just been started"
            if not late
            else "; ".join(f"{one['name']} is {one['state']} {one['last_exit']}".rstrip() for one in late)
        )
        raise ConfigError(told, "its words are in logs/NAME.log")


def delay_seconds(failures: int) -> float:
    """How long to wait before the next attempt, after so many failures in a row."""
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 10))


@dataclass
class _Running:
    """What the supervisor knows of one child."""

    child: Child
    log: ProcessLog
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    killed_after: float | None = None  # set while it is being ended
    is_ready: bool = False
    was_ready: bool = False
    failures: int = 0
    restarts: int = 0
    last_exit: str = ""
    seen: dict[str, tuple[object, ...]] = field(default_factory=dict)
    applied: dict[str, tuple[object, ...]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        if self.process is None:
            return "waiting" if not self.last_exit else "restarting"
        if self.killed_after is not None:
            return "stopping"
        return "ready" if self.is_ready else "starting"


class _Supervisor:
    def __init__(
        self,
        directory: Path,
        children: Sequence[Child],
        report: Callable[[str], None],
        grace_seconds: float,
        lock: int,
        wake: int,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self._directory, self._report, self._grace = directory, report, grace_seconds
        self._wake, self._asked_to_stop = wake, asked_to_stop
        self._all = [_Running(child, ProcessLog(directory / "logs", child.name)) for child in children]
        self._undertaker = Undertaker(lock, grace_seconds)
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)
        self._written = ""

    def run(self) -> None:
        """Until asked to stop, or until a child turns out to be unable to start."""
        try:
            while not self._asked_to_stop():
                self._undertaker.keep()
                for one in self._all:
                    self._attend(one)
                self._write_status()
                self._read(_TICK_SECONDS)
        finally:
            self._stop_all()
            self._write_status()
            self._undertaker.dismiss()

    def _attend(self, one: _Running) -> None:
        """Everything that one child needs now."""
        now = time.monotonic()
        if one.process is None:
            before = self._all[: self._all.index(one)]
            if now >= one.start_after and all(earlier.was_ready for earlier in before):
                self._start(one)
        elif os.waitid(os.P_PID, one.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._bury(one)
        elif one.killed_after is not None:
            if now >= one.killed_after:
                end_group(one.process.pid, signal.SIGKILL)
        else:
            if not one.is_ready and one.child.ready():
                one.is_ready = one.was_ready = True
                self._report(f"{one.child.name} is ready")
                if one is self._all[-1] and one.restarts == 0:
                    self._report("all are ready")
            self._look_at_files(one)

    def _start(self, one: _Running) -> None:
        child = one.child

        def in_the_child() -> None:
            self._undertaker.announce()
            for which, most in child.limits.items():
                resource.setrlimit(which, (most, most))

        try:
            one.process = subprocess.Popen(  # noqa: S603 - the list of children is ours
                child.argv,
                env=dict(child.environment),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=in_the_child,  # safe: this process has one thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._undertaker.recount()
            one.log.write("supervisor", str(error).encode())
            self._failed(one, "could not be started")
            return
        self._undertaker.take(one.process.pid)
        one.started_at, one.is_ready = time.monotonic(), False
        one.applied = one.seen = self._files(one)
        for stream, name in ((one.process.stdout, "stdout"), (one.process.stderr, "stderr")):
            assert stream is not None  # noqa: S101 - it is a pipe
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, (one, name))

    def _bury(self, one: _Running) -> None:
        """The leader of a group has ended: so does the group, while its number is still its own."""
        process = one.process
        assert process is not None  # noqa: S101 - the caller looked
        end_group(process.pid, signal.SIGKILL)
        self._undertaker.release(process.pid)
        code = process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None  # noqa: S101 - it is a pipe
            self._drain(stream)
            self._selector.unregister(stream)
            stream.close()
        one.log.flush()
        was_asked, one.killed_after, one.process = one.killed_after is not None, None, None
        if was_asked:
            one.last_exit, one.start_after = "was asked to end", time.monotonic()
            return
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if time.monotonic() - one.started_at >= _HEALTHY_SECONDS:
            one.failures = 0
        self._failed(one, reason)

    def _failed(self, one: _Running, reason: str) -> None:
        one.failures += 1
        one.restarts += 1
        one.last_exit, one.is_ready = reason, False
        if not one.was_ready and one.failures >= _ATTEMPTS:
            raise ConfigError(
                f"{one.child.name} {reason}, {_ATTEMPTS} times before it was ready: {one.log.last_words()}",
                f"more of it is in {one.log.path}",
            )
        delay = delay_seconds(one.failures)
        one.start_after = time.monotonic() + delay
        self._report(f"{one.child.name} {reason}; it starts again in {delay:g} s")

    def _look_at_files(self, one: _Running) -> None:
        """Act on a change once it has lasted from one look to the next: files are replaced one after the other."""
        found = self._files(one)
        settled, one.seen = found == one.seen, found
        if not settled or found == one.applied:
            return
        changed = [path for path in found if found[path] != one.applied.get(path)]
        one.applied = found
        process = one.process
        assert process is not None  # noqa: S101 - the caller looked
        if any(str(path) in changed for path in one.child.restart_on):
            self._report(f"{one.child.name} is started again: {', '.join(changed)} changed")
            self._end(one)
        else:
            self._report(f"{one.child.name} reads again: {', '.join(changed)} changed")
            process.send_signal(signal.SIGHUP)

    @staticmethod
    def _files(one: _Running) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in (*one.child.reload_on, *one.child.restart_on):
            try:
                about = path.stat()
                found[str(path)] = (about.st_ino, about.st_mtime_ns, about.st_size)
            except OSError:
                found[str(path)] = ()
        return found

    def _end(self, one: _Running) -> None:
        if one.process is not None and one.killed_after is None:
            one.killed_after = time.monotonic() + self._grace
            one.process.send_signal(signal.SIGTERM)

    def _stop_all(self) -> None:
        for one in self._all:
            self._end(one)
        while any(one.process is not None for one in self._all):
            for one in self._all:
                if one.process is not None:
                    self._attend(one)
            self._read(_TICK_SECONDS / 5)
        for one in self._all:
            one.log.close()

    def _read(self, seconds: float) -> None:
        """Wait for words, the end of a child or a signal, at most so long; put the words into the logs."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            else:
                self._drain(key.fileobj)  # type: ignore[arg-type]

    def _drain(self, stream: IO[bytes]) -> None:
        one, name = self._selector.get_key(stream).data
        with suppress(BlockingIOError):
            while data := os.read(stream.fileno(), 65536):
                one.log.take(name, data)

    def _write_status(self) -> None:
        rows = [
            {
                "name": one.child.name,
                "state": one.state,
                "pid": one.process.pid if one.process else None,
                "restarts": one.restarts,
                "last_exit": one.last_exit,
            }
            for one in self._all
        ]
        text = json.dumps({"pid": os.getpid(), "rows": rows}, indent=1)
        if text != self._written:
            with suppress(OSError):  # a full disk stops nobody's work
                write_atomically(self._directory / "run" / "status.json", text.encode())
                self._written = text


@contextmanager
def _woken_by_signals() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A descriptor that becomes readable on every signal, and whether SIGTERM or SIGINT has come by now."""
    stops: deque[int] = deque()
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    before_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {
        signal.SIGTERM: lambda number, _: stops.append(number),
        signal.SIGINT: lambda number, _: stops.append(number),
        signal.SIGCHLD: lambda number, _: None,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield read, lambda: bool(stops)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_wakeup)
        os.close(read)
        os.close(write)
