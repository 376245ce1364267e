"""Proves: the bench measures the models it names, reports what fails, and a private step stays near a plain one."""

import pytest
import torch

from common.errors import ConfigError
from scenarios.bench import dp
from scenarios.bench.dp_models import WORKS


@pytest.mark.parametrize(
    ("name", "trainable"), [("mlp-105k", 105_214), ("cnn-555k", 554_922), ("gpt2-1m", 1_063_680), ("lora-37k", 36_864)]
)
def test_models_have_the_size_their_name_says(name: str, trainable: int) -> None:
    work = WORKS[name]
    model = work.build()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    features, labels = work.draw(2)
    assert work.losses(model(features), labels).shape == (2,)


def test_a_mode_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dp.Step:
        raise ArithmeticError("no rule for this layer")

    monkeypatch.setattr(dp, "_MODES", {"sgd": dp._plain, "veilfed": dp._veilfed, "broken": broken})
    monkeypatch.setattr(dp, "_parts", list)
    found = dp.run(models=["mlp-105k"], seconds_per_model=0.1)
    assert [row["mode"] for row in found["rows"]] == ["sgd", "veilfed"]
    assert found["skipped"] == ["mlp-105k broken: ArithmeticError: no rule for this layer"]


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
    noise, batch = found["parts"]
    assert noise["veilfed_ms"] < 3 * noise["reference_ms"]
    assert batch["veilfed_ms"] < batch["reference_ms"]
