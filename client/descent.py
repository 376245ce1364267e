"""How a model's weights move once a step's gradients are released: descent, rates, and the pull to where they began.

All of it is computed from released sums and public numbers. Moments begin at zero in every round: a site keeps nothing
between rounds but the model.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from client.releases import Released
from common.federation import TrainingSettings
from common.updates import Vector


class Descent:
    """Gradient descent on a model's weights, which are kept in float64 beside the model.

    Small steps on large float32 weights would be rounded away, and the noise with them.
    """

    def __init__(self, model: nn.Module, training: TrainingSettings, round_number: int = 1, rounds: int = 1) -> None:
        """round_number, of rounds: where in the learning rate's schedule this round begins."""
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._weights = torch.cat([p.detach().reshape(-1) for p in self._parameters]).double()
        pieces = self._weights.split([p.numel() for p in self._parameters])
        self._pieces = [piece.view(p.shape) for p, piece in zip(self._parameters, pieces, strict=True)]
        self._spare = torch.empty_like(self._weights)
        self._start = self._weights.clone() if training.proximal_mu else None
        self._training, self._rule = training, _RULES[training.optimizer](self._weights, training)
        self._step, self._steps = (round_number - 1) * training.local_steps, rounds * training.local_steps

    @property
    def weights(self) -> Vector:
        """(d,): the weights the model now holds, before their rounding to its own type."""
        return self._weights.cpu().numpy()

    def step(self, released: Released) -> None:
        """Move against what was released, divided by the public lot size.

        `proximal_mu` pulls back to the weights of the round's beginning, by the gradient of mu/2 |w - start|^2, which
        no record has a part in. Reference: Li et al. 2020, FedProx, arXiv:1812.06127.
        """
        sums = self._spare.copy_(released.gradient_sum)  # into memory that is there: float32 to float64 would allocate
        if self._start is not None:
            pull = self._training.proximal_mu * self._training.lot_size
            sums.add_(self._weights, alpha=pull).sub_(self._start, alpha=pull)
        rate = self._training.learning_rate * rate_at(self._step, self._steps, self._training)
        self._weights.add_(self._rule.direction(sums, released.noise_std), alpha=-rate * self._rule.scale)
        self._step += 1
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, self._pieces, strict=True):
                parameter.copy_(piece)


def rate_at(step: int, steps: int, training: TrainingSettings) -> float:
    """What the learning rate is multiplied by at `step`, counted from 0, of `steps` over all rounds.

    It rises in even parts over `warmup_steps`, then stays, falls to 0 in even parts, or as half a cosine.
    """
    warmup = training.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match training.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2


class _Rule(Protocol):
    scale: float  # of the directions: what makes them steps of size 1 per unit of learning rate

    def __init__(self, weights: Tensor, training: TrainingSettings) -> None: ...

    def direction(self, sums: Tensor, noise_std: float) -> Tensor:
        """(d,): where to move against, from the sums (d,) over one lot."""
        ...


class _Momentum:
    """SGD as torch.optim has it, heavy ball."""

    def __init__(self, weights: Tensor, training: TrainingSettings) -> None:
        self.scale, self._momentum = 1 / training.lot_size, training.momentum
        self._velocity = torch.zeros_like(weights) if training.momentum else None

    def direction(self, sums: Tensor, noise_std: float) -> Tensor:
        return sums if self._velocity is None else self._velocity.mul_(self._momentum).add_(sums)


class _Adam:
    """Adam whose second moment is rid of what the noise, whose variance is known, has added to it.

    Without noise it is Adam. What is left of the second moment is kept above `adam_floor`, in units of gradients
    squared. Momentum is its first decay, second_momentum its second.
    References: Kingma and Ba 2015, arXiv:1412.6980; Tang et al. 2023, DP-AdamBC, arXiv:2312.14334.
    """

    scale = 1.0  # the lot size cancels

    def __init__(self, weights: Tensor, training: TrainingSettings) -> None:
        self._decays = training.momentum, training.second_momentum
        self._floor = training.adam_floor * training.lot_size**2
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._noise, self._weights_left = 0.0, [1.0, 1.0]  # of the zeros that both moments began with

    def direction(self, sums: Tensor, noise_std: float) -> Tensor:
        first, second = self._decays
        self._first.mul_(first).add_(sums, alpha=1 - first)
        self._second.mul_(second).addcmul_(sums, sums, value=1 - second)
        self._noise = second * self._noise + (1 - second) * noise_std**2
        self._weights_left = [left * decay for left, decay in zip(self._weights_left, self._decays, strict=True)]
        grown_first, grown_second = (1 - left for left in self._weights_left)
        scales = (self._second - self._noise).div_(grown_second).clamp_(min=self._floor).sqrt_()
        return (self._first / grown_first).div_(scales)


_RULES: dict[str, type[_Rule]] = {"sgd": _Momentum, "adam": _Adam}
