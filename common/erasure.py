"""Sharded training that can forget exactly: an erasure trains again only the models that saw what is erased. Pure.

Records lie in disjoint shards, each has a model of its own, and their mean answers. To erase records is to fit the
models of their shards anew, without them: the result is what training without them would have given, for a share of the
work. It takes no release back: whoever saw the old answers did, and what a ledger was charged stays spent.

Reference: Bourtoule et al. 2021, Machine Unlearning (SISA), arXiv:1912.03817, section IV, without slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError

Places: TypeAlias = NDArray[np.int64]
Model: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float64]]
Fit: TypeAlias = Callable[[Places, int], Model]


@dataclass(frozen=True, eq=False)
class Constituents:
    """shards: each the places of its records in the data set, no place twice. models: one each; an empty one has none.

    trained: how many records were trained on to make these models of those that were there before.
    """

    shards: tuple[Places, ...]
    models: tuple[Model | None, ...]
    trained: int

    def __post_init__(self) -> None:
        places = np.concatenate([*self.shards, np.zeros(0, np.int64)])
        if not len(places) or len(np.unique(places)) != len(places):
            raise ConfigError("shards need records, and each record has one shard", "erase fewer, or deal them anew")
        if [model is None for model in self.models] != [not len(shard) for shard in self.shards]:
            raise ConfigError("every shard that holds records needs a model")

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, classes) for features (n, ...): the mean of what the models say, the paper's vector aggregation."""
        return np.asarray(np.mean([model(features) for model in self.models if model is not None], axis=0))

    def touched(self, erased: ArrayLike) -> tuple[int, ...]:
        """The shards that hold any of these places: their models have seen them, and no others have."""
        return tuple(number for number, shard in enumerate(self.shards) if np.isin(shard, erased).any())

    def without(self, erased: ArrayLike, fit: Fit) -> "Constituents":
        """What `train_shards` gives for the same shards without these records. Raises ConfigError when none is left."""
        shards = tuple(shard[~np.isin(shard, erased)] for shard in self.shards)
        touched = self.touched(erased)
        models = tuple(_fitted(fit, shards[k], k) if k in touched else model for k, model in enumerate(self.models))
        return Constituents(shards, models, sum(len(shards[k]) for k in touched))


def train_shards(shards: Sequence[Places], fit: Fit) -> Constituents:
    """A model for each shard. fit: called with a shard's places and its number, gives a model that maps features
    (n, ...) to probabilities (n, classes); the same for the same call, or nothing proves that an erasure was exact.

    Which shard a record is in may depend on who has it, never on which other records there are.
    Raises ConfigError when a place is in two shards, or there is none at all.
    """
    models = tuple(_fitted(fit, shard, number) for number, shard in enumerate(shards))
    return Constituents(tuple(shards), models, sum(map(len, shards)))


def _fitted(fit: Fit, shard: Places, number: int) -> Model | None:
    return fit(shard, number) if len(shard) else None
