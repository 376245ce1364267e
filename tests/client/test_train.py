"""Proves: what training releases is a noised sum over public constants, empty batches included, and costs what it says.

Statistics: each test raises a false alarm with chance at most 1e-6 per run, over fresh randomness.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from client.train import train
from common.errors import ConfigError
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build, load_parameters, parameters_of
from common.randomness import Randomness

FALSE_ALARM = 1e-6
MLP = ModelSettings("mlp", (4,), 3, hidden=(5,))
LOTS = TrainingSettings(local_steps=3, sample_rate=0.5, lot_size=8, learning_rate=0.7, momentum=0.6)
LOCAL, NONE = PrivacySettings(max_grad_norm=0.3), PrivacySettings(mode="none")


def records(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)


def noise_of_steps(features: np.ndarray, labels: np.ndarray, runs: int, training: TrainingSettings) -> np.ndarray:
    """The noise in the sums of `runs` single steps, in units of noise std: (runs, d)."""
    model, randomness, sigma = build(MLP), Randomness.from_os(), 2.0
    start, rows = parameters_of(model), []
    for _ in range(runs):
        load_parameters(model, start)
        trained = train(model, features, labels, training, LOCAL, sigma, randomness)
        rows.append(trained.update * -training.lot_size / training.learning_rate / (sigma * LOCAL.max_grad_norm))
    return np.stack(rows)


def chi_square_bounds(degrees: int) -> tuple[float, float]:
    from scipy.stats import chi2

    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], degrees)
    return float(low), float(high)


@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_batch_is_released_as_noise_of_the_full_scale(n: int) -> None:
    """Skipping an empty Poisson batch, as Opacus may, skips its noise and tells that nobody was drawn."""
    single = replace(LOTS, local_steps=1, sample_rate=1e-9)
    noise = noise_of_steps(*records(n), runs=100, training=single)
    low, high = chi_square_bounds(noise.size)
    assert low < np.sum(noise**2) < high


def test_noise_is_independent_over_coordinates_and_steps() -> None:
    """Products of neighbours, in parameters and in steps: near normal by the many terms, hence 6 sigma."""
    noise = noise_of_steps(*records(0), runs=200, training=replace(LOTS, local_steps=1))
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise[:100], noise[100:])):
        assert abs(np.sum(a * b)) < 6 * np.sqrt(a.size)


def test_the_number_of_records_does_not_show_in_the_scale_of_the_noise() -> None:
    """Opacus divides by int(N / batches), so its noise told N = 99, 100, 101 apart."""
    single = replace(LOTS, local_steps=1, sample_rate=1e-9)
    for n in (99, 100, 101):
        noise = noise_of_steps(*records(n), runs=60, training=single)
        low, high = chi_square_bounds(noise.size)
        assert low < np.sum(noise**2) < high


def test_seeds_2_to_the_32_apart_give_different_noise() -> None:
    """With PyTorch's CPU generator they give the same: whoever tries 2^32 seeds can subtract the noise."""
    updates = []
    for seed in (7, 7 + 2**32):
        model = build(MLP)
        updates.append(train(model, *records(0), LOTS, LOCAL, 1.0, Randomness.insecure(seed)).update)
    assert np.all(updates[0] != updates[1])


def test_every_step_draws_and_noises_anew() -> None:
    randomness, model = Randomness.insecure(3), build(MLP)
    first = train(model, *records(0), replace(LOTS, local_steps=1, momentum=0), LOCAL, 1.0, randomness).update
    second = train(model, *records(0), replace(LOTS, local_steps=1, momentum=0), LOCAL, 1.0, randomness).update
    assert np.all(first != second)


def test_each_records_gradient_is_clipped_before_the_sum() -> None:
    """Everybody drawn, hardly any noise: the update is the clipped sum over the lot size, by nothing but autograd."""
    features, labels = records(9)
    model = build(MLP)
    expected = np.zeros(parameters_of(model).size)
    for x, y in zip(torch.tensor(features), torch.tensor(labels), strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy()
        assert np.linalg.norm(gradient) > LOCAL.max_grad_norm
        expected -= 0.7 / 8 * gradient * min(1, LOCAL.max_grad_norm / np.linalg.norm(gradient))
    everybody = replace(LOTS, local_steps=1, sample_rate=1.0)
    trained = train(model, features, labels, everybody, LOCAL, 1e-3, Randomness.from_os())
    np.testing.assert_allclose(trained.update, expected, atol=2e-4)  # 7 times the noise


def test_one_record_cannot_move_the_model_further_than_its_clip() -> None:
    features, labels = records(40)
    features[7] *= 1e6
    everybody = replace(LOTS, local_steps=1, sample_rate=1.0)
    kept = np.arange(40) != 7
    updates = [
        train(build(MLP), *batch, everybody, LOCAL, 1e-3, Randomness.insecure(1)).update
        for batch in ((features, labels), (features[kept], labels[kept]))
    ]
    assert np.linalg.norm(updates[0] - updates[1]) <= LOCAL.max_grad_norm * 0.7 / 8 * 1.001


def test_momentum_is_that_of_torch() -> None:
    """Without noise and with everybody drawn, lots are plain full-batch descent."""
    features, labels = records(8)
    everybody = replace(LOTS, sample_rate=1.0, local_steps=4)
    model, twin = build(MLP), build(MLP)
    trained = train(model, features, labels, everybody, NONE, 0.0, Randomness.from_os())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.7, momentum=0.6)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(twin(torch.tensor(features)), torch.tensor(labels)).backward()
        optimizer.step()
    np.testing.assert_allclose(parameters_of(model), parameters_of(twin), atol=1e-6)
    np.testing.assert_allclose(trained.update, parameters_of(twin) - parameters_of(build(MLP)), atol=1e-6)


def test_shuffled_epochs_see_every_record_once_and_are_plain_sgd() -> None:
    features, labels = records(10)
    shuffle = replace(LOTS, sampling="shuffle", local_epochs=2, batch_size=4)
    model, twin, seen = build(MLP), build(MLP), []
    hook = model.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].numpy()))
    train(model, features, labels, shuffle, NONE, 0.0, Randomness.from_os())
    hook.remove()
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    for epoch in (np.concatenate(seen[:3]), np.concatenate(seen[3:])):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, features))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.7, momentum=0.6)
    for batch in seen:
        optimizer.zero_grad()
        matches = [int(np.flatnonzero((features == row).all(1))[0]) for row in batch]
        F.cross_entropy(twin(torch.tensor(batch)), torch.tensor(labels[matches])).backward()
        optimizer.step()
    np.testing.assert_allclose(parameters_of(model), parameters_of(twin), atol=1e-6)


@pytest.mark.parametrize("privacy", [LOCAL, NONE])
def test_the_update_is_new_minus_old_and_the_model_holds_the_new(privacy: PrivacySettings) -> None:
    model = build(MLP)
    before = parameters_of(model)
    trained = train(model, *records(20), LOTS, privacy, 1.0, Randomness.from_os())
    assert trained.update.dtype == np.float64
    assert trained.seconds > 0
    np.testing.assert_allclose(before + trained.update, parameters_of(model), atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_training_with_privacy_but_without_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="noise"):
        train(build(MLP), *records(5), LOTS, LOCAL, sigma, Randomness.from_os())


@pytest.mark.parametrize(
    ("training", "privacy", "scale", "place"),
    [
        (replace(LOTS, lot_size=1e9), LOCAL, 1.0, "sum of gradients"),
        (LOTS, replace(LOCAL, max_grad_norm=1e-44), 1.0, "sum of gradients"),
        (LOTS, replace(LOCAL, max_grad_norm=1e35), 1.0, "sum of gradients"),
        (replace(LOTS, learning_rate=1e-14), LOCAL, 1.0, "weights"),
        (LOTS, LOCAL, 1e14, "weights"),
    ],
)
def test_noise_that_rounding_would_swallow_is_refused(
    training: TrainingSettings, privacy: PrivacySettings, scale: float, place: str
) -> None:
    model = build(MLP)
    load_parameters(model, parameters_of(model) * scale)
    with pytest.raises(ConfigError, match=f"lost to rounding in the {place}"):
        train(model, *records(5), training, privacy, 1.0, Randomness.from_os())


def test_noise_too_small_for_float32_weights_still_reaches_the_update() -> None:
    """Steps of 1e-9 on weights of 1 vanish in float32; the update keeps them."""
    model = build(MLP)
    load_parameters(model, np.ones(parameters_of(model).size))
    trained = train(model, *records(0), replace(LOTS, learning_rate=1e-8), LOCAL, 1.0, Randomness.from_os())
    assert np.all(parameters_of(model) == 1)
    assert np.all(trained.update != 0)


def test_a_model_that_mixes_records_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"1 \(BatchNorm1d\) mixes") as refusal:
        train(model, *records(5), LOTS, LOCAL, 1.0, Randomness.from_os())
    assert "GroupNorm(4, 4)" in refusal.value.hint


def test_read_only_records_are_taken_as_they_are() -> None:
    features, labels = records(20)
    features.flags.writeable = labels.flags.writeable = False
    for training, privacy in ((LOTS, LOCAL), (LOTS, NONE), (replace(LOTS, sampling="shuffle"), NONE)):
        train(build(MLP), features, labels, training, privacy, 1.0, Randomness.from_os())


def test_training_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    train(build(MLP), *records(20), LOTS, LOCAL, 1.0, Randomness.from_os())
    assert torch.equal(torch.get_rng_state(), state)
