"""What one site sends and what the coordinator sends back: bytes that were checked when they became a value. Pure.

First polynomials travel as dense words (packing.py), ciphertext after ciphertext, prime after prime; second
polynomials as 64-byte seeds, or, in an aggregate, summed and dense as well, always with all their coefficients.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np

from common.errors import WireError
from common.he.packing import Block, Words, blocks, largest_word, pack_words, unpack_words
from common.he.parameters import SEED_BYTES, Scheme

Dense = bytes | memoryview  # a decoded message is looked at where it lies, never copied
_AGGREGATE_HEADER = struct.Struct(">BH")  # form, sites
_SEEDS_ALONG, _EXPANDED = 0, 1


@dataclass(frozen=True)
class Ciphertext:
    """One site's encrypted vector: right lengths and words in range, which is all that can be seen from outside.

    length: number of values.   c0: dense words of all first polynomials.   seeds: 64 bytes per ciphertext.
    """

    scheme: Scheme
    length: int
    c0: Dense = field(repr=False)
    seeds: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_words(self.c0, self.scheme, self.length, self.scheme.dropped_bits)
        _check_size(self.seeds, self.scheme.ciphertexts(self.length) * SEED_BYTES)

    def encode(self, head: bytes = b"") -> bytes:
        """c0 | seeds, after a head."""
        return b"".join((head, self.c0, self.seeds))

    @classmethod
    def decode(cls, scheme: Scheme, length: int, data: Dense) -> "Ciphertext":
        """Inverse of `encode`. Raises WireError on a wrong size or a word that no ciphertext holds."""
        _check_size(data, scheme.message_bytes(length))
        end = len(data) - scheme.ciphertexts(length) * SEED_BYTES
        return cls(scheme, length, memoryview(data)[:end], bytes(data[end:]))


@dataclass(frozen=True)
class Aggregate:
    """The blind sum over `sites` ciphertexts, in one of two forms: exactly one of `seeds` and `c1` is not empty.

    c0: summed first polynomials, as dense as one site's.   seeds: those of every site, site after site.
    c1: summed second polynomials, dense, `dropped_bits_down` low bits rounded away.
    """

    scheme: Scheme
    length: int
    sites: int
    c0: Dense = field(repr=False)
    seeds: bytes = field(repr=False, default=b"")
    c1: Dense = field(repr=False, default=b"")

    def __post_init__(self) -> None:
        if not 1 <= self.sites <= self.scheme.max_sites:
            raise WireError(f"a sum over {self.sites} sites; this scheme has room for {self.scheme.max_sites}")
        _check_words(self.c0, self.scheme, self.length, self.scheme.dropped_bits)
        if self.c1:
            _check_words(self.c1, self.scheme, whole(self.scheme, self.length), self.scheme.dropped_bits_down)
        _check_size(self.seeds, 0 if self.c1 else self.sites * self.scheme.ciphertexts(self.length) * SEED_BYTES)

    def encode(self) -> bytes:
        """form u8 | sites u16, both big-endian | c0 | seeds (form 0) or c1 (form 1)"""
        form = _EXPANDED if self.c1 else _SEEDS_ALONG
        return b"".join((_AGGREGATE_HEADER.pack(form, self.sites), self.c0, self.seeds, self.c1))

    @classmethod
    def decode(cls, scheme: Scheme, length: int, data: Dense) -> "Aggregate":
        """Inverse of `encode`. Raises WireError on any byte it cannot explain."""
        start = _AGGREGATE_HEADER.size
        end = start + dense_bytes(scheme, length, scheme.dropped_bits)
        if len(data) < end:
            raise WireError(f"{len(data)} bytes of an aggregate, expected at least {end}")
        form, sites = _AGGREGATE_HEADER.unpack_from(data)
        c0, rest = memoryview(data)[start:end], memoryview(data)[end:]
        if form == _SEEDS_ALONG:
            return cls(scheme, length, sites, c0, seeds=bytes(rest))
        if form == _EXPANDED and rest:
            return cls(scheme, length, sites, c0, c1=rest)
        raise WireError("an aggregate of unknown form")

    @classmethod
    def decode_all(cls, scheme: Scheme, length: int, data: Dense) -> "list[Aggregate]":
        """The sums that `data` holds, one after the other. Raises WireError as `decode` does."""
        found, rest = [], memoryview(data)
        first, seeds = dense_bytes(scheme, length, scheme.dropped_bits), scheme.ciphertexts(length) * SEED_BYTES
        expanded = dense_bytes(scheme, whole(scheme, length), scheme.dropped_bits_down)
        while rest:
            if len(rest) < _AGGREGATE_HEADER.size:
                raise WireError(f"{len(rest)} bytes after the last sum")
            form, sites = _AGGREGATE_HEADER.unpack_from(rest)
            end = _AGGREGATE_HEADER.size + first + (expanded if form == _EXPANDED else sites * seeds)
            found.append(cls.decode(scheme, length, rest[:end]))
            rest = rest[end:]
        return found


def joined_aggregate(
    scheme: Scheme,
    length: int,
    sites: int,
    c0: Iterable[Dense],
    seeds: Iterable[Dense] = (),
    c1: Iterable[Dense] = (),
) -> memoryview:
    """`Aggregate.encode` of parts that come block after block, in the only memory that it takes."""
    along = sites * scheme.ciphertexts(length) * SEED_BYTES
    expanded = dense_bytes(scheme, whole(scheme, length), scheme.dropped_bits_down)
    form, rest = (_SEEDS_ALONG, along) if seeds else (_EXPANDED, expanded)
    data, at = bytearray(_AGGREGATE_HEADER.size + dense_bytes(scheme, length, scheme.dropped_bits) + rest), 0
    for part in chain((_AGGREGATE_HEADER.pack(form, sites),), c0, seeds, c1):
        data[at : at + len(part)] = part
        at += len(part)
    return memoryview(data)


def whole(scheme: Scheme, length: int) -> int:
    """The length of the vector that would fill the same ciphertexts to the last coefficient."""
    return scheme.ciphertexts(length) * scheme.values_per_ciphertext


def dense_bytes(scheme: Scheme, length: int, dropped_bits: int) -> int:
    """Size of the polynomials behind `length` values with this many low bits gone."""
    return scheme.coefficients(length) * sum(bits - dropped_bits for bits in scheme.modulus_bits) // 8


def dense_part(data: Dense, block: Block, scheme: Scheme, dropped_bits: int) -> memoryview:
    """The bytes of one block of dense polynomials, where they lie."""
    row_bits = sum(bits - dropped_bits for bits in scheme.modulus_bits)
    start, end = (at * row_bits // 8 for at in (block.coefficients.start, block.coefficients.stop))
    return memoryview(data)[start:end]


def dense_block(data: Dense, block: Block, scheme: Scheme, dropped_bits: int) -> list[Words]:
    """One block of dense polynomials: per prime (rows, integers), a view of `data`."""
    dense = np.frombuffer(dense_part(data, block, scheme, dropped_bits), "<u8").reshape(block.shape[0], -1)
    return _by_prime(dense, block.used, scheme, dropped_bits)


def _by_prime(dense: Words, used: int, scheme: Scheme, dropped_bits: int) -> list[Words]:
    ends = accumulate(used * (bits - dropped_bits) // 64 for bits in scheme.modulus_bits[:-1])
    return np.split(dense, list(ends), axis=1)


def round_words(words: Words, dropped_bits: int) -> None:
    """In place, to multiples of 2^dropped_bits, divided by it. Below the prime, which is 1 modulo 2^dropped_bits."""
    if dropped_bits:
        words += np.uint64(1 << (dropped_bits - 1))
        words >>= np.uint64(dropped_bits)


def to_dense(words: Words, scheme: Scheme, dropped_bits: int) -> Words:
    """Rounded polynomials (rows, primes, used) as they travel: (rows, integers)."""
    rows, primes, used = words.shape
    dense = np.zeros((rows, sum(bits - dropped_bits for bits in scheme.modulus_bits) * used // 64), np.uint64)
    parts = _by_prime(dense, used, scheme, dropped_bits)
    for prime in range(primes):
        pack_words(words[:, prime], scheme.modulus_bits[prime] - dropped_bits, parts[prime])
    return dense.astype("<u8", copy=False)


def from_dense(data: Dense, block: Block, scheme: Scheme, dropped_bits: int) -> Words:
    """Inverse of `round_words` and `to_dense` for one block, up to the rounding; coefficients that were not sent are 0.

    Returns (rows, primes, ring_degree).
    """
    words = np.zeros((block.shape[0], len(scheme.modulus_bits), scheme.ring_degree), np.uint64)
    for prime, dense in enumerate(dense_block(data, block, scheme, dropped_bits)):
        unpack_words(dense, scheme.modulus_bits[prime] - dropped_bits, words[:, prime, : block.used], dropped_bits)
    return words


def _check_size(data: Dense, expected: int) -> None:
    if len(data) != expected:
        raise WireError(f"{len(data)} bytes of ciphertext, expected {expected}")


def _check_words(data: Dense, scheme: Scheme, length: int, dropped_bits: int) -> None:
    if length < 1:
        raise WireError(f"a vector of {length} values")
    _check_size(data, dense_bytes(scheme, length, dropped_bits))
    for block in blocks(scheme, length):
        for prime, dense in zip(scheme.primes, dense_block(data, block, scheme, dropped_bits), strict=True):
            if largest_word(dense, prime.bit_length() - dropped_bits) > (prime - 1) >> dropped_bits:
                raise WireError("a word of the ciphertext is out of range")
