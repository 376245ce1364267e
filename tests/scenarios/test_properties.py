"""Proves: what holds of one site's records as a whole is told from a sum of four sites' updates, and noise for records
is no promise against it; a property that moves no update is not told."""

import numpy as np
import pytest

from common.dp.accounting import epsilon
from common.dp.events import PoissonGaussian
from common.evaluators.membership import Attacked
from common.evaluators.utility import auroc
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.randomness import Randomness
from scenarios.inversion import NO_PRIVACY, Batch
from scenarios.properties import guessed, sum_of

MODEL = ModelSettings("logistic", (6,), 2)
TRAINING = TrainingSettings(local_steps=3, sample_rate=0.5, lot_size=150.0, learning_rate=0.5)


def site(random: np.random.Generator, share: float, n: int = 300) -> Batch:
    """Records whose label says nothing of feature 5, which a share of them has."""
    features = random.normal(size=(n, 6)).astype(np.float32)
    labels = (features[:, 0] + random.normal(size=n) > 1.0).astype(np.int64)
    features[:, 5] = random.random(n) < share
    return features, labels


def attacked(held: float, privacy: PrivacySettings = NO_PRIVACY, noise: float = 0.0) -> Attacked:
    random = np.random.default_rng()

    def seen(holds: bool) -> np.ndarray:
        sites = [site(random, held if holds else 0.2), *(site(random, 0.2) for _ in range(3))]
        return sum_of(MODEL, sites, TRAINING, privacy, noise, Randomness.from_os())

    return guessed(seen, random, shadows=60, targets=60)


def area(found: Attacked) -> float:
    return auroc(found.scores, found.members.astype(np.int64)).value


def test_that_one_of_four_sites_is_unlike_the_others_is_told_from_their_sum() -> None:
    """0.5 is guessing, whose AUC over 60 has a standard error of 0.075: five of them come once in a million."""
    assert area(attacked(0.9)) > 0.5 + 5 * 0.075


def test_noise_that_hides_each_record_is_no_promise_about_a_site() -> None:
    """Three steps at noise 3 and rate 0.5: epsilon 2 for a record, and the site's share is told all the same."""
    privacy = PrivacySettings(mode="local", max_grad_norm=1.0)
    assert epsilon([PoissonGaussian(3.0, TRAINING.sample_rate, TRAINING.local_steps)], 1e-5) < 2
    assert area(attacked(0.9, privacy, 3.0)) > 0.5 + 5 * 0.075


def test_a_property_that_no_record_shows_is_not_told() -> None:
    assert area(attacked(0.2)) == pytest.approx(0.5, abs=5 * 0.075)
