"""Proves: the real training without privacy tells members from others, and with DP it hardly does. Seeds are fixed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from client.train import train
from common.dp.accounting import calibrate_noise
from common.dp.events import PoissonGaussian
from common.evaluators.membership import Attacked, true_positives_at
from common.evaluators.utility import Predict, accuracy, auroc
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build, predict
from common.randomness import Randomness
from scenarios.membership import attacked_models

POOL = 1200
PLAIN = TrainingSettings(sampling="shuffle", local_epochs=60, batch_size=32, learning_rate=0.1, momentum=0.9)
PRIVATE = TrainingSettings(local_steps=150, sample_rate=0.2, lot_size=120.0, learning_rate=1.0)
EPSILON_4 = PrivacySettings(epsilon=4.0, delta=1e-5)


def noisy_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shuffled digits, labels of which a fifth are drawn anew (what a model must learn by heart), and the true ones."""
    features, true = load_digits(return_X_y=True)
    random = np.random.default_rng(7)
    order = random.permutation(len(true))
    features, true = (features[order] / 16).astype(np.float32), true[order]
    wrong = random.random(len(true)) < 0.2
    labels = np.where(wrong, random.integers(0, 10, len(true)), true)
    return features, labels, true


def fitted(training: TrainingSettings, privacy: PrivacySettings, hidden: int, noise: float, seed: int):
    def fit(features: np.ndarray, labels: np.ndarray, which: int) -> Predict:
        model = build(ModelSettings("mlp", (64,), 10, hidden=(hidden,)))
        train(model, features, labels, training, privacy, noise, Randomness.insecure(seed, which))
        return lambda asked: predict(model, asked)

    return fit


def attack(fit, seed: int) -> Attacked:
    features, labels, _ = noisy_digits()
    return attacked_models(features[:POOL], labels[:POOL], fit, np.random.default_rng(seed))


def area(attacked: Attacked) -> float:
    return auroc(attacked.scores, attacked.members.astype(np.int64)).value


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_without_privacy_members_are_told_apart(seed: int) -> None:
    found = attack(fitted(PLAIN, PrivacySettings(mode="none"), 256, 0.0, seed), seed)
    assert area(found) >= 0.70
    assert true_positives_at(found).value > 0.1


def noise_of_epsilon_4() -> float:
    return calibrate_noise(EPSILON_4, lambda noise: [PoissonGaussian(noise, 0.2, 150)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_at_epsilon_4_they_hardly_are_and_the_model_is_as_good(seed: int) -> None:
    fit = fitted(PRIVATE, EPSILON_4, 64, noise_of_epsilon_4(), seed)
    found = attack(fit, seed)
    assert area(found) <= 0.55
    assert true_positives_at(found).value <= 0.03
    features, labels, true = noisy_digits()
    assert accuracy(fit(features[:600], labels[:600], 99)(features[POOL:]), true[POOL:]).value > 0.8


@pytest.mark.slow
def test_the_same_private_training_without_its_noise_leaks() -> None:
    """Clipping alone is no protection: the attack finds what noise would hide. More steps: there is more to find."""
    longer = TrainingSettings(local_steps=600, sample_rate=0.2, lot_size=60.0, learning_rate=1.0)
    found = attack(fitted(longer, EPSILON_4, 256, 1e-3, 0), 0)
    assert area(found) > 0.65
