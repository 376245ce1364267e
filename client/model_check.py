"""Before any training: whether and how each module's per-record gradients can be clipped, and what to change."""

from dataclasses import dataclass

import torch
from torch import nn

from client.clipped_sum import owners
from client.clipping import PROBES, clipped_sum_for
from client.clipping_modes import BookKeeping, NotThisWay, OneByOne


@dataclass(frozen=True)
class CheckedModule:
    """path: as in `named_modules`. clipped: how the norm of a record's gradient is found, or "frozen"."""

    path: str
    kind: str
    trainable: int
    frozen: int
    clipped: str


@dataclass(frozen=True)
class CheckedModel:
    """mode: the way that training will take. why, fix: in words, where it is not the fastest one."""

    mode: str
    records_at_once: int
    modules: tuple[CheckedModule, ...]
    why: str = ""
    fix: str = ""


def check_model(
    model: nn.Module, inputs: tuple[int, ...], lot_size: float, shares: tuple[float, ...] = ()
) -> CheckedModel:
    """What `train` will do with this model on records of this shape, in lots of about this size; random ones stand in.

    shares: of the bound, as `shares_of` gives them. Raises ConfigError naming every module that mixes records, with
    its replacement.
    """
    generator = torch.Generator().manual_seed(0)
    probes, answers = torch.randn(PROBES, *inputs, generator=generator), torch.zeros(PROBES, dtype=torch.int64)
    clipped_sum = clipped_sum_for(model, 1.0, probes, answers, shares=shares)
    norms, why, fix = {}, "", ""
    if isinstance(clipped_sum, BookKeeping):
        records = max(1, min(round(lot_size), clipped_sum.records_at_once))
        lot = torch.randn(records, *inputs, generator=generator), torch.zeros(records, dtype=torch.int64)
        with clipped_sum:
            clipped_sum.of(*lot)
        norms = clipped_sum.norms
    else:
        why, fix = _why_not_by_books(model, probes, answers)
    at_once = 1 if isinstance(clipped_sum, OneByOne) else clipped_sum.records_at_once
    return CheckedModel(clipped_sum.mode, at_once, _modules(model, norms, clipped_sum.mode), why, fix)


def _modules(model: nn.Module, norms: dict[str, str], mode: str) -> tuple[CheckedModule, ...]:
    found = []
    trained = {path for path, _, _ in owners(model)}
    told: set[nn.Module] = set()  # parts of an attention, with it
    for path, module in model.named_modules():
        whole = path in trained and type(module) is nn.MultiheadAttention
        own = list(module.parameters(recurse=whole))
        if own and module not in told:
            told.update(module.modules() if whole else ())
            sizes = [sum(p.numel() for p in own if p.requires_grad is asked) for asked in (True, False)]
            clipped = norms.get(path, mode) if path in trained else "frozen"
            found.append(CheckedModule(path or "the model", type(module).__name__, *sizes, clipped))
    return tuple(found)


def _why_not_by_books(model: nn.Module, probes: torch.Tensor, answers: torch.Tensor) -> tuple[str, str]:
    try:
        with BookKeeping(model, 1.0) as clipped_sum:
            clipped_sum.of(probes, answers)
    except NotThisWay as reason:
        return reason.message, reason.hint
    except Exception as error:  # whatever a foreign module raises here, it is the reason
        return f"{type(error).__name__}: {error}", "make every module map one tensor to one, records first"
    return (
        "its gradients by layer are not those of the records",
        "make every module map one tensor to one, records first",
    )
