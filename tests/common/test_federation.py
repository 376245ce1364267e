"""Settings of training and privacy are checked at birth, and what does not go together is refused by name."""

from typing import Literal

import pytest

from common.dp.cost import training_events
from common.dp.events import PoissonGaussian
from common.errors import ConfigError
from common.federation import FederationSettings, Plan, PrivacySettings, TrainingSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("momentum", 1.0),
        ("second_momentum", 1.0),
        ("server_momentum", -0.1),
        ("server_second_momentum", float("nan")),
        ("ema_decay", 1.0),
        ("adam_floor", 0.0),
        ("server_adaptivity", 0.0),
        ("warmup_steps", -1),
        ("proximal_mu", -1.0),
        ("proximal_mu", float("inf")),
        ("q", -1.0),
        ("q", float("nan")),
    ],
)
def test_impossible_training_is_refused_by_its_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"training.{key} "):
        TrainingSettings(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_weights", (1.0, 0.0)),
        ("layer_weights", (1.0, float("nan"))),
        ("target_quantile", 0.0),
        ("target_quantile", 1.0),
        ("clip_learning_rate", 0.0),
        ("clip_learning_rate", float("nan")),
    ],
)
def test_impossible_clipping_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"privacy.{key} "):
        PrivacySettings(**{"clipping": "per-layer", key: value})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (lambda: TrainingSettings(tail_average=0.5, ema_decay=0.9), "ema_decay"),
        (lambda: TrainingSettings(sampling="shuffle", optimizer="adam"), "optimizer"),
        (lambda: TrainingSettings(sampling="shuffle", schedule="cosine"), "schedule"),
        (lambda: TrainingSettings(sampling="shuffle", warmup_steps=1), "warmup_steps"),
        (lambda: TrainingSettings(sampling="shuffle", proximal_mu=1.0), "proximal_mu"),
        (lambda: PrivacySettings(layer_weights=(1.0, 2.0)), "layer_weights"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        settings()


@pytest.mark.parametrize("changed", [{"optimizer": "adam"}, {"schedule": "linear"}, {"warmup_steps": 2}])
def test_noise_in_shares_allows_one_plain_step_only(changed: dict[str, object]) -> None:
    """Its noise is scaled to learning_rate * max_grad_norm / lot_size, which is what a plain step moves."""
    distributed = PrivacySettings(mode="distributed")
    federation = FederationSettings(min_cohort=3)
    Plan(federation, training=TrainingSettings(local_steps=1), privacy=distributed)
    with pytest.raises(ConfigError, match=r"training.optimizer"):
        Plan(federation, training=TrainingSettings(local_steps=1, **changed), privacy=distributed)


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_the_way_of_clipping_changes_nothing_about_the_cost(clipping: Literal["flat", "per-layer", "adaptive"]) -> None:
    training = TrainingSettings(local_steps=7, sample_rate=0.3)
    plan = Plan(training=training, privacy=PrivacySettings(clipping=clipping, noise_multiplier=1.7))
    assert training_events(plan, cohort=5, summed=4) == (PoissonGaussian(1.7, 0.3, 7),)


@pytest.mark.parametrize("mode", ["distributed", "site"])
def test_a_bound_that_adapts_needs_noise_of_the_sites_own(mode: str) -> None:
    training = TrainingSettings(local_steps=1)
    with pytest.raises(ConfigError, match="adaptive"):
        Plan(
            FederationSettings(min_cohort=3), training=training, privacy=PrivacySettings(mode=mode, clipping="adaptive")
        )
