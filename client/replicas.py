"""One model on several devices: each sums the gradients of its part of a lot, and the sums meet on the first.

A sum of clipped gradients is linear over the records, so it matters to nobody but the clock which device clipped which
record. What is done with the sum, its noise above all, is done once, where the sums have met.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from client.clipped_sum import ClippedSum, GradientSum, all_digits
from client.clipping import close, ready_for_check
from common.errors import ConfigError

_Sum = TypeVar("_Sum", bound=GradientSum)


class Spread(Generic[_Sum]):
    """The sum of a lot's gradients, taken on several devices at once: up to rounding what the model's own would give.

    Whether it is, is looked at on some records whenever it is opened, since GPUs that copy to each other wrongly do so
    without a word (pytorch/pytorch#84803). Each further device has a replica, which gets the model's trainable
    parameters and buffers before every sum; what a forward pass leaves in a replica's buffers is lost.
    A thread serves each device: it queues no more than some thousand kernels, and models may wait for what they
    computed, so that a single thread would let the devices work one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        also_on: Sequence[torch.device],
        sum_for: Callable[[nn.Module], _Sum],
        features: Tensor,
        labels: Tensor,
    ) -> None:
        """also_on: at least one device beside the model's own. sum_for: what sums on one device, for the model there.

        features, labels: the records (n, ...) that the devices are compared on. Raises ConfigError when the model
        cannot be copied.
        """
        self._model, self._first = model, next(model.parameters()).device
        self._replicas = [_replica(model, device, self._first) for device in also_on]
        self._sums = [sum_for(each) for each in (model, *self._replicas)]
        self._devices, self._probes = (self._first, *also_on), (features, labels)

    @property
    def bfloat16(self) -> bool:
        return self._sums[0].bfloat16

    @bfloat16.setter
    def bfloat16(self, chosen: bool) -> None:
        for each in self._sums:
            each.bfloat16 = chosen

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """(d,): the parts of the lot, as even as can be and in their order, summed where they belong and then added.

        Records should come from the host: a copy from the first device waits for what that has to do. TF32 is off,
        whatever is summed: it is set for all threads at once. The vector is overwritten by the next call.
        """
        self._follow()
        count = len(self._sums)
        parts = zip(features.tensor_split(count), labels.tensor_split(count), strict=True)
        with all_digits():
            works = zip(self._threads, self._sums, parts, strict=True)
            working = [thread.submit(each.of, *part) for thread, each, part in works]
            wait(working)
        total, *others = (work.result() for work in working)
        for other in others:
            total.add_(other.to(self._first))
        return total

    @torch.no_grad()
    def _follow(self) -> None:
        for replica in self._replicas:
            for theirs, ours in zip(_changing(replica), _changing(self._model), strict=True):
                theirs.copy_(ours)
            if replica.training != self._model.training:
                replica.train(self._model.training)

    def __enter__(self) -> Self:
        """Raises ConfigError, naming the device, when the devices do not sum alike."""
        with ExitStack() as opened:
            for each in self._sums:
                opened.enter_context(each)
            self._threads = [opened.enter_context(_thread_for(device)) for device in self._devices]
            if len(self._probes[1]):
                self._require_same_sums(*(probes.to(self._first) for probes in self._probes))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def _require_same_sums(self, features: Tensor, labels: Tensor) -> None:
        """On as many copies of each record as there are devices: all have work, and no part is the lot over again."""
        lot = [records.repeat_interleave(len(self._devices), 0) for records in (features, labels)]
        with ready_for_check(self._model, features), all_digits():
            together = self.of(*lot).clone()
            alone = self._sums[0].of(*lot).clone()
            if close(together, alone):
                return
            wrong = [
                str(device)
                for device, each in zip(self._devices[1:], self._sums[1:], strict=True)
                if not close(each.of(*lot).to(self._first), alone)
            ]
        names = ", ".join(map(str, self._devices))
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)} does not give the sum of gradients that {self._first} gives",
                "name one device in site.toml; GPUs that copy to each other wrongly often need the IOMMU turned off",
            )
        raise ConfigError(
            f"{names} together do not give the sum of gradients that each of them gives alone",
            "name one device in site.toml, or replace modules that mix the records of a batch, as BatchNorm does",
        )


class SpreadClipped(Spread[ClippedSum]):
    """Clipped sums over several devices; one record moves them by `max_grad_norm` at most, as on one."""

    @property
    def max_grad_norm(self) -> float:
        return self._sums[0].max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, bound: float) -> None:
        for each in self._sums:
            each.max_grad_norm = bound

    @property
    def inside(self) -> int:
        """How many records of the last lot were within the bound, when there are no shares. Private: noise it."""
        return sum(each.inside for each in self._sums)


def _replica(model: nn.Module, device: torch.device, first: torch.device) -> nn.Module:
    try:
        replica = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ConfigError(f"this model cannot be copied: {error}", "name one device in site.toml") from error
    if device.type == "cuda":  # all GPUs start from one seed, and would drop the same units of the records they have
        seed = int(torch.randint(1 << 62, (), device=first))
        torch.cuda.default_generators[device.index].manual_seed(seed)
    return replica.to(device)


def _changing(model: nn.Module) -> list[Tensor]:
    return [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]


def _thread_for(device: torch.device) -> ThreadPoolExecutor:
    if device.type == "cuda":
        return ThreadPoolExecutor(1, str(device), torch.cuda.set_device, (device,))
    return ThreadPoolExecutor(1, str(device))
