"""Architectures by name, a model as one flat vector and back, and what a model predicts."""

import importlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ConfigError, FederationError, InvalidUpdate
from common.federation import ModelSettings, require
from common.updates import Vector

_PREDICT_BATCH = 4096  # records


def build(settings: ModelSettings) -> nn.Module:
    """An untrained model that maps float32 (n, *inputs) to logits (n, classes).

    Its initial weights follow from `settings` alone, so they are public and the same at every site; the caller's
    random state is left as it was. A factory of one's own is called as `factory(inputs, classes)`.
    Raises ConfigError naming the key for whatever does not fit.
    """
    require(bool(settings.inputs), "model.inputs", settings.inputs, "the shape of one record, e.g. [13]")
    require(settings.classes >= 2, "model.classes", settings.classes, "2 or more")
    factory = _factory(settings)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(settings.seed)
        try:
            model = factory()
        except FederationError:
            raise
        except Exception as error:
            raise _refusal(settings, f"failed: {error}") from error
        return _checked(model, settings)


def parameters_of(model: nn.Module) -> Vector:
    """The trainable parameters, in the model's own order, as one float64 vector (d,)."""
    return flat(trainable(model))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def layer_sizes(model: nn.Module) -> list[int]:
    """How many values each trainable tensor holds, in the model's own order."""
    return [p.numel() for p in trainable(model)]


def planned_sizes(settings: ModelSettings) -> list[int]:
    """`layer_sizes(build(settings))`, without the weights where the architecture is built in: however large it is."""
    if settings.factory not in _BUILT_IN:
        return layer_sizes(build(settings))
    with torch.device("meta"):
        return layer_sizes(build(settings))


def flat(parameters: Sequence[nn.Parameter]) -> Vector:
    """All values of `parameters`, one after the other, as one float64 vector."""
    return torch.cat([p.detach().reshape(-1) for p in parameters]).cpu().numpy().astype(np.float64)


def load_parameters(model: nn.Module, vector: Vector) -> None:
    """Make `vector` (d,), as `parameters_of` gives it, the trainable parameters, rounded to their own types.

    Raises InvalidUpdate when the length is not d; the model is then unchanged.
    """
    parameters = trainable(model)
    sizes = layer_sizes(model)
    if np.shape(vector) != (sum(sizes),):
        raise InvalidUpdate(f"a vector of shape {np.shape(vector)} for a model of {sum(sizes)} parameters")
    pieces = torch.split(torch.tensor(vector), sizes)
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.data = piece.view(parameter.shape).to(parameter)  # no further copy where type and device agree


def predict(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (n, classes) for features (n, *inputs); the model is left in the mode it was in."""
    return torch.softmax(torch.from_numpy(logits(model, features)), dim=1).numpy()


def logits(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """What `predict` makes probabilities of: (n, classes)."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            starts = range(0, max(1, len(features)), _PREDICT_BATCH)
            batches = [torch.tensor(features[start : start + _PREDICT_BATCH], device=device) for start in starts]
            return torch.cat([model(batch) for batch in batches]).double().cpu().numpy()
    finally:
        model.train(was_training)


def _factory(settings: ModelSettings) -> Callable[[], object]:
    inputs, classes = settings.inputs, settings.classes
    if settings.factory in _BUILT_IN:
        return lambda: _BUILT_IN[settings.factory](settings)
    module_name, colon, function_name = settings.factory.partition(":")
    if not colon:
        raise _refusal(settings, "is not known")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _refusal(settings, f"cannot be imported: {error}") from error
    return lambda: function(inputs, classes)


def _checked(model: object, settings: ModelSettings) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise _refusal(settings, f"gave a {type(model).__name__}, not a torch.nn.Module")
    if not trainable(model):
        raise _refusal(settings, "gave a model without trainable parameters")
    try:
        logits = model.eval()(torch.zeros(2, *settings.inputs))
    except Exception as error:
        raise _refusal(settings, f"cannot take records of shape {settings.inputs}: {error}") from error
    finally:
        model.train()
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, settings.classes):
        raise _refusal(settings, f"gives output of shape {shape} for 2 records, not (2, {settings.classes})")
    return model


def _refusal(settings: ModelSettings, what: str) -> ConfigError:
    allowed = ", ".join(_BUILT_IN)
    return ConfigError(f"model.factory = {settings.factory!r} {what}", f"allowed: {allowed} or package.module:function")


def _logistic(settings: ModelSettings) -> nn.Module:
    """Zero weights: every class starts equally likely, and the first step is already convex."""
    linear = nn.Linear(int(np.prod(settings.inputs)), settings.classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(*_flatten(settings), linear)


def _mlp(settings: ModelSettings) -> nn.Module:
    layers, width = _flatten(settings), int(np.prod(settings.inputs))
    for hidden in settings.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, settings.classes))


def _cnn(settings: ModelSettings) -> nn.Module:
    """Two or, for images of 16 pixels and more, three convolutions; GroupNorm, because it never mixes records."""
    require(
        len(settings.inputs) == 3 and min(settings.inputs[1:]) >= 8,
        "model.inputs",
        settings.inputs,
        "channels, height, width with 8 pixels or more for model.factory = 'cnn'",
    )
    channels, height, width = settings.inputs
    layers: list[nn.Module] = []
    for out in (16, 32, 64)[: 2 if min(height, width) < 16 else 3]:
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = out, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, settings.classes))


def _flatten(settings: ModelSettings) -> list[nn.Module]:
    return [nn.Flatten()] if len(settings.inputs) > 1 else []


_BUILT_IN: dict[str, Callable[[ModelSettings], nn.Module]] = {"logistic": _logistic, "mlp": _mlp, "cnn": _cnn}
