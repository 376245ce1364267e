"""Utility figures are the textbook's, and their intervals hold what 95 % promises."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from common.errors import ConfigError
from common.evaluators.utility import (
    Estimate,
    accuracy,
    auroc,
    bootstrap,
    cross_site,
    evaluate,
    f1,
    leave_one_site_out,
    log_loss,
    macro_f1,
    precision,
    recall,
)

SAMPLES = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(SAMPLES)
def test_auroc_counts_the_pairs_in_the_right_order_and_half_the_ties(pairs):
    scores, labels = (np.array(column, float) for column in zip(*pairs, strict=True))
    found = auroc(scores, labels)
    positive, negative = scores[labels == 1, None], scores[labels == 0]
    assert found.value == pytest.approx(((positive > negative) + 0.5 * (positive == negative)).mean())
    assert found.value == pytest.approx(roc_auc_score(labels, scores))
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(SAMPLES)
def test_auroc_of_the_opposite_score_is_the_mirror_image(pairs):
    scores, labels = (np.array(column, float) for column in zip(*pairs, strict=True))
    one, other = auroc(scores, labels), auroc(-scores, labels)
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low))


def test_delong_variance_known_answer():
    """Placements by hand: positives 3, 5, 6, 8 and negatives 1, 2, 4, 7 (12 of 16 pairs in order)."""
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    found = auroc([3, 5, 6, 8, 1, 2, 4, 7], labels)
    over_positives, over_negatives = [2 / 4, 3 / 4, 3 / 4, 4 / 4], [4 / 4, 4 / 4, 3 / 4, 1 / 4]
    variance = np.var(over_positives, ddof=1) / 4 + np.var(over_negatives, ddof=1) / 4
    assert found.value == 0.75
    logits = [math.log(edge / (1 - edge)) for edge in (found.low, found.high)]
    assert logits[1] - logits[0] == pytest.approx(2 * 1.959964 * math.sqrt(variance) / (0.75 * 0.25), rel=1e-6)


def test_auroc_interval_holds_the_truth_as_often_as_it_says():
    """1,500 samples of 60 + 40 at true AUROC Phi(1 / sqrt 2) = 0.7602. Odds of a false alarm under 1e-6 if coverage
    is 95 %: more than 5.5 standard deviations, and DeLong's own error at this size is under one of them."""
    rng, runs, truth = np.random.default_rng(), 1500, 0.7602499
    labels = np.repeat([1, 0], [40, 60])
    held = 0
    for _ in range(runs):
        found = auroc(rng.normal(size=100) + labels, labels)
        held += found.low <= truth <= found.high
    assert binom.cdf(held, runs, 0.94) > 1e-6
    assert binom.sf(held, runs, 0.965) > 1e-6


def test_perfect_order_in_a_small_sample_is_no_certainty():
    found = auroc([1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 1, 1])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 3))
    assert auroc([2, 1], [0, 1]) == Estimate(0.0, 0.0, 0.975)


def test_one_record_of_a_class_leaves_everything_open():
    assert auroc([1, 3, 2], [0, 0, 1]) == Estimate(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.1, 0.2], [1, 1]),
        ([0.1, 0.2], [0, 0]),
        ([], []),
        ([0.1, math.nan], [0, 1]),
        ([0.1, math.inf], [0, 1]),
        ([0.1, 0.2, 0.3], [0, 1, 2]),
        ([0.1, 0.2, 0.3], [0, 1]),
        ([[0.1], [0.2]], [[0], [1]]),
    ],
)
def test_auroc_refuses_what_has_no_answer(scores, labels):
    with pytest.raises(ConfigError):
        auroc(scores, labels)


def test_wilson_interval_known_answers():
    """15 of 20, and 0 of 10, from the closed form as printed in Brown, Cai and DasGupta 2001."""
    probabilities = np.tile([0.9, 0.1], (20, 1))
    found = accuracy(probabilities, np.repeat([0, 1], [15, 5]))
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.5313, 0.8881), abs=5e-5)
    none = accuracy(probabilities[:10], np.ones(10, int))
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.2775), abs=5e-5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 5))
def test_log_loss_is_the_mean_cost_and_sklearns(seed, n, classes):
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.ones(classes), n), rng.integers(classes, size=n)
    found = log_loss(probabilities, labels)
    assert found.value == pytest.approx(sklearn_log_loss(labels, probabilities, labels=range(classes)))
    assert 0 <= found.low <= found.value <= found.high


def test_a_sure_mistake_costs_much_but_not_infinity():
    assert log_loss([[1.0, 0.0]], [1]) == Estimate(52 * math.log(2), 0.0, 52 * math.log(2))
    assert log_loss([[1.0, 0.0]] * 3, [0] * 3) == Estimate(0.0, 0.0, 0.0)


def test_evaluate_says_what_the_records_support():
    two = [[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    assert set(evaluate(two, [0, 1, 1])) == {"accuracy", "loss", "auc"}
    assert set(evaluate(two, [1, 1, 1])) == {"accuracy", "loss"}, "AUROC needs both classes"
    assert set(evaluate([[0.2, 0.3, 0.5]], [2])) == {"accuracy", "loss"}
    assert evaluate(two, [0, 1, 1])["auc"] == auroc([0.2, 0.7, 0.4], [0, 1, 1])


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        ([[0.5, math.nan]], [0]),
        ([[2.0, -1.0]], [0]),
        ([[0.5, 0.5]], [2]),
        ([[0.5, 0.5]], [-1]),
        ([[0.5, 0.5]], [0.5]),
        ([[0.5, 0.5]], [0, 1]),
        ([[1.0]], [0]),
        (np.empty((0, 2)), np.empty(0, int)),
    ],
)
def test_predictions_that_make_no_sense_are_refused(probabilities, labels):
    for figure in (accuracy, log_loss, evaluate):
        with pytest.raises(ConfigError):
            figure(probabilities, labels)


def test_float32_softmax_that_ends_a_hair_above_one_is_fine():
    assert accuracy(np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]], np.float32), [0]).value == 1.0


@pytest.mark.parametrize("numbers", [(math.nan, 0, 1), (0.5, math.nan, 1), (0.5, 0, math.inf), (0.5, 0.6, 0.7)])
def test_an_estimate_is_finite_and_inside_its_interval(numbers):
    with pytest.raises(ConfigError):
        Estimate(*numbers)


def test_slow_libraries_are_not_imported():
    check = (
        "import sys, common.evaluators.utility; sys.exit(any(m in sys.modules for m in ('scipy', 'sklearn', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 5))
def test_precision_recall_and_f1_are_sklearns(seed, n, classes):
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.ones(classes), n), rng.integers(classes, size=n)
    named = probabilities.argmax(axis=1)
    truth = {"average": None, "labels": list(range(classes)), "zero_division": np.nan}
    for ours, theirs in ((precision, precision_score), (recall, recall_score), (f1, f1_score)):
        for positive, expected in enumerate(theirs(labels, named, **truth)):
            if np.isnan(expected) or (ours is f1 and positive not in {*labels, *named}):
                with pytest.raises(ConfigError, match=f"class {positive}"):
                    ours(probabilities, labels, positive)
            else:
                found = ours(probabilities, labels, positive)
                assert found.value == pytest.approx(expected)
                assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (5, 4), (300, 3)])
def test_macro_f1_is_sklearns(n, classes):
    rng = np.random.default_rng()
    probabilities, labels = rng.dirichlet(np.ones(classes), n), rng.integers(classes, size=n)
    expected = f1_score(labels, probabilities.argmax(axis=1), average="macro")
    assert macro_f1(probabilities, labels, rng).value == pytest.approx(expected)


@pytest.mark.parametrize("figure", ["precision", "recall", "f1", pytest.param("macro_f1", marks=pytest.mark.slow)])
def test_intervals_of_the_shares_hold_the_truth_as_often_as_they_say(figure):
    """1,000 samples of 300 records; false alarm 1e-6 if the true coverage is 93 %, which is what a discrete share and a
    percentile bootstrap leave of 95 % at this size."""
    rng = np.random.default_rng()
    ours = {"precision": precision, "recall": recall, "f1": f1, "macro_f1": lambda p, y: macro_f1(p, y, rng)}[figure]

    def sample(n):
        labels = (rng.random(n) < 0.4).astype(int)
        score = np.clip(rng.normal(0.35 + 0.3 * labels, 0.25), 0, 1)
        return np.column_stack([1 - score, score]), labels

    rows, labels = sample(400_000)
    named, average = rows.argmax(axis=1), "macro" if figure == "macro_f1" else "binary"
    theirs = {"precision": precision_score, "recall": recall_score}.get(figure, f1_score)
    truth, runs = theirs(labels, named, average=average), 200 if figure == "macro_f1" else 1000
    held = sum(found.low <= truth <= found.high for found in (ours(*sample(300)) for _ in range(runs)))
    assert held >= binom.ppf(1e-6, runs, 0.93)
    assert held <= binom.ppf(1 - 1e-6, runs, 0.98)


def test_bootstrap_of_a_mean_is_as_wide_as_the_central_limit_says():
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(lambda chosen: float(values[chosen].mean()), 400, np.random.default_rng(2))
    assert found.value == values.mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    again = bootstrap(lambda chosen: float(values[chosen].mean()), 400, np.random.default_rng(2))
    assert again == found


def sites_that_disagree():
    """Site a's label is the first feature's sign, site b's the opposite."""
    features = np.random.default_rng(3).normal(size=(100, 2)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    return {"a": (features, labels), "b": (features, 1 - labels)}


def named_by(sign):
    return lambda features: np.eye(2)[(sign * features[:, 0] > 0).astype(int)]


def test_the_cross_site_matrix_has_every_model_on_every_site():
    matrix = cross_site({"a": named_by(1), "b": named_by(-1)}, sites_that_disagree())
    values = {pair: found.value for pair, found in matrix.items()}
    assert values == {("a", "a"): 1.0, ("a", "b"): 0.0, ("b", "a"): 0.0, ("b", "b"): 1.0}


def test_a_site_left_out_is_not_trained_on():
    def fit(sites):
        (features, labels), *more = sites.values()
        assert not more
        return named_by(1 if labels[features[:, 0] > 0].all() else -1)

    found = leave_one_site_out(fit, sites_that_disagree())
    assert {site: each.value for site, each in found.items()} == {"a": 0.0, "b": 0.0}
