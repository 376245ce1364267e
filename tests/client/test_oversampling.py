"""Proves: classes become equally frequent by records between neighbours; and one record moves many of those, which is
why a plan that protects records is refused it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.oversampling import NEIGHBOURS, smote
from client.train import train
from common.errors import ConfigError
from common.federation import ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.models import build, predict
from common.randomness import Randomness

SHAPES = st.tuples(st.integers(2, 30), st.integers(31, 60), st.integers(0, 1000))


def drawn(rare: int, many: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat([1, 0], [rare, many]))
    return (random.normal(size=(rare + many, 2, 2)) + labels[:, None, None]).astype(np.float32), labels


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_classes_become_equally_frequent_and_every_true_record_stays_as_it_is(shape: tuple[int, int, int]) -> None:
    features, labels = drawn(*shape)
    more, named = smote(features, labels, Randomness.from_os())
    assert np.bincount(named).tolist() == [shape[1], shape[1]]
    assert (more[: len(labels)] == features).all()
    assert (named[: len(labels)] == labels).all()
    assert more.dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_what_is_made_up_lies_between_a_record_and_one_of_its_nearest_of_the_same_class(shape) -> None:
    features, labels = drawn(*shape)
    more, _ = smote(features, labels, Randomness.from_os())
    rare = features[labels == 1].reshape(-1, 4).astype(np.float64)
    apart = np.linalg.norm(rare[:, None] - rare[None], axis=2)
    nearest = np.argsort(apart + np.diag([np.inf] * len(rare)), axis=1)[:, : min(NEIGHBOURS, len(rare) - 1)]
    for record in more[len(labels) :].reshape(-1, 4).astype(np.float64):
        away = np.linalg.norm(rare - record, axis=1)
        detour = away[:, None] + away[nearest] - apart[np.arange(len(rare))[:, None], nearest]
        assert detour.min() < 1e-5


def test_a_class_of_one_record_and_classes_that_are_equal_stay_as_they_are() -> None:
    for counts in ([1, 5], [4, 4]):
        labels = np.repeat([0, 1], counts)
        features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
        more, named = smote(features, labels, Randomness.from_os())
        assert (more.shape, named.tolist()) == (features.shape, labels.tolist())


def test_one_record_more_moves_many_that_are_made_up() -> None:
    """One record of the frequent class makes one more of each rarer one; one of a rare class is in many of its own."""
    features, labels = drawn(10, 60, 0)
    for label, apart in ((0, 1), (1, 10)):
        extra = np.concatenate([features, np.full((1, 2, 2), 9 * label, np.float32)]), np.append(labels, label)
        before = smote(features, labels, Randomness.insecure(1))[0][len(labels) :]
        after = smote(*extra, Randomness.insecure(1))[0][len(labels) + 1 :]
        known = {record.tobytes() for record in before}
        assert sum(record.tobytes() not in known for record in after) >= apart


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_plan_that_protects_records_is_refused_it(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.oversampling = 'smote'"):
        Plan(training=TrainingSettings(oversampling="smote", local_steps=1), privacy=PrivacySettings(mode=mode))


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_training_with_it_finds_the_rare_class(sampling: str) -> None:
    """Of 20 rare records among 400, one deviation apart in each of four columns: found by over half, else by few."""
    random = np.random.default_rng(0)
    labels = np.repeat([1, 0], [20, 400])
    features = (random.normal(size=(420, 4)) + labels[:, None]).astype(np.float32)
    asked = (random.normal(size=(2000, 4)) + 1).astype(np.float32)
    found = {}
    for oversampling in ("none", "smote"):
        model = build(ModelSettings("logistic", (4,), 2))
        plan = Plan(
            training=TrainingSettings(
                sampling=sampling,
                oversampling=oversampling,
                local_steps=60,
                local_epochs=5,
                sample_rate=0.5,
                lot_size=200,
            ),
            privacy=PrivacySettings(mode="site"),
        )
        train(model, features, labels, plan.training, plan.privacy, 0.0, Randomness.insecure(1))
        found[oversampling] = (predict(model, asked).argmax(axis=1) == 1).mean()
    assert found["none"] < 0.6 < 0.75 < found["smote"]
