"""The coordinator as its administrator starts it: real processes, killed one by one, and nothing left at the end."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

import server.processes
from common import ports
from common.addresses import Address
from common.certificates import now_utc
from common.enrolment import Request
from common.errors import ConfigError
from common.ports import LOOPBACK, free_port, is_free
from common.signing import Identity
from common.supervisor import status
from common.tls_keys import TlsKey
from server.gateway.configuration import Listen
from server.home import Home, unlock_roots
from server.processes import Ports, find_nginx, superlink
from server.provision import admit, found, revoke
from server.start import check, listen_at
from tests.common.test_tracing import without_the_extra

_ROOT = Path(__file__).parents[2]
try:
    find_nginx()
except ConfigError as missing:
    pytest.skip(missing.message, allow_module_level=True)
pytestmark = pytest.mark.slow


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.05)


def make_home(place: Path) -> Home:
    settings = place / "consortium.toml"
    settings.write_text(f'name = "Heart study"\naddress = "localhost:{free_port()}"\nadmins = ["ada"]\n')
    return found(settings, place / "home", None, now_utc())


class Coordinator:
    """A home and the command that runs it."""

    def __init__(self, place: Path) -> None:
        self.home = make_home(place).directory
        self.port = Address.parse(Home.open(self.home).settings.address).port
        (self.home / "run").mkdir(mode=0o700, exist_ok=True)
        Ports.kept(self.home, self.port)  # of those that are this test process's: see tests/conftest.py
        self.nodes: dict[str, TlsKey] = {}
        self.ids: dict[str, int] = {}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "scenarios.cli", "server", "start", str(self.home)],
            cwd=_ROOT,
            env={**os.environ, "SECRET_OF_THE_ADMINISTRATOR": "s3cret-in-the-environment"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> int:
        return subprocess.run(
            [sys.executable, "-m", "scenarios.cli", "server", "status", str(self.home)], cwd=_ROOT, capture_output=True
        ).returncode

    def admit(self, name: str) -> None:
        self.nodes[name] = TlsKey.generate()
        made = Request.make(name, Address("localhost", self.port), Identity.generate(), self.nodes[name])
        home = Home.open(self.home)
        admit(home, Request.read(made), unlock_roots(self.home / "root", home.roots, None), now_utc())

    def revoke(self, name: str) -> None:
        home = Home.open(self.home)
        revoke(home, name, unlock_roots(self.home / "root", home.roots, None), now_utc())

    def children(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in status(self.home)["rows"]}

    def is_ready(self) -> bool:
        found = status(self.home)
        return bool(found["rows"]) and all(one["state"] == "ready" for one in found["rows"])

    def tls(self, certificate: Path, key: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.home / "roots.pem"))
        context.load_cert_chain(certificate, key)
        return context

    def registered(self) -> set[str]:
        """As an administrator sees them, through the gateway."""
        admins = self.home / "admins"
        control = ControlHttpClient(
            f"https://localhost:{self.port}", verify=self.tls(admins / "ada.crt", admins / "ada.key")
        )
        try:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
            return {node.name for node in nodes if node.status != "unregistered"}
        except httpx.HTTPError:
            return set()
        finally:
            control.close()

    def call(self, name: str) -> bool:
        """What a site's node does: through the gateway with its certificate, each call signed with its key."""
        key, certificate = self.nodes[name], self.home / f"{name}.crt"
        certificate.write_bytes(Home.open(self.home).certificates()[name].pem)
        private = self.home / f"{name}.key"
        private.write_bytes(key.pkcs8())
        fleet = FleetHttpClient(
            f"https://localhost:{self.port}",
            interceptors=[NodeAuthHttpInterceptor(key.key, key.key.public_key())],
            verify=self.tls(certificate, private),
        )
        try:
            if name not in self.ids:
                public = public_key_to_bytes(key.key.public_key())
                asked = ActivateNodeRequest(public_key=public, heartbeat_interval=30)
                self.ids[name] = fleet.ActivateNode(asked).node_id
            beat = SendNodeHeartbeatRequest(node=Node(node_id=self.ids[name]), heartbeat_interval=30)
            return fleet.SendNodeHeartbeat(beat).success
        finally:
            fleet.close()


def sessions(leaders: set[int]) -> set[int]:
    """Every process alive now in the sessions of these leaders: they and whatever they started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) in leaders and state != "Z":
            found.add(int(entry.parent.name))
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, subprocess.Popen[str]]]:
    coordinator = Coordinator(tmp_path_factory.mktemp("place"))
    coordinator.admit("cleveland")
    process = coordinator.start()
    try:
        eventually(lambda: coordinator.is_ready() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield coordinator, process
    finally:
        process.kill()
        process.wait()


def test_a_started_coordinator_has_the_roster_s_nodes_and_says_it_is_ready(running):
    coordinator, _ = running
    eventually(lambda: coordinator.registered() == {"cleveland"})
    assert coordinator.call("cleveland")
    assert coordinator.status() == 0
    assert set(coordinator.children()) == {"superlink", "gateway", "nodes", "executor"}


def test_a_site_that_is_admitted_while_it_runs_may_come_at_once(running):
    coordinator, _ = running
    coordinator.admit("long-beach")
    eventually(lambda: coordinator.registered() == {"cleveland", "long-beach"})
    assert coordinator.call("long-beach")


def test_a_site_that_is_revoked_while_it_runs_is_out_at_door_and_list(running):
    coordinator, _ = running
    coordinator.admit("budapest")
    eventually(lambda: "budapest" in coordinator.registered())
    assert coordinator.call("budapest")
    certificate = coordinator.home / "budapest.crt"
    coordinator.revoke("budapest")
    eventually(lambda: "budapest" not in coordinator.registered())
    address = f"https://localhost:{coordinator.port}/v1/fleet/get-run"
    context = coordinator.tls(certificate, certificate.with_suffix(".key"))
    eventually(lambda: httpx.post(address, verify=context).status_code == 400)
    assert coordinator.registered() == {"cleveland", "long-beach"}


@pytest.mark.parametrize("name", ["gateway", "superlink", "nodes", "executor"])
def test_whatever_is_killed_is_back_and_nothing_is_forgotten(running, name: str):
    coordinator, process = running
    before = coordinator.children()
    os.kill(before[name], signal.SIGKILL)
    eventually(lambda: coordinator.children()[name] not in (before[name], None) and coordinator.is_ready())
    after = coordinator.children()
    assert {other: pid for other, pid in after.items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    eventually(lambda: "cleveland" in coordinator.registered())  # once, from the database
    assert coordinator.call("cleveland")
    assert sessions({before[name]}) == set()
    assert process.poll() is None


def test_only_the_gateway_is_public_and_the_rest_on_the_loopback(running):
    coordinator, _ = running
    inodes = set()
    for pid in sessions(set(coordinator.children().values())):
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(FileNotFoundError):  # it has just been closed
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.add((fields[1].split(":")[0], int(fields[1].split(":")[1], 16)))
    ports = Ports.read(coordinator.home)
    assert {port for _, port in listening} == {coordinator.port, ports.superlink, ports.health, ports.status}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1 as IPv4 and inside IPv6
    assert {address for address, _ in listening} <= loopback  # the gateway too, as its own address, localhost, says


def test_children_are_told_nothing_of_the_administrator_s_environment(running):
    coordinator, _ = running
    for pid in sessions(set(coordinator.children().values())):
        told = b""
        with suppress(FileNotFoundError, ProcessLookupError):  # one of nginx's, which has just ended
            told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"s3cret" not in told
        assert (coordinator.home / "superexec.secret").read_bytes() not in told


def test_a_second_one_is_refused(running):
    coordinator, process = running
    second = coordinator.start()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"is running already, as process {process.pid}" in said


def test_sigterm_leaves_nothing_and_the_next_start_goes_on(running):
    coordinator, process = running
    leaders = set(coordinator.children().values())
    assert len(sessions(leaders)) >= 6  # nginx has two workers
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "all are ready" in said
    assert str(coordinator.home) in out
    eventually(lambda: sessions(leaders) == set())  # killed, and gone once the kernel comes to it
    assert coordinator.status() == 2
    again = coordinator.start()
    try:
        eventually(coordinator.is_ready)
        eventually(lambda: coordinator.registered() == {"cleveland", "long-beach"})
    finally:
        again.kill()  # not asked, as by a machine that runs out of memory
        again.wait()
    eventually(lambda: sessions(set(coordinator.children().values())) == set())


# Why it does not start, in one sentence.


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    coordinator = Coordinator(tmp_path)
    with socket.create_server((LOOPBACK, coordinator.port)):
        process = coordinator.start()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"port {coordinator.port} is taken by another program" in said


def test_a_certificate_that_has_ended_is_named(tmp_path: Path):
    home = make_home(tmp_path)
    listen = Listen(LOOPBACK, free_port())
    check(home, listen, now_utc())
    with pytest.raises(ConfigError, match=r"the gateway's certificate ended on 20..-..-..") as refused:
        check(home, listen, now_utc() + timedelta(days=400))
    assert "veilfed server renew gateway" in refused.value.hint


def test_a_collector_that_nothing_is_installed_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with (make_home(tmp_path).directory / "consortium.toml").open("a") as file:
        file.write('[monitoring]\ntraces = "http://127.0.0.1:4318"\n')
    home, listen = Home.open(tmp_path / "home"), Listen(LOOPBACK, free_port())
    check(home, listen, now_utc())
    without_the_extra(monkeypatch)
    with pytest.raises(ConfigError, match="opentelemetry is not installed") as refused:
        check(home, listen, now_utc())
    assert "veilfed[tracing]" in refused.value.hint


def test_a_missing_nginx_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(server.processes, "_WHERE_NGINX_MAY_BE", "/nonexistent")
    with pytest.raises(ConfigError, match="nginx is not installed") as refused:
        find_nginx()
    assert "apt install nginx" in refused.value.hint


def test_a_directory_that_is_no_home_is_refused(tmp_path: Path):
    process = subprocess.run(
        [sys.executable, "-m", "scenarios.cli", "server", "start", str(tmp_path), "--json"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert json.loads(process.stdout)["error"]["code"] == "ConfigError"


def test_ports_are_remembered_while_they_are_free(tmp_path: Path):
    (tmp_path / "run").mkdir()
    first = Ports.kept(tmp_path, 1)
    assert Ports.kept(tmp_path, 1) == first == Ports.read(tmp_path)
    with socket.create_server((LOOPBACK, first.health)):
        assert not is_free(LOOPBACK, first.health)
        moved = Ports.kept(tmp_path, 1)
    assert moved.health != first.health
    assert Ports.read(tmp_path) == moved


def test_the_gateways_own_port_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nobody listens on it yet when the others are chosen, from a range that has room for three more."""
    (tmp_path / "run").mkdir()
    public = next(port for port in range(2000, 9000) if all(is_free(LOOPBACK, port + more) for more in range(4)))
    monkeypatch.setattr(ports, "_PRIVATE", range(public, public + 4))
    first = Ports.kept(tmp_path, public)
    assert public not in astuple(first)
    assert first.health not in astuple(Ports.kept(tmp_path, first.health))


def test_the_superlink_is_run_as_was_decided(tmp_path: Path):
    child = superlink(tmp_path, Ports(20001, 20002, 20003))
    for flag in (
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--ssl-certfile",
        "--database",
    ):
        assert flag in child.argv
    assert child.argv[child.argv.index("--host") + 1] == LOOPBACK
    assert child.argv[child.argv.index("--isolation") + 1] == "process"
    assert "--insecure" not in child.argv
    assert child.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert child.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert child.environment["FLWR_HOME"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("localhost:8443", "127.0.0.1"),
        ("127.0.0.1:8443", "127.0.0.1"),
        ("[::1]:8443", "::1"),
        ("fl.example.org:8443", "0.0.0.0"),
        ("203.0.113.7:8443", "0.0.0.0"),
        ("[2001:db8::5]:8443", "::"),
    ],
)
def test_a_coordinator_that_is_reached_at_the_loopback_listens_nowhere_else(address: str, host: str):
    assert listen_at(Address.parse(address)) == Listen(host, 8443)
