"""Proves: calibration errors are the textbook's, and a temperature undoes what overconfidence did."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from common.errors import ConfigError
from common.evaluators.calibration import calibration_error, temperature, tempered


def calibrated(n: int, classes: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn by them."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.ones(classes), n)
    return rows, (rows.cumsum(axis=1) < random.random((n, 1))).sum(axis=1).clip(max=classes - 1)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 200), st.sampled_from([2, 5]))
def test_the_error_is_what_sklearns_bins_say(seed: int, n: int, classes: int) -> None:
    rows, labels = calibrated(n, classes, seed)
    confidence, right = rows.max(axis=1), rows.argmax(axis=1) == labels
    shares, means = calibration_curve(right, confidence, n_bins=15)
    weights = np.bincount(np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence), minlength=15)
    expected = np.abs(shares - means) @ weights[weights > 0] / n
    found = calibration_error(rows, labels, np.random.default_rng(0))
    assert found.value == pytest.approx(expected)
    assert 0 <= found.low <= found.value <= found.high


def test_overconfidence_shows_and_a_temperature_mends_it() -> None:
    """Logits were multiplied by 3, so the temperature is 3: its standard error at 20,000 records is about 0.03."""
    rows, labels = calibrated(20_000, 4)
    sure = tempered(rows, 1 / 3)
    assert calibration_error(sure, labels, np.random.default_rng()).low > 0.1
    heat = temperature(sure, labels)
    assert heat == pytest.approx(3, abs=0.2)
    assert calibration_error(tempered(sure, heat), labels, np.random.default_rng()).value < 0.02
    np.testing.assert_array_equal(tempered(sure, heat).argmax(axis=1), sure.argmax(axis=1))


@given(st.floats(0.1, 10), st.integers(0, 1000))
def test_temperatures_multiply(heat: float, seed: int) -> None:
    rows, _ = calibrated(5, 3, seed)
    rows = np.clip(rows, 1e-3, None) / np.clip(rows, 1e-3, None).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tempered(tempered(rows, heat), 1 / heat), rows, atol=1e-6)
    np.testing.assert_allclose(tempered(rows, heat).sum(axis=1), 1)


def test_a_certain_mistake_has_a_temperature_all_the_same() -> None:
    assert 1 < temperature([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1]) < np.inf


def test_what_is_no_prediction_is_refused() -> None:
    for figure in (temperature, lambda p, y: calibration_error(p, y, np.random.default_rng())):
        with pytest.raises(ConfigError):
            figure([[0.5, np.nan]], [0])
