"""The model of a simulation, evaluated on the records that its sites hold out: a page and a table of figures."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.evaluation import material
from common.evaluators.catalogue import EVALUATORS, evaluate_all
from common.evaluators.report import Findings
from common.files import write_atomically
from common.models import load_parameters
from scenarios import baselines
from scenarios.pictures import intervals
from scenarios.scenario_page import render
from scenarios.simulate import Observer
from scenarios.simulation import Workplace
from server.outcome import package_versions
from server.report import finite

_MOST_SHOWN = 16  # figures of one evaluator on the page; the file has all


def evaluate(workplace: Workplace) -> dict[str, Any]:
    """Writes evaluation.json and evaluation.html beside the simulation's report, and returns what is in the first."""
    observer = Observer(workplace)
    state = observer.state()
    load_parameters(observer.network, state.released)
    training = baselines.pooled([site.training_records for site in observer.sites])
    asked = material(observer.network, observer.pooled, training)
    if workplace.simulation.simulation.contribution:
        asked = replace(asked, game=Observer(workplace).game()[1])  # with a network of its own
    findings = evaluate_all(asked)
    found = {each.evaluator for each in findings}
    result: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "factory": observer.plan.model.factory,
            "round": state.round_number,
            "sha256": state.model_hash.hex(),
        },
        "records": {"asked": len(asked.labels if asked.labels is not None else ()), "held_out": len(observer.pooled)},
        "rows": [row for each in findings for row in each.rows],
        "remarks": {each.evaluator: list(each.remarks) for each in findings},
        "by_site": {name: observer.score(state, part) for name, part in observer.held_out.items() if len(part)},
        "skipped": [_why(each.name, each.needs - asked.parts) for each in EVALUATORS if each.name not in found],
        "versions": package_versions(),
        "page": str(workplace.out / "evaluation.html"),
    }
    text = json.dumps(finite(result), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(workplace.out / "evaluation.json", f"{text}\n".encode(), mode=0o644)
    write_atomically(workplace.out / "evaluation.html", _page(workplace.out, result, findings).encode(), mode=0o644)
    return result


def _why(name: str, missing: frozenset[str]) -> str:
    where = "set simulation.contribution" if "game" in missing else "see scenarios/README.md"
    return f"{name}: needs {', '.join(sorted(missing))}; {where}"


def _page(out: Path, result: Mapping[str, Any], findings: list[Findings]) -> str:
    shown = []
    for each in findings:
        largest = sorted(each.figures, key=lambda name: -abs(each.figures[name].value))[:_MOST_SHOWN]
        chosen = {name: figure for name, figure in each.figures.items() if name in largest}
        title = each.evaluator.replace("_", " ")
        picture = intervals(chosen, alt=f"{title}: {len(chosen)} figures with their 95 % intervals")
        shown.append(
            {"title": title, "picture": picture, "hidden": len(each.figures) - len(chosen), "remarks": each.remarks}
        )
    return render("evaluation.html.j2", result=result, shown=shown, name=out.name)
