"""Where a party's own time goes: spans, named stretches of its work, one within the other.

Nothing is kept until `recording` is entered; outside of it a span costs a look at a variable. A span has a name, a
beginning, an end and attributes, each of them listed here: there is no place in it for anything private.

Each party draws the numbers of its own traces. None is ever sent to another party or read from one, so that no trace
tells what others did when. `tracing.py` delivers spans to the party's own collector.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex

from common.config import fill, load_table
from common.errors import ConfigError
from common.federation import require
from common.log import hidden
from common.telemetry import reason

NAMES = frozenset(
    {"order", "train", "charge", "mask", "encrypt", "open"}  # a site's
    | {"run", "gather", "round", "prepare", "updates", "sum", "unmask", "results", "release"}  # the coordinator's
)
NUMBERS = frozenset(
    {"round", "cohort", "bytes_received", "bytes_sent", "train_seconds", "encrypt_seconds", "open_seconds"}
)
WORDS: Mapping[str, Callable[[str], object]] = {
    "run": re.compile("[0-9a-f]{32}").fullmatch,
    "site": lambda name: re.fullmatch("[a-z0-9._-]{1,64}", name) and hidden(name) == name,
    "action": re.compile("[a-z_]{1,20}").fullmatch,
    "code": lambda code: reason(code) == code,
}
Value = int | float | str
_COLLECTOR = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
_TRACE, _NUMBER = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Monitoring:
    """[monitoring] of a party's own file. traces: of its OpenTelemetry collector, http://HOST:PORT; "": of nobody."""

    traces: str = ""

    def __post_init__(self) -> None:
        allowed = "http://HOST:PORT or https://HOST:PORT, where a collector takes OTLP over HTTP"
        found = _COLLECTOR.fullmatch(self.traces)
        port = found and int((found[2] or ":0")[1:])
        require(not self.traces or (port is not None and port < 1 << 16), "monitoring.traces", self.traces, allowed)


@dataclass(frozen=True)
class Span:
    """begun, ended: microseconds since 1970. trace, number, parent: hexadecimal; the first of a trace has no parent.

    Raises ValueError for what is not listed in this file.
    """

    name: str
    trace: str
    number: str
    parent: str
    begun: int
    ended: int
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.number, self.parent or self.number)
        if self.name not in NAMES or not _TRACE.fullmatch(self.trace) or not all(map(_NUMBER.fullmatch, numbers)):
            raise ValueError(f"{self.name!r} is no span of ours")
        if unlisted := [key for key, value in self.attributes.items() if not _is_listed(key, value)]:
            raise ValueError(f"{self.name}: {unlisted} are not told")


@dataclass(frozen=True)
class _Open:
    """The span that is open here. number: empty while there is none in this trace."""

    take: Callable[[Span], None]
    trace: str
    number: str = ""


_open: ContextVar[_Open | None] = ContextVar("span", default=None)


@contextmanager
def recording(take: Callable[[Span], None]) -> Iterator[None]:
    """Within, in this thread: a trace of its own. take: gets each span when it ends; it must not raise."""
    before = _open.set(_Open(take, token_hex(16)))
    try:
        yield
    finally:
        _open.reset(before)


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[Callable[..., None]]:
    """The work within, or as a decorator that of a function. What it yields takes further attributes.

    An error that passes is told by its name. What `NUMBERS` and `WORDS` do not list is not told.
    """
    around = _open.get()
    if around is None:
        yield _not_told
        return
    told, mine = dict(attributes), replace(around, number=token_hex(8))
    begun, started, before = time.time_ns(), time.perf_counter_ns(), _open.set(mine)
    try:
        yield told.update
    except BaseException as error:
        told["code"] = reason(type(error).__name__)
        raise
    finally:
        _open.reset(before)
        ended = begun + time.perf_counter_ns() - started
        listed = {key: value for key, value in told.items() if _is_listed(key, value)}
        around.take(Span(name, mine.trace, mine.number, around.number, begun // 1000, ended // 1000, listed))


def collector_in(path: Path) -> str:
    """What a party's file says of `monitoring.traces`: "" when there is no file, or it says nothing.

    Raises ConfigError for a file that is no TOML, or for an address that is none.
    """
    if not path.exists():
        return ""
    monitoring = load_table(path).get("monitoring", {})
    if not isinstance(monitoring, Mapping):
        raise ConfigError(f"monitoring = {monitoring!r} must be a table", "write [monitoring]")
    return fill(Monitoring, monitoring, "monitoring.").traces


def _not_told(**attributes: Value) -> None:
    pass


def _is_listed(key: str, value: object) -> bool:
    if key in NUMBERS:
        return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53
    return key in WORDS and isinstance(value, str) and bool(WORDS[key](value))
