"""Gaussian noise that many sites add together, each its share, on the integers that encryption sums. Pure.

Site i holds a real vector x_i, in integer steps, and sends round(x_i + g_i), coordinates of g_i normal with standard
deviation s. For one site this is the Gaussian mechanism and post-processing. So it is for the sum of n sites. The
chance of the integer k under round(x_i + g_i) is r_i(k), with r_i the normal density convolved with a box of width 1.
Were sums over integers integrals, the sum would have the density r_1 * ... * r_n at k: that of rounding sum x_i, plus
normal noise of standard deviation s sqrt(n), plus n - 1 uniforms: the Gaussian mechanism for sum x_i, post-processed.
They nearly are: r_1 * ... * r_k times a shifted r_(k+1) is a mixture of bells of variance s^2 k / (k + 1), and
Poisson's summation formula gives the sum of each over the integers as its integral times 1 +- tau_k, where
tau_k = 2 sum over m >= 1 of exp(-2 pi^2 m^2 s^2 k / (k + 1)). So every chance is off by a factor between
prod (1 - tau_k) and prod (1 + tau_k), and epsilon by -2 sum log(1 - tau_k) per coordinate at most: `excess_epsilon`,
below 1e-90 for a billion coordinates at the least noise allowed here, so nothing is charged for it.
Kairouz, Liu and Steinke 2021, arXiv:2102.06387, find the same tau for discrete Gaussians. Rounding noised values has
one more merit: they need no rounding beforehand, so one record's reach stays what clipping made it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import CohortTooSmall
from common.federation import require
from common.updates import Vector

LEAST_STD_STEPS = 5.0  # of one share
_TAIL = 9.0  # standard deviations: beyond what a 53-bit generator ever draws (8.57)


@dataclass(frozen=True)
class NoiseShares:
    """cohort: sites summed together that each add a share: all, or those of one bucket, when all of them are there.

    colluding: those of them whose shares an adversary may know.
    """

    cohort: int
    colluding: int

    def __post_init__(self) -> None:
        require(1 <= self.colluding < self.cohort, "privacy.colluding", self.colluding, f"1 to {self.cohort - 1}")

    def __str__(self) -> str:
        """The premise of every number that rests on them."""
        few = (
            "at most 1 pools or leaves out its share"
            if self.colluding == 1
            else (f"at most {self.colluding} pool or leave out their shares")
        )
        return f"of {self.cohort} sites summed together {few} of the noise"

    def share(self, total_std: float) -> float:
        """The noise of one site, when all are there and that of the colluding does not count."""
        return total_std / math.sqrt(self.cohort - self.colluding)

    def left(self, summed: int) -> float:
        """What part of the planned noise multiplier a sum over `summed` sites still has."""
        if summed <= self.colluding:
            raise CohortTooSmall(f"a sum of {summed} sites, of which {self.colluding} may collude, has no noise left")
        return math.sqrt((summed - self.colluding) / (self.cohort - self.colluding))


@dataclass(frozen=True)
class NoiseGrid:
    """Integers of `bits` bits for values of magnitude up to `largest` and noise of standard deviation `std` on top.

    largest, std: in the values' own units.
    """

    bits: int
    largest: float
    std: float

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 48, "value bits", self.bits, "2 to 48")
        require(0 < self.largest < math.inf, "largest value", self.largest, "positive and finite")
        require(0 < self.std < math.inf, "noise", self.std, "positive and finite")
        require(
            self.std / self.step >= LEAST_STD_STEPS,
            "noise, in integer steps of one site's share,",
            round(self.std / self.step, 2),
            f"{LEAST_STD_STEPS:g} or more: raise the noise or the bits, or lower the largest value",
        )

    @property
    def step(self) -> float:
        """Units per integer: no value with its noise ever leaves the range."""
        return (self.largest + _TAIL * self.std) / ((1 << (self.bits - 1)) - 1)

    def noised(self, values: Vector, normal: NDArray[np.floating]) -> NDArray[np.int64]:
        """values: (d,), projected onto the box of `largest` first, which moves no two vectors apart.

        normal: (d,) fresh, secret draws from the standard normal distribution.
        """
        steps = np.clip(values, -self.largest, self.largest)
        steps += self.std * normal
        steps /= self.step
        return np.rint(steps).astype(np.int64)


def excess_epsilon(std_steps: float, sites: int, coordinates: int) -> float:
    """What summing rounded shares adds to the epsilon of the Gaussian mechanism, at most; see the top of this file."""
    taus = [2 * _tail(2 * math.pi**2 * std_steps**2 * k / (k + 1)) for k in range(1, sites)]
    if max(taus, default=0.0) >= 1:
        return math.inf
    return 2 * coordinates * -math.fsum(math.log1p(-tau) for tau in taus)


def _tail(rate: float) -> float:
    """sum over m >= 1 of exp(-rate m^2)"""
    return math.fsum(math.exp(-rate * m * m) for m in range(1, 40))
