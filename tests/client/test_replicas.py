"""Proves: a lot that is split over devices gives one device's sum, with noise once, or the site refuses to train.

No GPU is needed: the processor stands for each of two or three devices.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.clipped_sum import ClippedSum, cross_entropy
from client.clipping import clipped_sum_for, shares_of
from client.clipping_modes import BookKeeping
from client.plain_sum import PlainSum
from client.releases import AdaptiveClipping
from client.replicas import Spread, SpreadClipped
from client.train import train
from common.errors import ConfigError
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build, parameters_of
from common.randomness import Randomness
from tests.client.test_clipping import TOKENS, Language, Recurrent, definition, make, mlp, with_batch
from tests.client.test_device import in_float32

CPU = torch.device("cpu")
ONE, TWO, THREE = (), (CPU,), (CPU, CPU)  # besides the model's own
SEVERAL = pytest.mark.parametrize("also_on", [TWO, THREE], ids=["two", "three"])
MODELS = ["mlp, changed in place", "conv2d", "layer called twice", "attention, masked", "partly frozen", "prelu"]
SMALL = ModelSettings("mlp", (4,), 3, hidden=(5,))
LOTS = TrainingSettings(local_steps=12, sample_rate=0.1, lot_size=4, learning_rate=0.5, momentum=0.6)
EVERY_KIND = {
    "flat": (LOTS, PrivacySettings(max_grad_norm=0.3)),
    "per-layer": (LOTS, PrivacySettings(clipping="per-layer", max_grad_norm=0.3)),
    "adaptive": (LOTS, PrivacySettings(clipping="adaptive", max_grad_norm=0.3)),
    "adam": (replace(LOTS, optimizer="adam", learning_rate=0.01), PrivacySettings(max_grad_norm=0.3)),
    "distributed": (replace(LOTS, local_steps=1), PrivacySettings(mode="distributed", max_grad_norm=0.3)),
    "site": (LOTS, PrivacySettings(mode="site")),
    "none": (LOTS, PrivacySettings(mode="none")),
    "none, shuffled": (replace(LOTS, sampling="shuffle", local_epochs=2, batch_size=7), PrivacySettings(mode="none")),
}


def spread_clipped(
    model: nn.Module,
    also_on: Sequence[torch.device],
    features: Tensor,
    labels: Tensor,
    bound: float,
    shares: tuple[float, ...] = (),
) -> SpreadClipped:
    given = {"max_grad_norm": bound, "features": features, "labels": labels, "shares": shares}
    return SpreadClipped(model, also_on, partial(clipped_sum_for, **given), features, labels)


def records(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)


def trained(kind: str, also_on: Sequence[torch.device], n: int = 20, bfloat16: bool = False) -> np.ndarray:
    """The update of a small model under fixed randomness."""
    training, privacy = EVERY_KIND[kind]
    given = training, privacy, 1.0, Randomness.insecure(7)
    return train(build(SMALL), *records(n), *given, bfloat16=bfloat16, also_on=also_on).update


@SEVERAL
@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
@pytest.mark.parametrize("name", MODELS)
def test_clipped_sums_are_those_of_one_device(name: str, clipping: str, also_on: Sequence[torch.device]) -> None:
    model, features, labels = make(name)
    bound = float(definition(model, features, labels, 1.0)[1].median())
    shares = shares_of(model, clipping, ())
    with clipped_sum_for(model, bound, features, labels, shares=shares) as alone:
        expected = [alone.of(features[:n], labels[:n]).clone() for n in range(len(labels) + 1)]
    with spread_clipped(model, also_on, features, labels, bound, shares) as together:
        for n, one in enumerate(expected):  # none, fewer than devices, more than devices
            assert float((together.of(features[:n], labels[:n]) - one).abs().max()) <= 1e-10
        again = together.of(features, labels).clone()
        assert torch.equal(together.of(features, labels), again)


@SEVERAL
@pytest.mark.parametrize("name", MODELS)
def test_in_float32_they_are_the_same_to_its_digits(name: str, also_on: Sequence[torch.device]) -> None:
    model, features, labels = in_float32(name)
    with clipped_sum_for(model, 0.1, features, labels) as alone:
        expected = alone.of(features, labels).clone()
    with spread_clipped(model, also_on, features, labels, 0.1) as together:
        found = together.of(features, labels)
    assert found.dtype == torch.float32
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize(
    ("build", "shape", "mode"),
    [(partial(Language, tied=True), TOKENS, "vectorised"), (Recurrent, (5, 4), "one by one")],
    ids=["vectorised", "one by one"],
)
def test_every_way_to_clip_can_be_spread(build: Callable[[], nn.Module], shape: tuple[int, ...], mode: str) -> None:
    model, features, labels = with_batch(build, shape)
    expected, _ = definition(model, features, labels, 0.5)
    ways = []

    def sum_for(each: nn.Module) -> ClippedSum:
        ways.append(clipped_sum_for(each, 0.5, features, labels))
        return ways[-1]

    with SpreadClipped(model, TWO, sum_for, features, labels) as together:
        assert float((together.of(features, labels) - expected).abs().max()) <= 1e-10
    assert [way.mode for way in ways] == [mode] * 2


def test_every_device_has_its_even_part_of_the_lot_in_order() -> None:
    model, features, labels = with_batch(mlp, (4,), 8)
    seen: dict[int, list[Tensor]] = {}

    class Seen(BookKeeping):
        def of(self, features: Tensor, labels: Tensor) -> Tensor:
            seen.setdefault(id(self.model), []).append(features)
            return super().of(features, labels)

    with SpreadClipped(model, THREE, lambda each: Seen(each, 1.0), features, labels) as together:
        seen.clear()
        together.of(features, labels)
    parts = sorted((part for own in seen.values() for part in own), key=len, reverse=True)
    assert [len(part) for part in parts] == [3, 3, 2]
    assert len(seen) == 3
    assert torch.equal(seen[id(model)][0], features[:3])


@SEVERAL
def test_a_bound_that_adapts_counts_the_records_of_all_devices(also_on: Sequence[torch.device]) -> None:
    model, features, labels = make("conv2d")
    norms = definition(model, features, labels, 1.0)[1].sort().values
    privacy = PrivacySettings(clipping="adaptive", max_grad_norm=float(norms[3] + norms[4]) / 2)
    with clipped_sum_for(model, 1.0, features, labels) as alone:
        one = AdaptiveClipping(alone, 1.0, LOTS, privacy, Randomness.insecure(1))
        expected = [(one.noised_sum(features, labels).gradient_sum.clone(), one.bound) for _ in range(3)]
    with spread_clipped(model, also_on, features, labels, 1.0) as together:
        together.max_grad_norm = privacy.max_grad_norm
        together.of(features, labels)
        assert together.inside == 4
        several = AdaptiveClipping(together, 1.0, LOTS, privacy, Randomness.insecure(1))
        for gradient_sum, bound in expected:
            assert float((several.noised_sum(features, labels).gradient_sum - gradient_sum).abs().max()) <= 1e-10
            assert several.bound == pytest.approx(bound)
        together.of(features[:0], labels[:0])
        assert together.inside == 0


@SEVERAL
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_training_gives_the_update_of_one_device(kind: str, bfloat16: bool, also_on: Sequence[torch.device]) -> None:
    """Over many steps, of lots of 2 on average: weights that a replica does not get would show, noise drawn twice too.

    What bfloat16 rounds depends on a product's shape, so there the digits are fewer.
    """
    one, several = (trained(kind, devices, bfloat16=bfloat16) for devices in (ONE, also_on))
    assert np.linalg.norm(several - one) <= (2e-2 if bfloat16 else 1e-5) * np.linalg.norm(one)


@pytest.mark.parametrize("kind", ["flat", "per-layer", "adaptive"])
def test_noise_is_drawn_once_however_many_devices_there_are(kind: str) -> None:
    """Without records an update is noise alone: bit for bit the one of one device."""
    assert np.array_equal(trained(kind, ONE, n=0), trained(kind, THREE, n=0))


class Tampered(nn.Module):
    """Its copies differ in a weight that is not trained, as they would after a copy that went wrong."""

    def __init__(self, tamper: float) -> None:
        super().__init__()
        self.base, self.head, self.tamper = nn.Linear(4, 5), nn.Linear(5, 3), tamper
        self.base.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(features)))

    def __deepcopy__(self, memo: dict[int, object]) -> "Tampered":
        other = Tampered(self.tamper)
        other.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        other.base.weight += self.tamper
        return other


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_replica_that_differs_is_found_before_the_first_step(kind: str) -> None:
    given = *EVERY_KIND[kind], 1.0, Randomness.insecure(7)
    train(Tampered(0.0), *records(20), *given, also_on=THREE)
    model = Tampered(0.05)
    before, threads = parameters_of(model), threading.active_count()
    with pytest.raises(ConfigError, match="cpu, cpu does not give the sum of gradients that cpu gives") as refused:
        train(model, *records(20), *given, also_on=THREE)
    assert "one device in site.toml" in refused.value.hint
    assert np.array_equal(parameters_of(model), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert threading.active_count() == threads


def test_a_device_that_computes_something_else_is_found() -> None:
    model, features, labels = make("conv2d")

    def off(output: Tensor, labels: Tensor) -> Tensor:
        return 1.01 * cross_entropy(output, labels)

    def sum_for(each: nn.Module) -> ClippedSum:
        return BookKeeping(each, 100.0, cross_entropy if each is model else off)

    with (
        pytest.raises(ConfigError, match="does not give the sum"),
        SpreadClipped(model, TWO, sum_for, features, labels),
    ):
        pass


def test_modules_that_mix_records_are_refused_where_a_lot_is_split() -> None:
    """Without privacy they may be trained, but not in parts that know nothing of each other."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    given = *EVERY_KIND["none, shuffled"], 0.0, Randomness.insecure(7)
    train(model, *records(20), *given)
    with pytest.raises(ConfigError, match="together do not give the sum") as refused:
        train(model, *records(20), *given, also_on=TWO)
    assert "BatchNorm" in refused.value.hint


def test_a_model_that_cannot_be_copied_is_refused_in_words() -> None:
    model = build(SMALL)
    model.computed = next(model.parameters()) * 2
    with pytest.raises(ConfigError, match="cannot be copied"):
        train(model, *records(20), *EVERY_KIND["flat"], 1.0, Randomness.insecure(7), also_on=TWO)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_records_are_no_obstacle(n: int) -> None:
    one, several = (trained("flat", devices, n=n) for devices in (ONE, THREE))
    assert np.linalg.norm(several - one) <= 1e-5 * np.linalg.norm(one)


def test_buffers_that_change_reach_the_replicas() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, features: Tensor) -> Tensor:
            return self.linear(features) * self.scale

    model, features, labels = with_batch(Scaled, (4,))
    with PlainSum(model) as alone, Spread(model, TWO, PlainSum, features, labels) as together:
        for _ in range(2):
            model.scale = model.scale * 3
            assert float((together.of(features, labels) - alone.of(features, labels)).abs().max()) <= 1e-10


def test_dropout_is_no_obstacle_and_is_on_again_after_the_check() -> None:
    model, features, labels = with_batch(lambda: nn.Sequential(nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 3)), (4,))
    with spread_clipped(model, TWO, features, labels, 0.1) as together:
        assert model.training
        for own in (features[:3], features[3:]):  # each record on each of the devices
            part = torch.cat([own, own]), torch.zeros(6, dtype=torch.int64)
            assert not torch.equal(together.of(*part).clone(), together.of(*part))
        assert float(together.of(features[:1], labels[:1]).norm()) <= 0.1 * (1 + 1e-9)


def test_the_model_is_as_it_was_afterwards() -> None:
    model, features, labels = make("transformer")
    before, state, threads = copy.deepcopy(model.state_dict()), torch.get_rng_state(), threading.active_count()
    with spread_clipped(model, THREE, features, labels, 0.1) as together:
        together.of(features, labels)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert threading.active_count() == threads


def test_what_goes_wrong_on_one_device_reaches_whoever_asked_and_the_rest_goes_on() -> None:
    model, features, labels = make("conv2d")

    def losses(output: Tensor, labels: Tensor) -> Tensor:
        if (labels == 99).any():
            raise ArithmeticError("99")
        return cross_entropy(output, labels)

    with SpreadClipped(model, TWO, lambda each: BookKeeping(each, 0.1, losses), features, labels) as together:
        expected = together.of(features, labels).clone()
        broken = labels.index_fill(0, torch.tensor([5]), 99)  # on the second device
        with pytest.raises(ArithmeticError):
            together.of(features, broken)
        assert torch.equal(together.of(features, labels), expected)


def test_sums_in_threads_are_never_rounded_to_tf32() -> None:
    """The setting is one for all threads: whichever ends first must not put it back while others still sum."""
    seen, both = [], threading.Barrier(2, timeout=60)
    model, features, labels = make("conv2d")

    def losses(output: Tensor, labels: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            both.wait()
        seen.append(torch.backends.cudnn.allow_tf32)
        return cross_entropy(output, labels)

    before = torch.backends.cudnn.allow_tf32
    with SpreadClipped(model, TWO, lambda each: BookKeeping(each, 0.1, losses), features, labels) as together:
        for _ in range(20):
            together.of(features, labels)
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32 is before is True
