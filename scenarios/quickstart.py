"""A whole consortium on one machine, set up by the very commands that its people would give on four.

DIR/coordinator/     the coordinator's home      DIR/sites/NAME/     one hospital's own directory
Every party has its own processes, keys and certificates; they speak TLS through the gateway on the loopback.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from client.policy import SitePolicy
from client.site import SiteData, SiteSettings
from common import errors
from common.config import to_table
from common.errors import ConfigError, FederationError
from common.files import write_atomically
from common.ports import free_port
from scenarios.data import site_loader, site_names
from scenarios.simulation import Simulation, planned

_READY_SECONDS = 180.0
_END_SECONDS = 30.0
Told = Callable[[str], None]


class Consortium:
    """say: is told each command before it is given. host: where the coordinator is reached."""

    host = "127.0.0.1"

    def __init__(self, place: Path, say: Told) -> None:
        self.place, self._say = place, say
        self.home = place / "coordinator"

    @property
    def sites(self) -> list[Path]:
        return sorted(path for path in (self.place / "sites").iterdir() if path.is_dir())

    def found(self, simulation: Simulation) -> None:
        """Coordinator and sites with their keys, certificates, settings and policies. Nothing runs yet."""
        if self.home.exists():
            raise ConfigError(f"{self.place} holds a consortium already", "name a directory that is not there yet")
        self.place.mkdir(parents=True, exist_ok=True)
        address = f"{self.host}:{free_port(())}"
        consortium = {"name": "Quickstart", "address": address, "admins": ["admin"]}
        write_atomically(self.place / "consortium.toml", tomli_w.dumps(consortium).encode())
        root = self.give("server", "init", self.place / "consortium.toml", "--out", self.home)["root_fingerprint"]
        for name in site_names(simulation.data):
            site = self.place / "sites" / name
            self.give("site", "init", site, "--name", name, "--server", address)
            settings, policy = settings_of(simulation, name), policy_of(simulation)
            write_atomically(site / "site.toml", tomli_w.dumps(to_table(settings)).encode())
            write_atomically(site / "policy.toml", tomli_w.dumps(to_table(policy)).encode())
            self.give("server", "admit", site / "request.json", "--home", self.home, "--yes")
        for site in self.sites:  # the newest kit names all of them
            kit = self.home / "kits" / f"{site.name}.json"
            self.give("site", "join", site, kit, "--root-fingerprint", root)

    @contextmanager
    def running(self) -> Iterator[None]:
        """All parties' processes, ready to work; none is left when the block ends."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            for party, place in (("server", self.home), *(("site", site) for site in self.sites)):
                started.append(self._start(party, place))
            for (party, place), process in zip(
                (("server", self.home), *(("site", site) for site in self.sites)), started, strict=True
            ):
                self._wait_for(party, place, process)
            yield
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait(_END_SECONDS)

    def give(self, *words: str | Path) -> dict[str, Any]:
        """One command of `veilfed`, in a process of its own. Raises the error that it ends with."""
        arguments = [str(word) for word in words]
        self._say(f"veilfed {shlex.join(arguments)}")
        done = subprocess.run(_command(*arguments, "--json"), capture_output=True, text=True, check=False)
        try:
            said: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise FederationError(f"veilfed {arguments[0]} ended without a word: {done.stderr[-2000:]}") from None
        if "error" in said:
            kind = getattr(errors, said["error"]["code"], FederationError)
            raise kind(said["error"]["message"], said["error"]["hint"])
        return said

    def _start(self, party: str, place: Path) -> subprocess.Popen[bytes]:
        self._say(f"veilfed {party} start {place} &")
        return subprocess.Popen(
            _command(party, "start", str(place)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_for(self, party: str, place: Path, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _READY_SECONDS
        while True:
            done = subprocess.run(_command(party, "status", str(place), "--json"), capture_output=True, check=False)
            if done.returncode == 0:
                return
            if process.poll() is not None or time.monotonic() > until:
                raise FederationError(f"{place} did not start", f"its words are in {place / 'logs'}")
            time.sleep(0.5)


def quickstart(place: Path, simulation: Simulation, federation: Sequence[str], say: Told) -> Mapping[str, Any]:
    """Found the consortium, start everybody, run the federation, stop everybody. Returns the run's report.

    federation: what to give `veilfed run`. Raises ConfigError, before anything is founded, when the plan does not fit.
    """
    planned(simulation)
    consortium = Consortium(place, say)
    consortium.found(simulation)
    with consortium.running():
        return consortium.give("run", *federation, "--home", consortium.home, "--out", place / "report")


def settings_of(simulation: Simulation, name: str) -> SiteSettings:
    loader, options = site_loader(simulation.data, name)
    data = simulation.data
    return SiteSettings(name, SiteData(data.loader.replace(":", "."), loader, data.holdout, data.seed, options))


def policy_of(simulation: Simulation) -> SitePolicy:
    """What these sites agree to: this federation, encrypted and private, and as much again for another."""
    privacy, asked = simulation.privacy, simulation.metrics.asked
    return SitePolicy(2 * privacy.epsilon, privacy.delta, protected_attributes=asked)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scenarios.cli", *arguments]
