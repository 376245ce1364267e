"""`veilfed scenario ...`: privacy scenarios by name."""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from common.commands import Verdict, command, group
from common.errors import ConfigError, PrivacyError, ProtocolError

_RUN_EXAMPLES = """examples:
  veilfed scenario run private dropout
  veilfed scenario run all --quick --out runs/scenarios
  veilfed scenario run audit --json
exit codes: 0 every expectation held, 3 one of privacy did not, 4 another did not, 2 no such scenario. What needs data
that is not on this machine is skipped and named; nothing is downloaded.
"""


class PrivacyExpectationFailed(Verdict, PrivacyError):
    """A promise of privacy did not hold in a scenario."""


class ExpectationFailed(Verdict, ProtocolError):
    """Anything else that a scenario expects did not hold."""


def add_commands(commands: Any) -> None:
    """Put `scenario` and what is under it among the commands of `veilfed`."""
    scenario = group(commands, "scenario", "privacy scenarios: a question, an answer that can fail, a page", "ACTION")
    example = "example: veilfed scenario list"
    command(scenario, "list", _list, _show_list, "every scenario and its question", example)
    example = "example: veilfed scenario show curious-coordinator"
    show = command(scenario, "show", _show, _show_one, "what one scenario plays and expects", example)
    show.add_argument("name", metavar="NAME")
    run = command(scenario, "run", _run, _show_run, "play scenarios and judge them", _RUN_EXAMPLES)
    run.add_argument("names", nargs="+", metavar="NAME", help="one or more of `veilfed scenario list`, or: all")
    run.add_argument("--quick", action="store_true", help="fewer rounds and repeats, the same expectations")
    run.add_argument("--out", type=Path, metavar="DIR", help="where the pages go (default: runs/scenarios-TIME)")


def _list(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.scenario import load, scenario_names

    rows = [load(name) for name in scenario_names()]
    return {"scenarios": [{"name": row.name, "question": row.question, "quick_seconds": row.seconds} for row in rows]}


def _show_list(result: Mapping[str, Any]) -> str:
    return "\n".join(f"{row['name']:<22} {row['question']}" for row in result["scenarios"])


def _show(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.scenario import load

    scenario = load(chosen.name)
    wanted = [{"expected": each.wanted, **asdict(each)} for each in scenario.expect]
    return {**asdict(scenario), "expect": wanted}


def _show_one(result: Mapping[str, Any]) -> str:
    lines = [f"{result['title']}: {result['question']}", "", result["about"].strip(), "", "expected:"]
    lines += [f"  {row['says']} ({row['kind']}; {row['figure']}: {row['expected']})" for row in result["expect"]]
    return "\n".join(lines)


def _run(chosen: argparse.Namespace) -> Mapping[str, Any]:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # before torch: threads that wait for each other cost small models most
    from scenarios.run import run_all, worst_exit
    from scenarios.scenario import load, scenario_names

    if "all" in chosen.names and len(chosen.names) > 1:
        raise ConfigError("`all` names every scenario already", "leave out the other names")
    names = scenario_names() if chosen.names == ["all"] else list(dict.fromkeys(chosen.names))
    scenarios = [load(name) for name in names]
    out = chosen.out or Path("runs") / f"scenarios-{datetime.now():%Y%m%d-%H%M%S}"
    result = run_all(scenarios, out, chosen.quick, say=lambda line: print(line, file=sys.stderr, flush=True))
    failed = [each["name"] for each in result["scenarios"] if not each["passed"]]
    if code := worst_exit(result):
        kind = PrivacyExpectationFailed if code == PrivacyError.exit_code else ExpectationFailed
        raise kind(f"not as expected: {', '.join(failed)}", result, _show_run(result))
    return result


def _show_run(result: Mapping[str, Any]) -> str:
    lines = [
        f"{each['name']:<22} {'passed' if each['passed'] else 'FAILED'}  {each['seconds']:6.1f} s  {each['report']}"
        for each in result["scenarios"]
    ]
    lines += [f"skipped: {reason}" for reason in result["skipped"]]
    return "\n".join([*lines, f"all of them: {result['report']}"])
