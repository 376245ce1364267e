"""Proves: a bound that adapts finds its quantile, and sum and count together cost what the plan says one step costs.

Statistics: each test raises a false alarm with chance at most 1e-6 per run, over fresh randomness.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.clipped_sum import cross_entropy
from client.clipping_modes import BookKeeping
from client.releases import AdaptiveClipping, NoiseSplit, bounds_of, noised_sum
from client.train import train
from common.federation import PrivacySettings, TrainingSettings
from common.randomness import Randomness

FALSE_ALARM = 1e-6
LOTS = TrainingSettings(lot_size=40.0)
ADAPTIVE = PrivacySettings(clipping="adaptive", max_grad_norm=0.3, target_quantile=0.7, clip_learning_rate=0.5)


class Quiet(Randomness):
    """Noise of zero, to look at what it would hide."""

    def gaussian(self, n: int, std: float = 1.0, dtype: object = np.float32) -> np.ndarray:
        return np.zeros(n, dtype)


def quiet() -> Randomness:
    return Quiet(bytes(32), secure=False)


def clipped_sum(scale: float = 1.0) -> BookKeeping:
    """Of a small model whose losses are scaled; open for the rest of the test."""
    torch.manual_seed(3)

    def losses(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scale * cross_entropy(output, labels)

    return BookKeeping(nn.Linear(2, 2).double(), 1.0, losses).__enter__()


def records(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 2, generator=generator).double() * torch.linspace(0.1, 8, n)[:, None]
    return features, torch.randint(0, 2, (n,), generator=generator)


@given(st.floats(1e-3, 1e4), st.floats(1e-3, 1e6))
def test_sum_and_count_together_are_one_release_of_the_plans_noise(noise_multiplier: float, lot_size: float) -> None:
    """Distances add in squares: the gradient moves by one bound, the centred count by a half."""
    split = NoiseSplit.of(noise_multiplier, lot_size)
    distance = math.hypot(1 / split.gradients, 0.5 / split.count)
    assert distance == pytest.approx(1 / noise_multiplier, rel=1e-9)
    assert noise_multiplier <= split.gradients < 1.155 * noise_multiplier


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 11), st.floats(0.01, 20))
def test_one_record_moves_sum_and_count_by_no_more_than_was_charged(left_out: int, bound: float) -> None:
    """Neighbours in units of each one's noise, from what two quiet steps gave away."""
    features, labels = records(12)
    kept = [i for i in range(12) if i != left_out]
    privacy = replace(ADAPTIVE, max_grad_norm=bound)
    split, sums, counts = NoiseSplit.of(1.3, LOTS.lot_size), [], []
    for batch in ((features, labels), (features[kept], labels[kept])):
        adaptive = AdaptiveClipping(clipped_sum(), 1.3, LOTS, privacy, quiet())
        sums.append(adaptive.noised_sum(*batch).gradient_sum.clone())
        share = privacy.target_quantile - math.log(adaptive.bound / bound) / privacy.clip_learning_rate
        counts.append((share - 0.5) * LOTS.lot_size)
    moved = float((sums[0] - sums[1]).norm()) / bound
    assert abs(counts[0] - counts[1]) == pytest.approx(0.5, abs=1e-9)
    assert math.hypot(moved / split.gradients, (counts[0] - counts[1]) / split.count) <= 1 / 1.3 * (1 + 1e-9)


def test_both_noises_have_the_promised_scale() -> None:
    """Empty batches, so that nothing but noise is released; a scale wrong by 5 % is caught in over 999 of 1000 runs."""
    from scipy.stats import chi2

    steps, privacy = 6000, replace(ADAPTIVE, clip_learning_rate=1e-4)
    split = NoiseSplit.of(2.0, LOTS.lot_size)
    adaptive = AdaptiveClipping(clipped_sum(), 2.0, LOTS, privacy, Randomness.from_os())
    nobody = records(0)
    gradients, counts = [], []
    for _ in range(steps):
        before = adaptive.bound
        released = adaptive.noised_sum(*nobody)
        assert released.noise_std == split.gradients * before
        gradients.append(released.gradient_sum.numpy() / released.noise_std)
        share = privacy.target_quantile - math.log(adaptive.bound / before) / privacy.clip_learning_rate
        counts.append((share - 0.5) * LOTS.lot_size / split.count)
    for noise in (np.concatenate(gradients), np.array(counts)):
        low, high = chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], noise.size)
        assert low < np.sum(noise**2) < high


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.15, 40.0])
def test_the_bound_finds_its_quantile_from_above_and_below(quantile: float, start: float) -> None:
    """Exactly without noise; and near it with noise, by the mean over steps of the share that is truly within."""
    features, labels = records(40)
    clipped = clipped_sum()
    norms = []
    for i in range(40):
        clipped.max_grad_norm = 1e9
        norms.append(float(clipped.of(features[i : i + 1], labels[i : i + 1]).norm()))
    privacy = replace(ADAPTIVE, max_grad_norm=start, target_quantile=quantile)
    for randomness, allowed in ((quiet(), 0.03), (Randomness.from_os(), 0.1)):
        adaptive = AdaptiveClipping(clipped, 1.0, LOTS, privacy, randomness)
        shares = []
        for _ in range(400):
            adaptive.noised_sum(features, labels)
            shares.append(np.mean(np.array(norms) <= adaptive.bound))
        assert abs(np.mean(shares[200:]) - quantile) < allowed


def test_the_bound_never_leaves_its_public_range() -> None:
    """So that noise lost to rounding can be refused before the first step."""
    lowest, highest = bounds_of(ADAPTIVE)
    for scale, end in ((1e6, highest), (1e-6, lowest)):  # of the losses, hence of all gradients
        clipped = clipped_sum(scale)
        adaptive = AdaptiveClipping(clipped, 1.0, replace(LOTS, lot_size=1.0), ADAPTIVE, quiet())
        for _ in range(10):
            adaptive.noised_sum(*records(40))
        assert adaptive.bound == end
    assert bounds_of(replace(ADAPTIVE, clipping="flat")) == (0.3, 0.3)


def test_every_round_starts_at_the_plans_bound() -> None:
    """Two rounds of one step differ from one of two: nothing of the first is kept at the site."""
    torch.manual_seed(1)
    features, labels = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32), np.zeros(40, np.int64)
    moved = []
    for steps in ((1, 1), (2,)):
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        privacy = replace(ADAPTIVE, max_grad_norm=0.01, clip_learning_rate=1.0)
        for number in steps:
            training = replace(LOTS, sample_rate=1.0, local_steps=number, learning_rate=1e-3)
            moved.append(np.linalg.norm(train(model, features, labels, training, privacy, 1.0, quiet()).update))
    first, second, both = moved
    assert first == pytest.approx(second, rel=1e-3)
    assert both > 1.2 * (first + second)


def test_an_empty_batch_is_noise_alone_under_a_fixed_bound() -> None:
    released = noised_sum(clipped_sum(), 2.0, Randomness.from_os(), *records(0))
    assert released.noise_std == 2.0
    assert torch.all(released.gradient_sum != 0)
