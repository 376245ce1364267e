"""Proves: a rule fires when its figure was beyond its limit for as long as it says, or is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.alerts import AlertRule
from common.config import fill
from common.errors import ConfigError
from common.federation import MonitoringSettings
from common.telemetry import Number

VALUES = {2: 0.5, 4: 0.9, 6: 0.95, 8: 0.4, 10: 0.99}


@pytest.mark.parametrize(
    ("when", "limit", "rounds", "fired"),
    [
        ("above", 0.8, 1, (4, 6, 10)),
        ("above", 0.8, 2, (6,)),
        ("above", 0.8, 3, ()),
        ("below", 0.5, 1, (8,)),
        ("moved", 0.1, 1, (4, 6, 10)),
        ("moved", 0.05, 1, (4, 6, 8, 10)),
        ("moved", 0.05, 4, (10,)),
    ],
)
def test_by_hand(when: str, limit: float, rounds: int, fired: tuple[int, ...]) -> None:
    assert fill(AlertRule, {"figure": "auc", "when": when, "limit": limit, "rounds": rounds}).fires_in(VALUES) == fired


@given(
    st.dictionaries(st.integers(1, 60), st.floats(-1, 1), max_size=30),
    st.sampled_from(["above", "below", "moved"]),
    st.floats(0, 1),
    st.integers(1, 4),
)
def test_a_longer_rule_fires_where_a_shorter_does_and_so_many_rounds_later(values, when, limit, rounds) -> None:
    short, long = (AlertRule("auc", when, limit, n).fires_in(values) for n in (rounds, rounds + 1))
    assert set(long) <= set(short)
    measured = sorted(values)
    for number in long:
        assert measured[measured.index(number) - 1] in short
    assert all(measured.index(number) >= rounds - 1 for number in short)


def test_the_order_of_records_does_not_matter_and_nothing_measured_is_nothing_fired() -> None:
    rule = AlertRule("auc", "moved", 0.05, 4)
    assert rule.fires_in(dict(reversed(VALUES.items()))) == rule.fires_in(VALUES)
    assert rule.fires_in({}) == ()


def test_a_rule_in_words() -> None:
    assert str(AlertRule("auc", "below", 0.8)) == "auc below 0.8"
    assert str(AlertRule("auc", "moved", 0.05, 3)) == "auc moved by more than 0.05, 3 times in a row"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"limit": math.nan}, "limit"),
        ({"limit": math.inf}, "limit"),
        ({"when": "moved", "limit": -0.1}, "limit"),
        ({"rounds": 0}, "rounds"),
        ({"figure": ""}, "figure"),
        ({"figure": "a" * 101}, "figure"),
        ({"figure": "auc\n"}, "figure"),
        ({"when": "near"}, "when"),
        ({"rounds": 1.5}, "rounds"),
        ({"until": 3}, "until"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(wrong: dict, named: str) -> None:
    rule = {"figure": "auc", "when": "above", "limit": 0.5, "rounds": 1} | wrong
    with pytest.raises(ConfigError, match=named):
        fill(MonitoringSettings, {"alerts": [rule]})


def test_the_longest_rule_fits_where_its_name_is_a_label() -> None:
    longest = AlertRule("a" * 100, "moved", 1.234567e-300, 1000)
    assert Number("veilfed_coordinator_alerts_total", 1, (str(longest),)).counts


def test_the_same_rule_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.alerts"):
        MonitoringSettings((AlertRule("auc", "above", 1), AlertRule("auc", "above", 1)))
