"""Proves: gradients by inputs are those of finite differences; a mismatch is zero at the records behind the update."""

import numpy as np
import pytest

from client.train import train
from common.errors import InvalidUpdate
from common.evaluators.inversion import by_optimising, peak_signal_to_noise
from common.evaluators.utility import log_loss
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.gradients import input_gradients, update_mismatch
from common.models import build, parameters_of, predict
from common.randomness import Randomness

MLP = ModelSettings("mlp", (6,), 3, hidden=(16,))


def records(n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    return random.random((n, 6)).astype(np.float32), random.integers(0, 3, n)


def test_input_gradients_are_finite_differences() -> None:
    model, (features, labels) = build(MLP), records(4)
    found, step = input_gradients(model, features, labels), 1e-2
    assert found.shape == features.shape
    for i in range(4):
        for j in range(6):
            moved = np.repeat(features[i : i + 1], 2, axis=0)
            moved[:, j] += (step, -step)
            high, low = (log_loss(predict(model, row[None]), labels[i : i + 1]).value for row in moved)
            assert found[i, j] == pytest.approx((high - low) / (2 * step), abs=2e-3)
    assert model.training


@pytest.mark.parametrize("steps", [1, 4])
def test_the_mismatch_is_zero_at_the_truth_and_its_slope_is_right(steps: int) -> None:
    """The update is the real training's, over a lot of exactly these records."""
    (features, labels), before = records(3), parameters_of(build(MLP))
    settings = TrainingSettings(local_steps=steps, sample_rate=1.0, lot_size=3.0, learning_rate=0.2)
    update = train(
        build(MLP), features, labels, settings, PrivacySettings(mode="none"), 0.0, Randomness.from_os()
    ).update
    model = build(MLP)
    mismatch = update_mismatch(model, labels, update, 0.2, steps)
    assert mismatch(features.astype(np.float64))[0] < 1e-9
    elsewhere, step = np.full((3, 6), 0.5), 1e-5
    value, slope = mismatch(elsewhere)
    assert value > 1e-3
    for place in [(0, 0), (1, 3), (2, 5)]:
        high, low = elsewhere.copy(), elsewhere.copy()
        high[place] += step
        low[place] -= step
        assert slope[place] == pytest.approx((mismatch(high)[0] - mismatch(low)[0]) / (2 * step), rel=1e-3, abs=1e-7)
    np.testing.assert_array_equal(parameters_of(model), before)


def test_optimising_the_mismatch_finds_the_records() -> None:
    features, labels = records(2)
    settings = TrainingSettings(local_steps=3, sample_rate=1.0, lot_size=2.0, learning_rate=0.1)
    update = train(
        build(MLP), features, labels, settings, PrivacySettings(mode="none"), 0.0, Randomness.from_os()
    ).update
    start = 0.5 + 0.01 * np.random.default_rng(1).normal(size=(2, 6))
    found = by_optimising(update_mismatch(build(MLP), labels, update, 0.1, 3), start)
    assert peak_signal_to_noise(found, features.astype(np.float64)).min() > 25


@pytest.mark.parametrize("update", [np.zeros(163), np.ones(5), np.full(163, np.nan)])
def test_what_tells_nothing_is_refused(update: np.ndarray) -> None:
    with pytest.raises(InvalidUpdate):
        update_mismatch(build(MLP), np.zeros(1, np.int64), update, 0.1)
