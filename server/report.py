"""The report of a finished run: `report.json` for machines and, made from it alone, `report.html` for people."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomically
from server import plots
from server.disclosure import Disclosure, not_protected, round_up, who_learns_what
from server.summary import (
    GAPS,
    METRICS,
    RATES,
    at_a_glance,
    by_attribute,
    by_importance,
    change,
    complete,
    count,
    day,
    epsilon,
    figure,
    metric_name,
    number,
    plain,
    primary_metric,
    promises,
    size,
    spans,
    summary,
    words,
)
from server.watched import series_of

_TABLES = (
    *("federation", "model", "training", "privacy", "encryption", "metrics", "robustness", "monitoring"),
    *("data", "simulation"),
)
_ROUND: dict[str, Any] = {
    "round": 0,
    **dict.fromkeys(("seconds", "sites")),
    **{key: [] for key in ("left_out", "late", "buckets")},
    **{key: {} for key in ("metrics", "epsilon", "reported", "fairness", "importance")},
}
_SITE = dict.fromkeys(
    (
        "site",
        "epsilon",
        "delta",
        "noise_multiplier",
        "bytes_up",
        "bytes_down",
        "refusals",
        "records",
        "ledger_head",
        "trials",
    )
)
_WIRE = dict.fromkeys(("parameters", "bytes_up_per_parameter", "bytes_per_update", "header_bytes", "cohort_keys"))
_SIMULATORS = ("local", "ray")


def write_report(directory: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.json` and `report.html` into the directory; returns the path of the page.

    Each file is there whole or not at all. Numbers that are not finite become null. A key that the report lacks
    leaves its part of the page out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(report), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode()
    html = render(json.loads(data), hashlib.sha256(data).hexdigest())
    write_atomically(directory / "report.json", data)
    write_atomically(directory / "report.html", html.encode())
    return directory / "report.html"


def render(report: Mapping[str, Any], fingerprint: str) -> str:
    """The self-contained page. fingerprint: SHA-256 of the report.json that it was made from."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    report = _filled(report)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure,
        change=change,
        size=size,
        number=number,
        epsilon=epsilon,
        plain=plain,
        spans=spans,
        day=day,
        metric=metric_name,
        words=words,
    )
    facts, simulated = Disclosure.of(report), report["engine"] in _SIMULATORS
    return environment.get_template("report.html.j2").render(
        report,
        facts=facts,
        fingerprint=fingerprint,
        name=report["config"]["federation"].get("name") or "federation",
        simulated=simulated,
        few=plots.FEW,
        warnings=facts.warnings,
        glance=at_a_glance(report, facts),
        answers=summary(report, facts),
        parties=who_learns_what(facts),
        promises=promises(report["privacy"]) if facts.private else [],
        gaps=not_protected(facts, simulated),
        metrics={key: how for key, (_, how) in METRICS.items() if key in report["final"]},
        plots={key: Markup(svg) for key, svg in _plots(report, facts).items()},  # noqa: S704  # escaped as XML
        fairness=by_attribute(report["rounds"]),
        gap_names=GAPS,
        rate_names=RATES,
        last=next((entry["fairness"] for entry in reversed(report["rounds"]) if entry["fairness"]), {}),
        importance=by_importance(report["rounds"]),
        watched=list(dict.fromkeys(rule["figure"] for rule in report["alerts"] if rule["measured"])),
        contributions=_contributions(report["contribution"]),
        measured=[(entry["round"], entry["reported"]) for entry in report["rounds"] if entry["reported"]],
        absences=[(entry["round"], out) for entry in report["rounds"] for out in entry["left_out"]],
        late=[(entry["round"], out["site"]) for entry in report["rounds"] for out in entry["late"]],
    )


def _filled(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with every key that the page asks for; what was absent is empty or None."""
    filled: dict[str, Any] = {
        **dict.fromkeys(("outcome", "run", "created", "engine"), ""),
        **{key: {} for key in ("versions", "final", "final_by_site", "privacy", "mitigation", "contribution")},
        "insecure": [],
        "alerts": [],
        **report,
    }
    filled["config"] = {**{table: {} for table in _TABLES}, **report.get("config", {})}
    filled["baselines"] = {"non_private": {}, "central": {}, "alone": {}, **report.get("baselines", {})}
    filled["rounds"] = [{**_ROUND, **entry} for entry in report.get("rounds", [])]
    filled["sites"] = [{**_SITE, **site} for site in report.get("sites", [])]
    filled["wire"] = {**_WIRE, "scheme": None, **report.get("wire", {})}
    return filled


def _plots(report: Mapping[str, Any], facts: Disclosure) -> dict[str, str]:
    """Name -> SVG, of the figures that the report has numbers for."""
    rounds, final, baselines = report["rounds"], report["final"], report["baselines"]
    metric = primary_metric(final)
    label, drawn = metric_name(metric), {}

    by_round = {r["round"]: r["metrics"][metric] for r in rounds if complete(r["metrics"].get(metric))}
    if by_round:
        reference = (baselines["non_private"].get(metric) or {}).get("value")
        (first, before), *_, (last, after) = [*by_round.items()] * 2
        alt = f"{label} goes from {before['value']:.3f} in round {first} to {after['value']:.3f} in round {last}."
        drawn["utility"] = plots.utility_by_round(by_round, label, reference, alt)

    rows = _compared(final, baselines, metric)
    if len(rows) > 1:
        alt = f"{label}: {'; '.join(f'{name} {figure(figures)}' for name, figures, _ in rows)}."
        drawn["comparison"] = plots.comparison(rows, label, alt)

    for attribute, told in by_attribute(rounds).items():
        gaps = {key: {number: found[key] for number, found in told.items() if found[key]} for key in GAPS}
        if " and " not in attribute and len(told) > 1 and any(gaps.values()):
            (*_, last), names = told, {GAPS[key]: by_round for key, by_round in gaps.items() if by_round}
            values = "; ".join(f"{name} {figure(by_round.get(last))}" for name, by_round in names.items())
            alt = f"Gaps by {attribute} before round {last}: {values}."
            drawn[f"gaps by {attribute}"] = plots.gaps_by_round(names, alt)

    if ranked := by_importance(rounds):
        alt = f"Accuracy lost without: {'; '.join(f'{name} {change(lost)}' for name, lost in ranked[: plots.FEW])}."
        drawn["importance"] = plots.importance(ranked[: plots.FEW], alt)

    if valued := _contributions(report["contribution"]):
        added, shown = f"{metric_name(report['contribution']['metric'])} added", valued[: plots.FEW]
        rows = [(site, value, "ours") for site, value, _ in shown]
        alt = f"{added}: {'; '.join(f'{site} {change(value)}' for site, value, _ in shown)}."
        drawn["contribution"] = plots.comparison(rows, added, alt)

    drawn |= _watched_plots(report)

    spent: dict[str, dict[int, float]] = {}
    for entry in rounds:
        for site, value in entry["epsilon"].items():
            if value is not None:
                spent.setdefault(site, {})[entry["round"]] = value
    if spent and facts.private:
        config = report["config"]
        limit = config["simulation"].get("site_epsilon") or config["privacy"].get("epsilon")
        highest = max(value for by_round in spent.values() for value in by_round.values())
        alt = f"ε spent by {count(len(spent), 'site')} after each round, at the end at most {round_up(highest)}."
        drawn["epsilon"] = plots.epsilon_by_round(spent, limit, alt)

    timed = [entry for entry in rounds if entry["seconds"] is not None]
    if timed:
        total = sum(entry["seconds"] for entry in timed)
        alt = f"Seconds by phase for each round; {total:.1f} s in {count(len(timed), 'round')}."
        drawn["seconds"] = plots.seconds_by_phase(timed, alt)

    moved = [site for site in report["sites"] if None not in (site["bytes_up"], site["bytes_down"])]
    if moved:
        sent, received = (size(sum(site[key] for site in moved)) for key in ("bytes_up", "bytes_down"))
        alt = f"Bytes by site; all together sent {sent} and received {received}."
        drawn["bytes"] = plots.bytes_by_site(moved, alt)
    return drawn


def _watched_plots(report: Mapping[str, Any]) -> dict[str, str]:
    """One for each figure that a rule watches, with all rules' limits."""
    drawn, series = {}, series_of(report["rounds"])
    for name in dict.fromkeys(rule["figure"] for rule in report["alerts"]):
        figures = {number: found for number, found in series.get(name, {}).items() if complete(found)}
        if not figures:
            continue
        rules = [rule for rule in report["alerts"] if rule["figure"] == name]
        first, fired = next(iter(figures.values()))["value"], {number for rule in rules for number in rule["fired"]}
        limits = [
            limit
            for rule in rules
            for limit in (
                [first - rule["limit"], first + rule["limit"]] if rule["when"] == "moved" else [rule["limit"]]
            )
        ]
        alt = f"{metric_name(name)} in {count(len(figures), 'round')}; alerts in {count(len(fired), 'round')}."
        drawn[f"watched: {name}"] = plots.watched_by_round(figures, metric_name(name), limits, fired, alt)
    return drawn


def _contributions(found: Mapping[str, Any]) -> list[tuple[str, Any, float]]:
    """Site, Shapley value and what is lost without it, from the site that adds most."""
    values = found.get("shapley", {})
    ranked = sorted(values, key=lambda site: values[site]["value"], reverse=True)
    return [(site, values[site], found["left_out"][site]) for site in ranked]


def _compared(final: Mapping[str, Any], baselines: Mapping[str, Any], metric: str) -> list[tuple[str, Any, Any]]:
    """No privacy, a trusted centre, this run, each site alone; of many sites the best, the middle one and the worst."""
    alone = [(site, f[metric]) for site, f in baselines["alone"].items() if complete(f.get(metric))]
    alone.sort(key=lambda row: row[1]["value"], reverse=metric != "loss")
    if len(alone) > plots.FEW:
        alone = [alone[0], alone[len(alone) // 2], alone[-1]]
    rows = [("together, no privacy", baselines["non_private"].get(metric), "non_private")]
    rows += [("one trusted centre", baselines["central"].get(metric), "central")]
    rows += [("together, this run", final.get(metric), "ours")]
    rows += [(f"{site} alone", figures, "alone") for site, figures in alone]
    return [row for row in rows if complete(row[1])]


def finite(value: Any) -> Any:
    """The value with every number that JSON cannot write (NaN, infinities) replaced by null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
