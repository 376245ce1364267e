"""Proves: sums by group tell what the pooled records would, and one record moves them by one number, by 1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.evaluators.groups import SENSITIVITY, GroupCells, GroupCounts
from common.metrics import MetricsCode
from common.randomness import Randomness

LEVELS = {"sex": ("m", "f"), "race": ("c", "a", "b")}


def drawn(n: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    score = random.random(n)
    groups = {name: random.choice([*levels, "unheard of"], n) for name, levels in LEVELS.items()}
    return np.column_stack([1 - score, score]), random.integers(0, 2, n), groups


@pytest.mark.parametrize("bins", [2, 16])
def test_every_group_has_the_counts_of_its_own_records(bins: int) -> None:
    rows, labels, groups = drawn(2000)
    counts = GroupCounts(cells := GroupCells(LEVELS, bins), cells.tally(rows, labels, groups), 0.0)
    known = np.all([np.isin(groups[name], levels) for name, levels in LEVELS.items()], axis=0)
    edges = np.linspace(0, 1, bins + 1)
    for by in [("sex",), ("race",), ("sex", "race"), ("race", "sex")]:
        for group, table in counts.by(*by).items():
            chosen = known & np.all(
                [groups[name] == level for name, level in zip(by, group.split(", "), strict=True)], axis=0
            )
            for label in (0, 1):
                expected = np.histogram(rows[chosen & (labels == label), 1], edges)[0]
                np.testing.assert_array_equal(table.counts[label], expected)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 10_000))
def test_one_record_more_moves_one_number_by_one(n: int, seed: int) -> None:
    rows, labels, groups = drawn(n + 1, seed)
    if seed % 3 == 0:
        rows[-1] = np.nan
    cells = GroupCells(LEVELS, 4)
    fewer = cells.tally(rows[:-1], labels[:-1], {name: values[:-1] for name, values in groups.items()})
    moved = cells.tally(rows, labels, groups) - fewer
    assert np.linalg.norm(moved) <= SENSITIVITY
    assert np.abs(moved).sum() in (0.0, 1.0)


def test_the_noise_of_a_coarser_group_is_that_of_its_cells() -> None:
    cells = GroupCells(LEVELS, 2)
    counts = GroupCounts(cells, np.zeros(cells.size), 3.0)
    assert counts.by("sex")["f"].variance == 27.0
    assert counts.by("race")["a"].variance == 18.0
    assert counts.by("sex", "race")["f, a"].variance == 9.0


def test_counts_survive_the_road_that_encrypted_metrics_take() -> None:
    """Three sites, real encoding with noise on a grid: the sum is the pooled counts plus noise of the stated scale.

    False alarm under 1e-9: every number within 7 standard deviations."""
    cells, parts = GroupCells(LEVELS, 16), [drawn(500) for _ in range(3)]
    code = MetricsCode(bits=16, largest_count=500, std=20.0)
    tallies = [cells.tally(*part) for part in parts]
    random = Randomness.from_os()
    sent = [code.encode(tally.copy(), random.gaussian(cells.size, 1.0, np.float64)) for tally in tallies]
    sums = code.decode(np.sum(sent, axis=0))
    spread = code.noise_in_sum(3)
    assert np.abs(sums - np.sum(tallies, axis=0)).max() < 7 * spread
    assert np.std(sums - np.sum(tallies, axis=0)) > spread / 2
    assert GroupCounts(cells, sums, spread).by("sex")["m"].variance == pytest.approx(3 * 400 * 3)


def test_what_makes_no_sense_is_refused() -> None:
    rows, labels, groups = drawn(5)
    cells = GroupCells(LEVELS)
    with pytest.raises(ConfigError, match="race"):
        cells.tally(rows, labels, {"sex": groups["sex"]})
    with pytest.raises(ConfigError, match="labels of 0 and 1"):
        cells.tally(rows, labels + 5, groups)
    with pytest.raises(ConfigError, match="values of sex"):
        cells.tally(rows, labels, {**groups, "sex": groups["sex"][:2]})
    for levels, bins in [({}, 2), ({"a": ("x",)}, 2), ({"a": ("x", "x")}, 2), (LEVELS, 3), (LEVELS, 0)]:
        with pytest.raises(ConfigError):
            GroupCells(levels, bins)
    with pytest.raises(ConfigError, match="cells = "):
        GroupCells({name: tuple(map(str, range(90))) for name in "abc"})
    with pytest.raises(ConfigError):
        GroupCounts(cells, np.zeros(3), 0.0)
    with pytest.raises(ConfigError, match="noise_std"):
        GroupCounts(cells, np.zeros(cells.size), -1.0)
    with pytest.raises(ConfigError, match="no groups by"):
        GroupCounts(cells, np.zeros(cells.size), 0.0).by("age")
