"""What a process says, line by line, as JSON lines in files that do not grow for ever."""

import json
import logging
import logging.handlers
import time
from collections import deque
from pathlib import Path

_FILE_BYTES, _FILES = 10_000_000, 5
_LINE_BYTES = 16_384  # what is longer is cut
_LAST_LINES = 5


class ProcessLog:
    """One process's file, `NAME.log`. A disk that is full loses lines and stops nobody."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path, self._name = directory / f"{name}.log", name
        self._file = logging.handlers.RotatingFileHandler(
            self.path, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8"
        )
        self._file.handleError = lambda record: None  # type: ignore[method-assign]
        self._parts: dict[str, bytes] = {}
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    def take(self, stream: str, data: bytes) -> None:
        """Bytes as they come from a pipe."""
        *lines, rest = (self._parts.get(stream, b"") + data).split(b"\n")
        for line in lines:
            self.write(stream, line)
        if len(rest) > _LINE_BYTES:
            self.write(stream, rest)
            rest = b""
        self._parts[stream] = rest

    def write(self, stream: str, line: bytes) -> None:
        """One line: as it is if it is a JSON object, else inside one."""
        text = line[:_LINE_BYTES].decode(errors="replace").rstrip()
        if not text:
            return
        self._last.append(text)
        if not _is_object(text):
            said = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "process": self._name}
            text = json.dumps({**said, "stream": stream, "line": text}, ensure_ascii=False)
        self._file.emit(logging.makeLogRecord({"msg": text}))

    def flush(self) -> None:
        """The process has ended: its last line may have no end."""
        for stream, rest in self._parts.items():
            self.write(stream, rest)
        self._parts.clear()

    def last_words(self) -> str:
        return " | ".join(self._last) or "it said nothing"

    def close(self) -> None:
        self._file.close()


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
