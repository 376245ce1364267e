"""Proves: vectors longer than promised are left out, each lets the rule bear one less, and more of them stop it."""

import numpy as np
import pytest

from common.encoding import Encoding
from common.errors import InvalidUpdate
from common.federation import (
    EncryptionSettings,
    FederationSettings,
    Plan,
    PrivacySettings,
    RobustnessSettings,
    TrainingSettings,
)
from common.randomness import Randomness
from common.robust_rules import trimmed_mean
from common.robust_update import robust_update
from common.updates import clip

SETTINGS = RobustnessSettings("trimmed-mean", 2, 7)


def means(n: int = 7, d: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(1).normal(0.0, 0.1, (n, d)))


def test_a_vector_within_its_bound_goes_to_the_rule():
    found = robust_update(means(), [1.0] * 7, SETTINGS)
    assert found.broken == ()
    np.testing.assert_array_equal(found.values, trimmed_mean(means(), 2))


def test_one_beyond_it_is_left_out_and_the_rule_trims_one_less():
    given = means()
    given[3] = given[3] + 100
    found = robust_update(given, [1.0] * 7, SETTINGS)
    assert found.broken == (3,)
    np.testing.assert_array_equal(found.values, trimmed_mean([*means()[:3], *means()[4:]], 1))


def test_more_than_the_plan_bears_stop_the_round():
    given = [mean + 100 * (place < 3) for place, mean in enumerate(means())]
    with pytest.raises(InvalidUpdate, match="3 of 7 buckets are longer than their sites agreed to"):
        robust_update(given, [1.0] * 7, SETTINGS)


@pytest.mark.parametrize("preset", ["plain", "rotated", "conditional"])
def test_no_mean_of_clipped_updates_is_ever_called_longer(preset):
    """The bound is sure, whatever rounding does: 200 cohorts at their longest, all pulling one way."""
    choices = {"rotated": {"rotate": True}, "conditional": {"rounding": "conditional"}}.get(preset, {})
    plan = Plan(privacy=PrivacySettings(max_update_norm=2.0), encryption=EncryptionSettings(**choices))
    d, bits = 300, 8
    encoding = Encoding.of(plan, b"r" * 16, 1, bits, [d], 3)
    randomness, rng = Randomness.from_os(), np.random.default_rng()
    for _ in range(200):
        update = clip(1e6 * rng.normal(size=d), 2.0)
        total = sum(encoding.encode(update, randomness) for _ in range(3))
        assert np.linalg.norm(encoding.decode(total) / 3) <= encoding.longest_mean(2.0, d, 3)


def test_noise_in_shares_has_room_and_no_more_than_it_needs():
    """At the bound's odds of 1e-9 250 sums stay within; and the bound is under twice what they reach."""
    privacy = PrivacySettings("distributed", noise_multiplier=3.0, max_update_norm=2.0)
    training = TrainingSettings(local_steps=1, lot_size=4.0)
    plan = Plan(FederationSettings(min_cohort=3), training=training, privacy=privacy)
    d = 300
    encoding = Encoding.of(plan, b"r" * 16, 1, 16, [d], 4)
    randomness = Randomness.from_os()
    longest = encoding.longest_mean(2.0, d, 4)
    update = clip(np.full(d, 1.0), 2.0)
    reached = [
        np.linalg.norm(encoding.decode(sum(encoding.encode(update, randomness) for _ in range(4))) / 4)
        for _ in range(250)
    ]
    assert max(reached) <= longest < 2 * max(reached)
