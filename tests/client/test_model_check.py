"""Proves: before training one hears how each module is clipped, what cannot be, and what to put in its place."""

import pytest
import torch
from torch import Tensor, nn

from client import clipping_layers
from client.model_check import check_model
from common.errors import ConfigError


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.attention.out_proj.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.states, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.back.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.tanh(self.into(x)))


def images() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 3))
    return nn.Sequential(*layers).requires_grad_(True)


def test_every_module_with_parameters_is_told_with_its_way() -> None:
    model = images()
    model[1].requires_grad_(False)
    found = check_model(model, (3, 8, 8), lot_size=16)
    assert (found.mode, found.why, found.fix) == ("book-keeping", "", "")
    assert [(m.path, m.kind, m.trainable, m.frozen) for m in found.modules] == [
        ("0", "Conv2d", 224, 0),
        ("1", "GroupNorm", 0, 16),
        ("3", "Linear", 867, 0),
    ]
    assert [m.clipped for m in found.modules] == ["direct", "frozen", "product"]


def test_ghost_or_direct_is_told_as_training_will_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the layers after a lot, not guessed beside them."""
    monkeypatch.setattr(clipping_layers, "_DIRECT_BYTES", 0)
    assert check_model(images(), (3, 8, 8), lot_size=16).modules[0].clipped == "ghost"


def test_an_attention_is_told_once_with_its_parts() -> None:
    found = check_model(Attending(), (5, 8), lot_size=4)
    assert [(m.path, m.trainable, m.frozen) for m in found.modules] == [("attention", 216, 72), ("head", 27, 0)]


@pytest.mark.parametrize(
    ("model", "inputs", "reason", "fix"),
    [
        (Recurrent, (5, 4), "LSTM does not map one tensor to one", "torch.nn.Linear"),
        (Tied, (4,), "back (Linear) shares a parameter", "its own"),
    ],
)
def test_what_is_slow_is_told_with_the_reason_and_the_way_out(
    model: type[nn.Module], inputs: tuple[int, ...], reason: str, fix: str
) -> None:
    found = check_model(model(), inputs, lot_size=8)
    assert found.mode in ("vectorised", "one by one")
    assert all(m.clipped == found.mode for m in found.modules)
    assert reason in found.why
    assert fix in found.fix


def test_all_modules_that_mix_records_are_refused_at_once_each_with_its_replacement() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16))
    with pytest.raises(ConfigError, match=r"1 \(BatchNorm2d\), 3 \(BatchNorm2d\) mix the records") as refusal:
        check_model(nn.Sequential(*model, nn.Flatten(), nn.Linear(256, 3)), (3, 8, 8), lot_size=8)
    assert "1 with torch.nn.GroupNorm(4, 12), 3 with torch.nn.GroupNorm(8, 16)" in refusal.value.hint


def test_a_check_leaves_the_model_as_it_was() -> None:
    model = images()
    before = [p.clone() for p in model.parameters()]
    check_model(model, (3, 8, 8), lot_size=8)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert model.training
