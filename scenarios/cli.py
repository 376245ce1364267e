"""The `veilfed` command. Results go to standard output, progress to standard error, truth to the exit code."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client import cli as site_cli
from common import audit_commands
from common.commands import Parser, Verdict, command, group, printable, show_rows
from common.errors import ConfigError, FederationError
from scenarios import scenario_commands
from scenarios.bench import cli as bench_cli
from server import cli as server_cli
from server import report_commands, run_commands

if TYPE_CHECKING:
    from scenarios.simulation import Simulation

_SHIPPED = Path(__file__).parent

_EXAMPLES = """examples:
  veilfed simulate                                     four hospitals, epsilon 3, encrypted (the demo)
  veilfed simulate --set privacy.epsilon=1 --out runs/strict
  veilfed simulate mnist --set data.directory=DIR      a shipped federation file by its name
  veilfed simulate my.toml --engine ray --json         Flower's simulation runtime, JSON for machines
  veilfed simulate --resume runs/strict                go on where a stopped run stopped
"""
_EVALUATE = """example: veilfed evaluate runs/strict
Usefulness, fairness, robustness to noise and attacks, explanations, each with its interval, on records that nobody
trained on. Writes evaluation.html and evaluation.json beside the run's report. A deployed site evaluates the model on
its own records by itself: veilfed site evaluate.
"""
_QUICKSTART_EXAMPLES = """examples:
  veilfed quickstart consortium
  veilfed quickstart consortium --set federation.rounds=5
Needs nginx (apt install nginx). Shows each command that it gives; everybody is stopped at the end.
"""
_RUN_EXAMPLES = """examples:
  veilfed run heart --home /srv/veilfed
  veilfed run study.toml --home ~/veilfed --set privacy.epsilon=1 --out runs/study
  veilfed run study.toml --home ~/veilfed --run 3f0a1c...      go on with a run that stopped
The plan of the file is signed and submitted; [data] and [simulation] in it are for `veilfed simulate` alone. The exit
code is the run's: 0 done, 3 a site's privacy forbids it, 4 sites or trust failed. Ctrl-C leaves the run going.
"""
_EXIT_CODES = "exit codes: 0 done, 1 a bug of ours, 2 configuration, 3 privacy refusal, 4 protocol or trust"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the truth about it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        chosen = _parser().parse_args(arguments)
        result = chosen.command(chosen)
        print(json.dumps(result) if as_json else chosen.show(result), flush=True)
        return 0
    except FederationError as error:
        return _failed(error, as_json)
    except BrokenPipeError:  # whoever read our words has had enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        hint = "go on with --resume" if "simulate" in arguments else ""
        return _failed(FederationError("stopped by the keyboard", hint), as_json)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
            return _failed(ConfigError(reason, "is this the right place, and yours to read and write?"), as_json)
        traceback.print_exc()
        return _failed(FederationError(f"a bug of ours: {type(error).__name__}: {error}", "please report it"), as_json)


def _failed(error: FederationError, as_json: bool) -> int:
    if isinstance(error, Verdict) and (as_json or error.text):
        print(json.dumps(error.answer) if as_json else error.text)
    elif as_json:
        print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
    print(printable(f"veilfed: {error.message}" + (f" ({error.hint})" if error.hint else "")), file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="veilfed", description="Private federated learning: simulate, inspect, measure.", epilog=_EXIT_CODES
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    run = command(
        commands, "simulate", _simulate, _show_simulation, "play a whole federation on this machine", _EXAMPLES
    )
    _add_federation(run)
    run.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="in this process, or Flower's simulation runtime"
    )
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where parties and report live (default: runs/NAME-TIME); sites that are there keep their ledgers",
    )
    run.add_argument("--resume", type=Path, metavar="DIR", help="finish the simulation that was stopped in DIR")

    evaluation = command(
        commands,
        "evaluate",
        _evaluate,
        _show_evaluation,
        "what a simulation's model can do and what breaks it",
        _EVALUATE,
    )
    evaluation.add_argument("directory", type=Path, metavar="DIR", help="of an earlier `veilfed simulate`")

    submit = command(
        commands, "run", _run, _show_simulation, "run a federation over the network, and follow it", _RUN_EXAMPLES
    )
    _add_federation(submit)
    run_commands.at_home(submit)
    submit.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: runs/NAME-TIME)")
    submit.add_argument("--run", default="", metavar="RUN", help="go on with this run, with the very same plan")
    submit.add_argument("--detach", action="store_true", help="do not follow it: see veilfed logs")
    run_commands.add_commands(commands)

    quick = command(
        commands,
        "quickstart",
        _quickstart,
        _show_simulation,
        "a consortium of four hospitals on this machine, over real sockets, in one command",
        _QUICKSTART_EXAMPLES,
    )
    quick.add_argument("directory", type=Path, metavar="DIR", help="to be made: every party gets its directory in it")
    _add_overrides(quick)

    data = group(commands, "data", "public data sets")
    fetch = command(
        data,
        "fetch",
        _fetch,
        lambda result: result["path"],
        "get a public data set and check its SHA-256",
        "example: veilfed data fetch mnist",
    )
    fetch.add_argument("name", choices=("mnist", "adult"))
    fetch.add_argument("--directory", type=Path, help="take it from here, or put it here")

    model = group(commands, "model", "the model of a federation file")
    check = command(
        model,
        "check",
        _check_model,
        _show_check,
        "before training: how each module's per-record gradients are clipped, and what cannot be",
        "example: veilfed model check mnist --set model.factory=cnn --set data.features=none",
    )
    _add_federation(check)

    site_cli.add_commands(commands)
    server_cli.add_commands(commands)
    audit_commands.add_commands(commands)
    bench_cli.add_commands(commands)
    scenario_commands.add_commands(commands)
    report_commands.add_commands(commands)
    return parser


def _add_federation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "federation",
        nargs="?",
        default="heart",
        metavar="FEDERATION.toml",
        help=f"a file, or one of: {', '.join(_shipped())} (default: heart)",
    )
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change any key, e.g. privacy.epsilon=1",
    )


def _shipped() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def _simulate(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from rich.console import Console

    from scenarios.progress import Progress
    from scenarios.simulate import simulate
    from scenarios.simulation import reopen, set_up

    if chosen.resume:
        if chosen.overrides or chosen.out:
            raise ConfigError("--resume takes the settings of the run it resumes", "leave out --set and --out")
        workplace = reopen(chosen.resume)
    else:
        settings = _simulation(chosen)
        out = chosen.out or Path("runs") / f"{settings.federation.name}-{datetime.now():%Y%m%d-%H%M%S}"
        workplace = set_up(settings, out)
    console = Console(stderr=True)
    with Progress(console, workplace.simulation.last_round).shown() as progress:
        return simulate(workplace, chosen.engine, progress)


def _evaluate(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.evaluation import evaluate
    from scenarios.simulation import reopen

    return evaluate(reopen(chosen.directory))


def _show_evaluation(result: Mapping[str, Any]) -> str:
    return "\n".join([show_rows(result), f"page: {result['page']}"])


def _run(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from rich.console import Console

    from common.roster import COORDINATOR
    from scenarios.data import public_shape
    from scenarios.progress import Progress
    from server.signature import keep_copy
    from server.submit import complete, follow, submit

    settings = _simulation(chosen)
    inputs, classes = public_shape(settings.data)
    shaped = replace(settings.model, inputs=settings.model.inputs or inputs, classes=settings.model.classes or classes)
    account = run_commands.account(chosen)
    plan = complete(replace(settings.plan, model=shaped), len(account.roster.sites))
    run = submit(account, plan, chosen.run)
    print(f"run {run} is submitted", file=sys.stderr)
    if chosen.detach:
        return {"run": run, "outcome": "submitted"}
    out = chosen.out or Path("runs") / f"{plan.federation.name}-{datetime.now():%Y%m%d-%H%M%S}"
    report: dict[str, Any] = {}
    copies: Mapping[str, str] = {}
    with Progress(Console(stderr=True), plan.last_round).shown() as progress:
        for kind, value in follow(account.control, run):
            if kind == "round":
                progress({**value, "metrics": value.get("reported", {})})
            elif kind == "signed":
                copies = value
            elif kind == "report":
                report = value | {"report": str(out / "report.html")}
    keep_copy(out, copies, account.roster.public_key_of(COORDINATOR).hex())
    return report


def _quickstart(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.quickstart import quickstart

    chosen.federation = "heart"
    given = [word for override in chosen.overrides for word in ("--set", override)]
    return quickstart(
        chosen.directory.absolute(), _simulation(chosen), ["heart", *given], lambda line: print(line, file=sys.stderr)
    )


def _simulation(chosen: argparse.Namespace) -> "Simulation":
    """The federation file that was named, with its overrides."""
    from common.config import fill, load_table, override
    from scenarios.simulation import Simulation

    path = Path(chosen.federation)
    if not path.exists() and chosen.federation in _shipped():
        path = _SHIPPED / f"{chosen.federation}.toml"
    return fill(Simulation, override(load_table(path), chosen.overrides))


def _show_simulation(report: Mapping[str, Any]) -> str:
    if report["outcome"] == "submitted":
        return f"run {report['run']}: follow it with veilfed logs"
    lines = [
        f"{name:<10} {value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]  on held-out records of all sites"
        for name, value in report["final"].items()
    ]
    score = "auc" if "auc" in report["final"] else "accuracy"
    for name, metrics in report.get("baselines", {}).get("alone", {}).items():
        if score in metrics:
            lines.append(f"{score:<10} {metrics[score]['value']:.4f}  {name} alone, same budget")
    for name, told in (("central", "one trusted centre, same budget"), ("non_private", "all sites, no privacy")):
        if score in (found := report.get("baselines", {}).get(name, {})):
            lines.append(f"{score:<10} {found[score]['value']:.4f}  {told}")
    valued = report.get("contribution", {})
    for name, value in valued.get("shapley", {}).items():
        lines.append(f"{valued['metric']:<10} {value['value']:+.4f} added by {name}")
    for site in report["sites"]:
        spent = (
            f"epsilon {site['epsilon']:.3f} at delta {site['delta']:g}"
            if site["epsilon"] is not None
            else "no privacy accounted"
        )
        lines.append(f"{site['site']:<20} {spent}, sent {site['bytes_up']:,} bytes, {site['refusals']} refusals")
    lines += [
        f"ALERT: {rule['rule']}, in rounds {', '.join(map(str, rule['fired']))}"
        for rule in report.get("alerts", [])
        if rule["fired"]
    ]
    lines += [f"INSECURE: {reason}" for reason in report["insecure"]]
    return "\n".join([*lines, f"report: {report['report']}"])


def _check_model(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.clipping import shares_of
    from client.model_check import check_model
    from common.models import build
    from scenarios.data import public_shape

    settings = _simulation(chosen)
    inputs, classes = public_shape(settings.data)
    shaped = replace(settings.model, inputs=settings.model.inputs or inputs, classes=settings.model.classes or classes)
    network, privacy = build(shaped), settings.privacy
    shares = shares_of(network, privacy.clipping, privacy.layer_weights)
    checked = asdict(check_model(network, shaped.inputs, settings.training.lot_size, shares))
    modules = checked.pop("modules")
    return {"model": shaped.factory, "inputs": list(shaped.inputs), **checked, "rows": list(modules)}


def _show_check(result: Mapping[str, Any]) -> str:
    lines = [f"{result['model']}: clipped by {result['mode']}, {result['records_at_once']:,} records at once"]
    if result["why"]:
        lines.append(f"slower than need be: {result['why']} ({result['fix']})")
    return "\n".join([*lines, show_rows(result)])


def _fetch(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.fetch import fetch

    return {"path": str(fetch(chosen.name, chosen.directory, lambda line: print(line, file=sys.stderr)))}


if __name__ == "__main__":
    sys.exit(main())
