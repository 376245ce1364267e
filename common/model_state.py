"""The model between rounds: every site applies the same mean update and holds bit-identical numbers.

Arithmetic is float64 on the CPU, then rounded to float32, so that two machines cannot drift apart in the
last bits; the hash of the rounded model is what messages refer to.
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import InvalidUpdate, TrustError
from common.federation import TrainingSettings
from common.updates import Vector

_STORED = ("counters", "model", "velocity", "second_moment", "average")


@dataclass(frozen=True)
class ModelState:
    """After `round_number` closed rounds. All vectors: (num_parameters,) float32.

    velocity: server momentum, or Adam's first moment; second_moment: Adam's, (0,) until there is one. average: of
    `averaged` models so far, the one to release.
    """

    round_number: int
    model: NDArray[np.float32]
    velocity: NDArray[np.float32]
    second_moment: NDArray[np.float32]
    average: NDArray[np.float32]
    averaged: int = 0

    @classmethod
    def initial(cls, model: Vector) -> "ModelState":
        zeros = np.zeros(model.size, np.float32)
        return cls(0, model.astype(np.float32), zeros, zeros[:0], zeros)

    @property
    def model_hash(self) -> bytes:
        return hashlib.sha256(self.model.tobytes()).digest()

    @property
    def released(self) -> NDArray[np.float32]:
        """The model to publish: the average when there is one, else the current model."""
        return self.average if self.averaged else self.model

    def to_bytes(self) -> bytes:
        counters = np.array([self.round_number, self.averaged], np.int64)
        vectors = (counters, self.model, self.velocity, self.second_moment, self.average)
        return save(dict(zip(_STORED, vectors, strict=True)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ModelState":
        """Inverse of `to_bytes`. Raises TrustError for a damaged file."""
        try:
            arrays = load(data)
            counters, model, velocity, second_moment, average = (arrays[name] for name in _STORED)
        except (SafetensorError, ValueError, KeyError):
            raise TrustError("the stored model state is damaged") from None
        grown = (second_moment,) if second_moment.size else ()
        shapes = {(vector.dtype.str, vector.shape) for vector in (model, velocity, average, *grown)}
        well_formed = (counters.dtype.str, counters.shape) == ("<i8", (2,)) and shapes == {("<f4", (model.size,))}
        if not well_formed or counters.min() < 0:
            raise TrustError("the stored model state is damaged")
        return cls(int(counters[0]), model, velocity, second_moment, average, int(counters[1]))


def advance(state: ModelState, mean_update: Vector, training: TrainingSettings, rounds: int) -> ModelState:
    """The state after one more round.

    mean_update: (num_parameters,) float64, the mean over the sites that were summed. With `momentum` m and learning
    rate r: velocity = m * velocity + mean, model += r * velocity (FedAvgM); with `adam` the mean goes the way of a
    gradient in Adam, with its correction of the moments' first zeros (FedAdam). Reddi et al. 2021, arXiv:2003.00295.
    Raises InvalidUpdate on a wrong length or values that are not finite.
    """
    if mean_update.shape != state.model.shape:
        raise InvalidUpdate(f"an update of {mean_update.size} values for a model of {state.model.size}")
    number, decay = state.round_number + 1, training.server_momentum
    velocity, second_moment = state.velocity.astype(np.float64), state.second_moment
    if training.server_optimizer == "adam":
        second_decay = training.server_second_momentum
        before = second_moment.astype(np.float64) if second_moment.size else np.zeros(mean_update.size)
        velocity = decay * velocity + (1 - decay) * mean_update
        squares = second_decay * before + (1 - second_decay) * mean_update**2
        roots = np.sqrt(squares / (1 - _power(second_decay, number))) + training.server_adaptivity
        move, second_moment = velocity / (1 - _power(decay, number)) / roots, squares.astype(np.float32)
    else:
        move = velocity = decay * velocity + mean_update
    model = (state.model + training.server_learning_rate * move).astype(np.float32)
    if not np.isfinite(model).all():
        raise InvalidUpdate("the updated model holds NaN or infinite values")
    averaged, average = state.averaged, state.average
    if training.ema_decay or number > rounds - int(training.tail_average * rounds):
        averaged += 1
        share = _newest_share(averaged, training.ema_decay)
        average = (average + share * (model.astype(np.float64) - average)).astype(np.float32)
    return ModelState(number, model, velocity.astype(np.float32), second_moment, average, averaged)


def _newest_share(averaged: int, ema_decay: float) -> float:
    """What the newest of so many models weighs in their average: as each of them, or more by the others' decay."""
    return (1 - ema_decay) / (1 - _power(ema_decay, averaged)) if ema_decay else 1 / averaged


def _power(base: float, times: int) -> float:
    """By multiplication, which every machine rounds alike; the last bits of `**` are the machine's own."""
    return math.prod(repeat(base, times))
