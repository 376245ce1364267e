"""Exposure: how much better than by chance a model that learnt text guesses a secret that was in it. Pure."""

import math
from dataclasses import dataclass, field

import numpy as np

from common.errors import ConfigError
from common.evaluators.membership import clopper_pearson
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats
from common.federation import require


@dataclass(frozen=True, eq=False)
class Secrets:
    """planted: (m,), what the model says of secrets that it was trained on, lower for likelier ones (log-perplexity).

    others: (k,), of secrets drawn alike that it was not trained on. space_bits: the binary logarithm of how many
    secrets of that kind there are; with all but the planted ones among the others, ranks are exact.
    """

    planted: Floats = field(repr=False)
    others: Floats = field(repr=False)
    space_bits: float

    def __post_init__(self) -> None:
        for name, scores in (("planted", self.planted), ("others", self.others)):
            if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
                raise ConfigError(f"secrets need a finite score for each that was {name}, got {scores.shape}")
        fewest = math.log2(len(self.others) + 1)
        require(fewest <= self.space_bits + 1e-9, "space_bits", self.space_bits, f"{fewest:g} or more, for so many")


def exposures(secrets: Secrets) -> list[Estimate]:
    """Of each planted secret, in bits: those of the space less those of its rank among all by what the model says.

    0: the last that an attacker would try. space_bits: the first. A secret that was not learnt has x bits or more with
    a chance of 2^-x. Ranks among a sample of others are scaled up; interval: by Clopper and Pearson for the share that
    is ahead, up to the space. Reference: Carlini et al. 2019, arXiv:1802.08232, section 4.
    """
    drawn, found = len(secrets.others), []
    exact = math.log2(drawn + len(secrets.planted)) >= secrets.space_bits - 1e-9
    for score in secrets.planted:
        ahead = int((secrets.others <= score).sum())
        value = math.log2((drawn + 1) / (ahead + 1))
        share = clopper_pearson(ahead, drawn)
        high = min(secrets.space_bits, -math.log2(share.low)) if share.low else secrets.space_bits
        found.append(Estimate(*(3 * (value,))) if exact else Estimate(value, -math.log2(share.high), high))
    return found


class Exposure:
    """Exposure of the secret that was learnt best, and of the middle one. Reference: `exposures`."""

    name = "exposure"
    needs = frozenset({"secrets"})

    def evaluate(self, material: Material) -> Findings:
        secrets = needed(material.secrets, "secrets", self.name)
        ranked = sorted(exposures(secrets), key=lambda found: found.value)
        figures = {"largest_exposure_bits": ranked[-1], "median_exposure_bits": ranked[len(ranked) // 2]}
        return Findings(
            self.name,
            figures,
            (f"of {secrets.space_bits:.1f} bits; one secret that was not learnt has x bits with a chance of 2^-x",),
        )
