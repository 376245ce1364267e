"""The model between rounds: every site applies the same mean update and holds bit-identical numbers.

Arithmetic is float64 on the CPU, then rounded to float32, so that two machines cannot drift apart in the
last bits; the hash of the rounded model is what messages refer to.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from common.errors import InvalidUpdate, TrustError
from common.federation import TrainingSettings
from common.updates import Vector

_NOTHING = np.zeros(0, np.float32)
_STORED = ("counters", "hash", "model", "velocity", "tail_sum")
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

    velocity: server momentum. tail_sum: sum of the models of the last `tail_count` rounds. Both are empty, and take no
    room on disk, where they would be zero or nobody will ask for them.
    """

    round_number: int
    model: NDArray[np.float32]
    velocity: NDArray[np.float32]
    tail_sum: NDArray[np.float32]
    tail_count: int = 0

    @classmethod
    def initial(cls, model: Vector) -> "ModelState":
        return cls(0, model.astype(np.float32), _NOTHING, _NOTHING)

    @cached_property
    def model_hash(self) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(self.model, "<f4").data).digest()

    @property
    def released(self) -> NDArray[np.float32]:
        """The model to publish: the tail average when there is one, else the current model."""
        return self.tail_sum / np.float32(self.tail_count) if self.tail_count else self.model

    def to_bytes(self) -> bytes:
        counters = np.array([self.round_number, self.tail_count], np.int64)
        named = np.frombuffer(self.model_hash, np.uint8)
        return save(dict(zip(_STORED, (counters, named, self.model, self.velocity, self.tail_sum), strict=True)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ModelState":
        """Inverse of `to_bytes`. Raises TrustError for a damaged file."""
        try:
            arrays = load(data)
            counters, named, model, velocity, tail_sum = (arrays[name] for name in _STORED)
        except (SafetensorError, ValueError, KeyError):
            raise TrustError(_DAMAGED) from None
        shapes = {(vector.dtype.str, vector.shape) for vector in (model, velocity, tail_sum) if vector.size}
        well_formed = (counters.dtype.str, counters.shape) == ("<i8", (2,)) and shapes == {("<f4", (model.size,))}
        well_formed = well_formed and bool(tail_sum.size) == bool(counters[1])
        if not well_formed or counters.min() < 0:
            raise TrustError(_DAMAGED)
        state = cls(int(counters[0]), model, velocity, tail_sum, int(counters[1]))
        if state.model_hash != named.tobytes():
            raise TrustError(_DAMAGED)
        return state


def advance(state: ModelState, mean_update: Vector, training: TrainingSettings, rounds: int) -> ModelState:
    """The state after one more round.

    mean_update: (num_parameters,) float64, the mean over the sites that were summed. With momentum m and
    learning rate r: velocity = m * velocity + mean, model += r * velocity (Reddi et al. 2021, FedAvgM).
    Raises InvalidUpdate on a wrong length or values that are not finite.
    """
    if mean_update.shape != state.model.shape:
        raise InvalidUpdate(f"an update of {mean_update.size} values for a model of {state.model.size}")
    velocity = mean_update
    if state.velocity.size:
        velocity = training.server_momentum * state.velocity.astype(np.float64) + mean_update
    model = (state.model + training.server_learning_rate * velocity).astype(np.float32)
    if not np.isfinite(model).all():
        raise InvalidUpdate("the updated model holds NaN or infinite values")
    number = state.round_number + 1
    in_tail = number > rounds - int(training.tail_average * rounds)
    tail_sum = state.tail_sum
    if in_tail:
        tail_sum = (tail_sum.astype(np.float64) + model).astype(np.float32) if tail_sum.size else model
    kept = velocity.astype(np.float32) if training.server_momentum else _NOTHING
    return ModelState(number, model, kept, tail_sum, state.tail_count + in_tail)
