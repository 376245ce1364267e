"""Which way the clipped gradients of a model are computed, and which models cannot be clipped at all.

The rule, in this order: book-keeping when every trainable parameter belongs to one module with a rule; else
vectorised; else one by one. Before first use the way is checked against one by one on some of the records. Opacus'
modes are not among the ways: where book-keeping fails its ghost mode fails too, and its hooks are slower than
vectorised; `veilfed bench dp` measures them beside ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from client.clipped_sum import ClippedSum, Losses, cross_entropy, layers_of
from client.clipping_modes import BookKeeping, OneByOne, Vectorised
from common.errors import ConfigError

PROBES = 3  # records for the check: enough that a mix-up of two shows
_AT_ONCE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 32}  # what is kept for backward: near the cache, or filling the device
_chosen: dict[object, tuple[type[ClippedSum], int]] = {}  # by structure: the way, and how many records at once


def clipped_sum_for(
    model: nn.Module,
    max_grad_norm: float,
    features: Tensor,
    labels: Tensor,
    losses: Losses = cross_entropy,
    shares: tuple[float, ...] = (),
) -> ClippedSum:
    """The fastest way that is right for this model, checked on the first PROBES of features (n, ...) and labels (n,).

    shares: as `shares_of` gives them. Raises ConfigError naming the module when the model mixes records, so that no
    record has a gradient of its own.
    """
    refuse_mixing_modules(model)
    if not len(labels):
        return OneByOne(model, max_grad_norm, losses, shares)
    device = next(model.parameters()).device
    probes = features[:PROBES].to(device, copy=True)  # storage of its own, to be measured
    answers = labels[:PROBES].to(device)
    shapes = [(path, type(module)) for path, module in model.named_modules()]
    parameters = [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in model.named_parameters()]
    structure = (*shapes, *parameters, probes.shape, probes.dtype, losses, shares)
    if structure not in _chosen:
        _chosen[structure] = _choose(model, probes, answers, losses, shares)
    way, records_at_once = _chosen[structure]
    clipped_sum = way(model, max_grad_norm, losses, shares)
    clipped_sum.records_at_once = records_at_once
    return clipped_sum


def shares_of(model: nn.Module, clipping: str, weights: Sequence[float]) -> tuple[float, ...]:
    """Each layer's share of max_grad_norm, their squares adding up to 1; () when the whole gradient has one bound.

    Depends on public things only: the layers there are and the plan's weights for them (none: all alike).
    Reference: McMahan et al. 2018, arXiv:1710.06963, for clipping layer by layer.
    """
    if clipping != "per-layer":
        return ()
    paths = list(layers_of(model))
    if weights and len(weights) != len(paths):
        raise ConfigError(
            f"privacy.layer_weights has {len(weights)} numbers for a model of {len(paths)} layers",
            f"allowed: none, or one for each of {', '.join(paths)}",
        )
    each = weights or (1.0,) * len(paths)
    whole = math.hypot(*each)
    return tuple(weight / whole for weight in each)


def refuse_mixing_modules(model: nn.Module) -> None:
    """Raise ConfigError when modules are known to let records see each other, and say what to put in their place."""
    found, places = [], []
    for path, module in model.named_modules():
        keeps_statistics = isinstance(module, _InstanceNorm) and module.track_running_stats
        if isinstance(module, _BatchNorm) or keeps_statistics:
            channels = module.num_features
            groups = math.gcd(channels, 8) if channels else 8
            found.append(f"{path or 'the model'} ({type(module).__name__})")
            places.append(f"{path or 'the model'} with torch.nn.GroupNorm({groups}, {channels or 'channels'})")
    if found:
        mixes = "mixes" if len(found) == 1 else "mix"
        raise ConfigError(
            f"model.factory: {', '.join(found)} {mixes} the records of a batch, "
            "so no record's influence can be bounded",
            f"replace {', '.join(places)}",
        )


def _choose(
    model: nn.Module, probes: Tensor, answers: Tensor, losses: Losses, shares: tuple[float, ...]
) -> tuple[type[ClippedSum], int]:
    with ready_for_check(model, probes):
        _refuse_mixing(model, probes)
        expected = OneByOne(model, 1e-3, losses, shares).of(probes, answers)
        per_record = _bytes_for_backward(model, probes, answers, losses) // len(answers)
        for way in (BookKeeping, Vectorised):
            if _agrees(partial(way, model, 1e-3, losses, shares), probes, answers, expected):
                held = expected.nbytes if way is Vectorised else 0
                return way, max(1, _AT_ONCE_BYTES.get(probes.device.type, 1 << 26) // (per_record + held + 1))
    return OneByOne, 1 << 30


def _agrees(make: Callable[[], ClippedSum], probes: Tensor, answers: Tensor, expected: Tensor) -> bool:
    """Whether this way runs and gives the expected sum. The bound is so small that it clips every record."""
    try:
        with make() as clipped_sum:
            return close(clipped_sum.of(probes, answers), expected)
    except Exception:  # whatever a foreign module raises here, another way may take it
        return False


@contextmanager
def ready_for_check(model: nn.Module, probes: Tensor) -> Iterator[None]:
    """Weights moved a little, as zeros would hide mistakes, and no dropout, as masks differ; all undone afterwards."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before, was_training = [p.detach().clone() for p in parameters], model.training
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        try:
            with torch.no_grad():
                for parameter in parameters:
                    parameter += 0.02 * torch.randn(parameter.shape).to(parameter)
                if not torch.equal(model(probes), model(probes)):
                    model.eval()
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            model.train(was_training)


def _refuse_mixing(model: nn.Module, probes: Tensor) -> None:
    """Raise ConfigError when a record's output depends on the records beside it, naming where it begins."""
    together = _outputs(model, probes)
    alone = [_outputs(model, probe) for probe in probes.split(1)]
    if close(together[""], torch.cat([outputs[""] for outputs in alone])):
        return
    for path, output in together.items():
        each = [outputs.get(path) for outputs in alone]
        if any(t is None or len(t) != 1 for t in each) or not close(output, torch.cat(each)):
            raise ConfigError(
                f"model.factory: {path or 'the model'} mixes the records of a batch, so no record's influence can "
                "be bounded",
                "use modules that treat each record alone, such as torch.nn.GroupNorm",
            )


def _outputs(model: nn.Module, probes: Tensor) -> dict[str, Tensor]:
    """What each module gives, by path, in the order in which they finish; the model itself is ''."""
    outputs: dict[str, Tensor] = {}

    def keeper(path: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim():
                outputs[path] = output.detach().clone()

        return keep

    hooks = [module.register_forward_hook(keeper(path)) for path, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(probes)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _bytes_for_backward(model: nn.Module, probes: Tensor, answers: Tensor, losses: Losses) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses(model(probes), answers)
    return sum(kept.values())


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding. Written so that NaN is not."""
    if found.shape != expected.shape:
        return False
    tolerance = 1e-8 if expected.dtype == torch.float64 else 1e-3
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-12))
