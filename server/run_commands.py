"""The commands for runs of a deployed federation: `veilfed run`, `status`, `logs` and `stop`."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.commands import command, printable, show_fields, show_rows

if TYPE_CHECKING:
    from server.account import Account

_STATUS = """examples:
  veilfed status --home /srv/veilfed
  veilfed status 3f0a --home /srv/veilfed --json
"""
_LOGS = """example: veilfed logs 3f0a --home /srv/veilfed
One JSON object a line: begun, each round, and the report or the error that stopped the run. Follows a run that goes on.
"""
_STOP = """example: veilfed stop 3f0a --home /srv/veilfed
What is closed stays; the run goes on with `veilfed run ... --run 3f0a...`.
"""


def add_commands(commands: Any) -> None:
    """Put them among the commands of `veilfed`; `run` itself is added by who knows the federation files."""
    status = command(commands, "status", _status, show_rows, "the runs of a deployed federation", _STATUS)
    status.add_argument("run", nargs="?", default="", metavar="RUN", help="the first digits of its number")
    logs = command(commands, "logs", _logs, lambda result: "", "what the coordinator says of a run", _LOGS)
    logs.add_argument("run", metavar="RUN", help="the first digits of its number")
    stop = command(commands, "stop", _stop, show_fields, "stop a run; it can go on later", _STOP)
    stop.add_argument("run", metavar="RUN", help="the first digits of its number")
    for parser in (status, logs, stop):
        at_home(parser)


def at_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the coordinator's home, or a person's directory with certificate and key (default: here)",
    )


def account(chosen: argparse.Namespace) -> "Account":
    from server.account import Account

    return Account.of(chosen.home)


def _status(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.submit import outcome_of

    newest = {one.run: one for one in account(chosen).control.runs() if one.run.startswith(chosen.run)}
    rows = [outcome_of(one) for one in newest.values()]
    return {"rows": [{key: printable(str(value)) for key, value in row.items()} for row in rows]}


def _logs(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.submit import find, follow

    control = account(chosen).control
    run = find(control, chosen.run).run
    out = sys.stderr if chosen.json else sys.stdout
    for kind, value in follow(control, run):
        if kind != "signed":  # the report's own files, which `veilfed run` keeps
            print(json.dumps({kind: value}), file=out, flush=True)
    return {"run": run, "outcome": "done"}


def _stop(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.submit import find

    control = account(chosen).control
    found = find(control, chosen.run)
    return {"run": found.run, "stopped": control.stop(found.number)}
