"""Proves: spoiling does what it says, attacks find the loss they may, and strangers are noticed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from client.train import train
from common.errors import ConfigError
from common.evaluators.robustness import energy, fgsm, noised, pgd, shifted, strangeness, with_missing
from common.evaluators.utility import accuracy, auroc, log_loss
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.gradients import input_gradients
from common.models import build, logits, predict
from common.randomness import Randomness

REFERENCE = (np.random.default_rng(1).normal(size=(5000, 4)) * [1, 2, 3, 0]).astype(np.float32)
BOX = (0.0, 1.0)


def digits() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return (features / 16).astype(np.float32), labels


@pytest.fixture(scope="module")
def model():
    """Trained by the real training, without privacy."""
    features, labels = digits()
    built = build(ModelSettings("mlp", (64,), 10, hidden=(32,)))
    plan = TrainingSettings(sampling="shuffle", local_epochs=20, batch_size=32, learning_rate=0.1, momentum=0.9)
    train(built, features[:1200], labels[:1200], plan, PrivacySettings(mode="none"), 0.0, Randomness.insecure(1))
    return built


def test_noise_and_shift_are_in_deviations_of_the_reference() -> None:
    """Fresh draws of 20,000: deviations within 5 %, over ten standard errors."""
    features = np.zeros((20_000, 4), np.float32)
    moved = noised(features, REFERENCE, 0.5, np.random.default_rng())
    np.testing.assert_allclose(moved.std(axis=0), 0.5 * REFERENCE.std(axis=0), rtol=0.05)
    moved = shifted(features, REFERENCE, 2.0, np.random.default_rng())
    np.testing.assert_allclose(np.abs(moved), np.tile(2 * REFERENCE.std(axis=0), (20_000, 1)), rtol=1e-5)
    assert (moved == moved[0]).all()


def test_missing_values_become_the_mean_as_often_as_is_said() -> None:
    """20,000 coins of 0.3: standard error 0.0032, so 0.02 is over six of them. False alarm 1e-9."""
    features = np.full((5000, 4), 99.0, np.float32)
    spoilt = with_missing(features, REFERENCE, 0.3, np.random.default_rng())
    gone = spoilt != 99.0
    assert gone.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(spoilt[gone], np.tile(REFERENCE.mean(axis=0), (5000, 1))[gone])


def test_on_a_linear_model_fgsm_is_the_worst_there_is_and_pgd_finds_it() -> None:
    """Loss rises with -y w.x, so the worst point of the box is the corner against the weights."""
    weights = np.array([2.0, -1.0, 0.5])

    def gradients(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        signs = 2 * labels - 1
        chance = 1 / (1 + np.exp(signs * (features @ weights)))
        return -(chance * signs)[:, None] * weights

    features, labels = np.full((4, 3), 0.5, np.float32), np.array([0, 1, 0, 1])
    worst = 0.5 + 0.2 * np.sign(weights) * (1 - 2 * labels[:, None])
    np.testing.assert_allclose(fgsm(gradients, features, labels, 0.2, BOX), worst, atol=1e-6)
    found = pgd(gradients, features, labels, 0.2, BOX, np.random.default_rng())
    np.testing.assert_allclose(found, worst, atol=1e-6)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attacked_images_stay_within_reach_and_box(attack: str, model) -> None:
    (features, labels), rng = digits(), np.random.default_rng(0)

    def gradients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return input_gradients(model, x, y)

    asked, answers = features[1200:1400], labels[1200:1400]
    moved = (
        fgsm(gradients, asked, answers, 0.1, BOX) if attack == "fgsm" else pgd(gradients, asked, answers, 0.1, BOX, rng)
    )
    assert np.abs(moved - asked).max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    before, after = (accuracy(predict(model, part), answers).value for part in (asked, moved))
    noise = np.clip(asked + 0.1 * rng.choice([-1, 1], asked.shape), 0, 1).astype(np.float32)
    harmless = accuracy(predict(model, noise), answers).value
    assert after < harmless - 0.2 < before  # far worse than noise of the same size
    if attack == "pgd":
        quick = fgsm(gradients, asked, answers, 0.1, BOX)
        assert log_loss(predict(model, moved), answers).value > log_loss(predict(model, quick), answers).value


def test_energy_is_the_formula() -> None:
    rows = np.array([[1.0, 2.0], [-1000.0, -1001.0], [800.0, 0.0]])
    np.testing.assert_allclose(energy(rows[:1]), -np.log(np.exp(rows[:1]).sum(axis=1)))
    assert np.isfinite(energy(rows)).all()


@pytest.mark.parametrize("method", ["isolation_forest", "local_outlier_factor", "energy"])
def test_noise_images_are_told_from_digits(method: str, model) -> None:
    features, _ = digits()
    proper = features[1200:1500]
    strange = np.random.default_rng(0).permuted(proper, axis=1)  # the same pixels, in no order
    both, is_strange = np.concatenate([proper, strange]), np.repeat([0, 1], 300)
    told = energy(logits(model, both)) if method == "energy" else strangeness(features[:1200], both, method, 0)
    assert auroc(told, is_strange).low > (0.6 if method == "energy" else 0.9)
    again = np.concatenate([features[1200:1500], features[1497:1797]])
    blind = energy(logits(model, again)) if method == "energy" else strangeness(features[:1200], again, method, 0)
    assert auroc(blind, is_strange).value == pytest.approx(0.5, abs=0.12)


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match="crystal ball"):
        strangeness(REFERENCE, REFERENCE, "crystal ball", 0)
