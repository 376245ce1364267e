"""Coordinator and sites as hosts of their own, with cables between them; one is cut in the middle of a round."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import HEART, SECONDS, Deployment, eventually, require_nginx, simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CUT_SECONDS = 30.0
COORDINATOR = "10.231.0.1"
PLAN = ("data.partition=iid", "data.sites=2", "federation.min_cohort=2", "federation.rounds=3", "privacy.epsilon=0.5")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Hosts:
    """A network namespace for each party; each site has a cable to the coordinator and knows no other way."""

    def __init__(self, sites: int) -> None:
        self._names = [f"veilfed{os.getpid()}-{number}" for number in range(sites + 1)]

    def __enter__(self) -> "Hosts":
        try:
            for name in self._names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", self._names[0], "address", "add", f"{COORDINATOR}/32", "dev", "lo")
            for number, name in enumerate(self._names[1:], 1):
                near, far = f"v{os.getpid()}c{number}", f"v{os.getpid()}s{number}"
                ip("link", "add", near, "netns", self._names[0], "type", "veth", "peer", "name", far, "netns", name)
                for where, cable, end in ((self._names[0], near, 1), (name, far, 2)):
                    ip("-n", where, "address", "add", f"10.231.{number}.{end}/24", "dev", cable)
                    ip("-n", where, "link", "set", cable, "up")
                ip("-n", name, "route", "add", COORDINATOR, "via", f"10.231.{number}.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def at(self, number: int) -> list[str]:
        """What a command begins with to run on that host. 0: the coordinator's."""
        return ["ip", "netns", "exec", self._names[number]]

    def cable(self, number: int, state: str) -> None:
        """state: up, or down as if it were pulled out at the coordinator's end."""
        ip("-n", self._names[0], "link", "set", f"v{os.getpid()}c{number}", state)


class Apart(Deployment):
    """Each party's processes on its own host."""

    host = COORDINATOR

    def __init__(self, place: Path, hosts: Hosts) -> None:
        super().__init__(place, simulation(*PLAN), epsilon=100.0)
        self.hosts = hosts

    def number(self, place: Path) -> int:
        return [self.home, *self.sites].index(place)

    def start(self, place: Path) -> None:
        party = "server" if place == self.home else "site"
        self._processes[place] = subprocess.Popen(
            [*self.hosts.at(self.number(place)), sys.executable, "-m", "scenarios.cli", party, "start", str(place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=HEART.parents[1],
        )

    def begin(self) -> "subprocess.Popen[str]":
        """`veilfed run`, on the coordinator's host."""
        words = ["run", "heart", "--home", str(self.home), "--out", str(self.place / "report"), "--json"]
        words += [word for override in PLAN for word in ("--set", override)]
        return subprocess.Popen(
            [*self.hosts.at(0), sys.executable, "-m", "scenarios.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=HEART.parents[1],
        )


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    require_nginx()
    try:
        hosts = Hosts(2).__enter__()
    except (OSError, PermissionError) as error:
        pytest.skip(f"hosts of their own cannot be made here: {error}")
    try:
        made = Apart(tmp_path / "c", hosts)
        made.found(made.settings)
        with made.running():
            yield made
    finally:
        hosts.__exit__()


def test_a_cable_that_is_cut_for_half_a_minute_in_a_round_costs_time_and_nothing_else(apart):
    site = apart.sites[1]
    code = "import socket; socket.create_connection(('10.231.2.2', 9), 5)"
    reached = subprocess.run([*apart.hosts.at(1), sys.executable, "-c", code], capture_output=True, text=True)
    assert "Network is unreachable" in reached.stderr, "the sites are to have no way to each other"
    run = apart.begin()
    try:
        eventually(lambda: list(site.glob("runs/*/shown-000002")), "the second round has begun")
        apart.hosts.cable(2, "down")
        cut = time.monotonic()
        time.sleep(CUT_SECONDS)
        assert run.poll() is None, "without that site there is no sum: it is waited for"
        assert time.monotonic() - cut >= CUT_SECONDS
        apart.hosts.cable(2, "up")
        said, _ = run.communicate(timeout=SECONDS)
    finally:
        run.kill()
    assert run.returncode == 0, said
    report = json.loads(said)
    assert [(one["round"], len(one["sites"]), one["left_out"]) for one in report["rounds"]] == [
        (1, 2, []),
        (2, 2, []),
        (3, 2, []),
    ]
    assert report["rounds"][1]["seconds"] > 0.9 * CUT_SECONDS
    for place in apart.sites:
        ledger = apart.give("site", "ledger", "show", place)
        assert "error" not in ledger
        lines = next((place / "ledgers").glob("*.jsonl")).read_text().splitlines()
        assert sum('"events"' in line for line in lines) == 3
