"""Proves: the audit passes the real training when it is honest, and sees every bug that is planted in it.

Deterministic by their seeds; over fresh seeds an honest run is flagged once in a thousand at most, which
`tests/common/evaluators/test_privacy_audit.py` computes.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from common.dp.accounting import calibrate_noise, epsilon
from common.dp.cost import training_events
from common.dp.events import PoissonGaussian
from common.evaluators.privacy_audit import Canaries, audit
from common.federation import (
    FederationSettings,
    ModelSettings,
    Plan,
    PrivacySettings,
    TrainingSettings,
)
from common.randomness import Randomness
from scenarios.canaries import PLANTED, Bug, audited_shares, audited_training

STEPS, CANARIES = 10, 5000
PRIVACY = PrivacySettings(epsilon=4.0, delta=1e-5)
TRAINING = TrainingSettings(local_steps=STEPS, sample_rate=1.0, lot_size=3000.0, learning_rate=0.3)
NOISE = 3.421  # what calibration gives; checked below
SHARES = Plan(
    FederationSettings(rounds=1),
    ModelSettings("logistic", (64,), 10),
    TrainingSettings(local_steps=1, sample_rate=1.0, lot_size=3000.0, learning_rate=3000.0),
    PrivacySettings(mode="distributed", epsilon=4.0, delta=1e-5, noise_multiplier=1.082, max_update_norm=150.0),
)


def digits() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return (features[:500] / 128).astype(np.float32), labels[:500]


def trained(seed: int, bug: Bug | None, canaries: int = CANARIES) -> Canaries:
    streams = Randomness.insecure(seed), np.random.default_rng(seed)
    return audited_training(*digits(), canaries, TRAINING, PRIVACY, NOISE, *streams, bug)


def shared(seed: int, bug: Bug | None, canaries: int = CANARIES) -> Canaries:
    streams = Randomness.insecure(seed), np.random.default_rng(seed)
    return audited_shares(*digits(), canaries, SHARES, 10, *streams, bug)


def test_the_claims_are_what_the_accountant_says() -> None:
    least = calibrate_noise(PRIVACY, lambda noise: [PoissonGaussian(noise, 1.0, STEPS)])
    assert least == pytest.approx(NOISE, rel=1e-3)
    assert epsilon(training_events(SHARES, 10, 10), 1e-5) == pytest.approx(4.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("play", [trained, shared])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_honest_run_passes(play, seed: int) -> None:
    verdict = audit(play(seed, None))
    assert not verdict.flagged
    assert verdict.certificate <= 4
    assert verdict.detector <= 4.1
    assert verdict.fit > 3  # the audit is not blind: it finds nearly all that was spent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("play", "name"),
    [(trained, name) for name in PLANTED] + [(shared, name) for name in PLANTED if PLANTED[name].rounds == 1],
)
def test_every_planted_bug_is_flagged(play, name: str) -> None:
    verdict = audit(play(0, PLANTED[name]))
    assert verdict.flagged
    assert verdict.detector > 7


def test_a_small_audit_sees_a_large_bug() -> None:
    """With 400 canaries, in a second: honest noise passes, halved noise does not."""
    assert not audit(trained(5, None, 400)).flagged
    assert audit(trained(5, PLANTED["noise halved"], 400)).flagged


def test_canaries_go_through_the_real_clipping() -> None:
    """Ten times as loud, they move nothing more: scores without noise are the bound times steps, for every canary."""
    whisper = Bug(noise=1e-6)
    found = trained(3, whisper, 50)
    per_step = TRAINING.learning_rate * PRIVACY.max_grad_norm / TRAINING.lot_size
    reach = found.scores[found.included] / (per_step * STEPS)
    assert reach.max() <= 1 + 1e-3
    assert reach.min() > 0.97
    assert np.abs(found.scores[~found.included]).max() < 1e-3 * per_step


def test_shares_of_noise_are_those_of_the_plan() -> None:
    """Twice the noise multiplier, half the effect; the site's own share alone would show more."""
    louder = replace(SHARES, privacy=replace(SHARES.privacy, noise_multiplier=4.328))
    streams = Randomness.insecure(1), np.random.default_rng(1)
    found = audited_shares(*digits(), 1000, louder, 10, *streams)
    ins, outs = found.scores[found.included], found.scores[~found.included]
    effect = (ins.mean() - outs.mean()) / outs.std()
    assert effect == pytest.approx(1 / (4.328 * (10 / 9) ** 0.5), abs=0.25)
