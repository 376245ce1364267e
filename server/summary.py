"""A finished run in half a page of plain words, and the way the report writes its numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from server.disclosure import Disclosure, detectable, round_up

METRICS = {  # key -> name, how to read it; the first that a report has is the one it draws
    "auc": (
        "AUC",
        "AUC: how often the model ranks a random positive record above a random negative one. 0.5 is guessing, 1 is "
        "perfect.",
    ),
    "accuracy": ("Accuracy", "Accuracy: the share of records whose class the model names right."),
    "loss": ("Log loss", "Log loss: the mean surprise at the true class. Lower is better, 0 is perfect."),
}
GAPS = {  # between groups
    "demographic_parity_difference": "Demographic parity",
    "equal_opportunity_difference": "Equal opportunity",
    "equalized_odds_difference": "Equalised odds",
}
RATES = {
    "selection_rate": "Named class 1",
    "true_positive_rate": "True positives",
    "false_positive_rate": "False positives",
    "accuracy": "Accuracy",
}
_PROMISES = {  # key -> what it is called
    "unit": "Unit of protection",
    "neighbouring": "Neighbouring data sets",
    "epsilon": "Agreed ε",
    "delta": "Agreed δ",
    "sampling": "Sampling of records",
    "mode": "Mode",
    "adversary": "Adversary",
    "colluding": "Sites that may pool their noise",
}
_NAMES = 12  # written out in one sentence


def summary(report: Mapping[str, Any], facts: Disclosure) -> list[tuple[str, str]]:
    """Questions and answers. A question that the report cannot answer is left out."""
    answers = {
        "What was trained?": _trained(report),
        "By whom?": _parties(report),
        "What left each site?": _departed(report, facts),
        f"What may one {facts.unit} lose?": _lost(facts),
        "How good is the model?": _useful(report, facts),
        "Does it treat groups alike?": _alike(report),
        "What does it look at?": _looks_at(report),
        "Did an alert fire?": _alerts(report),
        "Was a protection off?": "Yes. See the red box above." if facts.warnings else "No. No test-only switch was on.",
    }
    return [(question, answer) for question, answer in answers.items() if answer]


def at_a_glance(report: Mapping[str, Any], facts: Disclosure) -> list[tuple[str, str, str]]:
    """Label, number and a remark, of the figures that a reader looks for first."""
    final, sites, wire = report["final"], report["sites"], report["wire"]
    metric, figures = primary_metric(final), []
    if metric:
        low, high = final[metric]["low"], final[metric]["high"]
        figures.append((metric_name(metric), f"{final[metric]['value']:.3f}", f"between {low:.3f} and {high:.3f}"))
    if facts.bounded:
        remark = f"with δ = {facts.delta:g}{'' if facts.counts_trials else ', trials not counted'}"
        figures.append((f"One {facts.unit} loses", f"ε ≤ {round_up(facts.epsilon)}", remark))
    else:
        figures.append((f"One {facts.unit} loses", "no limit", "no differential privacy holds"))
    if wire["bytes_per_update"] is not None:
        form = "encrypted" if facts.encrypted else "readable"
        figures.append(("One update", size(wire["bytes_per_update"]), f"{form}, {number(wire['parameters'])} numbers"))
    if sites:
        figures.append(("Sites", f"{len(sites)}", f"in {count(len(report['rounds']), 'round')}"))
    return figures


def promises(privacy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The terms of the privacy guarantee, in reading order."""
    keys = [*(key for key in _PROMISES if key in privacy), *(key for key in privacy if key not in _PROMISES)]
    return [(_PROMISES.get(key, words(key)), plain(privacy[key])) for key in keys if privacy[key] is not None]


def _trained(report: Mapping[str, Any]) -> str:
    config, rounds, parameters = report["config"], report["rounds"], report["wire"]["parameters"]
    if not config["model"]:
        return ""
    numbers = f" of {parameters:,} numbers" if parameters is not None else ""
    records = f", on the {config['data']['loader']} records" if config["data"].get("loader") else ""
    length = f", in {count(len(rounds), 'round')}" if rounds else ""
    return f"A model ({config['model'].get('factory')}){numbers}{records}{length}."


def _parties(report: Mapping[str, Any]) -> str:
    names = [site["site"] for site in report["sites"]]
    if not names:
        return ""
    listed = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
    return f"{count(len(names), 'site')}: {listed}. A coordinator carried messages and added up what the sites sent."


def _departed(report: Mapping[str, Any], facts: Disclosure) -> str:
    rounds, bytes_per_update = len(report["rounds"]), report["wire"]["bytes_per_update"]
    how_large = f" of {size(bytes_per_update)}" if bytes_per_update is not None else ""
    how_often = f"each of {rounds} rounds" if rounds > 1 else "each round"
    model = {
        "never": "",
        "final": " At the end the final model, for the coordinator.",
        "every-round": " After each round the model, for the coordinator.",
    }.get(facts.reveal if facts.encrypted else "never", "")
    form = "encrypted" if facts.encrypted else "readable"
    return f"One {form} update{how_large} in {how_often}.{model} No record left a site."


def _lost(facts: Disclosure) -> str:
    if not facts.private:
        return "There is no limit. The model was trained without differential privacy."
    if not facts.bounded:
        return "There is no limit that holds. The values of ε below are only arithmetic."
    found = math.ceil(100 * detectable(facts.epsilon, facts.delta, 0.01) - 1e-9)
    unit = facts.unit
    return (
        f"At most {facts.bound}. In words: think of somebody who sees everything that was released and knows every "
        f"other {unit}. If their test wrongly suspects 1 in 100 {unit}s that were not used, it finds at most "
        f"{found} in 100 that were. Blind guessing finds 1."
    )


def _useful(report: Mapping[str, Any], facts: Disclosure) -> str:
    final, baselines = report["final"], report["baselines"]
    metric = primary_metric(final)
    if not metric:
        return ""
    told = f"{metric_name(metric)} {figure(final[metric])} on held-out records."
    alone = sorted(f[metric]["value"] for f in baselines["alone"].values() if complete(f.get(metric)))
    if alone:
        limit = " under the same limit" if facts.private else ""
        told += f" A site that trains alone{limit} reaches {alone[0]:.3f} to {alone[-1]:.3f}."
    if complete(baselines["central"].get(metric)):
        centre = f" One trusted centre with all records{' under the same limit' if facts.private else ''}: "
        told += f"{centre}{baselines['central'][metric]['value']:.3f}."
    if complete(baselines["non_private"].get(metric)):
        told += f" All together without privacy: {baselines['non_private'][metric]['value']:.3f}."
    return told


def _alike(report: Mapping[str, Any]) -> str:
    """The last measured gaps by each attribute."""
    told = []
    for attribute, by_round in by_attribute(report["rounds"]).items():
        number, found = max(by_round.items())
        gaps = "; ".join(f"{name.lower()} {figure(found[key])}" for key, name in GAPS.items() if complete(found[key]))
        if gaps:
            told.append(
                f"Gaps by {attribute} before round {number}: {gaps}; 0 is none. Named right least: {found['worst']}."
            )
    return " ".join(told)


def by_attribute(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Attribute (or two) -> round -> gap -> figure, with `worst_accuracy` and `worst`, the group that has it."""
    told: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in rounds:
        found = entry["fairness"]
        for attribute, groups in found.get("groups", {}).items():
            gaps = {key: found["figures"].get(f"{attribute}: {key}") for key in (*GAPS, "worst_accuracy")}
            known = [group for group in groups if "accuracy" in groups[group]]
            worst = min(known, key=lambda group: groups[group]["accuracy"]["value"], default="")
            told.setdefault(attribute, {})[entry["round"]] = {**gaps, "worst": worst}
    return told


def _looks_at(report: Mapping[str, Any]) -> str:
    ranked, asked = by_importance(report["rounds"]), report["config"].get("metrics", {}).get("importance")
    if asked and not ranked:
        return f"Too few records for the noise to tell of {count(len(asked), 'feature')}."
    sure = [f"{name} {change(lost)}" for name, lost in ranked if lost["low"] > 0]
    told = [f"Accuracy lost where a feature is another record's: {'; '.join(sure)}."] if sure else []
    if rest := len(ranked) - len(sure):
        told.append(f"{count(rest, 'feature')} cannot be told from chance and noise.")
    return " ".join(told)


def by_importance(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """The accuracy that is lost without each feature, as measured last, from the most."""
    found = next((entry["importance"] for entry in reversed(rounds) if entry["importance"]), {})
    return sorted(((name, lost) for name, lost in found.items() if complete(lost)), key=lambda row: -row[1]["value"])


def _alerts(report: Mapping[str, Any]) -> str:
    rules = report["alerts"]
    if not rules:
        return ""
    fired = [f"{rule['rule']} (round {spans(rule['fired'])})" for rule in rules if rule["fired"]]
    unknown = sum(not rule["measured"] for rule in rules)
    told = f"Yes: {'; '.join(fired)}." if fired else f"No, of {count(len(rules), 'rule')}."
    return told + (f" {count(unknown, 'rule')} had nothing to watch." if unknown else "")


def spans(rounds: Sequence[int]) -> str:
    """1, 2, 3, 5 -> 1 to 3, 5"""
    parts: list[list[int]] = []
    for number in rounds:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def primary_metric(final: Mapping[str, Any]) -> str:
    """The metric that stands for the rest; empty when there is none."""
    return next((name for name in (*METRICS, *final) if complete(final.get(name))), "")


def metric_name(metric: str) -> str:
    return METRICS[metric][0] if metric in METRICS else metric


def complete(figures: Mapping[str, Any] | None) -> bool:
    return figures is not None and all(figures.get(key) is not None for key in ("value", "low", "high"))


def figure(figures: Mapping[str, Any] | None) -> str:
    """A value with its interval."""
    if figures is None or not complete(figures):
        return "–"
    digits = 0 if figures["value"] >= 100 else 3
    return " ".join(
        (f"{figures['value']:.{digits}f}", f"({figures['low']:.{digits}f} to {figures['high']:.{digits}f})")
    )


def change(figures: Mapping[str, Any] | float) -> str:
    """What something adds, with its sign; with its interval where it has one."""
    if not isinstance(figures, Mapping):
        return f"{figures:+.3f}"
    low, value, high = (figures[key] for key in ("low", "value", "high"))
    return f"{value:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if low < high else "")


def size(size_bytes: float | None) -> str:
    if size_bytes is None:
        return "–"
    for unit, unit_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def epsilon(values: float | Sequence[float | None] | None) -> str:
    """One value, or the highest of several, rounded up."""
    known = [value for value in (values if isinstance(values, Sequence) else [values]) if value is not None]
    return round_up(max(known)) if known else "–"


def plain(value: Any) -> str:
    """A setting as its file would say it, without quotes."""
    return (value or "(empty)") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def words(key: str) -> str:
    """`value_bits` -> Value bits"""
    return key.replace("_", " ").capitalize()


def day(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def count(items: int, noun: str) -> str:
    return f"{items} {noun}{'' if items == 1 else 's'}"
