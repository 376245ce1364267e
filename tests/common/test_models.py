"""Proves: weights are public and the same everywhere, vectors round-trip, and a wrong model is named, not run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.errors import ConfigError, InvalidUpdate
from common.federation import ModelSettings
from common.models import build, layer_sizes, load_parameters, parameters_of, planned_sizes, predict

BUILT_IN = [
    ModelSettings("logistic", (13,), 2),
    ModelSettings("logistic", (1, 8, 8), 10),
    ModelSettings("mlp", (64,), 10, hidden=(128,)),
    ModelSettings("mlp", (3, 4, 4), 3, hidden=()),
    ModelSettings("cnn", (1, 28, 28), 10),
    ModelSettings("cnn", (1, 8, 8), 10),
    ModelSettings("cnn", (3, 32, 32), 10),
]


def two_heads(inputs: tuple[int, ...], classes: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(inputs[0], 4), nn.Tanh(), nn.Linear(4, classes))
    model[0].bias.requires_grad_(False)
    return model


def not_a_module(inputs: tuple[int, ...], classes: int) -> str:
    return "a string"


def wrong_shape(inputs: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(inputs[0], classes + 1)


def frozen(inputs: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(inputs[0], classes).requires_grad_(False)


def fails(inputs: tuple[int, ...], classes: int) -> nn.Module:
    raise ZeroDivisionError("no such luck")


@pytest.mark.parametrize("settings", BUILT_IN, ids=str)
def test_initial_weights_are_the_same_everywhere_and_nobody_elses_randomness_moves(settings: ModelSettings) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = parameters_of(build(settings))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert np.array_equal(first, parameters_of(build(settings)))


@pytest.mark.parametrize(
    "settings", [*BUILT_IN, ModelSettings("tests.common.test_models:two_heads", (13,), 2)], ids=str
)
def test_the_sizes_of_a_model_that_is_not_there_are_those_of_one_that_is(settings: ModelSettings) -> None:
    assert planned_sizes(settings) == layer_sizes(build(settings))


def test_the_sizes_of_a_model_are_known_however_large_it_is() -> None:
    """Two hundred and fifty billion weights would be a terabyte."""
    assert sum(planned_sizes(ModelSettings("mlp", (64,), 10, hidden=(500_000, 500_000)))) > 25e10


def test_a_model_that_does_not_fit_has_no_sizes() -> None:
    with pytest.raises(ConfigError, match=r"model\.inputs"):
        planned_sizes(ModelSettings("cnn", (13,), 2))


@pytest.mark.parametrize("settings", BUILT_IN, ids=str)
def test_predictions_are_probabilities_and_leave_the_model_as_it_was(settings: ModelSettings) -> None:
    model = build(settings)
    features = np.random.default_rng(0).normal(size=(5, *settings.inputs)).astype(np.float32)
    features.flags.writeable = False
    chances = predict(model, features)
    assert chances.shape == (5, settings.classes)
    assert chances.dtype == np.float64
    np.testing.assert_allclose(chances.sum(1), 1)
    assert model.training
    assert predict(model, features[:0]).shape == (0, settings.classes)


def test_many_records_are_predicted_in_order() -> None:
    model = build(ModelSettings("mlp", (3,), 2))
    features = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)
    np.testing.assert_allclose(predict(model, features)[5000:5003], predict(model, features[5000:5003]), atol=1e-6)


def test_a_logistic_model_starts_undecided() -> None:
    assert not parameters_of(build(BUILT_IN[0])).any()


def test_seeds_give_different_weights() -> None:
    one, other = (build(ModelSettings("mlp", (4,), 2, seed=seed)) for seed in (0, 1))
    assert not np.array_equal(parameters_of(one), parameters_of(other))


@given(st.integers(0, 2**32))
def test_vectors_round_trip(seed: int) -> None:
    model = build(BUILT_IN[2])
    vector = np.random.default_rng(seed).normal(size=parameters_of(model).size).astype(np.float32).astype(np.float64)
    vector.flags.writeable = False
    load_parameters(model, vector)
    assert np.array_equal(parameters_of(model), vector)


@pytest.mark.parametrize("shape", [(5,), (0,), (2, 15), (31,)])
def test_a_vector_of_another_model_is_refused_and_changes_nothing(shape: tuple[int, ...]) -> None:
    model = build(ModelSettings("mlp", (4,), 2, hidden=(4,)))
    before = parameters_of(model)
    with pytest.raises(InvalidUpdate, match="30 parameters"):
        load_parameters(model, np.ones(shape))
    assert np.array_equal(parameters_of(model), before)


def test_a_factory_of_ones_own_is_called_and_frozen_parameters_stay_out() -> None:
    model = build(ModelSettings(f"{__name__}:two_heads", (3,), 2))
    assert parameters_of(model).size == 3 * 4 + 4 * 2 + 2


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("resnet", "is not known"),
        ("no.such.module:f", "cannot be imported"),
        (":f", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        (f"{__name__}:not_a_module", "not a torch.nn.Module"),
        (f"{__name__}:wrong_shape", r"shape \(2, 3\) for 2 records, not \(2, 2\)"),
        (f"{__name__}:frozen", "without trainable parameters"),
        (f"{__name__}:fails", "no such luck"),
        ("torch.nn:Conv2d", "model.factory"),
    ],
)
def test_a_factory_that_does_not_fit_is_named(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        build(ModelSettings(factory, (3,), 2))
    assert "model.factory" in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (ModelSettings("mlp", (), 2), "model.inputs"),
        (ModelSettings("mlp", (3,), 0), "model.classes"),
        (ModelSettings("cnn", (64,), 10), "model.inputs"),
        (ModelSettings("cnn", (1, 4, 4), 10), "model.inputs"),
    ],
)
def test_missing_shapes_are_named(settings: ModelSettings, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(settings)
