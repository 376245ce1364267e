"""The model between rounds: every site applies the same mean update and holds bit-identical numbers.

Arithmetic is float64 on the CPU, then rounded to float32, so that two machines cannot drift apart in the
last bits; the hash of the rounded model is what messages refer to.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from common.errors import InvalidUpdate, TrustError
from common.federation import TrainingSettings
from common.updates import Vector

_NOTHING = np.zeros(0, np.float32)
_STORED = ("counters", "hash", "model", "velocity", "second_moment", "average")
_DAMAGED = "the stored model state is damaged"


@dataclass(frozen=True)
class ModelVersion:
    """Which model it is: what messages refer to, without its numbers. size: how many parameters it has."""

    round_number: int
    model_hash: bytes
    size: int

    @classmethod
    def read(cls, path: Path) -> "ModelVersion":
        """Of a file that holds `ModelState.to_bytes`, at the same price whatever the size of the model."""
        try:
            with safe_open(path, "np") as stored:
                counters, named = stored.get_tensor("counters"), stored.get_tensor("hash")
                shape = stored.get_slice("model").get_shape()
        except (SafetensorError, ValueError):
            raise TrustError(_DAMAGED) from None
        if counters.dtype != np.int64 or counters.shape != (2,) or counters.min() < 0 or len(shape) != 1:
            raise TrustError(_DAMAGED)
        return cls(int(counters[0]), named.tobytes(), shape[0])


@dataclass(frozen=True)
class ModelState:
    """After `round_number` closed rounds. All vectors: (num_parameters,) float32.

    velocity: server momentum, or Adam's first moment; second_moment: Adam's. average: of `averaged` models so far, the
    one to release. All three are empty, and take no room on disk, while they would be zero or nobody asks for them.
    """

    round_number: int
    model: NDArray[np.float32]
    velocity: NDArray[np.float32]
    second_moment: NDArray[np.float32]
    average: NDArray[np.float32]
    averaged: int = 0

    @classmethod
    def initial(cls, model: Vector) -> "ModelState":
        return cls(0, model.astype(np.float32), _NOTHING, _NOTHING, _NOTHING)

    @cached_property
    def model_hash(self) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(self.model, "<f4").data).digest()

    @property
    def released(self) -> NDArray[np.float32]:
        """The model to publish: the average when there is one, else the current model."""
        return self.average if self.averaged else self.model

    def to_bytes(self) -> bytes:
        counters = np.array([self.round_number, self.averaged], np.int64)
        named = np.frombuffer(self.model_hash, np.uint8)
        vectors = (counters, named, self.model, self.velocity, self.second_moment, self.average)
        return save(dict(zip(_STORED, vectors, strict=True)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ModelState":
        """Inverse of `to_bytes`. Raises TrustError for a damaged file."""
        try:
            arrays = load(data)
            counters, named, model, velocity, second_moment, average = (arrays[name] for name in _STORED)
        except (SafetensorError, ValueError, KeyError):
            raise TrustError(_DAMAGED) from None
        grown = [vector for vector in (velocity, second_moment, average) if vector.size]
        shapes = {(vector.dtype.str, vector.shape) for vector in (model, *grown)}
        well_formed = (counters.dtype.str, counters.shape) == ("<i8", (2,)) and shapes == {("<f4", (model.size,))}
        well_formed = well_formed and bool(average.size) == bool(counters[1])
        if not well_formed or counters.min() < 0:
            raise TrustError(_DAMAGED)
        state = cls(int(counters[0]), model, velocity, second_moment, average, int(counters[1]))
        if state.model_hash != named.tobytes():
            raise TrustError(_DAMAGED)
        return state


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
    velocity, second_moment = _grown(state.velocity, mean_update), state.second_moment
    if training.server_optimizer == "adam":
        second_decay = training.server_second_momentum
        velocity = decay * velocity + (1 - decay) * mean_update
        squares = second_decay * _grown(second_moment, mean_update) + (1 - second_decay) * mean_update**2
        roots = np.sqrt(squares / (1 - _power(second_decay, number))) + training.server_adaptivity
        move, second_moment = velocity / (1 - _power(decay, number)) / roots, squares.astype(np.float32)
    else:
        move = velocity = decay * velocity + mean_update if decay else mean_update
    model = (state.model + training.server_learning_rate * move).astype(np.float32)
    if not np.isfinite(model).all():
        raise InvalidUpdate("the updated model holds NaN or infinite values")
    averaged, average = state.averaged, state.average
    if training.ema_decay or number > rounds - int(training.tail_average * rounds):
        averaged += 1
        share = _newest_share(averaged, training.ema_decay)
        before = _grown(average, mean_update)
        average = (before + share * (model - before)).astype(np.float32)
    kept = velocity.astype(np.float32) if decay or training.server_optimizer == "adam" else _NOTHING
    return ModelState(number, model, kept, second_moment, average, averaged)


def _grown(vector: NDArray[np.float32], like: Vector) -> Vector:
    """In double precision, and zeros where there is nothing yet."""
    return vector.astype(np.float64) if vector.size else np.zeros_like(like)


def _newest_share(averaged: int, ema_decay: float) -> float:
    """What the newest of so many models weighs in their average: as each of them, or more by the others' decay."""
    return (1 - ema_decay) / (1 - _power(ema_decay, averaged)) if ema_decay else 1 / averaged


def _power(base: float, times: int) -> float:
    """By multiplication, which every machine rounds alike; the last bits of `**` are the machine's own."""
    return math.prod(repeat(base, times))
