"""What a party's processes say of themselves: one JSON object per event, on one line, without secrets.

    {"time": ..., "level": "info", "process": "worker", "event": "order answered", "action": "train", "seconds": 4.1}

First line of defence: `say` takes an event's name and named fields, and only those that `FIELDS` lists are written; the
names of others are told, their values never. Second line: in every text, our own or a library's, what looks like
key material is replaced. A traceback is written as places in the code, without the values that were there.
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from common.errors import FederationError

Value = str | int | float | bool | None

FIELDS = frozenset(
    {"action", "address", "attempt", "bytes_received", "bytes_sent", "certificate", "code", "cohort", "data_set"}
    | {"epsilon", "exit_code", "expires", "hint", "message", "metric", "outcome", "path", "pid", "program", "records"}
    | {"round", "run", "seconds", "signal", "site", "spans", "user", "version"}
)
HIDDEN = "[hidden]"
_AS_THEY_ARE = {"run", "path"}  # public, and may look like keys: a run is 16 random bytes
_LONGEST = 500  # characters of a text, which may quote what the other side wrote
_DEEPEST = 5  # places of a traceback, the last ones
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{32,}")  # 16 bytes or more, or a number of that length
_KEY_MATERIAL = re.compile(
    r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)"  # PEM, whole or cut off
    r"|b(?P<quote>['\"])(?:\\.|(?!(?P=quote)).){8,}(?:(?P=quote)|\Z)"  # bytes as Python shows them
    r"|(?:[0-9]{1,3}[,\s]\s*){15,}[0-9]{1,3}"  # bytes as a list of numbers
    rf"|{_HEXADECIMAL.pattern}"
    r"|(?P<word>[0-9A-Za-z+/_-]{40,}={0,2})",  # 30 bytes or more in base64, if there is a capital in it
    re.DOTALL,
)


def configure(process: str, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """From here on all that this process logs, warns of or dies of is such lines, on standard error or `stream`.

    process: worker, node, executor, supervisor: who speaks.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(Lines(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    sys.excepthook = _died
    threading.excepthook = lambda died: _died(died.exc_type, died.exc_value, died.exc_traceback)


def say(log: logging.Logger, event: str, level: int = logging.INFO, **fields: Value) -> None:
    """One event. Its name is a constant; what varies is in the fields, whose names are in `FIELDS`."""
    log.log(level, "%s", event, extra={"veilfed": fields})


def say_error(log: logging.Logger, event: str, error: FederationError, **fields: Value) -> None:
    """An event that went wrong: the error's code, sentence and next step."""
    say(log, event, logging.WARNING, code=error.code, message=error.message, hint=error.hint or None, **fields)


class Lines(logging.Formatter):
    """A record as one line of JSON. Never raises: a record that cannot be told is told of."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
        }
        if not record.name.startswith("veilfed"):
            told["library"] = hidden(record.name)
        try:
            told["event"] = hidden(record.getMessage())
        except Exception as error:  # a library's arguments that do not fit its text
            told["event"] = f"a record of {Path(record.pathname).name} that cannot be told: {type(error).__name__}"
        told |= _fields(getattr(record, "veilfed", {}))
        if record.exc_info and record.exc_info[0]:
            told |= _failure(*record.exc_info)
        return json.dumps(told, allow_nan=False)


def hidden(text: str) -> str:
    """`text`, at most 500 characters of it, with everything that looks like key material replaced.

    Public keys and hashes look alike and are hidden too; a long word in mixed case may be. That is the price.
    """
    return _KEY_MATERIAL.sub(_hide, text)[:_LONGEST]


def _hide(found: re.Match[str]) -> str:
    word: str | None = found["word"]
    return _HEXADECIMAL.sub(HIDDEN, word) if word and word == word.lower() else HIDDEN


class _Handler(logging.StreamHandler[TextIO]):
    """Says that a record was lost; the standard one would print the record's arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is the standard library's
        kind = sys.exc_info()[0]
        if kind and not issubclass(kind, OSError):  # a full disk or a closed pipe: nobody is there to be told
            with suppress(OSError):
                self.stream.write('{"level": "error", "event": "a log record was lost"}\n')


def _fields(fields: Mapping[str, Value]) -> dict[str, Value | list[str]]:
    told: dict[str, Value | list[str]] = {}
    for name, value in fields.items():
        if name in FIELDS and value is not None:
            told[name] = _value(name, value)
    if unknown := sorted(hidden(name) for name in fields if name not in FIELDS):
        told["not_told"] = unknown
    return told


def _value(name: str, value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64):
        return value
    if isinstance(value, str):
        return value[:_LONGEST] if name in _AS_THEY_ARE else hidden(value)
    return HIDDEN


def _failure(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> dict[str, Any]:
    places = []
    while trace:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return {"error": kind.__name__ if kind else "", "message": hidden(str(error)), "at": places[-_DEEPEST:]}


def _died(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        failure: Callable[..., None] = logging.getLogger("veilfed").critical
        failure("a bug of ours ended this thread", exc_info=(kind, error, trace))
