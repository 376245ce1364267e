"""SEAL's file format, kept inside one process: its load and save take paths, so we hand it a file that is only memory.

These frames never cross a site border (SEAL versions refuse each other's), and no plaintext or key touches a disk.
"""

import os
import struct
from functools import cache
from types import TracebackType

import zstandard

from common.errors import ConfigError
from common.he.packing import Words
from common.he.parameters import SEED_BYTES

_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major and minor version, compression, reserved, frame size
_MAGIC, _UNCOMPRESSED, _ZSTD = 0xA15E, 0, 2
_PLAINTEXT = struct.Struct("<32sQd")  # parms id, coefficients, scale
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms id, NTT form, polynomials, ring degree, primes, scale, correction
_COUNT = struct.Struct("<Q")
Frame = list[bytes | memoryview]  # its parts, in order
_BLAKE2XB = b"\1"  # the generator that turns a seed into a polynomial

PLAINTEXT_START = _PLAINTEXT.size + _HEADER.size + _COUNT.size  # of the integers in what `Scratch.read` returns
CIPHERTEXT_START = _CIPHERTEXT.size + _HEADER.size + _COUNT.size


class Scratch:
    """One file in memory, for one thread; use it in a `with`."""

    def __enter__(self) -> "Scratch":
        if not hasattr(os, "memfd_create"):
            raise ConfigError("this system has no memfd_create", "encrypt on Linux, where keys need not touch a disk")
        self._descriptor = os.memfd_create("veilfed")
        self._zstd = zstandard.ZstdDecompressor()
        self.path = f"/proc/self/fd/{self._descriptor}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def write(self, frame: Frame) -> str:
        """Put a frame there; the path to load it from."""
        os.pwritev(self._descriptor, frame, 0)
        return self.path

    def frame(self) -> bytes:
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def read(self) -> bytes:
        """What SEAL saved, without its outer header and compression."""
        frame = self.frame()
        compressed = _HEADER.unpack_from(frame)[4] == _ZSTD
        payload = frame[_HEADER.size :]
        return self._zstd.decompressobj().decompress(payload) if compressed else payload


class Frames:
    """Frames around integers, for one context. `version` is SEAL's own, as (major, minor)."""

    def __init__(self, version: tuple[int, int], parms_id: bytes, ring_degree: int, primes: int) -> None:
        self._version, self._parms_id = version, parms_id
        self._ring_degree, self._primes = ring_degree, primes

    def plaintext(self, coefficients: Words) -> Frame:
        """coefficients: (ring_degree,), each below t."""
        return self._frame(_PLAINTEXT.pack(bytes(32), coefficients.size, 1.0), coefficients)

    def secret_key(self, words: Words) -> Frame:
        """words: the key modulo every prime, transformed, as SEAL keeps it."""
        return self._frame(_PLAINTEXT.pack(self._parms_id, words.size, 1.0), words)

    def ciphertext(self, first: Words, second: Words, ntt_form: bool = False) -> Frame:
        """first, second: the polynomials, (primes, ring_degree)."""
        return self._frame(self._ciphertext(ntt_form), first, second)

    def seeded(self, first: Words, seed: bytes) -> Frame:
        """first: the first polynomial; SEAL grows the second from the seed, which is the frame's very end."""
        tail = _header(self._version, len(_BLAKE2XB + seed)) + _BLAKE2XB + seed
        return self._frame(self._ciphertext(ntt_form=False), first, tail=tail)

    def _ciphertext(self, ntt_form: bool) -> bytes:
        return _CIPHERTEXT.pack(self._parms_id, ntt_form, 2, self._ring_degree, self._primes, 1.0, 1)

    def _frame(self, head: bytes, *words: Words, tail: bytes = b"") -> Frame:
        count = sum(part.size for part in words)
        return [_before_words(self._version, head, count, len(tail)), *(part.data for part in words), tail]


@cache
def _before_words(version: tuple[int, int], head: bytes, count: int, tail_bytes: int) -> bytes:
    array = _header(version, _COUNT.size + 8 * count) + _COUNT.pack(count)
    return _header(version, len(head) + len(array) + 8 * count + tail_bytes) + head + array


@cache
def _header(version: tuple[int, int], payload_bytes: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _UNCOMPRESSED, 0, _HEADER.size + payload_bytes)


def version_of(frame: bytes) -> tuple[int, int]:
    """The (major, minor) version of the SEAL that wrote this frame."""
    _, _, major, minor, _, _, _ = _HEADER.unpack_from(frame)
    return major, minor


def seed_in(tail: bytes) -> bytes | None:
    """The seed (64 bytes) in what follows the first polynomial of a saved ciphertext; None when it is no seed."""
    known = len(tail) == _HEADER.size + len(_BLAKE2XB) + SEED_BYTES and tail[_HEADER.size :].startswith(_BLAKE2XB)
    return tail[-SEED_BYTES:] if known else None
