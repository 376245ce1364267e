"""Pages of scenarios, in the look of the run's report: one each, and an index over all. They load nothing."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.config import to_table
from common.files import write_atomically
from scenarios.stage import Played, Stage
from server.outcome import package_versions
from server.report import finite

_KINDS = {
    "privacy": "promise",
    "trust": "promise",
    "use": "the model's use",
    "control": "control: the attack can see",
}


def write_page(stage: Stage, outcome: Mapping[str, Any], played: Played) -> None:
    """`report.json` and, beside it, `report.html`."""
    scenario = stage.scenario
    report = {
        "scenario": scenario.name,
        "outcome": "passed" if outcome["passed"] else "failed",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": scenario.question,
        "quick": stage.quick,
        "config": to_table(stage.simulation()) if scenario.federation else {},
        "figures": dict(played.figures),
        "expectations": outcome["expectations"],
        "seconds": outcome["seconds"],
        "audit": dict(played.audit),
        "facts": dict(played.facts),
        "sites": played.facts.get("sites", []),
        "versions": package_versions(),
    }
    text = json.dumps(finite(report), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode()
    page = render(
        "scenario.html.j2",
        scenario=scenario,
        report=report,
        played=played,
        expectations=_rows(outcome),
        fingerprint=hashlib.sha256(data).hexdigest(),
        machine=platform.machine(),
    )
    write_atomically(stage.out / "report.json", data, mode=0o644)
    write_atomically(stage.out / "report.html", page.encode(), mode=0o644)


def write_index(out: Path, done: Sequence[Mapping[str, Any]], skipped: Sequence[str]) -> None:
    """`index.html` over the scenarios that were played, each with what became of it."""
    passed, seconds = sum(each["passed"] for each in done), sum(each["seconds"] for each in done)
    page = render("scenarios.html.j2", done=done, skipped=skipped, passed=passed, seconds=seconds)
    write_atomically(out / "index.html", page.encode(), mode=0o644)


def _rows(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "kind": _KINDS[row["kind"]],
            "actual": "not measured" if math.isnan(row["actual"]) else f"{row['actual']:.4g}",
        }
        for row in outcome["expectations"]
    ]


def render(template: str, **values: Any) -> str:
    """A page of that template, which may include those of the run's report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "server"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = lambda svg: Markup(svg)  # noqa: S704  # escaped as XML where it was drawn
    return environment.get_template(template).render(**values)
