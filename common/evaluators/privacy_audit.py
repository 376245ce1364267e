"""What canaries tell about the privacy that a mechanism really gave, against what was claimed for it. Pure.

Canaries are records made to be found; each was put in by a fair coin of its own. Two readings of how well they are
found, after one run:
- the certificate is a lower bound on epsilon that holds whatever the mechanism is (Steinke, Nasr, Jagielski 2023);
- the detector fits two normal distributions. It is sharp, and right only for canaries that took part in every step and
  whose noise is normal: then its odds are exact. Elsewhere it is an estimate.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, nct, norm

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats
from common.federation import require

FALSE_ALARM = 1e-3  # of a verdict on an honest run, certificate and detector together
LARGEST_EPSILON = 100.0  # what is said of more: nothing is private any longer
_CONFIDENCE = 0.95
_GUESSES = 8  # numbers of guesses that are tried: all canaries, half of them, a quarter ...


@dataclass(frozen=True, eq=False)
class Canaries:
    """scores: (m,), higher for those that seem in. included: (m,) bool, by fair coins. epsilon, delta: as claimed."""

    scores: Floats = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if self.scores.shape != self.included.shape or self.scores.ndim != 1 or not np.isfinite(self.scores).all():
            raise ConfigError(f"canaries need a finite score for each, got {self.scores.shape}, {self.included.shape}")
        fewer = min(int(self.included.sum()), int((~self.included).sum()))
        require(fewer >= 2, "canaries", len(self.scores), "at least two included and two left out")
        require(
            0 < self.epsilon < LARGEST_EPSILON, "claimed epsilon", self.epsilon, f"above 0, below {LARGEST_EPSILON:g}"
        )
        require(0 < self.delta < 0.1, "claimed delta", self.delta, "above 0, below 0.1")


@dataclass(frozen=True)
class Verdict:
    """certificate: epsilon is at least this, with 95 % confidence. detector: the same by the fit. fit: its best guess.

    flagged: whether the claim is refuted, by either, at odds of FALSE_ALARM at most for an honest run.
    """

    certificate: float
    detector: float
    fit: float
    flagged: bool


def audit(canaries: Canaries) -> Verdict:
    """The verdict on one run: `certificate` and `detector` at 95 %, and whether either refutes the claim for good."""
    alarm = 1 - FALSE_ALARM / 2
    refuted = certificate(canaries, alarm) > canaries.epsilon
    detected = _t_statistic(canaries) > _t_of_claim(canaries, alarm)
    fit = epsilon_of_gaussian(_effect(canaries), canaries.delta)
    return Verdict(certificate(canaries), detector(canaries), fit, bool(refuted or detected))


def certificate(canaries: Canaries, confidence: float = _CONFIDENCE) -> float:
    """The largest epsilon that is refuted with that confidence, by guessing which canaries were included.

    The highest scores are guessed to be in, as many of the lowest to be out; how many is the best of eight numbers
    fixed beforehand, each at an eighth of the doubt. Reference: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846,
    theorem 5.2 and appendix D.
    """
    m, order = len(canaries.scores), np.argsort(canaries.scores)
    halves = sorted({max(1, m >> (power + 1)) for power in range(_GUESSES)})
    doubt = (1 - confidence) / len(halves)
    return max(_refuted(m, half, _right(canaries, order, half), canaries.delta, doubt) for half in halves)


def detector(canaries: Canaries, confidence: float = _CONFIDENCE) -> float:
    """Lower confidence bound on the epsilon of a Gaussian mechanism with these scores.

    Scores of the included and of the others are taken as normal, with equal variance; the distance of their means is
    that of neighbours. By the noncentral t distribution the bound is exact. Reference: Dong, Roth, Su 2022,
    arXiv:1905.02383, for mu; Nasr et al. 2023, arXiv:2302.07956, section 4, for auditing by it.
    """
    statistic, freedom, scale = _t_statistic(canaries), len(canaries.scores) - 2, _scale(canaries)

    def surplus(effect: float) -> float:
        return float(nct.sf(statistic, freedom, effect * scale)) - (1 - confidence)

    if surplus(0.0) >= 0:
        return 0.0
    most = effect_of_claim(LARGEST_EPSILON, canaries.delta)
    if math.isinf(statistic) or surplus(most) < 0:
        return LARGEST_EPSILON
    return epsilon_of_gaussian(brentq(surplus, 0.0, most), canaries.delta)


def epsilon_of_gaussian(effect: float, delta: float) -> float:
    """Epsilon at `delta` of normal noise under means that are `effect` deviations apart; at most LARGEST_EPSILON.

    Reference: Balle and Wang 2018, arXiv:1805.06530, theorem 8.
    """

    if effect <= 0 or _delta_of_gaussian(effect, 0.0) <= delta:
        return 0.0
    if _delta_of_gaussian(effect, LARGEST_EPSILON) > delta:
        return LARGEST_EPSILON
    return float(brentq(lambda epsilon: _delta_of_gaussian(effect, epsilon) - delta, 0.0, LARGEST_EPSILON))


def effect_of_claim(epsilon: float, delta: float) -> float:
    """How many deviations apart the means of a Gaussian mechanism are that is just (epsilon, delta)-DP."""
    return float(brentq(lambda effect: _delta_of_gaussian(effect, epsilon) - delta, 1e-6, 60.0))


def p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance, at most, of so many right guesses over m canaries when the run is (epsilon, delta)-DP.

    Reference: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2, in the form of their appendix D.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    if right == 0:
        return min(1.0, tail)
    steps = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - steps, guesses, chance))  # P[right > guessed >= right - step]
    return min(1.0, tail + 2 * m * delta * float((below / steps).max()))


class PrivacyAudit:
    """Certificate, detector and verdict over canaries. References: those of `certificate` and `detector`."""

    name = "privacy_audit"
    needs = frozenset({"canaries"})

    def evaluate(self, material: Material) -> Findings:
        canaries = needed(material.canaries, "canaries", self.name)
        verdict = audit(canaries)
        fit = max(verdict.fit, verdict.detector)
        figures = {
            "claimed_epsilon": Estimate(canaries.epsilon, canaries.epsilon, canaries.epsilon),
            "certificate": Estimate(verdict.certificate, verdict.certificate, LARGEST_EPSILON),
            "detector": Estimate(fit, verdict.detector, LARGEST_EPSILON),
            "flagged": Estimate(*(3 * (float(verdict.flagged),))),
        }
        said = "is refuted" if verdict.flagged else "stands"
        return Findings(
            self.name,
            figures,
            (
                f"the claim of epsilon {canaries.epsilon:g} {said}; an honest run is flagged once in "
                f"{1 / FALSE_ALARM:,.0f} at most",
                "a certificate bounds epsilon from below, whatever the mechanism; the detector takes noise as normal",
            ),
        )


def _delta_of_gaussian(effect: float, epsilon: float) -> float:
    high = norm.cdf(effect / 2 - epsilon / effect)
    return float(high - math.exp(epsilon + norm.logcdf(-effect / 2 - epsilon / effect)))


def _right(canaries: Canaries, order: NDArray[np.int64], half: int) -> int:
    """How many guesses are right: the `half` highest are in, as many lowest are out."""
    included = canaries.included[order]
    return int(included[-half:].sum() + (~included[:half]).sum())


def _refuted(m: int, half: int, right: int, delta: float, doubt: float) -> float:
    """The largest epsilon under which so many right guesses have a chance below `doubt`."""

    def surplus(epsilon: float) -> float:
        return p_value(m, 2 * half, right, epsilon, delta) - doubt

    if surplus(0.0) >= 0:
        return 0.0
    return LARGEST_EPSILON if surplus(LARGEST_EPSILON) < 0 else float(brentq(surplus, 0.0, LARGEST_EPSILON, xtol=1e-9))


def _effect(canaries: Canaries) -> float:
    """Distance of the means of the included and the others, in deviations (pooled); infinite without any spread."""
    groups = canaries.scores[canaries.included], canaries.scores[~canaries.included]
    distance = float(groups[0].mean() - groups[1].mean())
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    spread = math.sqrt(squares / (len(canaries.scores) - 2))
    if spread <= 1e-9 * abs(distance):
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / spread


def _scale(canaries: Canaries) -> float:
    """From an effect to a t statistic."""
    included, m = int(canaries.included.sum()), len(canaries.scores)
    return math.sqrt(included * (m - included) / m)


def _t_statistic(canaries: Canaries) -> float:
    return _effect(canaries) * _scale(canaries)


def _t_of_claim(canaries: Canaries, confidence: float) -> float:
    """What the statistic of an honest run stays below, with that confidence, whatever it claims and keeps."""
    effect = effect_of_claim(canaries.epsilon, canaries.delta)
    return float(nct.ppf(confidence, len(canaries.scores) - 2, effect * _scale(canaries)))
