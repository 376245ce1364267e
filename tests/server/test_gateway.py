"""The coordinator's door: a real nginx before a real SuperLink, tried by everybody who should not get in."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from common.certificates import Authority, Certificate, now_utc, write_roots
from common.errors import ConfigError
from common.ports import LOOPBACK, accepts, free_port
from common.signing import Identity
from common.supervisor import Child
from common.tls_keys import TlsKey
from server.gateway.configuration import Gateway, Listen, nginx_conf
from server.gateway.routes import HOPELESS_BYTES, PASSED_HEADERS, ROLES, ROUTES
from server.processes import Ports, gateway, superlink

_FLOWER = Path(pytest.importorskip("flwr").__file__).parent
_PROTOBUF = "application/protobuf"
_HUGE = 300 * 1024 * 1024
_BUFFERS = 12 * 1024 * 1024  # what the two kernels' sockets may hold on the loopback, unread
_LONG_AGO = timedelta(days=800)
try:
    from server.processes import find_nginx

    find_nginx()
except ConfigError as missing:
    pytest.skip(missing.message, allow_module_level=True)
pytestmark = pytest.mark.slow


def flower_paths() -> set[str]:
    """Every path of the installed SuperLink, read from its source."""
    found = set()
    for api in ("control", "fleet"):
        text = (_FLOWER / "superlink" / "routers" / api / "router.py").read_text()
        found |= {f"/v1/{api}{path}" for path in re.findall(r'@router\.post\("([^"]+)"', text)}
    text = (_FLOWER / "supercore" / "protobuf" / "translation.py").read_text()
    return found | set(re.findall(r'"(/v1/runtime/[^"]+)"', text))


@dataclass(frozen=True)
class Person:
    """A client certificate and its key, as files; None for a stranger who has only the roots."""

    certificate: Path
    key: Path
    pem: bytes

    @property
    def serial(self) -> int:
        return Certificate.read(self.pem).serial


class Consortium:
    """A coordinator's home with as much in it as the door needs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.authority = Authority.make(Identity.generate(), "Heart Study 2.0", now_utc())
        for name in ("tls", "people"):
            (home / name).mkdir(mode=0o700)
        (home / "roots.pem").write_bytes(write_roots([self.authority.root]))
        (home / "superexec.secret").write_bytes(b"0123456789abcdef")
        self.revoke()
        for name in ("gateway", "superlink"):
            self.certify_server(name)
        self.people = {role: self.admit(f"a-{role}", role) for role in ROLES}

    def certify_server(self, name: str) -> None:
        key = TlsKey.generate()
        _private(self.home / "tls" / f"{name}.key", key.pkcs8())
        pem = self.authority.certify_server(key.public, ["localhost", LOOPBACK], now_utc())
        (self.home / "tls" / f"{name}.crt").write_bytes(pem)

    def admit(self, name: str, role: str, ago: timedelta = timedelta(0)) -> Person:
        key = TlsKey.generate()
        pem = self.authority.certify_client(key.public, name, role, now_utc() - ago)
        place = self.home / "people" / f"{len(list((self.home / 'people').iterdir()))}"
        _private(place.with_suffix(".key"), key.pkcs8())
        place.with_suffix(".crt").write_bytes(pem)
        return Person(place.with_suffix(".crt"), place.with_suffix(".key"), pem)

    def revoke(self, *people: Person) -> None:
        (self.home / "crl.pem").write_bytes(self.authority.revoke([one.serial for one in people], 1, now_utc()))


def _private(path: Path, data: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(data)


class Door:
    """nginx and the SuperLink behind it, and what has reached either."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium, home = consortium, consortium.home
        self.port = free_port()
        (home / "run").mkdir(exist_ok=True)
        self.ports = Ports.kept(home)
        settings = Gateway(home, Listen(LOOPBACK, self.port), self.ports.superlink, self.ports.status)
        self.logs = {name: home / f"{name}.log" for name in ("superlink", "gateway")}
        self.processes = {child.name: self._start(child) for child in (superlink(home, self.ports), gateway(settings))}

    def _start(self, child: Child) -> subprocess.Popen[bytes]:
        with self.logs[child.name].open("ab") as log:
            # start_new_session, as the supervisor does: nginx's workers end with their group
            process = subprocess.Popen(
                child.argv, env=child.environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self._copy(process, self.logs[child.name])
        give_up = time.monotonic() + 60
        while not child.ready():
            assert process.poll() is None, self.logs[child.name].read_text()
            assert time.monotonic() < give_up, self.logs[child.name].read_text()
            time.sleep(0.05)
        return process

    @staticmethod
    def _copy(process: subprocess.Popen[bytes], log: Path) -> None:
        import threading

        def copy() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                with log.open("ab") as file:
                    file.write(line)

        threading.Thread(target=copy, daemon=True).start()

    def stop(self) -> None:
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def tls(self, person: Person | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.consortium.home / "roots.pem"))
        if person:
            context.load_cert_chain(person.certificate, person.key)
        return context

    def post(self, person: Person | None, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """(status, body); status 0 when the door closed without a word."""
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.tls(person), timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body, {"Content-Type": _PROTOBUF, **named})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, ssl.SSLError, http.client.BadStatusLine):
            return 0, b""
        finally:
            connection.close()

    def pour(self, person: Person | None, path: str, head: str, body_bytes: int) -> tuple[int, int]:
        """Send a body until all is sent or the door closes: (bytes that the kernels took, bytes that nginx read)."""
        before, sent = self._read_by_nginx(), 0
        block = b"10000\r\n" + b"\0" * 65536 + b"\r\n" if "chunked" in head else b"\0" * 65536
        with (
            socket.create_connection((LOOPBACK, self.port), 20) as plain,
            self.tls(person).wrap_socket(plain, server_hostname="localhost") as connection,
            contextlib.suppress(ConnectionError, ssl.SSLError),
        ):
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {_PROTOBUF}\r\n{head}\r\n".encode())
            while sent < body_bytes:
                connection.sendall(block)
                sent += len(block)
        time.sleep(0.1)
        return sent, self._read_by_nginx() - before

    def _read_by_nginx(self) -> int:
        """Bytes that nginx's workers have read so far: OpenSSL reads sockets with read(2), which the kernel counts."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rsplit(")", 1)[1].split()[2]) == self.processes["gateway"].pid:
                    total += int(re.search(r"rchar: (\d+)", (stat.parent / "io").read_text())[1])
            except OSError:
                continue
        return total

    def log(self) -> list[dict[str, object]]:
        lines = self.logs["gateway"].read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def reached_superlink(self) -> int:
        """How many requests came through: nginx names the time that the SuperLink took for each."""
        time.sleep(0.2)
        return sum(bool(line["upstream_seconds"]) for line in self.log())


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("home")
    made = Door(Consortium(home))
    yield made
    made.stop()


@pytest.fixture
def people(door: Door) -> dict[str, Person]:
    return door.consortium.people


# A stranger: whoever holds the roots, and no certificate that they signed.


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/v1/control/register-node", id="registers a node"),
        pytest.param("/v1/fleet/register-node", id="registers itself"),
        pytest.param("/v1/control/list-runs", id="lists runs"),
        pytest.param("/v1/fleet/pull-messages", id="fetches tasks"),
        pytest.param("/v1/runtime/acquire-task", id="acquires a task"),
        pytest.param("/docs", id="reads the API"),
    ],
)
def test_a_stranger_with_the_roots_does_nothing(door: Door, path: str):
    before = door.reached_superlink()
    status, said = door.post(None, path)
    assert (status, b"certificate of the consortium" in said) == (400, True)
    assert door.reached_superlink() == before


@pytest.mark.parametrize("head", [f"Content-Length: {_HUGE}\r\n", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("who", [None, *ROLES])
@pytest.mark.parametrize("path", ["/v1/fleet/push-object", "/v1/control/start-run", "/v1/runtime/push-object"])
def test_nobody_makes_the_coordinator_read_300_mb(door: Door, people, who: str | None, path: str, head: str):
    before = door.reached_superlink()
    sent, read = door.pour(people[who] if who else None, path, head, _HUGE)
    assert sent < _BUFFERS
    assert read < 256 * 1024
    assert door.reached_superlink() == before


def test_a_stranger_s_long_body_is_cut_off_before_it_comes(door: Door):
    sent, read = door.pour(None, "/v1/control/list-runs", "Content-Length: 9000000\r\n", 9_000_000)
    assert read < 256 * 1024, sent


# Certificates that do not count.


def test_a_certificate_of_another_root_is_none(door: Door, tmp_path: Path):
    (tmp_path / "other").mkdir()
    stranger = Consortium(tmp_path / "other").people["admin"]
    assert door.post(stranger, "/v1/control/list-runs")[0] == 400


def test_an_expired_certificate_is_none(door: Door):
    expired = door.consortium.admit("late", "admin", _LONG_AGO)
    assert door.post(expired, "/v1/control/list-runs")[0] == 400


def test_a_server_s_own_certificate_is_no_client_s(door: Door):
    tls = door.consortium.home / "tls"
    for name in ("gateway", "superlink"):
        server = Person(tls / f"{name}.crt", tls / f"{name}.key", b"")
        assert door.post(server, "/v1/control/list-runs")[0] == 400


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("x,OU=admin", "site"),
        ("x/OU=admin", "site"),
        ("x+OU=admin", "site"),
        ("admin,O=Heart Study 2.0", "site"),
        ("x\nOU=admin", "site"),
        ('x",OU=admin,CN="x', "site"),
        ("x", "admins"),
        ("x", "site,OU=admin"),
        ("x", "Admin"),
        ("x", "server"),
        ("OU=admin", "nobody"),
    ],
)
def test_a_name_that_looks_like_a_role_is_no_role(door: Door, name: str, role: str):
    tricky = door.consortium.admit(name, role)
    for path in ("/v1/control/list-runs", "/v1/control/register-node"):
        assert door.post(tricky, path)[0] == 403


def test_only_tls_1_3(door: Door, people):
    context = door.tls(people["admin"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((LOOPBACK, door.port), 20) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)version"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


# Who may call what.


def test_the_table_is_what_was_decided():
    table = {role: {route.path for route in ROUTES if role in route.roles} for role in ROLES}
    control, fleet = "/v1/control/", "/v1/fleet/"
    reads = {control + name for name in ("list-runs", "stream-logs")}
    assert table["auditor"] == reads | {control + "list-nodes"}
    assert table["researcher"] == reads | {control + name for name in ("start-run", "stop-run")}
    nodes = {control + name for name in ("register-node", "unregister-node")}
    assert table["admin"] == table["auditor"] | table["researcher"] | nodes
    assert table["site"] == {path for path in flower_paths() if path.startswith(fleet)} - {
        fleet + "register-node",
        fleet + "unregister-node",
    }
    assert all(route.body_bytes < HOPELESS_BYTES for route in ROUTES)
    assert len({route.path for route in ROUTES}) == len(ROUTES)


def test_flower_has_the_methods_that_the_table_names():
    assert {route.path for route in ROUTES} <= flower_paths()


@pytest.mark.parametrize("role", ROLES)
def test_every_role_against_every_method_of_flower(door: Door, people, role: str):
    """All 80 methods of the installed SuperLink: through when the table says so, and otherwise not even seen by it."""
    allowed = {route.path for route in ROUTES if role in route.roles}
    known = {route.path for route in ROUTES}
    paths = sorted(flower_paths())
    assert len(paths) > 70
    with httpx.Client(verify=door.tls(people[role]), timeout=20) as client:
        for path in paths:
            if path == "/v1/control/stream-logs" and path in allowed:
                continue  # answers when the run ends; it has a test of its own
            answer = client.post(f"https://localhost:{door.port}{path}", headers={"Content-Type": _PROTOBUF})
            if path in allowed:
                # the SuperLink itself answers: 401 as no node has signed, 200, or that an empty request is wrong
                assert answer.status_code not in (403, 404, 405) or "detail" in answer.text, (path, answer.text)
                assert answer.headers.get("content-type") != "text/html", path
            else:
                assert answer.status_code == (403 if path in known else 404), path
    time.sleep(0.2)
    through = {line["path"] for line in door.log() if line["role"] == role and line["upstream_seconds"]}
    assert through <= allowed
    assert through >= allowed - {"/v1/control/stream-logs"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/status",
        "/v1/responses",
        "/v1/control",
        "/v1/control/",
        "/v1/fleet/../runtime/acquire-task",
        "/v1/fleet/pull-messages/../../runtime/acquire-task",
        "/v1/fleet%2Fregister-node",
        "/V1/CONTROL/LIST-RUNS",
        "/v1/control/list-runs/",
        "/v1/control/list-runs%00",
    ],
)
def test_everything_else_is_not_there(door: Door, people, path: str):
    before = door.reached_superlink()
    for person in people.values():
        assert door.post(person, path)[0] in (400, 403, 404)
    assert door.reached_superlink() == before


def test_a_detour_ends_at_the_road_s_own_address(door: Door, people):
    """What is passed on is the table's path, never the client's spelling of it, and no query."""
    seen = heard_by_a_superlink(
        door, people["admin"], "/v1/runtime/..//control/./list-ru%6es?x=/v1/runtime/acquire-task"
    )
    assert seen.splitlines()[0] == "POST /v1/control/list-runs HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_only_post(door: Door, people, method: str):
    before = door.reached_superlink()
    with httpx.Client(verify=door.tls(people["admin"]), timeout=20) as client:
        answer = client.request(method, f"https://localhost:{door.port}/v1/control/list-runs")
    assert answer.status_code in (400, 405)
    assert door.reached_superlink() == before


@pytest.mark.parametrize(
    ("role", "path"),
    [(route.roles[0], route.path) for route in ROUTES],
)
def test_a_body_over_its_method_s_limit_is_refused(door: Door, people, role: str, path: str):
    limit = next(route.body_bytes for route in ROUTES if route.path == path)
    before = door.reached_superlink()
    assert door.post(people[role], path, b"\0" * (limit + 1))[0] == 413
    assert door.reached_superlink() == before


def test_an_object_of_flower_s_size_passes(door: Door, people):
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    before = door.reached_superlink()
    status, _ = door.post(people["site"], "/v1/fleet/push-object", b"\0" * (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 4096))
    assert (status, door.reached_superlink()) == (400, before + 1)  # no protobuf, says the SuperLink


# Headers.


def heard_by_a_superlink(door: Door, person: Person, path: str, **headers: str) -> str:
    """What the SuperLink would hear of a request: our own ear stands in its place for a moment."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(door.consortium.home / "tls" / "superlink.crt", door.consortium.home / "tls" / "superlink.key")
    port, own = free_port(), door.consortium.home / "ear"
    own.mkdir(exist_ok=True)
    for name in ("tls", "roots.pem", "crl.pem"):
        (own / name).unlink(missing_ok=True)
        (own / name).symlink_to(door.consortium.home / name)
    settings = Gateway(own, Listen(LOOPBACK, free_port()), port, free_port())
    with socket.create_server((LOOPBACK, port)) as ear:
        child = gateway(settings)
        process = subprocess.Popen(child.argv, env=child.environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while not accepts(LOOPBACK, settings.listen.port):
                time.sleep(0.02)
            connection = http.client.HTTPSConnection(
                "localhost", settings.listen.port, context=door.tls(person), timeout=20
            )
            connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": "evil.example", "Content-Type": _PROTOBUF, **headers}.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            ear.settimeout(20)
            plain, _ = ear.accept()
            with tls.wrap_socket(plain, server_side=True) as heard:
                text = heard.recv(65536).decode()
                heard.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.close()
            return text
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_who_calls_is_said_by_the_gateway_and_by_nobody_else(door: Door, people):
    forged = {
        "X-Veilfed-Role": "admin",
        "x-veilfed-name": "coordinator",
        "X_Veilfed_Name": "coordinator",
        "X-Veilfed-Serial": "1",
        "X-Forwarded-For": "10.0.0.1",
        "Authorization": "Bearer x",
        "flwr-task-token": "t",
        "flwr-superexec-signature": "s",
        "flwr-public-key": "a2V5",
        "Cookie": "a=b",
    }
    text = heard_by_a_superlink(door, people["site"], "/v1/fleet/get-run", **forged)
    headers = [line.split(": ", 1) for line in text.split("\r\n")[1:] if line]
    names = [name.lower() for name, _ in headers]
    assert len(set(names)) == len(names)
    found = {name.lower(): value for name, value in headers}
    assert found["x-veilfed-role"] == "site"
    assert found["x-veilfed-name"] == "a-site"
    assert int(found["x-veilfed-serial"], 16) == people["site"].serial
    assert found["x-veilfed-fingerprint"] == _sha1(people["site"])
    assert found["flwr-public-key"] == "a2V5"
    assert found["host"] == "localhost"
    ours = {name for name in found if name.startswith("x-veilfed-")}
    assert set(found) <= ours | {name.lower() for name in PASSED_HEADERS} | {"host", "content-length"}


def _sha1(person: Person) -> str:
    from cryptography.hazmat.primitives.hashes import SHA1

    return Certificate.read(person.pem).certificate.fingerprint(SHA1()).hex()  # noqa: S303 - how nginx names it


def test_the_log_says_who_and_nothing_secret(door: Door, people):
    door.post(
        people["admin"], "/v1/control/list-runs?token=s3cret", authorization="Bearer s3cret", flwr_signature="s3cret"
    )
    time.sleep(0.2)
    last = door.log()[-1]
    assert (last["role"], last["name"], last["path"]) == ("admin", "a-admin", "/v1/control/list-runs")
    assert last["status"] == 200
    assert "s3cret" not in door.logs["gateway"].read_text()


# Behind the door.


def test_a_superlink_with_another_certificate_is_not_spoken_to(door: Door, people, tmp_path: Path):
    """Whoever takes the SuperLink's port hears nothing."""
    other = Consortium(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(other.home / "tls" / "superlink.crt", other.home / "tls" / "superlink.key")
    port, own = free_port(), tmp_path / "own"
    own.mkdir()
    for name in ("tls", "roots.pem", "crl.pem"):
        (own / name).symlink_to(door.consortium.home / name)
    settings = Gateway(own, Listen(LOOPBACK, free_port()), port, free_port())
    with socket.create_server((LOOPBACK, port)) as impostor:
        child = gateway(settings)
        process = subprocess.Popen(child.argv, env=child.environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while not accepts(LOOPBACK, settings.listen.port):
                time.sleep(0.02)
            connection = http.client.HTTPSConnection(
                "localhost", settings.listen.port, context=door.tls(people["admin"]), timeout=20
            )
            connection.request("POST", "/v1/control/list-runs", b"", {"Content-Type": _PROTOBUF})
            impostor.settimeout(20)
            plain, _ = impostor.accept()
            heard = b""
            try:
                with tls.wrap_socket(plain, server_side=True) as ear:
                    heard = ear.recv(65536)
            except (ssl.SSLError, ConnectionError):
                pass
            assert heard == b""
            assert connection.getresponse().status == 502
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_counters_are_on_the_loopback(door: Door):
    answer = httpx.get(f"http://{LOOPBACK}:{door.ports.status}/status")
    assert "Active connections" in answer.text
    assert httpx.get(f"http://{LOOPBACK}:{door.ports.status}/v1/control/list-runs").status_code == 404


# Last, as they change what is trusted.


def test_whoever_is_revoked_is_out_after_a_reload_and_nobody_else_notices(door: Door, people):
    nginx, gone = door.processes["gateway"], door.consortium.admit("gone", "admin")
    with (
        httpx.Client(verify=door.tls(people["admin"]), timeout=20) as staying,
        httpx.Client(verify=door.tls(gone), timeout=20) as leaving,
    ):
        address = f"https://localhost:{door.port}/v1/control/list-runs"
        said = {"headers": {"Content-Type": _PROTOBUF}}
        assert [client.post(address, **said).status_code for client in (staying, leaving)] == [200, 200]
        door.consortium.revoke(gone)
        nginx.send_signal(signal.SIGHUP)
        give_up = time.monotonic() + 15
        while leaving.post(address, **said).status_code == 200:  # on the connection that it had, too
            assert time.monotonic() < give_up
            assert staying.post(address, **said).status_code == 200
            time.sleep(0.02)
        assert leaving.post(address, **said).status_code == 400
        assert door.post(gone, "/v1/control/list-runs")[0] == 400
        assert staying.post(address, **said).status_code == 200
    assert nginx.poll() is None


# What may stand in the configuration.


@pytest.mark.parametrize(
    "path", ["/a;b", '/a"b', "/a b\n", "/a{b", "/a$b", "/a\\b", "/a#b", "relative", "/a'b", "/a\x00", "/a}b"]
)
def test_a_directory_cannot_add_a_directive(path: str):
    with pytest.raises(ConfigError):
        Gateway(Path(path), Listen(LOOPBACK, 8443), 20000, 20001)


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1; include /etc/passwd", "0.0.0.0 ssl", "unix:/tmp/x", "[::]"]
)
def test_an_address_cannot_add_a_directive(host: str):
    with pytest.raises(ConfigError):
        Listen(host, 8443)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_is_a_port(port: int):
    with pytest.raises(ConfigError):
        Listen(LOOPBACK, port)


def test_a_directory_with_spaces_is_one(tmp_path: Path):
    text = nginx_conf(Gateway(tmp_path / "my home", Listen("::", 8443), 20000, 20001))
    assert f'ssl_crl "{tmp_path}/my home/crl.pem";' in text
    assert "listen [::]:8443 ssl;" in text
