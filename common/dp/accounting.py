"""From events to epsilon: privacy loss distributions (PLD), always rounded towards more loss.

The discretisation is "Connect the Dots" (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, arXiv:2207.04380), the
composition a product of Fourier transforms, as in Google's dp-accounting. Two things differ. The step of the loss
grid follows the mechanism's own spread, in multiples of dp-accounting's 1e-4, so that a question after every round
takes milliseconds; a coarser grid dominates a finer one, hence epsilon is never below dp-accounting's. And nothing
heavy is imported. `second_opinion` asks dp-accounting itself.

Every epsilon here is about `NEIGHBOURING`, `UNIT`, `SAMPLING` and `ADVERSARY`; reports print them beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from common.dp.events import DiscreteLaplace, DpEvent, Gaussian, PoissonGaussian
from common.errors import ConfigError, UnknownEvent
from common.federation import require

NEIGHBOURING = "add-or-remove-one"
UNIT = "record"
SAMPLING = "Poisson: each record enters each batch by its own secret coin, empty batches included"
ADVERSARY = "sees every release of the site, may choose each by those before, and knows all other records"
ACCOUNTANT = "privacy loss distributions, pessimistic, all events of the data set composed"

Vector: TypeAlias = npt.NDArray[np.float64]

_FINEST = 1e-4  # dp-accounting's grid, in nats of loss; finer would fall below its epsilon
_STEPS_PER_SPREAD = 16  # grid steps in one standard deviation of one release: costs about 0.03 % of epsilon
_LARGEST_EXCESS = 0.015  # of epsilon that the grid may cost in all; decides for epsilon above 20 or so
_LARGEST_GRID = 2**18  # points; beyond it the grid is made coarser instead
_MARGIN = 1e-5  # added to every epsilon: more than rounding errors of floating point can hide
_TAIL = 1e-15  # chance of a loss beyond the grid, on either side; given to infinity
_TAIL_DEVIATIONS = 10.0  # of the Gaussian; what lies beyond has a chance below 1e-23 and is given to infinity
_LARGEST_NOISE = 1e4


def epsilon(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon for which all `events` together are (epsilon, delta)-DP.

    Guarantee: an upper bound, within 0.02 of dp-accounting's PLD and never below it (but see `second_opinion`).
    Each release may depend on the answers of those before. Infinite where delta is below what rounding can resolve,
    about 1e-14.
    """
    require(0 < delta < 0.1, "delta", delta, "above 0, below 0.1")
    parts = _compact(events)
    return _epsilon(parts, delta) + _MARGIN if parts else 0.0


class Budget(Protocol):
    """Whatever carries an epsilon and a delta, such as PrivacyBudget or PrivacySettings."""

    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...


def calibrate_noise(budget: Budget, sample_rate: float, steps: int, spent: Iterable[DpEvent] = ()) -> float:
    """The smallest noise multiplier with which `steps` steps of DP-SGD still fit beside what was `spent`.

    Guarantee: never over `budget` by this accountant, and at most 0.1 % larger than need be.
    Raises ConfigError when not even a multiplier of 10,000 fits.
    """
    before = tuple(spent)

    def fits(noise_multiplier: float) -> bool:
        return epsilon((*before, PoissonGaussian(noise_multiplier, sample_rate, steps)), budget.delta) <= budget.epsilon

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, high * 2
        if high > _LARGEST_NOISE:
            raise ConfigError(
                f"no noise makes {steps} steps at sample rate {sample_rate} fit epsilon {budget.epsilon} at delta "
                f"{budget.delta}",
                "allowed: fewer rounds, a lower sample rate, or a budget that was not spent before",
            )
    while low == 0.0 or high > low * 1.001:
        middle = math.sqrt(low * high) if low else high / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def second_opinion(events: Iterable[DpEvent], delta: float) -> float:
    """The same epsilon by Google's dp-accounting, slowly: for audits and tests.

    It rounds each loss of discrete Laplace noise up by as much as 1e-4 nats; `epsilon` keeps its mean instead.
    """
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for event in events:
        match event:
            case PoissonGaussian(noise_multiplier, sample_rate, steps):
                release = dp_event.GaussianDpEvent(noise_multiplier)
                accountant.compose(dp_event.PoissonSampledDpEvent(sample_rate, release), steps)
            case Gaussian(noise_multiplier, count):
                accountant.compose(dp_event.GaussianDpEvent(noise_multiplier), count)
            case DiscreteLaplace(parameter, count):
                accountant.compose(dp_event.DiscreteLaplaceDpEvent(parameter, 1), count)
            case _:
                raise UnknownEvent(f"nobody can say what {event!r} costs")
    return float(accountant.get_epsilon(delta))


@dataclass(frozen=True)
class _Gaussian:
    """All Gaussian releases of all records as one, with noise that may be too small for a release alone."""

    noise_multiplier: float


_Release: TypeAlias = PoissonGaussian | DiscreteLaplace | _Gaussian
_Part: TypeAlias = tuple[_Release, int]  # one release of a kind, and how often


def _compact(events: Iterable[DpEvent]) -> tuple[_Part, ...]:
    """The multiset of releases, equal ones counted, in an order that does not depend on the order of `events`.

    Gaussian releases of all records add up exactly: squared 1 / noise_multiplier is additive.
    """
    sampled: Counter[tuple[float, float]] = Counter()
    whole: Counter[float] = Counter()
    laplace: Counter[float] = Counter()
    for event in events:
        match event:
            case PoissonGaussian(noise_multiplier, sample_rate, steps) if sample_rate < 1:
                sampled[noise_multiplier, sample_rate] += steps
            case PoissonGaussian(noise_multiplier, _, times) | Gaussian(noise_multiplier, times):
                whole[noise_multiplier] += times
            case DiscreteLaplace(parameter, times):
                laplace[parameter] += times
            case _:
                raise UnknownEvent(f"nobody can say what {event!r} costs")
    parts: list[_Part] = [(PoissonGaussian(*kind, 1), times) for kind, times in sorted(sampled.items())]
    parts += [(DiscreteLaplace(parameter), times) for parameter, times in sorted(laplace.items())]
    if whole:
        parts.append((_Gaussian(1 / math.sqrt(math.fsum(times / noise**2 for noise, times in whole.items()))), 1))
    return tuple(parts)


@dataclass(frozen=True)
class _Loss:
    """Privacy loss of one release on the grid, one direction: `chances[i]` is that of (lowest + i) grid steps."""

    lowest: int
    chances: Vector
    infinite: float  # chance of unbounded loss
    log_moments: Vector  # ln of the mean of exp(order * grid step), for each of _orders()


@lru_cache(maxsize=1024)
def _epsilon(parts: tuple[_Part, ...], delta: float) -> float:
    interval = _interval(parts)
    while True:
        windows = [_window(parts, interval, direction) for direction in (0, 1)]
        if max(size for _, size in windows) <= _LARGEST_GRID:
            break
        interval *= 2
    return max(_solve(parts, interval, direction, *windows[direction], delta) for direction in (0, 1))


def _solve(parts: tuple[_Part, ...], interval: float, direction: int, lowest: int, size: int, delta: float) -> float:
    """Epsilon at `delta` of the composition, whose losses lie in the `size` grid steps from `lowest` on."""
    eighth = 1 << max(4, (size - 1).bit_length() - 3)
    size = math.ceil(size / eighth) * eighth  # a length at which a Fourier transform is quick
    spectrum = np.ones(size // 2 + 1, np.complex128)
    offset, log_finite = 0, 0.0
    for release, times in parts:
        loss = _losses(release, interval)[direction]
        spectrum *= _powered(release, times, interval, direction, size)
        offset += loss.lowest * times
        log_finite += times * math.log1p(-loss.infinite)
    # What falls outside the window comes in again at its other end. From below it counts as more loss than it
    # is; from above (at most _TAIL) it is made good here.
    infinite = _TAIL - math.expm1(log_finite)
    chances = np.roll(np.fft.irfft(spectrum, size), offset - lowest)
    first = max(0, 1 - lowest)  # losses that are not positive matter to no epsilon >= 0
    losses = np.float64(interval) * np.arange(lowest + first, lowest + size)
    return _epsilon_at(losses, np.clip(chances[first:], 0.0, None), infinite, delta)


def _epsilon_at(losses: Vector, chances: Vector, infinite: float, delta: float) -> float:
    """Smallest epsilon >= 0 with infinite + sum of chances (1 - exp(epsilon - loss)) over loss > epsilon, <= delta."""
    upper = infinite + np.cumsum(chances[::-1])[::-1]
    with np.errstate(divide="ignore"):
        log_lower = np.log(np.cumsum((chances * np.exp(-losses))[::-1])[::-1])
    # delta at epsilon = losses[i], counting the losses from i on, which changes nothing as loss i contributes zero
    above = np.flatnonzero(upper - np.exp(losses + log_lower) > delta)
    index = int(above[-1]) + 1 if above.size else 0
    if index == losses.size:
        return math.inf
    least = float(losses[index - 1]) if index else 0.0
    if upper[index] <= delta:
        return least
    return float(np.clip(math.log(upper[index] - delta) - log_lower[index], least, losses[index]))


@lru_cache(maxsize=32)
def _powered(release: _Release, times: int, interval: float, direction: int, size: int) -> npt.NDArray[np.complex128]:
    return np.fft.rfft(_losses(release, interval)[direction].chances, size) ** times


def _window(parts: Sequence[_Part], interval: float, direction: int) -> tuple[int, int]:
    """Lowest grid step and number of steps outside which the composed loss lies with a chance of _TAIL on each side.

    Chernoff's bound at the best of some orders, within the range that losses have at all.
    """
    losses = [(_losses(release, interval)[direction], times) for release, times in parts]
    lowest = sum(loss.lowest * times for loss, times in losses)
    highest = sum((loss.lowest + loss.chances.size - 1) * times for loss, times in losses)
    orders = _orders()
    bounds = (sum(loss.log_moments * times for loss, times in losses) - math.log(_TAIL)) / orders
    usable = np.isfinite(bounds)
    highest = min(highest, math.ceil(np.min(bounds, where=usable & (orders > 0), initial=math.inf)))
    lowest = max(lowest, math.floor(np.max(bounds, where=usable & (orders < 0), initial=-math.inf)))
    widest = max(loss.chances.size for loss, _ in losses)
    return lowest, max(highest - lowest + 1, widest)


@lru_cache(maxsize=1)
def _orders() -> Vector:
    half = 2.0 ** np.arange(-20.0, 2.0)
    return np.concatenate([-half[::-1], half])


def _interval(parts: Sequence[_Part]) -> float:
    """Grid step in nats: _FINEST times a power of two, small beside the spread of one release of any kind.

    A step h adds up to h^2 / 8 to the mean loss of each release and h^2 / 4 to its variance, so all releases together
    add near total * h^2 / 8 * (1 + 5 / spread) to epsilon at usual deltas.
    """
    spreads, reaches = np.array([_spread_and_reach(release) for release, _ in parts]).T
    times = np.array([times for _, times in parts])
    spread = math.sqrt(times @ spreads**2)
    wanted = min(spreads.min() / _STEPS_PER_SPREAD, math.sqrt(8 * _LARGEST_EXCESS / times.sum() / (1 + 5 / spread)))
    wanted = max(wanted, _FINEST, max(reaches.max(), 16 * spread) / _LARGEST_GRID)
    return float(_FINEST * 2.0 ** math.floor(math.log2(wanted / _FINEST)))


@lru_cache(maxsize=1024)
def _spread_and_reach(release: _Release) -> tuple[float, float]:
    """Standard deviation of one release's loss, record present, and the distance of its extremes; both rough."""
    match release:
        case DiscreteLaplace(parameter):
            return min(parameter, 0.02), 2 * parameter  # two points: a coarse grid would move them, not blur them
        case _Gaussian(noise_multiplier):
            return 1 / noise_multiplier, (1 + 2 * _TAIL_DEVIATIONS * noise_multiplier) / noise_multiplier**2
        case PoissonGaussian(noise_multiplier, sample_rate):
            output = np.linspace(-_TAIL_DEVIATIONS * noise_multiplier, 1 + _TAIL_DEVIATIONS * noise_multiplier, 4001)
            loss = _sampled_loss(output, noise_multiplier, sample_rate)
            weights = np.exp(loss - output**2 / (2 * noise_multiplier**2))
            variance = np.average((loss - np.average(loss, weights=weights)) ** 2, weights=weights)
            return math.sqrt(variance), float(loss[-1] - loss[0])


def _sampled_loss(output: Vector, noise_multiplier: float, sample_rate: float) -> Vector:
    """ln of the density with the record over that without it, of a sampled Gaussian release."""
    shifted = (2 * output - 1) / (2 * noise_multiplier**2)
    return np.logaddexp(math.log1p(-sample_rate) if sample_rate < 1 else -math.inf, math.log(sample_rate) + shifted)


@lru_cache(maxsize=64)
def _losses(release: _Release, interval: float) -> tuple[_Loss, _Loss]:
    """Both directions of one release: the record removed, the record added."""
    match release:
        case DiscreteLaplace(parameter):
            highest = math.ceil(parameter / interval)
            present, absent = np.zeros((2, 2 * highest))
            likely = 1 / (1 + math.exp(-parameter))  # of the loss +parameter; otherwise it is -parameter
            present[-1] = absent[0] = likely
            present[0] = absent[-1] = 1 - likely
            below = above = np.zeros(2)
        case _Gaussian(noise_multiplier) | PoissonGaussian(noise_multiplier):
            sample_rate = release.sample_rate if isinstance(release, PoissonGaussian) else 1.0
            reach = _TAIL_DEVIATIONS * noise_multiplier
            ends = _sampled_loss(np.array([-reach, 1 + reach]), noise_multiplier, sample_rate) / interval
            lowest, highest = math.floor(ends[0]), math.ceil(ends[1])
            outputs = _output_at(interval * np.arange(lowest, highest + 1), noise_multiplier, sample_rate)
            below, cells, above = _normal_chances(np.stack([outputs - 1, outputs]) / noise_multiplier)
            mixture = np.array([[sample_rate, 1 - sample_rate], [0.0, 1.0]])  # with the record; without it
            below, (present, absent), above = mixture @ below, mixture @ cells, mixture @ above
    removed = _connect_the_dots(highest - present.size, interval, present, absent, below[0], above[0])
    added = _connect_the_dots(-highest, interval, absent[::-1], present[::-1], above[1], below[1])
    return removed, added


def _connect_the_dots(lowest: int, interval: float, upper: Vector, lower: Vector, below: float, above: float) -> _Loss:
    """Move each cell's chance to the cell's two ends, keeping both its `upper` and its `lower` chance.

    Cell i lies between grid steps lowest + i and lowest + i + 1; `upper` is the chance of it in the world that the
    loss is taken in, `lower` in the other. What lies below the grid moves up onto it, what lies above to infinity.
    """
    starts = interval * np.arange(lowest, lowest + upper.size)
    with np.errstate(divide="ignore"):
        at_end = (upper - np.exp(starts + np.log(lower))) / -math.expm1(-interval)
    at_end = np.clip(at_end, 0.0, upper)  # exact up to rounding, which near zero has no sign
    chances = np.append(upper - at_end, 0.0)
    chances[1:] += at_end
    chances[0] += below
    with np.errstate(divide="ignore"):
        log_chances = np.log(chances)
    steps = np.arange(lowest, lowest + chances.size)
    return _Loss(lowest, chances, above, np.array([_log_sum_exp(log_chances + order * steps) for order in _orders()]))


def _log_sum_exp(values: Vector) -> float:
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).sum()))


def _output_at(loss: Vector, noise_multiplier: float, sample_rate: float) -> Vector:
    """Inverse of _sampled_loss; -inf where no output loses as little."""
    log_absent = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    with np.errstate(divide="ignore"):
        log_present = np.log(np.maximum(-np.expm1(log_absent - loss), 0.0))
    return 0.5 + noise_multiplier**2 * (loss + log_present - math.log(sample_rate))


def _normal_chances(deviations: Vector) -> tuple[Vector, Vector, Vector]:
    """For each row: the chance of a normal variable below the first, between neighbouring and above the last value.

    Differences are taken in the nearer tail, where they are small numbers known to 15 digits.
    """
    below, above = (
        np.array(list(map(math.erfc, side.ravel().tolist()))).reshape(deviations.shape) / 2
        for side in (-deviations / math.sqrt(2), deviations / math.sqrt(2))
    )
    cells = np.where(deviations[:, :-1] > 0, -np.diff(above), np.diff(below))
    return below[:, 0], cells, above[:, -1]
