"""Membership inference: who was in the training set, told from what a model says of them. Pure."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats, auroc, checked_predictions

_MISSED = 0.025
_FALSE_POSITIVES = 0.01


@dataclass(frozen=True, eq=False)
class Attacked:
    """scores: (n,), higher for those taken for members.   members: (n,) bool, the truth; both kinds occur."""

    scores: Floats = field(repr=False)
    members: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if len(shape) != 1 or self.members.shape != shape or not np.isfinite(self.scores).all():
            raise ConfigError(f"an attack needs a finite score for each record, got {shape}, {self.members.shape}")
        if self.members.all() or not self.members.any():
            raise ConfigError("an attack needs members and others to be told apart")


def confidences(probabilities: ArrayLike, labels: ArrayLike) -> Floats:
    """(n,): log(p / (1 - p)) of the probability p that each record's label gets: nearly normal over trained models.

    Reference: Carlini et al. 2022, arXiv:2112.03570, section IV-B, eq. 4.
    """
    rows, label = checked_predictions(probabilities, labels)
    right = np.clip(rows[np.arange(len(label)), label], 1e-12, 1 - 1e-12)
    return np.asarray(np.log(right) - np.log1p(-right))


def likelihood_ratios(target: Floats, shadows: Floats, inside: NDArray[np.bool_]) -> Floats:
    """(n,): how much likelier each record's confidence is if it was a member (LiRA, online).

    target: (n,) confidences under the model that is attacked. shadows: (k, n), under k models trained alike on sets
    that the attacker chose; inside: (k, n), whether the record was in that set. A record's confidences are taken as
    normal, with its own means and, as there are few shadows, one variance inside and one outside for all.
    Reference: Carlini et al. 2022, arXiv:2112.03570, algorithm 1 and section VI-B.
    """
    if shadows.shape != inside.shape or shadows.shape[1:] != target.shape or len(shadows) < 2:
        raise ConfigError(f"shadows {shadows.shape} and {inside.shape} do not fit a target {target.shape}")
    found = np.zeros_like(target)
    for side, sign in ((inside, 1.0), (~inside, -1.0)):
        count = side.sum(axis=0)
        overall = shadows[side].mean() if side.any() else 0.0
        mean = np.where(count > 0, (shadows * side).sum(axis=0) / np.maximum(count, 1), overall)
        squares = (((shadows - mean) ** 2) * side).sum()
        variance = max(squares / max(1, side.sum() - (count > 0).sum()), 1e-12)
        found += sign * (-((target - mean) ** 2) / (2 * variance) - np.log(variance) / 2)
    return found


def true_positives_at(attacked: Attacked, false_positives: float = _FALSE_POSITIVES) -> Estimate:
    """The share of members found by the threshold that takes at most that share of the others for members.

    Interval: Clopper and Pearson 1934, the threshold taken as given. Reference: Carlini et al. 2022, section III-B.
    """
    others = np.sort(attacked.scores[~attacked.members])[::-1]
    threshold = others[int(false_positives * len(others))]
    found, n = int((attacked.scores[attacked.members] > threshold).sum()), int(attacked.members.sum())
    return clopper_pearson(found, n)


def clopper_pearson(right: int, n: int) -> Estimate:
    """The share right / n of independent trials with its exact interval. Reference: Clopper and Pearson 1934."""
    low = float(beta.ppf(_MISSED, right, n - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - _MISSED, right + 1, n - right)) if right < n else 1.0
    return Estimate(right / n, low, high)


class MembershipInference:
    """How well members are told from others. References: Carlini et al. 2022; for the AUC, Yeom et al. 2018."""

    name = "membership_inference"
    needs = frozenset({"attacked"})

    def evaluate(self, material: Material) -> Findings:
        attacked = needed(material.attacked, "attacked", self.name)
        figures = {
            "auc": auroc(attacked.scores, attacked.members.astype(np.int64)),
            "true_positives_at_1_percent": true_positives_at(attacked),
        }
        return Findings(self.name, figures, ("0.5 and 1 % are what guessing finds; a better attack may find more",))
