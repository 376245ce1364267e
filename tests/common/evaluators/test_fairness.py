"""Proves: without noise the gaps are fairlearn's on pooled records; with it, intervals hold what 95 % promises."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from common.errors import ConfigError
from common.evaluators.fairness import (
    Fairness,
    calibration_by_group,
    calibration_difference,
    demographic_parity_difference,
    equalized_odds_difference,
    selection_rates,
    worst_group,
)
from common.evaluators.groups import GroupCells, GroupCounts
from common.evaluators.report import Material

VECTORS = Path(__file__).parents[2] / "vectors"
LEVELS = {"sex": ("f", "m"), "race": ("a", "b", "c")}
FAIRLEARNS = ("demographic_parity_difference", "equalized_odds_difference", "worst_accuracy")


def counted(drawn: dict[str, list], bins: int, sites: int = 1, noise_std: float = 0.0) -> GroupCounts:
    """What the sites' tallies add up to."""
    cells, scores, labels = GroupCells(LEVELS, bins), np.array(drawn["scores"]), np.array(drawn["labels"])
    rows, groups = np.column_stack([1 - scores, scores]), {name: np.array(drawn[name]) for name in LEVELS}
    parts = np.array_split(np.arange(len(labels)), sites)
    tallies = [cells.tally(rows[at], labels[at], {name: groups[name][at] for name in groups}) for at in parts]
    return GroupCounts(cells, np.sum(tallies, axis=0), noise_std)


def found_in(counts: GroupCounts) -> dict[str, float]:
    return {name: found.value for name, found in Fairness().evaluate(Material(groups=counts)).figures.items()}


@pytest.mark.parametrize("case", json.loads((VECTORS / "fairness.json").read_text()), ids=lambda case: case["records"])
@pytest.mark.parametrize("bins", [2, 16])
def test_without_noise_every_figure_is_that_of_fairlearn_on_pooled_records(case: dict, bins: int) -> None:
    sys.path.insert(0, str(VECTORS))
    try:
        from make_fairness_vectors import predictions
    finally:
        sys.path.remove(str(VECTORS))
    found = found_in(counted(predictions(case["seed"], case["records"]), bins, sites=7))
    for by, expected in case["fairlearn"].items():
        for name, value in expected.items():
            assert found[f"{by}: {name}"] == pytest.approx(value, abs=1e-9), (by, name)


def test_fairlearn_itself_says_the_same_of_fresh_predictions() -> None:
    pytest.importorskip("fairlearn.metrics", reason="fairlearn: pip install 'veilfed[dev]'")
    sys.path.insert(0, str(VECTORS))
    try:
        from make_fairness_vectors import by_fairlearn, predictions
    finally:
        sys.path.remove(str(VECTORS))
    drawn = predictions(int(np.random.default_rng().integers(1 << 30)), 3000)
    found = found_in(counted(drawn, 16, sites=10))
    for by in LEVELS:
        for name, value in by_fairlearn(drawn["labels"], drawn["scores"], drawn[by]).items():
            assert found[f"{by}: {name}"] == pytest.approx(value, abs=1e-9), (by, name)


# What 3 x 2 groups are like in truth: their share, of them class 1, and of class 1 and 0 those named 1.
SHARES = np.array([0.25, 0.15, 0.1, 0.25, 0.15, 0.1])
BASE = np.array([0.3, 0.35, 0.25, 0.45, 0.4, 0.5])
HIT, FALSE = np.array([0.7, 0.65, 0.6, 0.8, 0.75, 0.7]), np.array([0.1, 0.12, 0.15, 0.2, 0.18, 0.1])


def true_cells() -> np.ndarray:
    """Chances of every cell: (group, class, named)."""
    negative = (1 - BASE)[:, None] * np.column_stack([1 - FALSE, FALSE])
    positive = BASE[:, None] * np.column_stack([1 - HIT, HIT])
    return SHARES[:, None, None] * np.stack([negative, positive], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(("records", "noise_std"), [(2000, 0.0), (2000, 10.0), (2000, 25.0), (400, 4.0), (20000, 25.0)])
def test_intervals_cover_the_truth_and_the_pooled_number(records: int, noise_std: float) -> None:
    """1,000 draws of records and noise; false alarm 1e-6 for each figure if its true coverage is 94 %.

    Both the figure of the population and the pooled records' own, which no noise has touched, must be inside."""
    random, cells = np.random.default_rng(), GroupCells(LEVELS)
    chances = true_cells().reshape(-1)
    truth = found_in(GroupCounts(cells, chances * 1e9, 0.0))
    told, covered, pooled_covered = (dict.fromkeys(truth, 0) for _ in range(3))
    for _ in range(1000):
        drawn = random.multinomial(records, chances).astype(float)
        pooled = found_in(GroupCounts(cells, drawn, 0.0))
        noised = GroupCounts(cells, drawn + noise_std * random.normal(size=cells.size), noise_std)
        for name, found in Fairness().evaluate(Material(groups=noised)).figures.items():
            told[name] += 1
            covered[name] += found.low <= truth[name] <= found.high
            pooled_covered[name] += found.low <= pooled[name] <= found.high
    assert sum(told.values()) > 900 * len(told) or noise_std / records > 0.009
    for name in truth:
        least = binom.ppf(1e-6, told[name], 0.94)
        assert covered[name] >= least, (name, covered[name], told[name])
        assert pooled_covered[name] >= least, (name, pooled_covered[name], told[name])


def test_an_interval_without_the_noise_in_it_would_miss() -> None:
    """The same sums, read as if they held no noise, miss far more often: the noise is in the interval for a reason."""
    random, cells, missed = np.random.default_rng(), GroupCells(LEVELS), 0
    chances = true_cells().reshape(-1)
    truth = demographic_parity_difference(GroupCounts(cells, chances * 1e9, 0.0).by("sex")).value
    for _ in range(300):
        sums = random.multinomial(2000, chances) + 25.0 * random.normal(size=cells.size)
        found = demographic_parity_difference(GroupCounts(cells, sums, 0.0).by("sex"))
        missed += not found.low <= truth <= found.high
    assert missed > 60  # of 300; 15 were promised


def test_where_eight_groups_are_alike_chance_is_not_taken_for_a_gap() -> None:
    """Some two of eight always differ; the intervals must reach 0. 500 draws; false alarm 1e-6 at 90 % for both."""
    cells = GroupCells({"site": tuple("abcdefgh")})
    chances, random, reached = np.tile([0.35, 0.15, 0.1, 0.4], 8) / 8, np.random.default_rng(), 0
    for _ in range(500):
        tables = GroupCounts(cells, random.multinomial(2400, chances).astype(float), 0.0).by("site")
        reached += max(demographic_parity_difference(tables).low, equalized_odds_difference(tables).low) == 0.0
    assert reached >= binom.ppf(1e-6, 500, 0.90)


def test_by_hand() -> None:
    """f: 8 of 20 named 1, 6 of 10 positives found; m: 12 of 20, 9 of 10."""
    cells = GroupCells({"sex": ("f", "m")})
    counts = GroupCounts(cells, np.array([8.0, 2, 4, 6, 7, 3, 1, 9]), 0.0).by("sex")
    assert {group: rate.value for group, rate in selection_rates(counts).items()} == {"f": 0.4, "m": 0.6}
    found = demographic_parity_difference(counts)
    spread = sum(p * (1 - p) / 20 for p in (9 / 22, 13 / 22))
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(1.959964 * spread**0.5)
    assert equalized_odds_difference(counts).value == pytest.approx(0.3)
    name, worst = worst_group(counts)
    assert (name, worst.value) == ("f", 0.7)


def test_calibration_by_group_is_observed_minus_promised() -> None:
    cells = GroupCells({"sex": ("f", "m")}, bins=4)
    sums = np.zeros((2, 2, 4))
    sums[0, 1, 3], sums[0, 0, 3] = 30, 70  # promised 7/8, came true 0.3
    sums[1, 1, 1], sums[1, 0, 1] = 40, 60  # promised 3/8, came true 0.4
    found = calibration_by_group(GroupCounts(cells, sums.reshape(-1), 0.0).by("sex"))
    assert {group: rate.value for group, rate in found.items()} == pytest.approx({"f": 0.3 - 7 / 8, "m": 0.4 - 3 / 8})


@pytest.mark.parametrize("noise_std", [0.0, 6.0])
def test_the_interval_of_a_calibration_gap_holds_that_of_the_scores_themselves(noise_std: float) -> None:
    """Not only of the bins' middles. 300 draws of 3,000 records; false alarm 1e-6 if the true coverage is 94 %."""
    random, cells, held = np.random.default_rng(), GroupCells({"sex": ("f", "m")}, 16), 0

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sex, score = random.choice(["f", "m"], n), random.beta(2, 4, n)
        labels = random.random(n) < np.clip(score + np.where(sex == "f", 0.1, -0.05), 0, 1)
        return sex, score, labels.astype(int)

    def surplus(sex: np.ndarray, score: np.ndarray, labels: np.ndarray) -> float:
        each = [float((labels - score)[sex == level].mean()) for level in "fm"]
        return abs(each[0] - each[1])

    truth = surplus(*drawn(1_000_000))
    for _ in range(300):
        sex, score, labels = drawn(3000)
        sums = cells.tally(np.column_stack([1 - score, score]), labels, {"sex": sex})
        noised = GroupCounts(cells, sums + noise_std * random.normal(size=cells.size), noise_std)
        found = calibration_difference(noised.by("sex"))
        held += found.low <= truth <= found.high
        assert found.high - found.low < 0.35
    assert held >= binom.ppf(1e-6, 300, 0.94)


def test_a_group_that_noise_drowns_is_named_and_not_judged() -> None:
    cells = GroupCells({"sex": ("f", "m", "x")})
    sums = np.array([400.0, 100, 100, 400, 300, 200, 100, 400, 5, 1, 2, 3])
    found = Fairness().evaluate(Material(groups=GroupCounts(cells, sums, 20.0)))
    assert any("of x" in remark for remark in found.remarks)
    assert found.figures["sex: demographic_parity_difference"].value == pytest.approx(0.1)
    hopeless = Fairness().evaluate(Material(groups=GroupCounts(cells, sums, 1000.0)))
    assert not hopeless.figures
    with pytest.raises(ConfigError, match="fewer than two groups"):
        demographic_parity_difference(GroupCounts(cells, sums, 1000.0).by("sex"))
