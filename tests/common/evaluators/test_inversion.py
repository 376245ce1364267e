"""Proves: inversion recovers exactly what theory says it can, and its measures are the textbook's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.evaluators.inversion import (
    RECOVERED_DB,
    Inversion,
    Rebuilt,
    by_optimising,
    from_first_layer,
    label_counts,
    peak_signal_to_noise,
)
from common.evaluators.report import Material


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_one_record_is_every_row_over_its_bias(seed: int) -> None:
    random = np.random.default_rng(seed)
    record, biases = random.random(20), random.normal(size=12)
    biases[:3] = 0.0
    found = from_first_layer(np.outer(biases, record), biases)
    np.testing.assert_allclose(found, np.tile(record, (10, 1)), atol=1e-9)


def test_a_neuron_of_its_own_gives_a_record_away_in_a_sum() -> None:
    random = np.random.default_rng(0)
    records, excited = random.random((3, 8)), np.array([[1.0, 0, 0, 2], [0, 1, 0, 1], [0, 0, 0, -3]])
    found = from_first_layer(excited.T @ records, excited.sum(axis=0))
    psnr = peak_signal_to_noise(found, records)
    assert (psnr[:2] == 100).all()
    assert psnr[2] < RECOVERED_DB
    assert peak_signal_to_noise(found[:1], records).max() < RECOVERED_DB


def test_no_gradient_tells_nothing() -> None:
    np.testing.assert_array_equal(from_first_layer(np.zeros((4, 5)), np.zeros(4)), np.zeros((1, 5)))


def test_psnr_by_hand() -> None:
    """A mean squared error of 0.01 is 20 dB; the likest candidate counts."""
    truth = np.full((1, 4), 0.5)
    assert peak_signal_to_noise(np.array([[0.6, 0.4, 0.6, 0.4], [0.0] * 4]), truth) == pytest.approx([20.0])
    assert peak_signal_to_noise(truth, truth) == [100.0]


def test_labels_behind_a_summed_gradient() -> None:
    """By the definition of the cross-entropy's gradient, with every record's own probabilities."""
    random = np.random.default_rng(3)
    probabilities, labels = random.dirichlet(np.ones(5), 40), random.integers(0, 5, 40)
    biases = (probabilities - np.eye(5)[labels]).sum(axis=0)
    found = label_counts(biases, 40, probabilities.mean(axis=0))
    np.testing.assert_allclose(found, np.bincount(labels, minlength=5), atol=1e-9)


def test_optimising_stays_within_pixels_and_finds_a_minimum() -> None:
    goal = np.array([[0.2, 1.7], [0.9, -3.0]])
    found = by_optimising(lambda x: (float(((x - goal) ** 2).sum()), 2 * (x - goal)), np.full((2, 2), 0.5))
    np.testing.assert_allclose(found, goal.clip(0, 1), atol=1e-6)


def test_the_findings_count_what_is_over_the_line() -> None:
    figures = Inversion().evaluate(Material(rebuilt=Rebuilt(np.array([10.0, 30.0, 26.0, 24.0])))).figures
    assert figures["recovered"].value == 0.5
    assert figures["median_psnr_db"].value == 25.0
    for psnr in (np.array([]), np.array([np.nan]), np.zeros((2, 2))):
        with pytest.raises(ConfigError):
            Rebuilt(psnr)
