"""Play scenarios and judge them: each leaves a page, a report and a signature of its own, and an index links them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

from common.errors import ConfigError
from common.signing import Identity
from scenarios.fetch import DOWNLOADS, find
from scenarios.scenario import Scenario
from scenarios.scenario_page import write_index, write_page
from scenarios.simulation import identity_at
from scenarios.stage import Played, Stage
from server.signature import sign_report

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """scenario: as `--json` prints it. seconds: of playing, wall time."""

    scenario: Scenario
    played: Played
    seconds: float
    report: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each expectation with what came of it; a figure that was not measured holds nothing."""
        return [
            {
                "name": expected.says,
                "figure": expected.figure,
                "kind": expected.kind,
                "expected": expected.wanted,
                "actual": (actual := float(self.played.figures.get(expected.figure, float("nan")))),
                "passed": bool(expected.holds(actual)),
            }
            for expected in self.scenario.expect
        ]

    @property
    def passed(self) -> bool:
        return all(row["passed"] for row in self.rows)

    @property
    def private(self) -> bool:
        """Whether every promise of privacy held, whatever became of the rest."""
        return all(row["passed"] for row in self.rows if row["kind"] == "privacy")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.scenario.name,
            "passed": self.passed,
            "seconds": self.seconds,
            "report": str(self.report),
            "expectations": self.rows,
        }


def run_all(
    scenarios: Sequence[Scenario], out: Path, quick: bool, overrides: Sequence[str] = (), say: Say = lambda line: None
) -> dict[str, Any]:
    """Play them one after the other. What needs data that is not there is skipped, with the reason.

    Raises ConfigError, before anything is played, where one was played before: its ledgers would remember.
    """
    for scenario in scenarios:
        if (out / scenario.name).exists():
            raise ConfigError(f"{out / scenario.name} holds an earlier scenario", "name another --out")
    done: list[dict[str, Any]] = []
    skipped: list[str] = []
    identity = identity_at(out / "coordinator")
    for scenario in scenarios:
        stage = Stage(scenario, out / scenario.name, quick, tuple(overrides))
        try:
            require_data(stage)
        except ConfigError as error:
            skipped.append(f"{scenario.name}: {error.message} ({error.hint})")
            say(f"{scenario.name:<24} skipped: {error.message}")
            write_index(out, done, skipped)
            continue
        try:
            outcome = play(stage, identity)
        except BaseException:  # nobody goes on with half a scenario, and it must not stand in the way of the next try
            rmtree(stage.out, ignore_errors=True)
            raise
        done.append(outcome.to_json() | {"title": scenario.title, "question": scenario.question})
        say(f"{scenario.name:<24} {'passed' if outcome.passed else 'FAILED'}  {outcome.seconds:6.1f} s")
        for row in outcome.rows:
            if not row["passed"]:
                say(f"    {row['name']}: expected {row['expected']}, got {row['actual']:.4g}")
        write_index(out, done, skipped)
    return {"scenarios": done, "skipped": skipped, "report": str(out / "index.html")}


def play(stage: Stage, identity: Identity) -> Outcome:
    """One scenario, judged, its page written and its report signed."""
    module, function = stage.scenario.play.split(":")
    stage.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    played: Played = getattr(import_module(f"scenarios.plays.{module}"), function)(stage)
    outcome = Outcome(stage.scenario, played, time.perf_counter() - started, stage.out / "report.html")
    write_page(stage, outcome.to_json(), played)
    sign_report(stage.out, identity)
    return outcome


def require_data(stage: Stage) -> None:
    """Raises ConfigError when the scenario needs a data set that is not on this machine; nothing is downloaded."""
    data = stage.simulation().data
    if data.loader in DOWNLOADS:
        find(data.loader, data.directory)


def worst_exit(result: Mapping[str, Any]) -> int:
    """0 when every expectation held; 3 when one of privacy did not; else 4."""
    rows = [row for scenario in result["scenarios"] for row in scenario["expectations"] if not row["passed"]]
    return 3 if any(row["kind"] == "privacy" for row in rows) else 4 if rows else 0
