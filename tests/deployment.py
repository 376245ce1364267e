"""A consortium of real processes over real sockets whose parties a test stops, kills and starts again.

Its people type the commands of `scenarios/quickstart.py`, in this process, to spare many a start of Python.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file

from client.site import Site
from common import errors
from common.addresses import Address
from common.config import fill, load_table, override, to_table
from common.errors import FederationError
from common.federation import Plan
from common.supervisor import status
from scenarios.cli import main
from scenarios.data import public_shape
from scenarios.quickstart import Consortium, _command, policy_of, settings_of
from scenarios.simulation import Simulation
from server.account import Account
from server.home import Home
from server.processes import Ports, find_nginx
from server.submit import complete, follow, submit

HEART = Path(__file__).parents[1] / "scenarios" / "heart.toml"
SHORT = ("federation.rounds=3", "simulation.baselines=false", "simulation.insecure_randomness=7")


def require_nginx() -> None:
    """Skips the test where there is none: a coordinator is not deployed without it."""
    try:
        find_nginx()
    except errors.ConfigError as missing:
        pytest.skip(missing.message)


LOCKED = "hungary"  # the site whose keys are behind a passphrase
SECONDS = 240.0  # for whatever a busy machine has to do


def simulation(*overrides: str) -> Simulation:
    return fill(Simulation, override(load_table(HEART), [*SHORT, *overrides]))


def eventually(true: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """The first thing that `true` says which is true."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, f"{what}: it did not come true in {seconds:g} s"
        time.sleep(0.02)
    return found


def caught(process: Callable[[], int], moment: Callable[[], object], seconds: float = SECONDS) -> int:
    """The process, stopped by SIGSTOP while that moment lasts: seen before it was stopped, and again afterwards.

    Who it is is found out beforehand, which takes longer than a short moment on a busy machine.
    """
    until, found, looked = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < until:
        if time.monotonic() - looked > 0.5:
            found, looked = process(), time.monotonic()
        if moment():
            try:
                os.kill(found, signal.SIGSTOP)
            except ProcessLookupError:  # another one has taken its place
                looked = 0.0
                continue
            eventually(lambda pid=found: _state(pid) in "TtZ", "stopped", 60)
            if moment() and process() == found:
                return found
            os.kill(found, signal.SIGCONT)
            looked = 0.0
        time.sleep(0.001)
    raise AssertionError("the moment did not come, or never lasted")


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def children(parent: int, module: str) -> list[int]:
    """Child processes that run that module, the oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and module in (path.parent / "cmdline").read_text():
                found.append((int(fields[19]), int(path.parent.name)))
        except OSError:
            continue
    return [process for _, process in sorted(found)]


def kill(process: int) -> None:
    """kill -9, stopped or not."""
    os.kill(process, signal.SIGKILL)


class Run:
    """A run that was submitted and is followed, as `veilfed run` does it, in a thread of this process."""

    def __init__(self, consortium: "Deployment", number: str) -> None:
        self.number, self.consortium = number, consortium
        self.rounds: list[int] = []
        self.signed: Mapping[str, str] = {}
        self._report: dict[str, Any] = {}
        self._error: FederationError | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for kind, value in follow(Account.of(self.consortium.home).control, self.number):
                if kind == "round":
                    self.rounds.append(value["round"])
                elif kind == "signed":
                    self.signed = value
                elif kind == "report":
                    self._report = value
        except FederationError as error:
            self._error = error

    def report(self, seconds: float = SECONDS) -> Mapping[str, Any]:
        """How it ended. Raises the error that stopped it."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"run {self.number} did not end in {seconds:g} s"
        if self._error:
            raise self._error
        assert self._report["outcome"] == "done"
        return self._report

    @property
    def place(self) -> Path:
        return self.consortium.home / "runs" / self.number

    @property
    def model(self) -> np.ndarray:
        return self.model_in(self.place)

    @staticmethod
    def model_in(place: Path) -> np.ndarray:
        return load_file(place / "released.safetensors")["model"]

    @property
    def closed(self) -> int:
        """How many rounds are closed, without verifying them."""
        path = self.place / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def at(self, site: Path) -> Path:
        return site / "runs" / self.number

    def charges(self, site: Path) -> list[int]:
        """The rounds that this run was charged for, in the order in which the ledger has them."""
        return [one.round_number for one in Site.open(site).ledger.entries if one.run == self.number]

    def charged_in_a_hurry(self, site: Path) -> int:
        """How many charges are in the file, without verifying it."""
        path = site / "ledgers" / "heart.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(self.number in line and '"events"' in line for line in lines)

    def sealed(self, site: Path) -> int:
        """The newest round whose update is on disk; 0 when there is none."""
        return max((int(path.name.split("-")[1]) for path in self.at(site).glob("update-*")), default=0)

    def shown(self, site: Path) -> int:
        """The newest round that the site has begun."""
        return max((int(path.name.split("-")[1]) for path in self.at(site).glob("shown-*")), default=0)

    def sums(self) -> tuple[int, int]:
        """How many sums are made, and how many are published."""
        names = [path.name for path in (self.place / "aggregates").glob("[0-9]*")]
        masked, published = (
            [int(name[:6]) for name in names if name.endswith(".masked") is wanted] for wanted in (True, False)
        )
        newest = max(published, default=0)
        return max([newest, *masked]), newest


class Deployment(Consortium):
    """Four heart sites and their coordinator. One site's keys are locked; all sites' randomness is fixed."""

    def __init__(self, place: Path, settings: Simulation, epsilon: float) -> None:
        super().__init__(place, lambda line: None)
        self.settings, self._epsilon = settings, epsilon
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def give(self, *words: str | Path) -> dict[str, Any]:
        """One command, typed in this process."""
        out, said = io.StringIO(), [str(word) for word in words]
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            main([*said, "--json"])
        answer: dict[str, Any] = json.loads(out.getvalue())
        if "error" in answer:
            kind = getattr(errors, answer["error"]["code"], FederationError)
            raise kind(answer["error"]["message"], answer["error"]["hint"])
        return answer

    def shell(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own: for its exit code and its words."""
        return subprocess.run(
            _command(*map(str, words)), capture_output=True, text=True, timeout=SECONDS, cwd=HEART.parents[1]
        )

    def found(self, simulation: Simulation) -> None:
        super().found(simulation)
        (self.home / "run").mkdir(mode=0o700, exist_ok=True)
        public = Address.parse(Home.open(self.home).settings.address).port
        Ports.kept(self.home, public)  # of those that are this test process's: see tests/conftest.py
        for site in self.sites:
            settings = replace(
                settings_of(simulation, site.name), insecure_randomness=simulation.simulation.insecure_randomness
            )
            (site / "site.toml").write_text(tomli_w.dumps(to_table(settings)))
            self.allow(site)
        if self.site(LOCKED).exists():
            passphrase = self.place / "passphrase"
            passphrase.write_text(PASSPHRASE)
            passphrase.chmod(0o600)
            self.give("site", "lock", self.site(LOCKED), "--passphrase-file", passphrase)

    def allow(self, site: Path, **changes: Any) -> None:
        """What that site's policy says from now on."""
        policy = replace(policy_of(self.settings), epsilon=self._epsilon, **changes)
        (site / "policy.toml").write_text(tomli_w.dumps(to_table(policy)))

    def site(self, name: str) -> Path:
        return self.place / "sites" / name

    @contextmanager
    def running(self) -> Iterator[None]:
        """All parties' processes, ready to work; none is left when the block ends."""
        try:
            for place in (self.home, *self.sites):
                self.start(place)
            for place in (self.home, *self.sites):
                self.until_ready(place)
            yield
        finally:
            for place in list(self._processes):
                self.stop(place, wait=False)
            for process in self._processes.values():
                process.wait(60)

    def start(self, place: Path) -> None:
        self._processes[place] = self._start("server" if place == self.home else "site", place)

    def stop(self, place: Path, wait: bool = True) -> None:
        self._processes[place].send_signal(signal.SIGTERM)
        if wait:
            self._processes[place].wait(60)

    def kill_all_of(self, place: Path) -> None:
        """kill -9 of the supervisor: its processes end with it."""
        self._processes[place].kill()
        self._processes[place].wait(60)

    def until_ready(self, place: Path) -> None:
        def ready() -> bool:
            assert self._processes[place].poll() is None, f"{place} did not start: see {place / 'logs'}"
            rows = status(place)["rows"]
            return bool(rows) and all(row["state"] == "ready" for row in rows)

        eventually(ready, f"{place} is ready")

    def bare(self, site: Path, name: str) -> Path:
        """A directory with what that site's node needs and nothing else."""
        made = self.place / name
        made.mkdir()
        for file in ("node.key", "node.crt", "roots.pem", "connection.json"):
            shutil.copy(site / file, made)  # with its permissions
        return made

    def process(self, place: Path, name: str) -> int:
        """The process of that name that runs now."""
        return eventually(
            lambda: next((row["pid"] for row in status(place)["rows"] if row["name"] == name), None), f"{name} runs"
        )

    def conductor(self) -> int:
        """The one at work: the other one, kept warm, is younger."""
        executor = self.process(self.home, "executor")
        return eventually(lambda: children(executor, "server.conductor"), "a conductor runs")[0]

    def plan(self, *overrides: str) -> Plan:
        settings = fill(Simulation, override(to_table(self.settings), overrides))
        inputs, classes = public_shape(settings.data)
        shaped = replace(settings.model, inputs=inputs, classes=classes)
        return complete(replace(settings.plan, model=shaped), len(self.sites))

    def run(self, *overrides: str, number: str = "") -> Run:
        """Submitted and followed."""
        return Run(self, submit(Account.of(self.home), self.plan(*overrides), number))

    def log(self, place: Path, name: str) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((place / "logs").glob(f"{name}.log*")))


PASSPHRASE = "a passphrase that stands nowhere else 7f3a"  # noqa: S105 - of a test
