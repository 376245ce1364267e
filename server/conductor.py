"""One run of a deployed federation, in a process of its own: take the task, verify its bundle, conduct, report.

`python -m server.conductor HOME` loads everything first, says that it is ready, and waits for one line: the token of
a task. So a run starts at once. It runs the installed package; the bundle tells it the plan and nothing else.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_from_proto, run_from_proto
from flwr.proto.log_pb2 import PushLogsRequest
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity

from common import bundle
from common.audit import BundleAccepted
from common.config import fill, load_table
from common.encoding import public_scale
from common.errors import FederationError, ProtocolError, WireError
from common.federation import ModelSettings, Plan
from common.log import configure, say, say_error
from common.models import planned_sizes
from common.roster import Roster
from common.spans import span
from common.tracing import delivering
from common.wire import digest, from_hex
from server.coordinate import coordinate, longest_reply
from server.home import ConsortiumSettings
from server.loopback import READY, Loopback
from server.observed import Watch
from server.outcome import report_of
from server.polling import Patience, PollingGrid
from server.processes import WARM
from server.report import write_report
from server.signature import copy_of, sign_report
from server.store import RunStore

_RUN_BYTES = 16
_PART_BYTES, _BESIDE_PARTS = 5 << 20, 10  # of an array that Flower cuts up, and of the message that carries it
log = logging.getLogger("veilfed.conductor")


@dataclass(frozen=True)
class Task:
    """A task of the SuperLink's Runtime API, while this process holds it."""

    grid: PollingGrid
    run_id: int
    content: bytes
    settings: Mapping[str, Any]

    @classmethod
    def taken(cls, loopback: Loopback, token: str) -> "Task":
        grid = PollingGrid(loopback.address, token=token)
        grid.tls = loopback.tls()
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        run, fab = run_from_proto(given.run), fab_from_proto(given.fab)
        grid.set_run(run)
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run.run_id
        TaskIdentity.node_id = given.context.node_id
        return cls(grid, run.run_id, fab.content, run.override_config)

    def say(self, kind: str, value: Any) -> None:
        """One event for whoever follows the run: a line of JSON in the run's log."""
        line = json.dumps({kind: value})
        self.grid._runtime_client.PushLogs(PushLogsRequest(run_id=self.run_id, logs=[line + "\n"]))

    def end(self, error: FederationError | None) -> None:
        status, details = (SubStatus.FAILED, error.message) if error else (SubStatus.COMPLETED, "")
        self.grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        self.grid.close()


def conduct(home: Path, task: Task) -> None:
    """The run from wherever its store says it stopped, to its report. Raises FederationError when it cannot go on."""
    roster = Roster.read(home / "roster.json")
    signature = str(task.settings.get("signature", ""))
    run = _run_of(task.settings)
    plan, signer = bundle.opened(task.content, signature, roster.bundles, run)
    fill(ConsortiumSettings, load_table(home / "consortium.toml")).require_model(plan.model)
    public_scale(plan, planned_sizes(plan.model))
    key = digest(signer).hex()
    store = RunStore.begin(home, run, plan, f"whoever holds the bundle key {key}")
    store.keep_bundle(task.content, signature)
    store.audit.note(BundleAccepted(store.run.hex(), digest(task.content).hex(), key))
    required = plan.fewest_sites(len(store.cohort))
    task.grid.patience, task.grid.ring = Patience(required), Loopback(home).ring
    task.grid.most_parts = _BESIDE_PARTS + -(-longest_reply(plan, len(store.cohort)) // _PART_BYTES)
    task.say("begun", {"run": store.run.hex(), "rounds": plan.last_round, "closed": len(store.rounds())})
    watch = Watch(home, store.run.hex(), plan.monitoring.alerts, store.rounds())

    def closed(record: Mapping[str, Any]) -> None:
        watch.round_closed(record)
        task.say("round", record)

    try:
        outcome = coordinate(task.grid, store, closed, task.grid.site_of)
    except FederationError as error:
        watch.ended(error)
        store.end(error.code)
        raise
    report = report_of(store, outcome.links, "deploy")
    write_report(store.directory, report)
    sign_report(store.directory, store.identity)
    watch.ended()
    store.end("done")
    task.say("signed", copy_of(store.directory))
    task.say("report", report)


def _run_of(settings: Mapping[str, Any]) -> bytes:
    try:
        run = from_hex(settings.get("run"))
    except WireError:
        run = b""
    if len(run) != _RUN_BYTES:
        raise ProtocolError("the run has no number of its own", "submit it with `veilfed run`")
    return run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m server.conductor", description=__doc__)
    parser.add_argument("home", type=Path)
    home = parser.parse_args(arguments).home
    configure("conductor")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    bundle.build(Plan())  # this and the next load what every run needs
    planned_sizes(ModelSettings(inputs=(1,), classes=2))
    (home / WARM).parent.mkdir(mode=0o700, exist_ok=True)
    (home / WARM).touch()
    print(READY, flush=True)
    token = sys.stdin.readline().strip()
    if not token:
        return 0
    task = Task.taken(Loopback(home), token)
    with delivering(home / "consortium.toml", "veilfed-coordinator"):  # until after the end of the run was told
        return conducted(home, task)


def conducted(home: Path, task: Task) -> int:
    """The exit code of a process that took that task. Whatever ends the run is told to whoever follows it."""
    beats = HeartbeatSender(make_task_heartbeat_fn_http(task.grid._runtime_client))
    beats.start()
    failed: FederationError | None = None
    try:
        run = _run_of(task.settings)
        with RunStore.held(home, run), span("run", run=run.hex()):
            conduct(home, task)
    except FederationError as error:
        failed = error
    except KeyboardInterrupt:  # from the heartbeat: the SuperLink says that the run is over
        with suppress(FederationError):
            RunStore.open(home / "runs" / _run_of(task.settings).hex()).end("stopped")
        return 1
    except httpx.HTTPError as error:  # the executor takes the run up again, for whoever follows it
        say(log, "the SuperLink does not answer", logging.ERROR, message=str(error) or type(error).__name__)
        return 1
    except Exception:
        log.exception("a bug of ours")
        failed = FederationError("a bug of ours stopped the run", "see the coordinator's log")
    if failed:
        say_error(log, "run stopped", failed)
        task.say("error", {"code": failed.code, "message": failed.message, "hint": failed.hint})
    beats.stop()
    task.end(failed)
    return failed.exit_code if failed else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # helper threads of the grid and of heartbeats hold nothing that is still needed
