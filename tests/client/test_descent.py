"""Proves: without noise descent is torch's; with noise Adam is rid of its bias; rates follow public step numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from client.descent import Descent, rate_at
from client.releases import Released
from client.train import train
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build, parameters_of
from common.randomness import Randomness

MLP = ModelSettings("mlp", (4,), 3, hidden=(5,))
EVERYBODY = TrainingSettings(sample_rate=1.0, local_steps=6, lot_size=8, learning_rate=0.05)
NONE = PrivacySettings(mode="none")


def records(n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)


def torchs(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int, pull: float = 0.0) -> np.ndarray:
    """The weights after so many full-batch steps, with FedProx's penalty in the loss."""
    features, labels = (torch.tensor(each) for each in records())
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        optimizer.zero_grad()
        away = sum((p - s).square().sum() for p, s in zip(model.parameters(), start, strict=True))
        (F.cross_entropy(model(features), labels) + pull / 2 * away).backward()
        optimizer.step()
    return parameters_of(model)


def ours(training: TrainingSettings, *rounds: int) -> np.ndarray:
    model = build(MLP)
    train(model, *records(), training, NONE, 0.0, Randomness.from_os(), *rounds)
    return parameters_of(model)


def test_adam_without_noise_is_that_of_torch() -> None:
    twin = build(MLP)
    expected = torchs(torch.optim.Adam(twin.parameters(), lr=0.05, betas=(0.8, 0.95), eps=1e-12), twin, 6)
    adam = replace(EVERYBODY, optimizer="adam", momentum=0.8, second_momentum=0.95, adam_floor=1e-24)
    np.testing.assert_allclose(ours(adam), expected, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_the_pull_to_the_start_is_the_penalty_in_the_loss(momentum: float) -> None:
    twin = build(MLP)
    expected = torchs(torch.optim.SGD(twin.parameters(), lr=0.3, momentum=momentum), twin, 6, pull=2.0)
    pulled = replace(EVERYBODY, learning_rate=0.3, momentum=momentum, proximal_mu=2.0)
    np.testing.assert_allclose(ours(pulled), expected, atol=1e-5)
    assert not np.allclose(ours(replace(pulled, proximal_mu=0.0)), expected, atol=1e-3)


def test_the_pull_is_added_after_the_noise_and_never_changes_what_is_released() -> None:
    """The first step starts where it is pulled to, so with and without it is the same."""
    privacy, one = PrivacySettings(max_grad_norm=0.3), replace(EVERYBODY, local_steps=1)
    updates = [
        train(build(MLP), *records(), replace(one, proximal_mu=mu), privacy, 1.0, Randomness.insecure(5)).update
        for mu in (0.0, 9.0)
    ]
    np.testing.assert_array_equal(*updates)


def test_adam_takes_the_noises_variance_off_the_second_moment() -> None:
    """Against the paper's formulas, step by step in numpy, with noise that differs from step to step."""
    training = TrainingSettings(
        optimizer="adam", momentum=0.9, second_momentum=0.99, adam_floor=1e-4, lot_size=20.0, learning_rate=0.1
    )
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(model.weight)
    descent, rng = Descent(model, training), np.random.default_rng(1)
    weights, m, v, phi = np.ones(3), np.zeros(3), np.zeros(3), 0.0
    for t in range(1, 8):
        noise_std = 3.0 + t
        total = np.array([60.0, 5.0, 0.0]) + rng.normal(0, noise_std, 3)
        descent.step(Released(torch.tensor(total), noise_std))
        g = total / 20.0
        m, v, phi = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2, 0.99 * phi + 0.01 * (noise_std / 20) ** 2
        corrected = v / (1 - 0.99**t) - phi / (1 - 0.99**t)
        weights = weights - 0.1 * (m / (1 - 0.9**t)) / np.sqrt(np.maximum(corrected, 1e-4))
        np.testing.assert_allclose(descent.weights, weights, rtol=1e-12)


def test_adam_under_noise_steps_as_far_as_without() -> None:
    """Left in, noise of ten times the gradient makes each step ten times shorter; that is the bias."""
    steps, moved = 4000, {}
    for noise_std in (0.0, 10.0):
        model = nn.Linear(200, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        training = TrainingSettings(
            optimizer="adam", momentum=0.0, second_momentum=0.9999, adam_floor=1e-3, lot_size=1.0, learning_rate=1e-3
        )
        descent, rng = Descent(model, training), np.random.default_rng(0)
        for _ in range(steps):
            total = 1.0 + rng.normal(0, noise_std, 200) if noise_std else np.ones(200)
            descent.step(Released(torch.tensor(total), noise_std))
        moved[noise_std] = -descent.weights.mean()
    assert moved[0.0] == pytest.approx(steps * 1e-3, rel=1e-6)
    assert moved[10.0] > moved[0.0] / 3


def test_moments_begin_at_zero_in_every_round() -> None:
    for optimizer in ("sgd", "adam"):
        training = replace(EVERYBODY, optimizer=optimizer, momentum=0.9, local_steps=1)
        first, second = ours(training), ours(training)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_schedules_are_those_of_torch(steps: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    known = {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=steps),
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, total_iters=steps),
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    }
    for schedule, make in known.items():
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler, training = make(optimizer), TrainingSettings(schedule=schedule)
        for step in range(steps):
            assert rate_at(step, steps, training) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
            optimizer.step()
            scheduler.step()


def test_a_warm_up_rises_to_the_whole_rate_and_the_schedule_begins_there() -> None:
    training = TrainingSettings(schedule="linear", warmup_steps=4)
    rates = [rate_at(step, 9, training) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert rate_at(3, 2, training) == pytest.approx(0.8)  # a warm-up longer than the run


def test_a_schedule_goes_on_over_rounds() -> None:
    """Two rounds of three steps are one round of six, when nothing else is kept between them."""
    falling = replace(EVERYBODY, schedule="cosine", warmup_steps=1, learning_rate=0.5)
    model = build(MLP)
    for number in (1, 2):
        train(model, *records(), replace(falling, local_steps=3), NONE, 0.0, Randomness.from_os(), number, 2)
    np.testing.assert_allclose(parameters_of(model), ours(falling), atol=1e-6)
    assert math.isclose(rate_at(3, 6, falling), (1 + math.cos(math.pi * 2 / 5)) / 2)
