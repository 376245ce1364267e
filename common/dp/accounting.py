"""From events to epsilon: privacy loss distributions (PLD) by Google's dp-accounting, rounded towards more loss.

dp-accounting builds and composes the distributions ("Connect the Dots": Doroshenko, Ghazi, Kamath, Kumar, Manurangsi
2022, arXiv:2207.04380). This room compacts the events first, composes equal ones in blocks, and remembers those, so
that a question after every round costs one composition more. Every epsilon is about `NEIGHBOURING`, `UNIT`, `SAMPLING`
and `ADVERSARY`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache, reduce
from typing import Any, Protocol, TypeAlias

from common.dp.events import DiscreteLaplace, DpEvent, Gaussian, PoissonGaussian
from common.errors import ConfigError, UnknownEvent
from common.federation import require

NEIGHBOURING = "add-or-remove-one"
UNIT = "record"
SAMPLING = "Poisson: each record enters each batch by its own secret coin, empty batches included"
ADVERSARY = "sees every release of the site, may choose each by those before, and knows all other records"
ACCOUNTANT = "privacy loss distributions, pessimistic, all events of the data set composed"

_INTERVAL = 1e-3  # nats of loss; pessimistic, and ten times faster than dp-accounting's default for 0.2 % of epsilon
_FINE_INTERVAL = 1e-4  # dp-accounting's default, for releases that lose less than _SPREAD each
_SPREAD = 1e-2  # a grid as coarse as the losses themselves would inflate them
_HOPELESS = 200.0  # nats that the releases lose on average: no budget bears it, and the grid would fill the memory
_LEAST_NOISE = 0.03  # likewise: a single drawn record could lose thousands of nats
_MISPLACED = 2.0**-51  # of the probability, by each composition's transform: twice the most that was ever measured
_ROUNDING = 1e-6  # more than cut tails change
_LARGEST_NOISE = 1e4
_BLOCK = 16  # releases: as many are composed at once, from the first one on; what is left over, in powers of two


def epsilon(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon for which all `events` together are (epsilon, delta)-DP.

    Guarantee: an upper bound, at most 0.02 above dp-accounting's default grid and never below it. Infinite where the
    releases may lose over 200 nats on average, and where `delta` is so small that floating point cannot tell. Releases
    may depend on one another's answers.
    """
    require(0 < delta < 0.1, "delta", delta, "above 0, below 0.1")
    parts = _compact(events)
    return _epsilon(parts, delta) if parts else 0.0


class Budget(Protocol):
    """Whatever carries an epsilon and a delta, such as PrivacyBudget or PrivacySettings."""

    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...


def calibrate_noise(budget: Budget, cost: Callable[[float], Iterable[DpEvent]]) -> float:
    """The smallest noise multiplier with which all that `cost` says is released at it fits the budget.

    cost: from a noise multiplier to events; more noise must never cost more.
    Guarantee: never over `budget` by this accountant, and at most 0.1 % larger than need be.
    Raises ConfigError when not even a multiplier of 10,000 fits.
    """

    def fits(noise_multiplier: float) -> bool:
        return epsilon(cost(noise_multiplier), budget.delta) <= budget.epsilon

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, high * 2
        if high > _LARGEST_NOISE:
            raise ConfigError(
                f"no noise makes this plan fit epsilon {budget.epsilon} at delta {budget.delta}",
                "allowed: fewer rounds, a lower sample rate, less of what has a noise of its own (metrics), or a "
                "budget that was not spent before",
            )
    while low == 0.0 or high > low * 1.001:
        middle = math.sqrt(low * high) if low else high / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


_Release: TypeAlias = PoissonGaussian | Gaussian | DiscreteLaplace
_Part: TypeAlias = tuple[_Release, int]  # a release of a kind, and how often


def _compact(events: Iterable[DpEvent]) -> tuple[_Part, ...]:
    """The multiset of releases, equal ones counted, in an order that does not depend on the order of `events`.

    Steps come in rounds: as many steps make one release as all events of their kind have in common. Gaussian releases
    of all records add up exactly: squared 1 / noise_multiplier is additive.
    """
    sampled: defaultdict[tuple[float, float], list[int]] = defaultdict(list)
    whole: Counter[float] = Counter()
    laplace: Counter[float] = Counter()
    for event in events:
        match event:
            case PoissonGaussian(noise_multiplier, sample_rate, steps) if sample_rate < 1:
                sampled[noise_multiplier, sample_rate].append(steps)
            case PoissonGaussian(noise_multiplier, _, times) | Gaussian(noise_multiplier, times):
                whole[noise_multiplier] += times
            case DiscreteLaplace(parameter, times):
                laplace[parameter] += times
            case _:
                raise UnknownEvent(f"nobody can say what {event!r} costs")
    parts: list[_Part] = []
    for kind, rounds in sorted(sampled.items()):
        together = math.gcd(*rounds)
        parts.append((PoissonGaussian(*kind, together), sum(rounds) // together))
    parts += [(DiscreteLaplace(parameter), times) for parameter, times in sorted(laplace.items())]
    if whole:
        noise_multiplier = 1 / math.sqrt(math.fsum(times / noise**2 for noise, times in whole.items()))
        parts.append((Gaussian(max(noise_multiplier, 1e-3)), 1))
    return tuple(parts)


@lru_cache(maxsize=1024)
def _epsilon(parts: tuple[_Part, ...], delta: float) -> float:
    misplaced = _MISPLACED * sum(times * getattr(release, "steps", 1) for release, times in parts)
    if misplaced > delta / 2 or sum(_mean_loss(release) * times for release, times in parts) > _HOPELESS:
        return math.inf
    interval = _INTERVAL if min(_spread(release) for release, _ in parts) >= _SPREAD else _FINE_INTERVAL
    composed = reduce(lambda one, other: one.compose(other), [_composed(*part, interval) for part in parts])
    return max(0.0, float(composed.get_epsilon_for_delta(delta - misplaced))) + _ROUNDING


def _mean_loss(release: _Release) -> float:
    """An upper bound, in nats, of the mean privacy loss of one release (of KL by chi-squared, and by convexity)."""
    match release:
        case DiscreteLaplace(parameter, _):
            return parameter * math.tanh(parameter / 2)
        case PoissonGaussian(noise_multiplier) | Gaussian(noise_multiplier) if noise_multiplier < _LEAST_NOISE:
            return math.inf
        case Gaussian(noise_multiplier, _):
            return 1 / (2 * noise_multiplier**2)
        case PoissonGaussian(noise_multiplier, sample_rate, steps):
            by_convexity = sample_rate / (2 * noise_multiplier**2)
            return steps * min(by_convexity, sample_rate**2 * math.expm1(min(noise_multiplier**-2, 700.0)))


def _spread(release: _Release) -> float:
    """About how much one release, of many steps a single one, loses, up or down, in nats."""
    match release:
        case DiscreteLaplace(parameter, _):
            return parameter
        case Gaussian(noise_multiplier, _):
            return 1 / noise_multiplier
        case PoissonGaussian(noise_multiplier, sample_rate, _):
            return sample_rate / noise_multiplier


@lru_cache(maxsize=64)
def _composed(release: _Release, times: int, interval: float) -> Any:
    """Of a number of releases always by the same compositions, so that the answer does not depend on what was asked."""
    over = times % _BLOCK
    if over and times > over & -over:
        last = over & -over  # the power of two; what comes before it was composed for a question before
        return _composed(release, times - last, interval).compose(_composed(release, last, interval))
    single = _loss(release, interval)
    steps = times * getattr(release, "steps", 1)
    return _cut(single.self_compose(steps), interval) if steps > 1 else single


def _cut(loss: Any, interval: float) -> Any:
    """Without the tails that `self_compose` leaves for want of a sharp bound: composing with nothing cuts them."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    return loss.compose(pld.identity(interval))


@lru_cache(maxsize=64)
def _loss(release: _Release, interval: float) -> Any:
    """The privacy loss of one release, of its steps a single one, for both adding and removing a record."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    match release:
        case PoissonGaussian(noise_multiplier, sample_rate, _):
            return pld.from_gaussian_mechanism(
                noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=interval
            )
        case Gaussian(noise_multiplier, _):
            return pld.from_gaussian_mechanism(noise_multiplier, value_discretization_interval=interval)
        case DiscreteLaplace(parameter, _):
            return pld.from_discrete_laplace_mechanism(parameter, value_discretization_interval=interval)
