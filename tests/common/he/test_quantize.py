"""Integers stand for the update: right on average, never over the range, with a norm that noise can cover."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, InvalidUpdate
from common.he.quantize import (
    dequantize_sum,
    largest_after_rotation,
    quantize,
    quantize_conditionally,
    rotate,
    rotate_back,
    sensitivity_after_rounding,
    step,
)
from common.updates import Clipped, clip


def test_three_numbers() -> None:
    update = Clipped(np.array([10.0, -10.0, 0.5]), 10.0)
    rounded = quantize(update, 4, np.array([0.0, 0.99, 0.7]))
    assert rounded.values.tolist() == [7, -7, 1]  # 0.5 is 0.35 steps of 10 / 7
    assert rounded.scale == 10 / 7
    assert dequantize_sum(rounded.values * 3, 10.0, 4).tolist() == [30.0, -30.0, 30 / 7]


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(2, 32), max_norm=st.floats(1e-6, 1e6), d=st.integers(1, 300))
def test_no_value_leaves_the_range_or_its_cell(bits: int, max_norm: float, d: int) -> None:
    rng = np.random.default_rng()
    update = clip(rng.normal(0, max_norm, d), max_norm)
    rounded = quantize(update, bits, rng.random(d))
    assert np.abs(rounded.values).max() < 1 << (bits - 1)
    assert np.abs(rounded.values * rounded.scale - update.values).max() <= rounded.scale * (1 + 1e-9)
    assert np.linalg.norm(rounded.values) <= sensitivity_after_rounding(max_norm, bits, d)


@pytest.mark.parametrize("value", [1.0, -1.0, 1.0 - 2**-53])
def test_the_largest_value_never_overflows(value: float) -> None:
    for uniform in (0.0, 1 - 2**-53):
        assert abs(quantize(Clipped(np.array([value]), 1.0), 16, np.array([uniform])).values[0]) <= 32767


def test_rounding_is_right_on_average() -> None:
    """The mean of 100,000 roundings of 0.3 steps; false alarm 1e-9 per run at 6.1 standard errors."""
    n, fraction = 100_000, 0.3
    update = Clipped(np.full(n, fraction * step(1.0, 8)), 1.0)
    values = quantize(update, 8, np.random.default_rng().random(n)).values
    assert abs(values.mean() - fraction) < 6.1 * math.sqrt(fraction * (1 - fraction) / n)


def test_layers_have_their_own_public_scales() -> None:
    largest = np.repeat([1.0, 0.01], [2, 3])
    update = Clipped(np.array([0.5, -1.0, 0.01, -0.005, 0.02]), 2.0)
    rounded = quantize(update, 16, np.full(5, 0.5), largest)
    assert rounded.values[4] == 32767  # saturates
    np.testing.assert_allclose(dequantize_sum(rounded.values, largest, 16)[:4], update.values[:4], atol=1.0 / 32767)
    assert abs(dequantize_sum(rounded.values, largest, 16)[3] + 0.005) <= 0.01 / 32767
    assert sensitivity_after_rounding(2.0, 16, 5, largest) == pytest.approx(2.0 / (0.01 / 32767) + math.sqrt(5))


def test_wrong_settings_are_refused() -> None:
    update = Clipped(np.zeros(3), 1.0)
    for bits, largest in ((1, 1.0), (49, 1.0), (8, 0.0), (8, math.nan), (8, math.inf), (8, np.array([1.0, -1.0, 1.0]))):
        with pytest.raises(ConfigError):
            quantize(update, bits, np.zeros(3), largest)
    with pytest.raises(InvalidUpdate):
        quantize(update, 8, np.zeros(4))


def test_conditional_rounding_keeps_its_tighter_promise() -> None:
    """One rounding in nine of this vector is too long; that none of 300 is (a false alarm) has chance 1e-15."""
    rng, d = np.random.default_rng(), 100
    draws: list[int] = []

    def draw(count: int) -> np.ndarray:
        draws.append(count)
        return rng.random(count)

    update = Clipped(np.full(d, 0.1), 1.0)
    tight = sensitivity_after_rounding(1.0, 8, d, conditional=True)
    for _ in range(300):
        assert np.linalg.norm(quantize_conditionally(update, 8, draw).values) <= tight
    assert 300 < len(draws) < 500
    assert sensitivity_after_rounding(1.0, 8, 10_000, conditional=True) < 0.65 * sensitivity_after_rounding(
        1.0, 8, 10_000
    )


def test_the_conditional_bound_is_the_published_one() -> None:
    """Worked by hand: norm 127 steps, d = 10,000, beta = exp(-1/2)."""
    expected = math.sqrt(127**2 + 2500 + 1.0 * (127 + 50))
    assert sensitivity_after_rounding(3.0, 8, 10_000, conditional=True) == pytest.approx(expected)
    assert sensitivity_after_rounding(3.0, 8, 10_000) == pytest.approx(127 + 100)
    assert sensitivity_after_rounding(3.0, 8, 1, conditional=True) <= 128


@settings(max_examples=50, deadline=None)
@given(d=st.integers(1, 5000), seed=st.binary(max_size=32))
def test_rotation_keeps_the_norm_and_turns_back(d: int, seed: bytes) -> None:
    update = clip(np.random.default_rng().normal(0, 1, d), 1.0)
    rotated = rotate(update, seed)
    assert np.linalg.norm(rotated.values) == pytest.approx(np.linalg.norm(update.values))
    np.testing.assert_allclose(rotate_back(rotated.values, seed), update.values, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 1000, 4096, 6000])
@pytest.mark.parametrize("where", [0, -1])
def test_rotation_hides_the_worst_spike(d: int, where: int) -> None:
    """False alarm 1e-6 per case, by the bound itself."""
    spike = np.zeros(d)
    spike[where] = 1.0
    rotated = rotate(Clipped(spike, 1.0), np.random.default_rng().bytes(16))
    assert np.abs(rotated.values).max() <= largest_after_rotation(1.0, d) * (1 + 1e-9)


def test_rotation_is_golden() -> None:
    """Sites on different machines must turn alike."""
    rotated = rotate(Clipped(np.arange(6.0), 100.0), b"golden").values
    assert np.round(rotated, 6).tolist() == [-1.0, 3.0, -0.5, -3.5, -1.5, 5.5]


def test_rotation_buys_precision_at_the_same_bits() -> None:
    rng, d, bits, seed = np.random.default_rng(), 10_000, 10, b"public"
    update = clip(np.where(np.arange(d) == 3, 1.0, rng.normal(0, 0.001, d)), 1.0)
    plain = dequantize_sum(quantize(update, bits, rng.random(d)).values, 1.0, bits)
    largest = largest_after_rotation(1.0, d)
    turned = quantize(rotate(update, seed), bits, rng.random(d), largest)
    back = rotate_back(dequantize_sum(turned.values, largest, bits), seed)
    assert np.linalg.norm(back - update.values) < 0.3 * np.linalg.norm(plain - update.values)
