"""Proves: explanations say what is known of models whose workings are known."""

import numpy as np
import pytest
from scipy.stats import binom, norm, spearmanr
from sklearn.inspection import partial_dependence as sklearn_dependence
from sklearn.linear_model import LogisticRegression

from common.errors import ConfigError
from common.evaluators.explanation import (
    agreement,
    partial_dependence,
    permutation_importance,
    stability,
    surrogate_tree,
)

FEATURES = np.random.default_rng(2).normal(size=(2000, 4)).astype(np.float32)


def sign_of_first(features: np.ndarray) -> np.ndarray:
    """Named 1 when column 0 is above 0; columns 2 and 3 play no part, column 1 is a shade of doubt."""
    chance = np.where(features[:, 0] > 0, 0.9, 0.1) + 0.01 * np.tanh(features[:, 1])
    return np.column_stack([1 - chance, chance])


def test_importance_is_half_of_what_decides_alone_and_nothing_of_what_plays_no_part() -> None:
    """A shuffled sign is wrong in half of all records, give or take 0.011: 0.06 is over five of those."""
    labels = (FEATURES[:, 0] > 0).astype(int)
    columns = {"decides": [0], "shade": [1], "nothing": [2, 3]}
    found = permutation_importance(sign_of_first, FEATURES, labels, columns, np.random.default_rng())
    assert found["decides"].value == pytest.approx(0.5, abs=0.06)
    assert found["shade"].value == found["nothing"].value == found["nothing"].high == 0.0


def test_intervals_of_importance_hold_the_truth_as_often_as_they_say() -> None:
    """Sign of a normal with mean 1: shuffled, it is wrong in 2 p (1 - p). 400 draws of 300 records; false alarm 1e-6 if
    the true coverage is 92 %, which five permutations and a normal interval leave of 95 %."""
    random, chance = np.random.default_rng(), norm.cdf(1.0)
    truth, held = 2 * chance * (1 - chance), 0
    for _ in range(400):
        features = random.normal(1.0, 1.0, (300, 2)).astype(np.float32)
        labels = (features[:, 0] > 0).astype(int)
        found = permutation_importance(sign_of_first, features, labels, {"x": [0]}, random)["x"]
        held += found.low <= truth <= found.high
    assert held >= binom.ppf(1e-6, 400, 0.92)


def test_columns_of_one_attribute_change_hands_together() -> None:
    """One-hot columns moved one by one would make records that no model ever saw, and hide what they say together."""
    copies = np.column_stack([FEATURES[:, 0], FEATURES[:, 0]]).astype(np.float32)
    labels = (copies[:, 0] > 0).astype(int)

    def both(features: np.ndarray) -> np.ndarray:
        chance = ((features[:, 0] > 0) | (features[:, 1] > 0)).astype(float)
        return np.column_stack([1 - chance, chance])

    found = permutation_importance(both, copies, labels, {"a": [0], "a and b": [0, 1]}, np.random.default_rng())
    assert found["a and b"].value == pytest.approx(0.5, abs=0.06)
    assert found["a"].value == pytest.approx(0.25, abs=0.05)


def test_a_tree_imitates_what_a_tree_can_and_says_its_rule() -> None:
    found = surrogate_tree(sign_of_first, FEATURES[:1000], FEATURES[1000:], ["age", "b", "c", "d"])
    assert found.fidelity.value > 0.99
    assert "age" in found.rules.splitlines()[0]

    def chaos(features: np.ndarray) -> np.ndarray:
        chance = (np.sin(40 * features.sum(axis=1)) > 0).astype(float)
        return np.column_stack([1 - chance, chance])

    assert surrogate_tree(chaos, FEATURES[:1000], FEATURES[1000:]).fidelity.value < 0.65


def test_partial_dependence_is_sklearns() -> None:
    labels = (FEATURES @ [1.0, -2.0, 0.5, 0] > 0).astype(int)
    fitted = LogisticRegression().fit(FEATURES, labels)
    grid = np.linspace(-2, 2, 7)
    theirs = sklearn_dependence(
        fitted,
        FEATURES.astype(np.float64),
        [1],
        custom_values={1: grid},
        kind="average",
        method="brute",
        response_method="predict_proba",
    )["average"][0]
    np.testing.assert_allclose(partial_dependence(fitted.predict_proba, FEATURES, 1, grid), theirs, atol=1e-6)


def test_a_smooth_explanation_is_stable_and_one_of_noise_is_not() -> None:
    random = np.random.default_rng(3)
    smooth = stability(lambda x: x * np.array([3.0, 1.0, 0.1, 2.0]), FEATURES, FEATURES, np.random.default_rng())
    rough = stability(lambda x: random.normal(size=x.shape), FEATURES, FEATURES, np.random.default_rng())
    assert smooth.low > 0.95
    assert abs(rough.value) < 0.06
    assert stability(np.zeros_like, FEATURES, FEATURES, np.random.default_rng()).value == 1.0


def test_agreement_is_spearmans() -> None:
    random = np.random.default_rng(4)
    three = [random.normal(size=(5, 8)) for _ in range(3)]
    pairs = [spearmanr(a[i], b[i])[0] for a, b in [three[:2], three[::2], three[1:]] for i in range(5)]
    assert agreement(three, random).value == pytest.approx(np.mean(pairs))
    assert agreement([three[0], 2 * three[0] + 1], random).value == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="two"):
        agreement(three[:1], random)
