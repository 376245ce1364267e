"""Two engines for the very same apps: `local` in this process, `ray` on Flower's simulation runtime.

Both are told where a run and its sites live, report each closed round, and raise what the run raised.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import errors
from common.errors import ConfigError, FederationError
from scenarios.grid import Delivery, as_it_is

OnRound = Callable[[Mapping[str, Any]], None]
Traffic = list[dict[str, Any]]
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def run_local(run: Path, sites: list[Path], on_round: OnRound, deliver: Delivery = as_it_is) -> Traffic:
    """The run to its end, each site called in turn. Returns what each site sent, received and refused."""
    os.environ.update(OFFLINE)
    from flwr.app import Context, RecordDict

    from client.app import app as client_app
    from client.opening import openings_shared
    from scenarios.grid import LocalGrid
    from server.app import build_app

    logging.getLogger("flwr").setLevel(logging.WARNING)
    contexts = [
        Context(1, number, {"site-directory": str(site)}, RecordDict(), {}) for number, site in enumerate(sites, 2)
    ]
    ended: Traffic = []
    app = build_app(on_round, lambda outcome: ended.extend(asdict(link) for link in outcome.links))
    grid = LocalGrid(client_app, contexts, deliver)
    with openings_shared():
        app(grid, Context(1, 1, {}, RecordDict(), {"run-directory": str(run)}))
    return ended


def run_ray(run: Path, sites: list[Path], on_round: OnRound) -> Traffic:
    """The same run in a child process with a Flower home, temporary directory and ports of its own.

    Raises the error that the run raised there; ConfigError when the extra `simulation` is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="veilfed-") as home:
        environment = os.environ | OFFLINE
        environment |= {"FLWR_HOME": home, "VEILFED_RUN": str(run), "VEILFED_SITES": str(sites[0].parent)}
        environment["VEILFED_PROCESSES"] = "1"  # Ray has a process for every core already
        child = subprocess.Popen(
            [sys.executable, "-m", "scenarios.engines", str(len(sites))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        ended: Traffic | None = None
        assert child.stdout is not None  # noqa: S101 - PIPE was asked for
        for line in child.stdout:
            if not line.startswith(_MARK):
                continue
            said = json.loads(line.removeprefix(_MARK))
            if "round" in said:
                on_round(said["round"])
            elif "error" in said:
                raise _rebuilt(said["error"])
            else:
                ended = said["ended"]
        if child.wait() != 0 or ended is None:
            raise FederationError(f"the simulation runtime ended with exit code {child.returncode}")
        return ended


def _ray_child(nodes: int) -> int:
    """In the child: Flower's runtime, every event as one marked JSON line on standard output."""
    try:
        import ray  # noqa: F401 - named here so that a missing extra has its own error
        from flwr.simulation import run_simulation
    except ImportError:
        _say(
            "error",
            {"code": "ConfigError", "message": "ray is not installed", "hint": "pip install veilfed[simulation]"},
        )
        return ConfigError.exit_code
    from client.app import app as client_app
    from server.app import Outcome, build_app

    ended: list[Outcome] = []
    server_app = build_app(lambda record: _say("round", record), ended.append)
    backend = {
        "init_args": {"include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
    }
    try:
        run_simulation(server_app, client_app, nodes, backend_config=backend)
    except Exception:
        if not ended or ended[0].error is None:
            raise
    outcome = ended[0]
    if outcome.error:
        _say("error", {"code": outcome.error.code, "message": outcome.error.message, "hint": outcome.error.hint})
        return outcome.error.exit_code
    _say("ended", [asdict(link) for link in outcome.links])
    return 0


def _say(kind: str, value: Any) -> None:
    print(_MARK + json.dumps({kind: value}), flush=True)


def _rebuilt(error: Mapping[str, str]) -> FederationError:
    kind = getattr(errors, error["code"], FederationError)
    return kind(error["message"], error["hint"])


_MARK = "veilfed-event "

if __name__ == "__main__":
    sys.exit(_ray_child(int(sys.argv[1])))
