"""What a mechanism did to a data set, told so that any accountant, now or later, can say what it cost.

An event names a mechanism and its public numbers, never an epsilon: a better accountant can re-read old
events. The unit is one record, added or removed. Noise multipliers are noise standard deviation over the
L2 norm that one record can move the released vector by.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from common.errors import UnknownEvent
from common.federation import require


@dataclass(frozen=True)
class PoissonGaussian:
    """`steps` times: draw each record with chance `sample_rate`, release the sum of the drawn plus Gaussian noise.

    This is DP-SGD. An empty draw is released with its noise like any other, or this event does not describe it.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        require(0 < self.sample_rate <= 1, "sample_rate", self.sample_rate, "above 0, at most 1")
        _check_times("steps", self.steps)


@dataclass(frozen=True)
class Gaussian:
    """`count` times: a number or vector of all records, released with Gaussian noise (statistics, metrics)."""

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_times("count", self.count)


@dataclass(frozen=True)
class DiscreteLaplace:
    """`count` times: a whole number that one record moves by at most 1, released with discrete Laplace noise.

    The noise is k with chance proportional to exp(-parameter |k|); each release alone is parameter-DP.
    """

    parameter: float
    count: int = 1

    def __post_init__(self) -> None:
        require(1e-6 <= self.parameter <= 1e3, "parameter", self.parameter, "0.000001 to 1,000")
        _check_times("count", self.count)


DpEvent = PoissonGaussian | Gaussian | DiscreteLaplace

_KINDS: Mapping[str, type[DpEvent]] = {
    "poisson-gaussian": PoissonGaussian,
    "gaussian": Gaussian,
    "discrete-laplace": DiscreteLaplace,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_dict(event: DpEvent) -> dict[str, object]:
    """JSON for a ledger; `event_from_dict` is its inverse."""
    if type(event) not in _NAMES:
        raise UnknownEvent(f"nobody can say what {event!r} costs")
    return {"kind": _NAMES[type(event)], **asdict(event)}


def event_from_dict(data: Mapping[str, object]) -> DpEvent:
    """The event that `data` tells of.

    Raises UnknownEvent for a kind or a field this build does not know (an event of a later version costs
    infinity here), ConfigError for a value that no mechanism can have.
    """
    kind = _KINDS.get(str(data.get("kind")))
    numbers = {name: value for name, value in data.items() if name != "kind"}
    if kind is None or set(numbers) != {field.name for field in fields(kind)}:
        raise UnknownEvent(f"nobody can say what {dict(data)!r} costs")
    for name, value in numbers.items():
        require(isinstance(value, int | float) and not isinstance(value, bool), name, value, "a number")
    return kind(**numbers)  # type: ignore[arg-type]  # checked above and by the event itself


def _check_noise(noise_multiplier: float) -> None:
    require(1e-3 <= noise_multiplier <= 1e6, "noise_multiplier", noise_multiplier, "0.001 to 1,000,000")


def _check_times(name: str, times: int) -> None:
    require(type(times) is int and 1 <= times < 2**53, name, times, "a whole number, 1 or more")
