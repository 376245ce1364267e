"""Configuration: every mistake is named with its key, its value and what is allowed."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from common.config import fill, load_table, override, to_table
from common.errors import ConfigError
from common.federation import Plan, require


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, "inner.rate", self.rate, "above 0, at most 1")


@dataclass(frozen=True)
class Outer:
    count: int
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_a_table_becomes_settings_and_settings_become_the_table_again():
    table = {"count": 3, "names": ["x", "y"], "inner": {"rate": 1, "kind": "b"}}
    settings = fill(Outer, table)
    assert settings == Outer(3, ("x", "y"), Inner(1.0, "b"))
    assert fill(Outer, to_table(settings)) == settings


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"count": 3, "colour": 1}, ["colour is not a known key", "count, names, inner"]),
        ({"count": "3"}, ["count = '3'", "a whole number"]),
        ({"count": True}, ["count = True", "a whole number"]),
        ({"count": 3, "inner": {"rate": 0.0}}, ["inner.rate = 0.0", "above 0, at most 1"]),
        ({"count": 3, "inner": {"rate": math.nan}}, ["inner.rate = nan"]),
        ({"count": 3, "inner": {"kind": "c"}}, ["inner.kind = 'c'", "'a', 'b'"]),
        ({"count": 3, "inner": 5}, ["inner = 5", "table"]),
        ({"count": 3, "names": "x"}, ["names = 'x'", "a list"]),
        ({}, ["count is missing"]),
    ],
)
def test_a_mistake_is_refused_by_its_full_name(table, words):
    with pytest.raises(ConfigError) as refused:
        fill(Outer, table)
    said = f"{refused.value.message} ({refused.value.hint})"
    assert all(word in said for word in words), said


def test_overrides_reach_any_key_and_leave_the_file_alone():
    table = {"inner": {"rate": 0.5}}
    merged = override(table, ["inner.rate=0.25", "inner.kind=b", "count=7", 'names=["p", "q"]'])
    assert fill(Outer, merged) == Outer(7, ("p", "q"), Inner(0.25, "b"))
    assert table == {"inner": {"rate": 0.5}}


@pytest.mark.parametrize("assignment", ["inner.rate", "=3", ".x=1", "inner..rate=1", "count.x=1"])
def test_what_is_not_an_assignment_is_refused(assignment):
    with pytest.raises(ConfigError):
        override({"count": 1}, [assignment])


def test_a_broken_or_missing_file_is_named(tmp_path: Path):
    broken = tmp_path / "broken.toml"
    broken.write_text("rounds = = 3")
    for path in (broken, tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            load_table(path)


@pytest.mark.parametrize(
    "assignment",
    [
        "privacy.epsilon=0",
        "privacy.epsilon=nan",
        "privacy.epsilon=inf",
        "privacy.delta=0.5",
        "privacy.delta=0",
        "federation.rounds=0",
        "federation.min_cohort=1",
        "training.sample_rate=1.5",
        "training.sampling=shuffle",
        "encryption.preset=off",
        "privacy.max_grad_norm=-1",
        "model.classes=1",
    ],
)
def test_impossible_plans_are_refused_by_key(assignment):
    key, _, value = assignment.partition("=")
    with pytest.raises(ConfigError) as refused:
        fill(Plan, override({}, [assignment]))
    assert key in refused.value.message
    assert value in refused.value.message
    assert refused.value.hint
