"""What one site sends and what the coordinator sends back: bytes that were checked when they became a value. Pure.

First polynomials travel as dense words (packing.py), one row per ciphertext, its primes side by side; second
polynomials as 64-byte seeds, or, in an aggregate, summed and dense as well.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from common.errors import WireError
from common.he.packing import Words, largest_word, pack_words, unpack_words
from common.he.parameters import SEED_BYTES, Scheme

BLOCK = 64  # ciphertexts worked on at a time: fits a processor's cache and bounds memory
_AGGREGATE_HEADER = struct.Struct(">BH")  # form, sites
_SEEDS_ALONG, _EXPANDED = 0, 1


@dataclass(frozen=True)
class Ciphertext:
    """One site's encrypted vector: right lengths and words in range, which is all that can be seen from outside.

    length: number of values.   c0: dense words of all first polynomials.   seeds: 64 bytes per ciphertext.
    """

    scheme: Scheme
    length: int
    c0: bytes = field(repr=False)
    seeds: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_words(self.c0, self.scheme, self.length, self.scheme.dropped_bits)
        _check_size(self.seeds, self.scheme.ciphertexts(self.length) * SEED_BYTES)

    def encode(self) -> bytes:
        """c0 | seeds"""
        return self.c0 + self.seeds

    @classmethod
    def decode(cls, scheme: Scheme, length: int, data: bytes) -> "Ciphertext":
        """Inverse of `encode`. Raises WireError on a wrong size or a word that no ciphertext holds."""
        ciphertexts = scheme.ciphertexts(length)
        _check_size(data, ciphertexts * scheme.ciphertext_bytes)
        end = len(data) - ciphertexts * SEED_BYTES
        return cls(scheme, length, data[:end], data[end:])


@dataclass(frozen=True)
class Aggregate:
    """The blind sum over `sites` ciphertexts, in one of two forms: exactly one of `seeds` and `c1` is not empty.

    c0: summed first polynomials, as dense as one site's.   seeds: those of every site, site after site.
    c1: summed second polynomials, dense, `dropped_bits_down` low bits rounded away.
    """

    scheme: Scheme
    length: int
    sites: int
    c0: bytes = field(repr=False)
    seeds: bytes = field(repr=False, default=b"")
    c1: bytes = field(repr=False, default=b"")

    def __post_init__(self) -> None:
        if not 1 <= self.sites <= self.scheme.max_sites:
            raise WireError(f"a sum over {self.sites} sites; this scheme has room for {self.scheme.max_sites}")
        _check_words(self.c0, self.scheme, self.length, self.scheme.dropped_bits)
        if self.c1:
            _check_words(self.c1, self.scheme, self.length, self.scheme.dropped_bits_down)
        _check_size(self.seeds, 0 if self.c1 else self.sites * self.scheme.ciphertexts(self.length) * SEED_BYTES)

    def encode(self) -> bytes:
        """form u8 | sites u16, both big-endian | c0 | seeds (form 0) or c1 (form 1)"""
        form = _EXPANDED if self.c1 else _SEEDS_ALONG
        return b"".join((_AGGREGATE_HEADER.pack(form, self.sites), self.c0, self.seeds, self.c1))

    @classmethod
    def decode(cls, scheme: Scheme, length: int, data: bytes) -> "Aggregate":
        """Inverse of `encode`. Raises WireError on any byte it cannot explain."""
        start = _AGGREGATE_HEADER.size
        end = start + row_bytes(scheme, scheme.dropped_bits) * scheme.ciphertexts(length)
        if len(data) < end:
            raise WireError(f"{len(data)} bytes of an aggregate, expected at least {end}")
        form, sites = _AGGREGATE_HEADER.unpack_from(data)
        if form == _SEEDS_ALONG:
            return cls(scheme, length, sites, data[start:end], seeds=data[end:])
        if form == _EXPANDED and len(data) > end:
            return cls(scheme, length, sites, data[start:end], c1=data[end:])
        raise WireError("an aggregate of unknown form")


def row_bytes(scheme: Scheme, dropped_bits: int) -> int:
    """Dense bytes of one polynomial with this many low bits gone."""
    return scheme.ring_degree * sum(bits - dropped_bits for bits in scheme.modulus_bits) // 8


def dense_rows(data: bytes, scheme: Scheme, dropped_bits: int) -> Iterator[tuple[slice, list[Words]]]:
    """The rows of `data` in blocks: which rows, and per prime their dense integers."""
    integers = [scheme.ring_degree * (bits - dropped_bits) // 64 for bits in scheme.modulus_bits]
    rows = np.frombuffer(data, "<u8").reshape(-1, sum(integers))
    for first in range(0, len(rows), BLOCK):
        block = slice(first, min(first + BLOCK, len(rows)))
        yield block, np.split(rows[block], list(accumulate(integers[:-1])), axis=1)


def to_dense(words: Words, scheme: Scheme, dropped_bits: int) -> bytes:
    """Polynomials (rows, primes * ring_degree), rounded to multiples of 2^dropped_bits, as they travel."""
    if dropped_bits:  # never reaches the prime: it is 1 modulo 2^dropped_bits
        words = (words + np.uint64(1 << (dropped_bits - 1))) >> np.uint64(dropped_bits)
    residues = np.split(words, len(scheme.primes), axis=1)
    widths = [bits - dropped_bits for bits in scheme.modulus_bits]
    return np.concatenate([pack_words(*pair) for pair in zip(residues, widths, strict=True)], axis=1).tobytes()


def from_dense(dense: list[Words], scheme: Scheme, dropped_bits: int) -> Words:
    """Inverse of `to_dense` for one block of `dense_rows`, up to the rounding."""
    widths = [bits - dropped_bits for bits in scheme.modulus_bits]
    words = np.concatenate([unpack_words(*pair) for pair in zip(dense, widths, strict=True)], axis=1)
    return words << np.uint64(dropped_bits)


def _check_size(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise WireError(f"{len(data)} bytes of ciphertext, expected {expected}")


def _check_words(data: bytes, scheme: Scheme, length: int, dropped_bits: int) -> None:
    if length < 1:
        raise WireError(f"a vector of {length} values")
    _check_size(data, scheme.ciphertexts(length) * row_bytes(scheme, dropped_bits))
    for _, dense in dense_rows(data, scheme, dropped_bits):
        for prime, rows in zip(scheme.primes, dense, strict=True):
            if largest_word(rows, prime.bit_length() - dropped_bits) > (prime - 1) >> dropped_bits:
                raise WireError("a word of the ciphertext is out of range")
