"""A clipped update as integers, and what rounding does to its sensitivity. Pure: randomness comes in as an argument.

The scale is public and fixed before training, so it says nothing about anybody's update. Stochastic rounding keeps
every sum unbiased; integers are what exact sums and discrete noise shares need.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidUpdate
from common.federation import require
from common.updates import Clipped, Vector

Bound = (
    float | NDArray[np.floating]
)  # largest magnitude of a coordinate, model units: one for all, or (d,), constant within a layer
_ROUNDING_CHANCE = math.exp(-0.5)  # beta of Kairouz et al.: at most 2.6 tries on average


@dataclass(frozen=True)
class Quantized:
    """values: (d,) integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1.   scale: model units per integer step."""

    values: NDArray[np.int64]
    bits: int
    scale: Bound


def quantize(update: Clipped, bits: int, uniform: Vector, largest: Bound | None = None) -> Quantized:
    """Stochastic rounding: each value becomes a neighbouring multiple of the scale, right in expectation.

    uniform: (d,) in [0, 1), fresh and secret.
    largest: what the largest integer stands for; `update.max_norm` unless given. Coordinates beyond it saturate.
    """
    scale = step(update.max_norm if largest is None else largest, bits)
    if uniform.shape != update.values.shape:
        raise InvalidUpdate(f"{uniform.size} random numbers for {update.values.size} values")
    most = (1 << (bits - 1)) - 1
    rounded = update.values / scale
    rounded += uniform
    np.floor(rounded, out=rounded)
    np.clip(rounded, -most, most, out=rounded)
    return Quantized(rounded.astype(np.int64), bits, scale)


class QuantizeStream:
    """`quantize(...).values`, rounded as they are read, once and in order: memory for one slice, and cache for it.

    draw: from a count to that many fresh and secret uniform numbers in [0, 1).
    """

    def __init__(self, update: Clipped, bits: int, draw: Callable[[int], Vector], largest: Bound | None = None) -> None:
        self._update, self._bits, self._draw = update, bits, draw
        self._largest = update.max_norm if largest is None else largest
        step(self._largest, bits)

    def __len__(self) -> int:
        return self._update.values.size

    def __getitem__(self, part: slice) -> NDArray[np.int64]:
        largest = self._largest if np.ndim(self._largest) == 0 else np.asarray(self._largest)[part]
        values = self._update.values[part]
        return quantize(Clipped(values, self._update.max_norm), self._bits, self._draw(values.size), largest).values


def quantize_conditionally(
    update: Clipped, bits: int, draw: Callable[[int], Vector], largest: Bound | None = None
) -> Quantized:
    """Stochastic rounding, repeated until its L2 norm is at most `sensitivity_after_rounding(..., conditional=True)`.

    draw: from a count to that many fresh uniform numbers in [0, 1).
    Biased by far less than a step; worth it when sqrt(d) is not small beside the norm in steps.
    Reference: Kairouz, Liu and Steinke 2021, algorithm 1 and proposition 4, arXiv:2102.06387.
    """
    d = update.values.size
    limit = sensitivity_after_rounding(update.max_norm, bits, d, largest, conditional=True)
    while True:
        rounded = quantize(update, bits, draw(d), largest)
        if math.sqrt(float(np.dot(rounded.values, rounded.values))) <= limit:
            return rounded


def dequantize_sum(total: NDArray[np.int64], largest: Bound, bits: int) -> Vector:
    """A sum of quantized updates in model units. largest: as `quantize` was given it, `max_norm` by default."""
    return np.multiply(total, step(largest, bits), dtype=np.float64)


def step(largest: Bound, bits: int) -> Bound:
    """Model units per integer step when `largest` becomes 2^(bits-1) - 1."""
    require(2 <= bits <= 48, "bits", bits, "2 to 48")
    require(bool(np.all(np.isfinite(largest)) and np.all(np.asarray(largest) > 0)), "largest", largest, "positive")
    return largest / ((1 << (bits - 1)) - 1)


def sensitivity_after_rounding(
    max_norm: float, bits: int, d: int, largest: Bound | None = None, conditional: bool = False
) -> float:
    """The largest L2 norm, in integer steps, of a quantized update of d values: what discrete noise must cover.

    Rounding moves every coordinate by less than one step, so the norm may grow by sqrt(d); conditional rounding
    keeps it near its mean. Reference: Kairouz, Liu and Steinke 2021, proposition 4, arXiv:2102.06387.
    """
    norm = max_norm / float(np.min(step(max_norm if largest is None else largest, bits)))
    worst = norm + math.sqrt(d)
    if not conditional:
        return worst
    spread = math.sqrt(2 * math.log(1 / _ROUNDING_CHANCE)) * (norm + math.sqrt(d) / 2)
    return min(worst, math.sqrt(norm**2 + d / 4 + spread))


def rotate(update: Clipped, seed: bytes) -> Clipped:
    """The same vector in a public random basis, in which no coordinate stands out; the norm stays.

    A Hadamard transform after random signs, over the first and then over the last 2^k coordinates, 2^k <= d: any d
    works without padding. seed: public, agreed by all sites.
    """
    values = update.values.copy()
    head, tail, signs = _rotation(values.size, seed)
    values[head] = _hadamard(values[head] * signs[0])
    values[tail] = _hadamard(values[tail] * signs[1])
    return Clipped(values, update.max_norm)


def rotate_back(total: Vector, seed: bytes) -> Vector:
    """Inverse of `rotate`, for a sum of updates that were rotated alike."""
    values = total.copy()
    head, tail, signs = _rotation(values.size, seed)
    values[tail] = _hadamard(values[tail]) * signs[1]
    values[head] = _hadamard(values[head]) * signs[0]
    return values


def largest_after_rotation(max_norm: float, d: int, chance: float = 1e-6) -> float:
    """No coordinate of a rotated vector is larger, but for `chance` over the seed: the scale that rotation buys.

    Each is a sum of d' = 2^k signed terms of norm at most max_norm / sqrt(d'): Hoeffding's inequality and a union.
    """
    return min(max_norm, max_norm * math.sqrt(2 * math.log(2 * d / chance) / (1 << (d.bit_length() - 1))))


def _rotation(d: int, seed: bytes) -> tuple[slice, slice, NDArray[np.int8]]:
    size = 1 << (d.bit_length() - 1)
    coins = np.unpackbits(np.frombuffer(hashlib.shake_256(seed).digest(-(-size // 4)), np.uint8))[: 2 * size]
    return slice(0, size), slice(d - size, d), 1 - 2 * coins.reshape(2, size).astype(np.int8)


def _hadamard(values: Vector) -> Vector:
    """The orthonormal Walsh-Hadamard transform, its own inverse; the length is a power of two."""
    half = 1
    while half < values.size:
        pairs = values.reshape(-1, 2, half)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    return values / math.sqrt(values.size)
