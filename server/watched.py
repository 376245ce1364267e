"""Figures over the rounds, and the alerts that fired: from the records of rounds and the plan's rules alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.alerts import AlertRule

Series = Mapping[int, Mapping[str, float]]  # round -> value, low, high


@dataclass(frozen=True)
class Watched:
    """A rule, what it watches, and the rounds in which it fired. A figure that was never measured has no series."""

    rule: AlertRule
    series: Series
    fired: tuple[int, ...]


def series_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """By figure. What the sites measured together counts; what only a simulation sees where they did not."""
    together: dict[str, dict[int, Any]] = {}
    seen: dict[str, dict[int, Any]] = {}
    for record in rounds:
        by_group = record.get("fairness", {}).get("figures", {})
        for found, told in (
            (together, record.get("reported", {})),
            (together, by_group),
            (seen, record.get("metrics", {})),
        ):
            for name, figure in told.items():
                if figure["value"] is not None:
                    found.setdefault(name, {})[record["round"]] = figure
    return {**seen, **together}


def watched(rules: Sequence[AlertRule], rounds: Sequence[Mapping[str, Any]]) -> list[Watched]:
    """In the order of the rules. rounds: of the whole run so far."""
    found = series_of(rounds)
    of_rule = [(rule, found.get(rule.figure, {})) for rule in rules]
    values = [{number: figure["value"] for number, figure in series.items()} for _, series in of_rule]
    return [Watched(rule, series, rule.fires_in(by)) for (rule, series), by in zip(of_rule, values, strict=True)]


def alerts_of(rules: Sequence[AlertRule], rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For a report: each rule, in how many rounds its figure was measured, and those in which it fired."""
    return [
        {"rule": str(each.rule), **asdict(each.rule), "measured": len(each.series), "fired": list(each.fired)}
        for each in watched(rules, rounds)
    ]
