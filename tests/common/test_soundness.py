"""Proves: what no analysis covers is refused, saying what is allowed and where to read why."""

import pytest

from common.config import fill, override
from common.errors import ConfigError
from common.federation import Plan

SHARED = {
    "privacy": {"mode": "distributed"},
    "training": {"local_steps": 1},
    "federation": {"min_cohort": 4},
}

KRUM = ["robustness.rule=multi-krum", "robustness.byzantine=1", "robustness.buckets=7"]


@pytest.mark.parametrize(
    ("changes", "what", "source"),
    [
        (["training.local_steps=2"], "training.local_steps = 2", "2102.06387"),
        (["training.momentum=0.9"], "training.momentum = 0.9", "2003.00295"),
        (["training.sampling=shuffle"], "training.sampling = 'shuffle'", "1812.00984"),
        (["privacy.mode=local", "training.sampling=shuffle"], "training.sampling = 'shuffle'", "1812.00984"),
        (["training.oversampling=smote"], "training.oversampling = 'smote'", "2411.05733"),
        (["privacy.mode=local", "training.oversampling=smote"], "training.oversampling = 'smote'", "2411.05733"),
        (["encryption.preset=none"], "encryption.preset = 'none'", "2102.06387"),
        (["privacy.mode=site", "encryption.preset=none"], "encryption.preset = 'none'", "2102.06387"),
        (["privacy.colluding=4"], "privacy.colluding = 4", "2102.06387"),
        (["encryption.layer_scales=[1.0]"], "encryption.layer_scales", "2102.06387"),
        (["encryption.rounding=conditional"], "encryption.rounding = 'conditional'", "2102.06387"),
        (["privacy.mode=site", "metrics.every=1"], "metrics.every = 1", "1710.06963"),
        (["privacy.mode=local", "encryption.preset=none", "metrics.every=1"], "metrics.every = 1", "3133982"),
        (["training.q=1.0"], "training.q = 1.0", "1905.10497"),
        (["privacy.mode=local", "encryption.preset=none", "training.q=0.5"], "training.q = 0.5", "1902.00146"),
        (["privacy.mode=none", "training.q=2.0"], "training.q = 2.0", "1905.10497"),
        (["robustness.byzantine=1"], "robustness.byzantine = 1 with rule = 'mean'", "1703.02757"),
        (["robustness.buckets=4"], "robustness.buckets = 4 with rule = 'mean'", "2006.09365"),
        (["robustness.rule=median", "robustness.buckets=4"], "byzantine = 0 with rule = 'median'", "1703.02757"),
        ([*KRUM, "robustness.buckets=0"], "rule = 'multi-krum' on ciphertexts", "2006.09365"),
        (
            [*KRUM, "robustness.buckets=4"],
            "robustness.buckets = 4 with byzantine = 1 and rule = 'multi-krum'",
            "2006.09365",
        ),
        ([*KRUM, "robustness.byzantine=2"], "byzantine = 2 with privacy.colluding = 1", "2102.06387"),
        (
            ["privacy.mode=none", "encryption.preset=none", "training.q=1.0", *KRUM[:2]],
            "training.q = 1.0 with robustness.rule = 'multi-krum'",
            "2012.04221",
        ),
        ([*KRUM, "privacy.colluding=4"], "privacy.colluding = 4", "2102.06387"),
    ],
)
def test_an_unsound_plan_is_refused_with_its_reason(changes: list[str], what: str, source: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        fill(Plan, override(SHARED, changes))
    assert what in refusal.value.message
    assert "allowed: " in refusal.value.hint
    assert source in refusal.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["training.server_momentum=0.9", "training.tail_average=0.5", "encryption.rotate=true", "metrics.every=3"],
        ["privacy.mode=site", "training.local_steps=20", "training.momentum=0.9", "training.sampling=shuffle"],
        ["privacy.mode=local", "training.local_steps=20", "training.momentum=0.9", "encryption.preset=none"],
        ["privacy.mode=none", "training.sampling=shuffle", "encryption.preset=none"],
        ["privacy.mode=none", "encryption.preset=none", "training.q=2.0"],
        KRUM,
        ["privacy.mode=local", "encryption.preset=none", *KRUM[:2]],
        ["privacy.mode=none", "training.oversampling=smote"],
        ["privacy.mode=site", "training.oversampling=smote"],
    ],
)
def test_a_sound_plan_is_not(changes: list[str]) -> None:
    fill(Plan, override(SHARED, changes))
