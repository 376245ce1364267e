"""Values into slots of plaintext coefficients, ciphertext words into dense bits, and both ways back. Pure.

A vector fills one ciphertext after the other; within one, its first values fill the lowest slot of every coefficient,
the next the second slot. The last ciphertext uses only as many coefficients as it needs, a multiple of 64, and only
those travel: a coefficient of c0 is of no use but for its own.

The last GUARDS coefficients of every ciphertext stay zero, and a sum in which they are not does not open. BFV is
malleable: a coordinator could add K to the second polynomial of a sum, which adds K times the secret key to what opens,
and read the key off the model that is released. Whoever does not know the ternary key leaves 32 guards zero with chance
3^-32, and has one try a run: sites open one sum a round.

Bit layout of `n` words of `width` bits (one ciphertext, one prime): lanes = 64 / gcd(64, width) consecutive runs of
n / lanes words; the first words of all runs fill the first column of width * lanes / 64 little-endian 64-bit integers,
lowest bits first, and so on. Integer k of every column is stored together. So a whole run is one numpy operation,
and a run never needs its neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidUpdate
from common.he.parameters import GUARDS, Scheme

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]
_ROWS = 16  # ciphertexts worked on at a time: fits a processor's cache and bounds memory


@dataclass(frozen=True)
class Block:
    """Ciphertexts `rows` of a vector, each with `used` coefficients: where their values and coefficients lie."""

    rows: slice
    used: int
    values: slice
    coefficients: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.used

    def whole(self, scheme: Scheme) -> "Block":
        """The same ciphertexts, in polynomials that keep all their coefficients."""
        first, last = self.rows.start * scheme.ring_degree, self.rows.stop * scheme.ring_degree
        return replace(self, used=scheme.ring_degree, coefficients=slice(first, last))


def blocks(scheme: Scheme, length: int) -> Iterator[Block]:
    """The vector in order; only the last block may hold a ciphertext that is partly used, alone."""
    full = length // scheme.values_per_ciphertext
    for first in range(0, full, _ROWS):
        last = min(first + _ROWS, full)
        values = slice(first * scheme.values_per_ciphertext, last * scheme.values_per_ciphertext)
        coefficients = slice(first * scheme.ring_degree, last * scheme.ring_degree)
        yield Block(slice(first, last), scheme.ring_degree, values, coefficients)
    start, end = full * scheme.ring_degree, scheme.coefficients(length)
    if start < end:
        values = slice(full * scheme.values_per_ciphertext, length)
        yield Block(slice(full, full + 1), end - start, values, slice(start, end))


def pack_slots(values: Integers, block: Block, scheme: Scheme) -> Words:
    """One block's values as coefficients: (block.shape), each below t.

    A value travels as value + 2^(value_bits - 1), so that a sum never borrows; padding travels as 0.
    Raises InvalidUpdate when a value does not fit `value_bits` bits, sign included.
    """
    offset = 1 << (scheme.value_bits - 1)
    if values.min() < -offset or values.max() >= offset:
        raise InvalidUpdate(f"a value does not fit {scheme.value_bits} bits")
    rows, filled = block.shape[0], block.used - GUARDS
    padding = rows * scheme.slots * filled - values.size
    padded = np.concatenate([values, np.full(padding, -offset)]) if padding else values
    coefficients = np.zeros(block.shape, np.int64)
    for slot, part in enumerate(np.moveaxis(padded.reshape(rows, scheme.slots, filled), 1, 0)):
        coefficients[:, :filled] |= (part + offset) << (slot * scheme.slot_bits)
    return coefficients.view(np.uint64)


def unpack_slots(coefficients: Words, sites: int, scheme: Scheme, values: Integers) -> bool:
    """Write the sum of one block of `sites` vectors; False when no such sum gives these coefficients."""
    rows, filled = coefficients.shape[0], coefficients.shape[1] - GUARDS
    mask, most = np.uint64((1 << scheme.slot_bits) - 1), sites * ((1 << scheme.value_bits) - 1)
    whole = values.size == rows * scheme.slots * filled
    totals = values if whole else np.empty(rows * scheme.slots * filled, np.int64)
    for slot, part in enumerate(np.moveaxis(totals.reshape(rows, scheme.slots, filled), 1, 0)):
        np.bitwise_and(coefficients[:, :filled] >> np.uint64(slot * scheme.slot_bits), mask, out=part.view(np.uint64))
    if totals.max() > most or totals[values.size :].any() or coefficients[:, filled:].any():
        return False
    np.subtract(totals[: values.size], sites << (scheme.value_bits - 1), out=values)
    return True


def pack_words(words: Words, width: int, packed: Words) -> None:
    """Write (rows, n) words below 2^width into (rows, n * width / 64) zeros, densely. n is a multiple of 64."""
    lanes = 64 // gcd(64, width)
    runs = words.reshape(len(words), lanes, -1)
    columns = packed.reshape(len(packed), width * lanes // 64, -1)
    for lane in range(lanes):
        integer, shift = divmod(lane * width, 64)
        columns[:, integer] |= runs[:, lane] << np.uint64(shift)
        if shift + width > 64:
            columns[:, integer + 1] |= runs[:, lane] >> np.uint64(64 - shift)


def unpack_words(packed: Words, width: int, words: Words, shift: int = 0) -> None:
    """Inverse of `pack_words`: write (rows, n) words, times 2^shift."""
    runs = words.reshape(len(packed), 64 // gcd(64, width), -1)
    for lane, run in enumerate(_lanes(packed, width)):
        np.left_shift(run, np.uint64(shift), out=runs[:, lane])


def add_packed(totals: Words, packed: Words, width: int) -> None:
    """totals += the words in `packed`, in place. totals: (rows, n); the caller has room for the carry."""
    runs = totals.reshape(len(packed), 64 // gcd(64, width), -1)
    for lane, run in enumerate(_lanes(packed, width)):
        runs[:, lane] += run


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
