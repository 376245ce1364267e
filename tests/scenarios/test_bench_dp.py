"""Proves: the bench measures the models it names, reports what fails, and a private step stays near a plain one."""

import pytest
import torch

from client.clipping import clipped_sum_for
from common.errors import ConfigError
from scenarios.bench import dp, epsilon
from scenarios.bench.dp_models import WORKS
from scenarios.cli import main


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [
        ("mlp-105k", 105_214, 0),
        ("cnn-555k", 554_922, 0),
        ("gpt2-1m", 1_063_680, 0),
        ("lora-37k", 36_864, 1_063_680),
        ("resnet18-11m", 11_173_962, 0),
        ("lora-of-gpt2-124m", 663_552, 124_439_808),
    ],
)
def test_models_have_the_size_their_name_says(name: str, trainable: int, frozen: int) -> None:
    work = WORKS[name]
    with torch.device("meta"):
        model = work.build()
        features, labels = work.draw(2)
        assert work.losses(model(features), labels).shape == (2,)
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    assert [sum(n for train, n in sizes if train is asked) for asked in (True, False)] == [trainable, frozen]


def test_the_largest_models_are_measured_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "_parts", list)
    monkeypatch.setattr(epsilon, "parts", list)
    monkeypatch.setattr(dp, "_peaks", lambda *_: {})
    monkeypatch.setattr(dp, "_measure", lambda work, *_: ([{"model": work.name, "mode": "sgd", "step_ms": 1.0}], []))
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    assert set(dp.run("cuda")["ratios"]) == set(WORKS)
    assert set(WORKS) - set(dp.run()["ratios"]) == {"resnet18-11m", "lora-of-gpt2-124m"}


def test_a_residual_network_is_kept_by_books() -> None:
    work = WORKS["resnet18-11m"]
    features, labels = work.draw(1)
    assert clipped_sum_for(work.build(), 1.0, features, labels, work.losses).mode == "book-keeping"


def test_a_mode_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dp.Step:
        raise ArithmeticError("no rule for this layer")

    monkeypatch.setattr(dp, "_MODES", {"sgd": dp._plain, "veilfed": dp._veilfed, "broken": broken})
    monkeypatch.setattr(dp, "_parts", list)
    monkeypatch.setattr(epsilon, "parts", list)
    found = dp.run(models=["mlp-105k"], seconds_per_model=0.1)
    assert [row["mode"] for row in found["rows"]] == ["sgd", "veilfed"]
    assert found["skipped"] == ["mlp-105k broken: ArithmeticError: no rule for this layer"]


def test_several_devices_are_measured_beside_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "_MODES", {"sgd": dp._plain, "veilfed": dp._veilfed})
    monkeypatch.setattr(dp, "_parts", list)
    monkeypatch.setattr(epsilon, "parts", list)
    found = dp.run("cpu,cpu", models=["mlp-105k"], seconds_per_model=0.1)
    assert list(found["ratios"]["mlp-105k"]) == ["sgd", "veilfed", "veilfed-x2"]
    assert found["skipped"] == []


def test_noise_and_batch_are_measured_beside_their_references_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dp, "WORKS", {})
    assert main(["bench", "dp"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "noise for 1,000,000, torch.normal",
        "Poisson batch of 256, DPDataLoader",
        "10,000 steps in 200 rounds",
    ):
        assert part in shown
    assert "ratio" in shown


def test_the_accountant_is_measured_on_the_same_run_as_the_reference_and_lies_just_above() -> None:
    once, every_round = epsilon.parts()
    assert 0 <= once["excess"] <= 0.02
    assert 0 < every_round["veilfed_ms"] / epsilon.ROUNDS < once["reference_ms"]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="--models"):
        dp.run(models=["resnet"])


@pytest.mark.slow
def test_a_private_step_is_near_a_plain_one_and_far_from_opacus() -> None:
    """Bounds are far from what a quiet machine shows (1.3, 0.025, 0.07, 0.9, 0.17), for a busy one."""
    threads = torch.get_num_threads()
    found = dp.run(models=["mlp-105k"], seconds_per_model=5)
    assert torch.get_num_threads() == threads
    assert found["skipped"] == []
    rows = {row["mode"]: row for row in found["rows"]}
    assert set(rows) == {"sgd", "veilfed", "opacus-hooks", "opacus-ghost", "opacus-ew", "opacus-functorch", "loop"}
    assert all({"model", "batch", "step_ms", "peak_mb"} <= set(row) for row in rows.values())
    assert found["ratios"]["mlp-105k"]["veilfed"] < 6
    assert rows["veilfed"]["step_ms"] < rows["opacus-hooks"]["step_ms"] / 4
    assert rows["veilfed"]["peak_mb"] < rows["opacus-hooks"]["peak_mb"] / 5
    noise, batch, *_ = found["parts"]
    assert noise["veilfed_ms"] < 3 * noise["reference_ms"]
    assert batch["veilfed_ms"] < batch["reference_ms"]
