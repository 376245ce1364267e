"""What every evaluator takes and gives. Pure.

An evaluator is a name, the parts of the `Material` that it needs, and one function from them to `Findings`. The same
material and seed give the same findings, on any machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.evaluators.utility import Estimate, Floats, Predict

if TYPE_CHECKING:  # what evaluators give to one another, without importing them all
    from common.evaluators.contribution import Game
    from common.evaluators.exposure import Secrets
    from common.evaluators.groups import GroupCounts
    from common.evaluators.inversion import Rebuilt
    from common.evaluators.membership import Attacked
    from common.evaluators.privacy_audit import Canaries

Part = TypeVar("Part")
InputGradients = Callable[[NDArray[np.float32], NDArray[np.int64]], Floats]


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to evaluate; an evaluator says which parts it needs. No part is shown by `repr`.

    features: (n, *inputs) and labels (n,) of records that the model was not trained on, with the probabilities
    (n, classes) that it gives them. reference: (m, *inputs), records like those it was trained on.
    strange: (k, *inputs), records from elsewhere. predict: the model; logits: the same before softmax.
    input_gradients: from features (n, *inputs) and labels (n,) to each record's gradient of its loss by its features.
    groups: summed counts by protected group, noise included. canaries, attacked, rebuilt: what an audit, a membership
    attack and an inversion found. game: what coalitions of sites reach. secrets: what a model of text says of
    some. guessed: scores of updates, and whether a property held (`members`). seed: of all that an evaluator draws;
    nothing here is secret.
    """

    probabilities: Floats | None = field(default=None, repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    features: NDArray[np.float32] | None = field(default=None, repr=False)
    reference: NDArray[np.float32] | None = field(default=None, repr=False)
    strange: NDArray[np.float32] | None = field(default=None, repr=False)
    predict: Predict | None = field(default=None, repr=False)
    logits: Predict | None = field(default=None, repr=False)
    input_gradients: InputGradients | None = field(default=None, repr=False)
    groups: "GroupCounts | None" = field(default=None, repr=False)
    canaries: "Canaries | None" = field(default=None, repr=False)
    attacked: "Attacked | None" = field(default=None, repr=False)
    rebuilt: "Rebuilt | None" = field(default=None, repr=False)
    game: "Game | None" = field(default=None, repr=False)
    secrets: "Secrets | None" = field(default=None, repr=False)
    guessed: "Attacked | None" = field(default=None, repr=False)
    seed: int = 0

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator from the seed, so that no evaluator depends on which ran before it."""
        return np.random.default_rng(self.seed)

    @property
    def parts(self) -> frozenset[str]:
        """The names of what is there."""
        return frozenset(each.name for each in fields(self) if getattr(self, each.name) is not None)


@dataclass(frozen=True)
class Findings:
    """figures: by name, each with its interval. remarks: what a reader must know with them, in plain sentences."""

    evaluator: str
    figures: Mapping[str, Estimate]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", MappingProxyType(dict(self.figures)))

    @property
    def rows(self) -> list[dict[str, object]]:
        """{evaluator, figure, value, low, high}, one of each figure."""
        return [{"evaluator": self.evaluator, "figure": name, **asdict(told)} for name, told in self.figures.items()]


class Evaluator(Protocol):
    """One class and one line in `catalogue.py`; the contract test runs over all of them."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of parts of `Material`."""
        ...

    def evaluate(self, material: Material) -> Findings:
        """Raises ConfigError where a part that it needs is missing or makes no sense."""
        ...


def needed(part: Part | None, name: str, evaluator: str) -> Part:
    """The part of that name. Raises ConfigError naming both where it is missing."""
    if part is None:
        raise ConfigError(f"evaluator {evaluator!r} has no {name}", "give it, or leave the evaluator out")
    return part
