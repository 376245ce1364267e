"""Proves: attributions keep the axioms that define them. Needs captum, the extra `explain`."""

import sys

import numpy as np
import pytest
import torch

from common.attributions import integrated_gradients, kernel_shap
from common.errors import ConfigError
from common.federation import ModelSettings
from common.models import build, logits

FEATURES = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
CLASSES, BASELINE = np.array([0, 1, 2, 0, 1, 2]), np.full(5, 0.3, np.float32)


def needs_captum() -> None:
    pytest.importorskip("captum.attr", reason="captum: pip install 'veilfed[explain]'")


def rise(model: torch.nn.Module) -> np.ndarray:
    """What there is to attribute: each record's logit minus the baseline's."""
    return (logits(model, FEATURES) - logits(model, BASELINE[None]))[np.arange(6), CLASSES]


@pytest.mark.parametrize("architecture", ["mlp", "logistic"])
def test_integrated_gradients_add_up_to_the_rise(architecture: str) -> None:
    needs_captum()
    model = build(ModelSettings(architecture, (5,), 3, hidden=(16,))).eval()
    if architecture == "logistic":
        torch.nn.init.normal_(model[0].weight)
    found = integrated_gradients(model, FEATURES, CLASSES, BASELINE)
    assert found.shape == FEATURES.shape
    np.testing.assert_allclose(found.sum(axis=1), rise(model), atol=5e-3)


def test_shapley_values_of_a_linear_model_are_weight_times_distance() -> None:
    needs_captum()
    model = build(ModelSettings("logistic", (5,), 3)).eval()
    torch.nn.init.normal_(model[0].weight)
    expected = model[0].weight.detach().numpy()[CLASSES] * (FEATURES - BASELINE)
    found = kernel_shap(model, FEATURES, CLASSES, BASELINE, samples=200, seed=1)
    np.testing.assert_allclose(found, expected, atol=1e-2)
    again = kernel_shap(model, FEATURES, CLASSES, BASELINE, samples=200, seed=1)
    np.testing.assert_array_equal(found, again)


def test_a_model_in_training_is_refused() -> None:
    needs_captum()
    with pytest.raises(ConfigError, match="training mode"):
        integrated_gradients(build(ModelSettings("logistic", (5,), 3)), FEATURES, CLASSES, BASELINE)


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ConfigError, match="captum") as refused:
        integrated_gradients(build(ModelSettings("logistic", (5,), 3)).eval(), FEATURES, CLASSES, BASELINE)
    assert "veilfed[explain]" in refused.value.hint
