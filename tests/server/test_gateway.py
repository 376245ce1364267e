"""The coordinator's door: a real nginx before a real SuperLink, tried by everybody who should not get in."""

import contextlib
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from client import fleet
from common.errors import ConfigError
from common.ports import LOOPBACK
from server import loopback
from server.gateway.configuration import Gateway, Listen, nginx_conf
from server.gateway.routes import HOPELESS_BYTES, ROLES, ROUTES
from server.processes import find_nginx
from tests.server.doors import PROTOBUF, Consortium, Door, Person

_FLOWER = Path(pytest.importorskip("flwr").__file__).parent
_HUGE = 300 * 1024 * 1024
_BUFFERS = 12 * 1024 * 1024  # what the two kernels' sockets may hold on the loopback, unread
_LONG_AGO = timedelta(days=800)
try:
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


def asked(door: Door, context: ssl.SSLContext) -> int:
    """What the SuperLink itself says to a list of runs, round the gateway; 0 when it hangs up."""
    with contextlib.suppress(httpx.TransportError), httpx.Client(verify=context) as client:
        url = f"https://localhost:{door.ports.superlink}/v1/control/list-runs"
        return client.post(url, headers={"content-type": PROTOBUF}).status_code
    return 0


def test_who_is_on_the_coordinators_machine_and_not_the_coordinator_is_not_answered(door: Door, people):
    """Not even with the consortium's certificates: only the coordinator's own processes are."""
    tls, own = door.consortium.home / "tls", loopback.Loopback(door.consortium.home)
    server = Person(tls / "superlink.crt", tls / "superlink.key", b"")
    for caller in (None, *people.values(), server):
        assert asked(door, door.tls(caller)) == 0
    assert asked(door, own.tls()) in (200, 400)
    assert (door.consortium.home / "run" / "inside.key").stat().st_mode & 0o77 == 0


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
    assert table["site"] - {"/v1/bell", "/v1/kit"} == {path for path in flower_paths() if path.startswith(fleet)} - {
        fleet + "register-node",
        fleet + "unregister-node",
    }
    assert all(route.body_bytes < HOPELESS_BYTES for route in ROUTES)
    assert len({route.path for route in ROUTES}) == len(ROUTES)


def test_flower_has_the_methods_that_the_table_names():
    assert {route.path for route in ROUTES if not route.shows} <= flower_paths()


@pytest.mark.parametrize("role", ROLES)
def test_every_role_against_every_method_of_flower(door: Door, people, role: str):
    """All 80 methods of the installed SuperLink: through when the table says so, and otherwise not even seen by it."""
    allowed = {route.path for route in ROUTES if role in route.roles and not route.shows}
    known = {route.path for route in ROUTES}
    paths = sorted(flower_paths())
    assert len(paths) > 70
    with httpx.Client(verify=door.tls(people[role]), timeout=20) as client:
        for path in paths:
            if path == "/v1/control/stream-logs" and path in allowed:
                continue  # answers when the run ends; it has a test of its own
            answer = client.post(f"https://localhost:{door.port}{path}", headers={"Content-Type": PROTOBUF})
            if path in allowed:
                # the SuperLink itself answers: 401 as no node has signed, 200, or that an empty request is wrong
                assert answer.status_code not in (403, 404, 405) or "detail" in answer.text, (path, answer.text)
                assert answer.headers.get("content-type") != "text/html", path
            else:
                assert answer.status_code == (403 if path in known else 404), path
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


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_only_post(door: Door, people, method: str):
    before = door.reached_superlink()
    with httpx.Client(verify=door.tls(people["admin"]), timeout=20) as client:
        answer = client.request(method, f"https://localhost:{door.port}/v1/control/list-runs")
    assert answer.status_code in (400, 405)
    assert door.reached_superlink() == before


@pytest.mark.parametrize(
    ("role", "path"),
    [(route.roles[0], route.path) for route in ROUTES if not route.shows],
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


def test_the_log_says_who_and_nothing_secret(door: Door, people):
    door.post(
        people["admin"], "/v1/control/list-runs?token=s3cret", authorization="Bearer s3cret", flwr_signature="s3cret"
    )
    last = door.log()[-1]
    assert (last["role"], last["name"], last["path"]) == ("admin", "a-admin", "/v1/control/list-runs")
    assert last["status"] == 200
    assert "s3cret" not in door.logs["gateway"].read_text()


def test_counters_are_on_the_loopback(door: Door):
    answer = httpx.get(f"http://{LOOPBACK}:{door.ports.status}/status")
    assert "Active connections" in answer.text
    assert httpx.get(f"http://{LOOPBACK}:{door.ports.status}/v1/control/list-runs").status_code == 404


def test_a_site_is_shown_its_own_kit_and_nobody_elses(door: Door, people):
    kits, before = door.consortium.home / "kits", door.reached_superlink()
    kits.mkdir(exist_ok=True)
    address = f"https://localhost:{door.port}/v1/kit"
    sites = {name: door.consortium.admit(name, "site") for name in ("adler", "bussard", "kitless")}
    for name in ("adler", "bussard"):
        (kits / f"{name}.json").write_text(f"of {name}")
    for name, person in sites.items():
        with httpx.Client(verify=door.tls(person), timeout=20) as client:
            answer = client.get(address, params={"name": "adler"}, headers={"X-Veilfed-Name": "adler"})
            expected = (404, None) if name == "kitless" else (200, f"of {name}")
            assert (answer.status_code, answer.text if answer.status_code == 200 else None) == expected
            assert client.get(f"{address}/../../bundle.key").status_code == 404
    for role in ("admin", "researcher", "auditor"):
        with httpx.Client(verify=door.tls(people[role]), timeout=20) as client:
            assert client.get(address).status_code == 403
    assert door.reached_superlink() == before


def test_the_bell_is_for_sites_and_costs_the_superlink_nothing(door: Door, people):
    bell, before = door.consortium.home / loopback.BELL, door.reached_superlink()
    address = f"https://localhost:{door.port}{fleet.BELL}"
    with httpx.Client(verify=door.tls(people["site"]), timeout=20) as site:
        assert site.get(address).content == b"0"
        for _ in range(2):
            loopback.Loopback(door.consortium.home).ring()
            assert site.get(address).content == bell.read_bytes() != b"0"
        assert site.post(address).status_code == 405
    for role in set(ROLES) - {"site"}:
        assert httpx.get(address, verify=door.tls(people[role])).status_code == 403
    assert httpx.get(address, verify=door.tls(None)).status_code == 400
    assert door.reached_superlink() == before


# Last, as they change what is trusted.


def test_whoever_is_revoked_is_out_after_a_reload_and_nobody_else_notices(door: Door, people):
    nginx, gone = door.processes["gateway"], door.consortium.admit("gone", "admin")
    with (
        httpx.Client(verify=door.tls(people["admin"]), timeout=20) as staying,
        httpx.Client(verify=door.tls(gone), timeout=20) as leaving,
    ):
        address = f"https://localhost:{door.port}/v1/control/list-runs"
        said = {"headers": {"Content-Type": PROTOBUF}}
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
