"""Proves: shares of noise, rounded and summed over integers, protect as one Gaussian release of their sum does."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from common.dp.noise_shares import LEAST_STD_STEPS, NoiseGrid, NoiseShares, excess_epsilon
from common.errors import CohortTooSmall, ConfigError
from common.randomness import Randomness

REACH = np.arange(-80, 81)  # integers: more than every chance below 1e-300 for the deviations used here


def rounded(centre: float, std: float) -> np.ndarray:
    """Chances of the integers in REACH under round(centre + normal noise)."""
    above = norm.sf(REACH - 0.5, centre, std) - norm.sf(REACH + 0.5, centre, std)
    below = norm.cdf(REACH + 0.5, centre, std) - norm.cdf(REACH - 0.5, centre, std)
    return np.where(centre > REACH, below, above)


def summed(centres: list[float], std: float) -> np.ndarray:
    """Chances of REACH under the sum of that many rounded values: the mechanism as it runs."""
    total = np.ones(1)
    for centre in centres:
        total = np.convolve(total, rounded(centre, std))
    middle = len(total) // 2
    return total[middle + REACH[0] : middle + REACH[-1] + 1]


def ideal(centre: float, std: float, sites: int) -> np.ndarray:
    """Chances of REACH under rounding centre + N(0, sites std^2) + sites - 1 uniforms, by characteristic function."""
    theta = np.linspace(-40 / std, 40 / std, 200_001)
    transform = np.exp(-sites * (std * theta) ** 2 / 2) * np.sinc(theta / (2 * math.pi)) ** sites
    waves = np.cos(np.outer(REACH - centre, theta))
    return np.trapezoid(waves * transform, theta, axis=1) / (2 * math.pi)


@pytest.mark.parametrize(("std", "sites"), [(0.4, 2), (0.5, 3), (0.6, 2), (0.6, 5), (0.8, 4)])
@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_every_chance_is_within_the_proved_factor_of_the_ideal(std: float, sites: int, offset: float) -> None:
    """At deviations far below what is allowed, where the difference can be seen at all."""
    taus = [2 * math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) * 1.001 for k in range(1, sites)]
    real, perfect = summed([offset] * sites, std), ideal(offset * sites, std, sites)
    seen = perfect > 1e-9  # the integral has fifteen digits, no more
    ratio = real[seen] / perfect[seen]
    assert ratio.max() <= math.prod(1 + tau for tau in taus) + 1e-6
    assert ratio.min() >= math.prod(1 - tau for tau in taus) - 1e-6


def test_the_factor_is_not_an_empty_promise() -> None:
    """Where the noise is too fine for the integers, real and ideal differ by nearly as much as the bound says."""
    real, perfect = summed([0.5, 0.5], 0.4), ideal(1.0, 0.4, 2)
    tau = 2 * math.exp(-((math.pi * 0.4) ** 2))
    assert abs(real / perfect - 1)[perfect > 1e-3].max() > tau / 2


@pytest.mark.parametrize("sites", [1, 2, 5])
@pytest.mark.parametrize("reach", [3.0, 12.5])
def test_what_is_opened_never_loses_more_than_the_gaussian_mechanism(sites: int, reach: float) -> None:
    """Delta of the real, discrete sum at many epsilons, for every position between integers, by adding up chances."""
    std = LEAST_STD_STEPS / math.sqrt(sites)  # so that REACH holds the sum; below the least share for several sites
    total = std * math.sqrt(sites)
    for fraction, epsilon in itertools.product(np.linspace(0, 1, 5), [0.0, 0.5, 1.0, 2.0, 4.0]):
        without = summed([fraction] + [0.0] * (sites - 1), std)
        with_one = summed([fraction + reach] + [0.0] * (sites - 1), std)
        exact = norm.cdf(reach / (2 * total) - epsilon * total / reach) - math.exp(epsilon) * norm.cdf(
            -reach / (2 * total) - epsilon * total / reach
        )
        for one, other in ((without, with_one), (with_one, without)):
            assert np.maximum(one - math.exp(epsilon) * other, 0).sum() <= exact + 1e-6


def test_sixteen_bits_cost_less_than_a_thousandth_of_epsilon() -> None:
    """Twenty sums of ten sites' integers, at the least noise that is let through, beside continuous noise.

    Their chances exactly, composed by dp-accounting; the continuous mechanism by its closed form. Noise too small for
    the integers, which is refused, shows in the same sums.
    """
    grid = NoiseGrid(16, 1.0, 1.0001 * LEAST_STD_STEPS / (32767 - 9 * LEAST_STD_STEPS))
    assert grid.std / grid.step == pytest.approx(LEAST_STD_STEPS, rel=0.001)
    continuous = epsilon_of_gaussians(20 / 4.0**2, 1e-5)
    assert epsilon_of_sums(grid.std / grid.step, 4.0, 20, 1e-5) <= 1.001 * continuous
    assert epsilon_of_sums(0.1, 4.0, 20, 1e-5) > 2 * continuous


def epsilon_of_sums(std_steps: float, noise_multiplier: float, times: int, delta: float) -> float:
    """Of ten sites' rounded shares, by their chances, where one site's value moves by its reach; the worst place."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    moved = std_steps * math.sqrt(10) / noise_multiplier
    others = functools.reduce(np.convolve, [rounded(0.0, std_steps)] * 9)
    found = []
    for place in (0.0, 0.25, 0.5 - moved / 2, 0.5):
        without, with_one = (np.convolve(others, rounded(at, std_steps)) for at in (place, place + moved))
        seen = np.flatnonzero((without > 1e-40) & (with_one > 1e-40))
        chances = [dict(zip(seen.tolist(), np.log(each[seen]), strict=True)) for each in (without, with_one)]
        loss = pld.from_two_probability_mass_functions(*chances, symmetric=False)
        found.append(float(loss.self_compose(times).get_epsilon_for_delta(delta)))
    return max(found)


def epsilon_of_gaussians(squares: float, delta: float) -> float:
    """Of Gaussian releases whose squared 1 / noise multiplier add up to that (Balle and Wang 2018, Theorem 8)."""
    mu = math.sqrt(squares)
    exact = brentq(
        lambda at: norm.cdf(mu / 2 - at / mu) - math.exp(at) * norm.cdf(-mu / 2 - at / mu) - delta, 1e-6, 100.0
    )
    return float(exact)


def test_the_excess_is_nothing_at_the_least_noise_allowed_and_much_below_it() -> None:
    assert 0 < excess_epsilon(LEAST_STD_STEPS, sites=1024, coordinates=10**9) < 1e-90
    assert excess_epsilon(1.0, sites=10, coordinates=10**6) > 100
    assert excess_epsilon(0.1, sites=2, coordinates=1) == math.inf
    assert excess_epsilon(1.0, sites=1, coordinates=10**6) == 0.0


@given(st.integers(2, 40), st.floats(0, 1e4), st.floats(1e-3, 1e3), st.integers(12, 23))
def test_no_value_with_its_noise_leaves_the_integers(d: int, largest: float, std: float, bits: int) -> None:
    largest = max(largest, std / 100)
    try:
        grid = NoiseGrid(bits, largest, std)
    except ConfigError:
        assert std * ((1 << (bits - 1)) - 1) < LEAST_STD_STEPS * (largest + 9 * std) * 1.001
        return
    values = np.resize([10 * largest, -10 * largest, largest, 0.0], d)
    for extreme in (-8.57, 0.0, 8.57):
        noised = grid.noised(values, np.full(d, extreme))
        assert np.abs(noised).max() < 1 << (bits - 1)
        np.testing.assert_allclose(noised * grid.step, values.clip(-largest, largest) + extreme * std, atol=grid.step)


def test_projection_onto_the_box_moves_no_two_vectors_apart() -> None:
    grid, random = NoiseGrid(16, 1.0, 0.5), np.random.default_rng()
    one, other = random.normal(0, 2, (2, 1000))
    apart = (grid.noised(one, np.zeros(1000)) - grid.noised(other, np.zeros(1000))) * grid.step
    assert np.linalg.norm(apart) <= np.linalg.norm(one - other) + grid.step * math.sqrt(1000)


def test_the_noise_of_all_sites_together_has_the_promised_scale_and_no_pattern() -> None:
    """False alarm 2e-6 per run, fresh randomness. A scale wrong by 2 % is caught in over 999 of 1,000 runs."""
    shares, sites, d, std = NoiseShares(10, 2), 10, 100_000, 3.0
    grid = NoiseGrid(16, 1.0, shares.share(std))
    values = np.linspace(-1, 1, d)
    parts = [grid.noised(values, Randomness.from_os().gaussian(d, 1.0, np.float64)) for _ in range(sites)]
    noise = np.sum(parts, axis=0) * grid.step - sites * values
    expected = std * shares.left(sites) * math.sqrt(10 / 8)  # all ten add noise, eight of them are counted on
    assert shares.left(sites) == 1.0
    low, high = chi2.ppf([0.25e-6, 1 - 0.25e-6], df=d)
    assert low < np.sum((noise / expected) ** 2) < high
    neighbours = np.sum(noise[1:] * noise[:-1]) / expected**2 / math.sqrt(d - 1)
    between_sites = np.sum((parts[0] * grid.step - values) * (parts[1] * grid.step - values))
    assert abs(neighbours) < norm.isf(0.25e-6)
    assert abs(between_sites) / grid.std**2 / math.sqrt(d) < norm.isf(0.25e-6)
    assert abs(noise.sum()) / expected / math.sqrt(d) < norm.isf(0.25e-6)


@pytest.mark.parametrize(("cohort", "colluding", "summed_sites"), [(10, 1, 10), (10, 3, 7), (4, 1, 3), (1024, 1, 700)])
def test_shares_of_the_honest_add_up_to_the_plan(cohort: int, colluding: int, summed_sites: int) -> None:
    shares = NoiseShares(cohort, colluding)
    honest = math.sqrt(summed_sites - colluding) * shares.share(2.5)
    assert honest == pytest.approx(2.5 * shares.left(summed_sites))
    assert (shares.left(summed_sites) == 1) == (summed_sites == cohort)


@pytest.mark.parametrize("colluding", [0, -1, 4, 5])
def test_somebody_must_be_honest_and_nobody_is_blind_to_its_own_share(colluding: int) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.colluding"):
        NoiseShares(4, colluding)


def test_a_sum_of_colluders_alone_has_no_noise() -> None:
    with pytest.raises(CohortTooSmall, match="no noise left"):
        NoiseShares(4, 2).left(2)


def test_noise_that_integers_would_swallow_is_refused() -> None:
    with pytest.raises(ConfigError, match="integer steps"):
        NoiseGrid(16, 1000.0, 0.1)
