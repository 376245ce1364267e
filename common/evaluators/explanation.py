"""What a model looks at: importance, a tree that imitates it, dependence on a feature, and how firm all that is. Pure.

An explanation describes the model, not the world; one of the training records is a release like any other under DP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.tree import DecisionTreeClassifier, export_text

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats, Predict, bootstrap, wilson

Features = NDArray[np.float32]
Explain = Callable[[Features], Floats]  # features (n, *inputs) -> attributions of the same shape

_Z = 1.959963984540054
_REPEATS = 5
_DEPTH = 4  # of the tree: sixteen rules, which a person can read
_NEARBY = 0.01  # deviations that a record is moved by to see whether its explanation stays


def permutation_importance(
    predict: Predict,
    features: Features,
    labels: NDArray[np.int64],
    columns: Mapping[str, Sequence[int]],
    rng: np.random.Generator,
) -> dict[str, Estimate]:
    """How much accuracy is lost when the values of a named group of columns change hands between records.

    features: (n, d). columns: those of one attribute go together, as one-hot levels must. The mean over five
    permutations; interval: normal, for the choice of records, each of which takes a value and gives one (Hoeffding
    1948). References: Breiman 2001, section 10; Fisher et al. 2019, arXiv:1801.01489, eq. 3.
    """
    right = predict(features).argmax(axis=1) == labels
    found = {}
    for name, chosen in columns.items():
        taking, giving = np.zeros((2, len(labels)))
        for _ in range(_REPEATS):
            givers = rng.permutation(len(features))
            mixed = features.copy()
            mixed[:, chosen] = features[givers][:, chosen]
            lost = (right.astype(float) - (predict(mixed).argmax(axis=1) == labels)) / _REPEATS
            taking += lost
            giving[givers] += lost
        value, reach = float(taking.mean()), _Z * float((taking + giving).std(ddof=1)) / len(labels) ** 0.5
        found[name] = Estimate(value, value - reach, value + reach)
    return found


@dataclass(frozen=True)
class Surrogate:
    """rules: the tree as text. fidelity: how often it names what the model names, on records that it did not see."""

    rules: str
    fidelity: Estimate


def surrogate_tree(
    predict: Predict, reference: Features, features: Features, names: Sequence[str] | None = None
) -> Surrogate:
    """A decision tree of depth 4 fitted to what the model says of the reference. Craven and Shavlik 1996 (TREPAN).

    names: of the columns. Interval of the fidelity: Wilson.
    """
    known, asked = (part.reshape(len(part), -1) for part in (reference, features))
    tree = DecisionTreeClassifier(max_depth=_DEPTH, random_state=0).fit(known, predict(reference).argmax(axis=1))
    same = tree.predict(asked) == predict(features).argmax(axis=1)
    rules = export_text(tree, feature_names=list(names) if names else None)
    return Surrogate(rules, wilson(int(same.sum()), len(same)))


def partial_dependence(predict: Predict, features: Features, column: int, grid: Floats, positive: int = 1) -> Floats:
    """(len(grid),): the mean probability of `positive` when that column has each value of `grid`, all else as it is.

    Reference: Friedman 2001, doi 10.1214/aos/1013203451, eq. 53. It shows records that may not exist where columns
    depend on one another.
    """
    means = []
    for value in grid:
        moved = features.copy()
        moved[:, column] = value
        means.append(float(predict(moved)[:, positive].mean()))
    return np.array(means)


def stability(explain: Explain, features: Features, reference: Features, rng: np.random.Generator) -> Estimate:
    """Mean rank correlation of each record's attributions with those of the record moved by a hundredth of a deviation.

    1: the same order of features. Interval: `bootstrap`. Alvarez-Melis and Jaakkola 2018, arXiv:1806.08049, in ranks.
    """
    nearby = features + (rng.normal(size=features.shape) * _NEARBY * reference.std(axis=0)).astype(np.float32)
    before, after = (explain(part.astype(np.float32)).reshape(len(features), -1) for part in (features, nearby))
    return _mean_agreement(before, after, rng)


def agreement(attributions: Sequence[Floats], rng: np.random.Generator) -> Estimate:
    """Mean rank correlation between the attributions (n, ...) that several models or seeds give of the same records.

    Krishna et al. 2022, arXiv:2202.01602, section 3.
    """
    if len(attributions) < 2:
        raise ConfigError("agreement needs the attributions of two models or more")
    flat = [each.reshape(len(each), -1) for each in attributions]
    pairs = [(a, b) for i, a in enumerate(flat) for b in flat[i + 1 :]]
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return _mean_agreement(before, after, rng)


class Explanation:
    """Importance of every column, the fidelity of a tree, and how stable gradients are. References: the functions'."""

    name = "explanation"
    needs = frozenset({"predict", "features", "labels", "reference", "input_gradients"})

    def evaluate(self, material: Material) -> Findings:
        predict = needed(material.predict, "predict", self.name)
        features = needed(material.features, "features", self.name)
        labels = needed(material.labels, "labels", self.name)
        reference = needed(material.reference, "reference", self.name)
        gradients = needed(material.input_gradients, "input_gradients", self.name)
        figures: dict[str, Estimate] = {}
        if features.ndim == 2:
            columns = {f"importance of column {i}": [i] for i in range(features.shape[1])}
            figures |= permutation_importance(predict, features, labels, columns, material.rng)
        surrogate = surrogate_tree(predict, reference, features)
        figures["tree_fidelity"] = surrogate.fidelity
        named = predict(features).argmax(axis=1)
        figures["stability"] = stability(
            lambda asked: gradients(asked, named) * asked, features, reference, material.rng
        )
        return Findings(self.name, figures, (f"a tree that imitates the model:\n{surrogate.rules}",))


def _mean_agreement(before: Floats, after: Floats, rng: np.random.Generator) -> Estimate:
    ranks = [rankdata(part, axis=1) - (part.shape[1] + 1) / 2 for part in (before, after)]
    norms = np.prod([np.linalg.norm(part, axis=1) for part in ranks], axis=0)
    told = (ranks[0] * ranks[1]).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    told = np.where(norms > 0, told, (before == after).all(axis=1))
    return bootstrap(lambda chosen: float(told[chosen].mean()), len(told), rng)
