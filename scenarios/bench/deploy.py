"""`veilfed bench deploy`: a private round over the network beside a plain round of stock Flower, one after the other.

Both have their coordinator and four idle hospitals as processes of their own on this machine, over TLS with node
authentication. Ours trains with DP-SGD, masks, encrypts, agrees and opens; stock Flower averages readable weights.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from common.certificates import Authority, now_utc
from common.config import fill, load_table, override
from common.errors import FederationError
from common.ports import free_port
from common.signing import Identity
from common.tls_keys import TlsKey
from scenarios.engines import OFFLINE
from scenarios.quickstart import Consortium
from scenarios.simulation import Simulation

_HEART = Path(__file__).parents[1] / "heart.toml"
_STOCK = Path(__file__).with_name("stock_flower")
_PATIENCE_SECONDS = 600.0


def run(rounds: int) -> dict[str, Any]:
    """first_step_s: from the start of the command to the first training step, with everybody up already."""
    with tempfile.TemporaryDirectory(prefix="veilfed-") as place:
        rows = [
            {"system": "veilfed-private", **_veilfed(Path(place) / "ours", rounds)},
            {"system": "flower-stock", **_stock(Path(place) / "stock", rounds)},
        ]
    return {"bench": "deploy", "rows": rows}


def _veilfed(place: Path, rounds: int) -> dict[str, float]:
    chosen = [f"federation.rounds={rounds}"]
    simulation = fill(Simulation, override(load_table(_HEART), chosen))
    consortium = Consortium(place, lambda line: print(line, file=sys.stderr))
    consortium.found(simulation)
    with consortium.running():
        started = time.time()
        report = consortium.give(
            "run", "heart", "--set", chosen[0], "--home", consortium.home, "--out", place / "report"
        )
        command = time.time() - started
        first = min(_first_step(site / "logs" / "worker.log") for site in consortium.sites)
    return _row([record["seconds"] for record in report["rounds"]], first - started, command)


def _first_step(log: Path) -> float:
    """When the first training order began to be worked on, in seconds since the epoch."""
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError):
            event = json.loads(line)
            if event["event"] == "order answered" and event["action"] == "train":
                return datetime.fromisoformat(event["time"]).timestamp() - float(event["seconds"])
    raise FederationError(f"{log} tells of no training")


def _stock(place: Path, rounds: int) -> dict[str, float]:
    """Flower as its manual has it: SuperLink, four SuperNodes, `flwr run --stream` with one command."""
    home, port = place / "flower", free_port()
    home.mkdir(parents=True)
    nodes = _certify(place)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{place / "root.crt"}"\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # Flower starts programs of its own by their names
    environment = os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": path}
    tls = ("--ssl-ca-certfile", "root.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key")
    link = ("flower-superlink", *OFFLINE_FLAGS, "--host", "127.0.0.1", "--port", str(port), *tls)
    with _running(place, environment, [(*link, "--enable-supernode-auth")]):
        _until_registered(place, environment, nodes)
        ports: list[int] = []
        for _ in nodes:
            ports.append(free_port([port, *ports]))
        supernodes = [
            (
                *("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", "root.crt"),
                *("--auth-supernode-private-key", name, "--host", "127.0.0.1", "--port", str(own)),
                *("--node-config", f"partition-id={number}"),
            )
            for number, (name, own) in enumerate(zip(nodes, ports, strict=True))
        ]
        with _running(place, environment, supernodes):
            started = time.time()
            told = place / "told.jsonl"
            command = (_tool("flwr"), "run", str(_STOCK), "here", "--run-config", f'rounds={rounds} told="{told}"')
            subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
            events = _told(told, rounds)
    seconds = [event["seconds"] for event in events if "seconds" in event]
    first = min(event["step"] for event in events if "step" in event)
    return _row(seconds, first - started, events[-1]["time"] - started)


OFFLINE_FLAGS = ("--disable-runtime-dependency-installation",)


def _told(path: Path, rounds: int) -> list[dict[str, float]]:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if sum("seconds" in event for event in events) == rounds:
            return events
        time.sleep(0.2)
    raise FederationError("stock Flower did not come to its end", "look at its words, above")


def _certify(place: Path) -> list[str]:
    """A root, the server's certificate and four node keys, as Flower wants them."""
    authority = Authority.make(Identity.generate(), "stock", now_utc())
    key = TlsKey.generate()
    (place / "root.crt").write_bytes(authority.root.pem)
    (place / "server.key").write_bytes(key.pkcs8())
    (place / "server.crt").write_bytes(authority.certify_server(key.public, ["localhost", "127.0.0.1"], now_utc()))
    names = [f"node{number}" for number in range(4)]
    for name in names:
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(place / name)], check=True)
    return names


def _until_registered(place: Path, environment: dict[str, str], nodes: list[str]) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    for name in nodes:
        command = (_tool("flwr"), "supernode", "register", f"{name}.pub", "here")
        while subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                raise FederationError("stock Flower's SuperLink takes no nodes")
            time.sleep(1.0)


@contextmanager
def _running(place: Path, environment: dict[str, str], commands: list[tuple[str, ...]]) -> Iterator[None]:
    started = []
    try:
        for number, command in enumerate(commands):
            log = (place / f"{command[0]}-{number}.log").open("wb")
            own = environment | {"FLWR_HOME": f"{environment['FLWR_HOME']}-{command[0]}-{number}"}
            started.append(
                subprocess.Popen((_tool(command[0]), *command[1:]), cwd=place, env=own, stdout=log, stderr=log)
            )
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _row(seconds: list[float], first_step: float, command: float) -> dict[str, float]:
    """The first round is left out of the median where there are others: it warms up."""
    return {
        "seconds_per_round": statistics.median(seconds[1:] or seconds),
        "first_round_s": seconds[0],
        "first_step_s": first_step,
        "command_s": command,
    }
