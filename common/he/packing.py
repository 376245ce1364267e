"""Values into slots of plaintext coefficients, ciphertext words into dense bits, and both ways back. Pure.

Bit layout of `n` words of `width` bits (one ciphertext, one prime): lanes = 64 / gcd(64, width) consecutive runs of
n / lanes words; the first words of all runs fill the first column of width * lanes / 64 little-endian 64-bit integers,
lowest bits first, and so on. Integer k of every column is stored together. So a whole run is one numpy operation,
and a run never needs its neighbours.
"""

from collections.abc import Iterator
from math import gcd

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidUpdate
from common.he.parameters import Scheme

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]


def pack_slots(values: Integers, scheme: Scheme) -> Words:
    """Values as coefficients: (length,) -> (ciphertexts, ring_degree), each below t.

    A value travels as value + 2^(value_bits - 1), so that a sum never borrows; padding travels as 0.
    Raises InvalidUpdate when a value does not fit `value_bits` bits, sign included.
    """
    offset = 1 << (scheme.value_bits - 1)
    if values.dtype != np.int64 or values.ndim != 1 or not values.size:
        raise InvalidUpdate(f"expected a vector of int64, got {values.dtype} of shape {values.shape}")
    if values.min() < -offset or values.max() >= offset:
        raise InvalidUpdate(f"a value does not fit {scheme.value_bits} bits")
    slots = np.zeros((scheme.ciphertexts(values.size), scheme.slots, scheme.ring_degree), np.uint64)
    np.add(values, offset, out=slots.reshape(-1)[: values.size].view(np.int64))
    coefficients = slots[:, 0].copy()
    for slot in range(1, scheme.slots):
        coefficients |= slots[:, slot] << np.uint64(slot * scheme.slot_bits)
    return coefficients


def unpack_slots(coefficients: Words, length: int, sites: int, scheme: Scheme) -> Integers | None:
    """The sum of `sites` packed vectors, (length,); None when no such sum gives these coefficients."""
    mask = np.uint64((1 << scheme.slot_bits) - 1)
    slots = np.empty((len(coefficients), scheme.slots, scheme.ring_degree), np.uint64)
    for slot in range(scheme.slots):
        np.right_shift(coefficients, np.uint64(slot * scheme.slot_bits), out=slots[:, slot])
        slots[:, slot] &= mask
    totals = slots.reshape(-1).view(np.int64)
    if totals.max() > sites * ((1 << scheme.value_bits) - 1) or totals[length:].any():
        return None
    return totals[:length] - sites * (1 << (scheme.value_bits - 1))


def pack_words(words: Words, width: int) -> Words:
    """(rows, n) words below 2^width -> (rows, n * width / 64) dense integers. n is a multiple of 64."""
    rows, n = words.shape
    lanes = 64 // gcd(64, width)
    columns = n // lanes
    source = words.reshape(rows, lanes, columns)
    packed = np.zeros((rows, width * lanes // 64, columns), np.uint64)
    for lane in range(lanes):
        integer, shift = divmod(lane * width, 64)
        packed[:, integer] |= source[:, lane] << np.uint64(shift)
        if shift + width > 64:
            packed[:, integer + 1] |= source[:, lane] >> np.uint64(64 - shift)
    return packed.reshape(rows, -1)


def unpack_words(packed: Words, width: int) -> Words:
    """Inverse of `pack_words`."""
    lanes = list(_lanes(packed, width))
    return np.stack(lanes, axis=1).reshape(len(packed), -1)


def add_packed(totals: Words, packed: Words, width: int) -> None:
    """totals += the words in `packed`, in place. totals: (rows, n); the caller has room for the carry."""
    runs = totals.reshape(len(packed), 64 // gcd(64, width), -1)
    for lane, words in enumerate(_lanes(packed, width)):
        runs[:, lane] += words


def largest_word(packed: Words, width: int) -> int:
    return max(int(words.max()) for words in _lanes(packed, width))


def _lanes(packed: Words, width: int) -> Iterator[Words]:
    """The runs in order, each (rows, columns)."""
    lanes = 64 // gcd(64, width)
    source = packed.reshape(len(packed), width * lanes // 64, -1)
    mask = np.uint64((1 << width) - 1)
    for lane in range(lanes):
        integer, shift = divmod(lane * width, 64)
        words = source[:, integer] >> np.uint64(shift)
        if shift + width > 64:
            words |= source[:, integer + 1] << np.uint64(64 - shift)
        words &= mask
        yield words
