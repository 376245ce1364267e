"""A file that only grows: one JSON object per line, each naming the hash of the one before.

    {"hash": H, "index": I, "previous": P, "record": {...}, "signature": S}      S only where the log is signed

H is SHA-256 over the canonical JSON (RFC 8785) of index, previous and record; a line is the canonical JSON of all of
it. So a byte changed, a line removed, moved or put in is found and named. What a chain cannot show, that its end was
cut off or all of it put back to an older state, a `witness` kept elsewhere shows.

An entry is on disk when `append` returns. A crash within `append` leaves the entry whole or not at all.
"""

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import rfc8785

from common.errors import TrustError
from common.files import sync_directory, write_atomically

Sign: TypeAlias = Callable[[bytes], bytes]  # data -> signature, as Ed25519PrivateKey.sign
Verify: TypeAlias = Callable[[bytes, bytes], None]  # (signature, data), raises, as Ed25519PublicKey.verify

_GENESIS = hashlib.sha256(b"veilfed append-only log, version 1").digest()
_SIGNED = b"veilfed append-only log entry\0"


@dataclass(frozen=True)
class Entry:
    """One line. `digest` fixes this record and all before it."""

    index: int
    record: Mapping[str, Any]
    digest: bytes
    signature: bytes = b""


class AppendLog:
    """The log at one path. Any number of processes may hold it open; appends take turns."""

    def __init__(
        self,
        path: Path,
        witness: Path | None = None,
        sign: Sign | None = None,
        verify: Verify | None = None,
        read_only: bool = False,
    ) -> None:
        """The log at `path`, made if need be; a last line that a crash cut short is removed.

        witness: a small file, best on another disk, that holds the head after each append. A log that is older than
        its witness was rolled back; it may be one entry newer, as a crash can come between the two.
        verify: every entry must be signed.
        read_only: the log as it is now, without a lock and changing nothing; an unfinished last line is left out.
        Raises TrustError naming the line.
        """
        self.path = path
        self._witness = witness
        self._sign = sign
        self._verify = verify
        self._read_only = read_only
        self._entries: list[Entry] = []
        self._offset = 0  # bytes of complete lines that _entries tells of
        self._turn = threading.RLock()
        self._descriptor: int | None = None  # while it is our turn
        if read_only:
            witnessed = self._read_witness()  # first, as the log only grows
            rest = self._take(path.read_bytes())
            if self._is_next(rest):
                self._take(rest + b"\n")
            self._compare(*witnessed)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
        with self.exclusive():
            pass

    def entries(self) -> Sequence[Entry]:
        return tuple(self._entries)

    def lines(self) -> list[bytes]:
        """Every line, as the file has it: what others can check, given the public key and the newest digest."""
        before = [_GENESIS, *(entry.digest for entry in self._entries)]
        return [
            _line(_core(entry.index, previous, entry.record), entry.digest, entry.signature)
            for previous, entry in zip(before, self._entries, strict=False)
        ]

    @property
    def head(self) -> bytes:
        """Digest of the newest entry: give it to others, and nobody can change or cut off what is before it."""
        return self._entries[-1].digest if self._entries else _GENESIS

    def append(self, record: Mapping[str, Any]) -> Entry:
        """`record`, as JSON will give it back, on disk and under a new head before this returns."""
        with self.exclusive() as descriptor:
            core = _core(len(self._entries), self.head, record)
            digest = hashlib.sha256(core).digest()
            line = _line(core, digest, self._sign(_SIGNED + digest) if self._sign else b"")
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written", str(self.path))
            os.fsync(descriptor)
            self._take(line)
            self._write_witness()
            return self._entries[-1]

    @contextmanager
    def exclusive(self) -> Iterator[int]:
        """Our turn: nobody else appends, and what others appended before is known. May be nested."""
        with self._turn:
            if self._descriptor is not None:
                yield self._descriptor
                return
            if self._read_only:
                raise TrustError(f"{self.path} was opened for reading only")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                self._catch_up(self._descriptor)
                yield self._descriptor
            finally:
                os.close(self._descriptor)  # gives up the lock as well
                self._descriptor = None

    def _catch_up(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size < self._offset:
            raise TrustError(f"{self.path} was rolled back or truncated while in use: {size} of {self._offset} bytes")
        if size > self._offset:
            torn = self._take(os.pread(descriptor, size - self._offset, self._offset))
            if self._is_next(torn):
                os.write(descriptor, b"\n")
                self._take(torn + b"\n")
            elif torn:
                os.ftruncate(descriptor, self._offset)
            os.fsync(descriptor)  # whoever wrote it may have been killed before doing so
        seen = self._read_witness()
        self._compare(*seen)
        if seen != (len(self._entries), self.head.hex()):
            self._write_witness()

    def _take(self, data: bytes) -> bytes:
        """Check and keep the complete lines of `data`; return what follows the last of them."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            try:
                entry = self._parse(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise TrustError(f"{self.path}, line {len(self._entries) + 1}: {error}") from error
            self._entries.append(entry)
            self._offset += len(line) + 1
        return rest

    def _is_next(self, line: bytes) -> bool:
        """Whether a line without its end is all there: then only the end was lost, and it counts."""
        try:
            self._parse(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return True

    def _parse(self, line: bytes) -> Entry:
        """The entry that must come next. Raises ValueError and its like."""
        fields = json.loads(line)
        record, signature = fields["record"], bytes.fromhex(fields.get("signature", ""))
        core = _core(len(self._entries), self.head, record)
        digest = hashlib.sha256(core).digest()
        if line + b"\n" != _line(core, digest, signature):
            raise ValueError("not what was written here: changed, removed, moved or put in")
        if self._verify:
            try:
                self._verify(signature, _SIGNED + digest)
            except Exception as error:
                raise ValueError("not signed by the owner of this log") from error
        return Entry(len(self._entries), record, digest, signature)

    def _read_witness(self) -> tuple[int, str]:
        if self._witness is None or not self._witness.exists():
            return 0, _GENESIS.hex()
        try:
            fields = json.loads(self._witness.read_bytes())
            return int(fields["entries"]), str(fields["head"])
        except (ValueError, KeyError, TypeError) as error:
            raise TrustError(f"{self._witness} is no witness of a log: {error}") from error

    def _compare(self, entries: int, head: str) -> None:
        if self._witness is None:
            return
        if entries > len(self._entries):
            raise TrustError(
                f"{self.path} was rolled back or truncated: {len(self._entries)} entries, {self._witness} saw {entries}"
            )
        if head != (self._entries[entries - 1].digest if entries else _GENESIS).hex():
            raise TrustError(f"{self.path}, line {entries}: not the entry that {self._witness} saw")
        if self._descriptor is not None and entries < len(self._entries) - 1:
            raise TrustError(f"{self._witness} saw {entries} of {len(self._entries)} entries of {self.path}: too old")

    def _write_witness(self) -> None:
        if self._witness is not None:
            seen: dict[str, Any] = {"entries": len(self._entries), "head": self.head.hex()}
            write_atomically(self._witness, rfc8785.dumps(seen))


def _core(index: int, previous: bytes, record: Mapping[str, Any]) -> bytes:
    core: dict[str, Any] = {"index": index, "previous": previous.hex(), "record": dict(record)}
    return rfc8785.dumps(core)


def _line(core: bytes, digest: bytes, signature: bytes) -> bytes:
    """Canonical JSON of `core` and its two neighbours: RFC 8785 sorts keys, so "hash" comes first, "signature" last."""
    ending = b',"signature":"%s"}' % signature.hex().encode() if signature else b"}"
    return b'{"hash":"%s",%s%s\n' % (digest.hex().encode(), core[1:-1], ending)
