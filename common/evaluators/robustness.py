"""How accuracy holds on records that are not as they should be, and whether such records are noticed. Pure."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from common.errors import ConfigError
from common.evaluators.report import Findings, InputGradients, Material, needed
from common.evaluators.utility import Estimate, Floats, Predict, accuracy, auroc

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Box = tuple[float, float]  # the values that a feature may have

_NOISES = (0.1, 0.3, 1.0)  # in deviations of the reference records
_MISSING = (0.1, 0.3, 0.5)
_SHIFTS = (0.5, 1.0)
_REACHES = (0.03, 0.1)  # of the features' range
_STEPS = 20


def noised(features: Features, reference: Features, amount: float, rng: np.random.Generator) -> Features:
    """Each feature with normal noise of `amount` times its deviation in the reference (Hendrycks, Dietterich 2019)."""
    noise = rng.normal(size=features.shape) * (amount * reference.std(axis=0))
    return np.asarray(features + noise, np.float32)


def with_missing(features: Features, reference: Features, share: float, rng: np.random.Generator) -> Features:
    """Each value missing with chance `share`, and put in as the reference's mean (MCAR: Little, Rubin 2002, 1.3)."""
    gone = rng.random(features.shape) < share
    return np.where(gone, reference.mean(axis=0), features).astype(np.float32)


def shifted(features: Features, reference: Features, amount: float, rng: np.random.Generator) -> Features:
    """Every record moved alike, each feature up or down by `amount` of its deviations: another place, another device.

    Covariate shift: the labels stay (Shimodaira 2000, doi 10.1016/S0378-3758(00)00115-4).
    """
    way = rng.choice([-1.0, 1.0], features.shape[1:])
    return np.asarray(features + amount * way * reference.std(axis=0), np.float32)


def fgsm(gradients: InputGradients, features: Features, labels: Labels, reach: float, box: Box) -> Features:
    """Each feature moved by `reach` towards more loss, within `box`. Goodfellow et al. 2015, arXiv:1412.6572, eq. 1."""
    return np.clip(features + reach * np.sign(gradients(features, labels)), *box).astype(np.float32)


def pgd(
    gradients: InputGradients,
    features: Features,
    labels: Labels,
    reach: float,
    box: Box,
    rng: np.random.Generator,
    steps: int = _STEPS,
) -> Features:
    """The loss driven up by `steps` steps from a random start, no feature farther than `reach`, within `box`.

    Each step is 2.5 reach / steps long. Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    low, high = np.maximum(features - reach, box[0]), np.minimum(features + reach, box[1])
    moved = np.clip(features + rng.uniform(-reach, reach, features.shape), low, high).astype(np.float32)
    for _ in range(steps):
        slope = np.sign(gradients(moved, labels))
        moved = np.clip(moved + 2.5 * reach / steps * slope, low, high).astype(np.float32)
    return moved


def strangeness(reference: Features, features: Features, method: str, seed: int) -> Floats:
    """(n,): how unlike the reference each record is, by `isolation_forest` or `local_outlier_factor`.

    References: Liu, Ting, Zhou 2008, doi 10.1109/ICDM.2008.17; Breunig et al. 2000, doi 10.1145/342009.335388.
    """
    known, asked = (part.reshape(len(part), -1) for part in (reference, features))
    if method == "isolation_forest":
        return np.asarray(-IsolationForest(random_state=seed).fit(known).score_samples(asked), np.float64)
    if method == "local_outlier_factor":
        neighbours = min(20, len(known) - 1)
        found = LocalOutlierFactor(n_neighbors=neighbours, novelty=True).fit(known).score_samples(asked)
        return np.asarray(-found, np.float64)
    raise ConfigError(f"no detector {method!r}", "allowed: isolation_forest, local_outlier_factor")


def energy(logits: Floats) -> Floats:
    """(n,): -log sum exp of logits (n, classes), higher for stranger records. Liu et al. 2020, arXiv:2010.03759."""
    return np.asarray(-np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1))


class Robustness:
    """Accuracy under noise, missing values and shift. References: those of the functions."""

    name = "robustness"
    needs = frozenset({"predict", "features", "labels", "reference"})

    def evaluate(self, material: Material) -> Findings:
        predict, features, labels = _asked(material, self.name)
        reference = needed(material.reference, "reference", self.name)
        figures = {"accuracy": accuracy(predict(features), labels)}
        spoils: list[tuple[str, Callable[..., Features], tuple[float, ...]]] = [
            ("noise", noised, _NOISES),
            ("missing", with_missing, _MISSING),
            ("shift", shifted, _SHIFTS),
        ]
        for name, spoil, amounts in spoils:
            for amount in amounts:
                worse = spoil(features, reference, amount, material.rng)
                figures[f"accuracy under {name} {amount:g}"] = accuracy(predict(worse), labels)
        return Findings(self.name, figures, ("noise and shift are in deviations of each feature",))


class Adversarial:
    """Accuracy where each record is changed against the model. References: those of `fgsm` and `pgd`."""

    name = "adversarial"
    needs = frozenset({"predict", "features", "labels", "input_gradients"})

    def evaluate(self, material: Material) -> Findings:
        predict, features, labels = _asked(material, self.name)
        gradients = needed(material.input_gradients, "input_gradients", self.name)
        box = float(features.min()), float(features.max())
        figures: dict[str, Estimate] = {}
        for share in _REACHES:
            reach = share * (box[1] - box[0])
            quick = fgsm(gradients, features, labels, reach, box)
            best = pgd(gradients, features, labels, reach, box, material.rng)
            figures[f"accuracy under fgsm {share:g}"] = accuracy(predict(quick), labels)
            figures[f"accuracy under pgd {share:g}"] = accuracy(predict(best), labels)
        return Findings(
            self.name, figures, ("reach is a share of the features' range; a better attack may do more harm",)
        )


class OutOfDistribution:
    """How well strange records are told from proper ones, as AUROC. References: `strangeness` and `energy`."""

    name = "out_of_distribution"
    needs = frozenset({"reference", "features", "strange", "logits"})

    def evaluate(self, material: Material) -> Findings:
        features = needed(material.features, "features", self.name)
        strange = needed(material.strange, "strange", self.name)
        reference, logits = (
            needed(material.reference, "reference", self.name),
            needed(material.logits, "logits", self.name),
        )
        both = np.concatenate([features, strange])
        is_strange = np.repeat([0, 1], [len(features), len(strange)])
        figures = {
            method: auroc(strangeness(reference, both, method, material.seed), is_strange)
            for method in ("isolation_forest", "local_outlier_factor")
        }
        figures["energy"] = auroc(energy(logits(both)), is_strange)
        return Findings(self.name, figures, ("0.5 is blind; below it strange records look more usual than usual ones",))


def _asked(material: Material, name: str) -> tuple[Predict, Features, Labels]:
    return (
        needed(material.predict, "predict", name),
        needed(material.features, "features", name),
        needed(material.labels, "labels", name),
    )
