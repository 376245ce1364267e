"""Proves: a code written once is found in a model without noise, and is nowhere near found with it."""

import numpy as np
import pytest

from common.evaluators.exposure import exposures
from common.federation import PrivacySettings, TrainingSettings
from common.randomness import Randomness
from scenarios.secrets import everyday_text, exposed, windows

STEPS = TrainingSettings(local_steps=150, sample_rate=0.1, lot_size=40.0, learning_rate=1.0)


def bits(privacy: PrivacySettings, noise_multiplier: float, repeats: int = 1) -> float:
    rng = np.random.default_rng()
    text = everyday_text(20, rng)
    secrets = exposed(text, repeats, STEPS, privacy, noise_multiplier, Randomness.from_os(), rng)
    return exposures(secrets)[0].value


def test_a_window_is_what_comes_before_a_character() -> None:
    found = windows("room 12 was ")
    assert found.features.shape == (4, 8 * 38)
    assert (found.features.sum(axis=1) == 8).all()
    assert found.labels.tolist() == windows("abcdefghwas ").labels.tolist()
    with pytest.raises(ValueError, match="substring"):
        windows("Umlaut: ä and so on")


def test_without_noise_the_code_is_the_first_that_an_attacker_would_try() -> None:
    """13.3 bits of 13.3 nearly always, at most 10 in one draw of 70: four times over once in 2e7.

    A code that was not learnt has 10 or more once in 1,000."""
    assert any(bits(PrivacySettings(mode="none"), 0.0) > 10 for _ in range(4))


def test_with_noise_or_never_written_it_is_like_any_other() -> None:
    """A code that was not learnt has over 8.3 bits once in 300, and so all three of them once in 3e7."""
    noisy = [bits(PrivacySettings(mode="local", max_grad_norm=0.5), 4.0) for _ in range(3)]
    unwritten = [bits(PrivacySettings(mode="none"), 0.0, repeats=0) for _ in range(3)]
    assert min(noisy) < 8.3 > min(unwritten)
