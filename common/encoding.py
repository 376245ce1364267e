"""How an update becomes the integers that travel, and how a sum of them becomes model units again. Pure.

All of it is public, fixed by the plan before training and the same at every site; only the randomness of the rounding
is secret. A coordinate beyond the scale saturates. That is a projection onto a box around zero: it can cost accuracy,
never privacy, because no update grows longer by it.
Where noise comes in shares (`dp/noise_shares.py`), the site's own is added here, and rounding needs no coin of its own.
What rotation buys: with one coordinate as long as the norm bound among 100,000 small ones, 16 bits round with an error
35 times smaller. Without rotation that coordinate alone sets the scale of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.dp.cost import noise_share
from common.dp.noise_shares import NoiseGrid
from common.federation import Plan, require
from common.he.quantize import (
    Bound,
    QuantizeStream,
    dequantize_sum,
    largest_after_rotation,
    quantize,
    quantize_conditionally,
    rotate,
    rotate_back,
    step,
)
from common.he.series import Series
from common.randomness import Randomness
from common.updates import Clipped, Vector

_ROTATION = b"veilfed.rotation.v1|"
_FALSE_ALARM = 1e-9  # that a bucket of sites which all clip looks longer than it may be


@dataclass(frozen=True, eq=False)
class Encoding:
    """One round's encoding. largest: what the largest integer of `bits` bits stands for, model units.

    seed: of the public basis that updates are turned into, or None. It follows from the run and the round, so that
    bad luck with one basis (a coordinate that saturates) does not last.
    grid: the integers that leave room for this site's share of the noise, where noise comes in shares.
    """

    bits: int
    conditional: bool
    largest: Bound = field(repr=False)
    seed: bytes | None
    grid: NoiseGrid | None = None

    @classmethod
    def of(cls, plan: Plan, run: bytes, round_number: int, bits: int, layers: Sequence[int], cohort: int) -> "Encoding":
        """layers: sizes of the trainable tensors, in the model's order.   cohort: number of sites.

        Raises ConfigError as `public_scale` does, or when noise is too small for the integers.
        """
        settings, largest = plan.encryption, public_scale(plan, layers)
        seed = _ROTATION + run + round_number.to_bytes(4, "big") if settings.rotate else None
        share = noise_share(plan, cohort)
        grid = NoiseGrid(bits, float(np.max(largest)), share) if plan.privacy.in_shares else None
        return cls(bits, settings.rounding == "conditional", largest, seed, grid)

    def encode(self, update: Clipped, randomness: Randomness) -> NDArray[np.int64]:
        """(d,) integers of `bits` bits, right in expectation where nothing saturates. randomness: fresh and secret."""
        turned = rotate(update, self.seed) if self.seed else update
        if self.grid:
            return self.grid.noised(turned.values, randomness.gaussian(turned.values.size, 1.0, np.float64))
        if self.conditional:
            return quantize_conditionally(turned, self.bits, randomness.uniform, self.largest).values
        return quantize(turned, self.bits, randomness.uniform(turned.values.size), self.largest).values

    def stream(self, update: Clipped, randomness: Randomness) -> Series:
        """What `encode` gives, made as it is read where rounding is all there is to do."""
        if self.grid or self.conditional:
            return self.encode(update, randomness)
        turned = rotate(update, self.seed) if self.seed else update
        return QuantizeStream(turned, self.bits, randomness.uniform, self.largest)

    def decode(self, total: NDArray[np.int64]) -> Vector:
        """(d,) float64: the sum of the updates behind a sum of encoded ones, bit for bit the same at every site."""
        if self.grid:
            summed = np.multiply(total, self.grid.step, dtype=np.float64)
        else:
            summed = dequantize_sum(total, self.largest, self.bits)
        return rotate_back(summed, self.seed) if self.seed else summed

    def longest_mean(self, max_norm: float, values: int, summed: int) -> float:
        """The L2 norm, in model units, that a decoded mean of `summed` updates clipped to max_norm stays within.

        Rounding moves each of the `values` coordinates by a step at most. Noise in shares is longer than
        std sqrt(d) + std sqrt(2 ln(1 / chance)) once in 10^9 times: concentration of Lipschitz functions of Gaussian
        variables (Boucheron, Lugosi, Massart 2013, theorem 5.6).
        """
        root, tail = math.sqrt(values), math.sqrt(2 * math.log(1 / _FALSE_ALARM))
        if self.grid:
            return max_norm + self.grid.step * root + self.grid.std / math.sqrt(summed) * (root + tail)
        return max_norm + float(np.max(step(self.largest, self.bits))) * root


def public_scale(plan: Plan, layers: Sequence[int]) -> Bound:
    """What the largest integer stands for: one number for all coordinates, or (d,) with one per layer.

    Raises ConfigError when the plan names another number of layers than the model has.
    """
    settings, max_norm = plan.encryption, plan.privacy.max_update_norm
    if scales := settings.layer_scales:
        require(len(scales) == len(layers), "encryption.layer_scales", scales, f"one per trainable tensor, {layers}")
        return np.repeat(scales, layers)
    if settings.largest:
        return settings.largest
    if settings.rotate:  # in single precision, lest two sites' logarithms differ in the last bit and their models after
        return float(np.float32(largest_after_rotation(max_norm, sum(layers))))
    return max_norm
