"""What the SuperLink hears through the gateway, how answers flow back, and how much one certificate may ask for."""

import contextlib
import re
import signal
import ssl
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA1

from common.certificates import Certificate
from common.errors import ConfigError
from server.gateway.routes import PASSED_HEADERS
from server.processes import find_nginx
from tests.server.doors import Consortium, Person, ear, head

try:
    find_nginx()
except ConfigError as missing:
    pytest.skip(missing.message, allow_module_level=True)
pytestmark = pytest.mark.slow
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return Consortium(tmp_path_factory.mktemp("home"))


def heard(consortium: Consortium, place: Path, person: Person, request: bytes) -> str:
    """The head of what a SuperLink hears of a request."""
    with ear(consortium, place / "own") as door, door.connect(person) as connection:
        connection.sendall(request)
        with door.hear() as superlink:
            text = superlink.recv(65536).decode()
            superlink.sendall(_OK)
        return text


def test_a_detour_ends_at_the_road_s_own_address(consortium: Consortium, place: Path):
    """What is passed on is the table's path, never the client's spelling of it, and no query."""
    detour = "/v1/runtime/..//control/./list-ru%6es?x=/v1/runtime/acquire-task"
    text = heard(consortium, place, consortium.people["admin"], head(detour))
    assert text.splitlines()[0] == "POST /v1/control/list-runs HTTP/1.1"


def test_who_calls_is_said_by_the_gateway_and_by_nobody_else(consortium: Consortium, place: Path):
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
    site = consortium.people["site"]
    text = heard(consortium, place, site, head("/v1/fleet/get-run", **forged))
    headers = [line.split(": ", 1) for line in text.split("\r\n")[1:] if line]
    names = [name.lower() for name, _ in headers]
    assert len(set(names)) == len(names)
    found = {name.lower(): value for name, value in headers}
    assert found["x-veilfed-role"] == "site"
    assert found["x-veilfed-name"] == "a-site"
    assert int(found["x-veilfed-serial"], 16) == site.serial
    named_by_nginx = Certificate.read(site.pem).certificate.fingerprint(SHA1())  # noqa: S303
    assert found["x-veilfed-fingerprint"] == named_by_nginx.hex()
    assert found["flwr-public-key"] == "a2V5"
    assert found["host"] == "localhost"
    ours = {name for name in found if name.startswith("x-veilfed-")}
    assert set(found) <= ours | {name.lower() for name in PASSED_HEADERS} | {"host", "content-length"}


def test_logs_flow_as_they_come_and_a_reload_does_not_cut_them(consortium: Consortium, place: Path):
    with ear(consortium, place / "own") as door, door.connect(consortium.people["researcher"]) as reader:
        reader.sendall(head("/v1/control/stream-logs"))
        with door.hear() as superlink:
            superlink.recv(65536)
            superlink.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            assert b"first" in until(reader, b"first")
            door.nginx.send_signal(signal.SIGHUP)
            time.sleep(1)
            superlink.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
            assert b"second" in until(reader, b"second")


def test_a_body_flows_as_it_comes_and_is_held_nowhere(consortium: Consortium, place: Path):
    with ear(consortium, place / "own") as door, door.connect(consortium.people["site"]) as site:
        site.sendall(head("/v1/fleet/push-object", 2_000_000) + b"x" * 1_000_000)
        with door.hear() as superlink:
            got = 0
            while got < 1_000_000:
                got += len(superlink.recv(65536))
            site.sendall(b"x" * 1_000_000)
            while got < 2_000_000:
                got += len(superlink.recv(65536))
            superlink.sendall(_OK)
            assert until(site, b"200 OK").startswith(b"HTTP/1.1 200")
        assert list((place / "own" / "gateway" / "temp").rglob("[0-9]*")) == []


def test_a_superlink_with_another_certificate_is_not_spoken_to(consortium: Consortium, place: Path):
    """Whoever takes the SuperLink's port hears nothing."""
    (place / "other").mkdir()
    other = Consortium(place / "other")
    with ear(consortium, place / "own") as door, door.connect(consortium.people["admin"]) as admin:
        admin.sendall(head("/v1/control/list-runs"))
        words = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError), door.hear(other.home) as impostor:
            words = impostor.recv(65536)
        assert words == b""
        assert until(admin, b"502").startswith(b"HTTP/1.1 502")


def test_one_certificate_has_a_share_of_the_requests_and_leaves_the_others_theirs(consortium: Consortium, place: Path):
    """1000 at once and 100 a second: a site that sends 100 million parameters makes about 70."""
    with ear(consortium, place / "own") as door:
        door.close()  # nobody is there: 502 is what passes the limit
        many, began = 3000, time.monotonic()
        with door.connect(consortium.people["site"]) as greedy, door.connect(consortium.people["admin"]) as modest:
            statuses = Counter(pipelined(greedy, head("/v1/fleet/get-run"), many))
            seconds = time.monotonic() - began
            assert set(statuses) == {502, 429}
            assert 1000 <= statuses[502] <= 1002 + 100 * seconds
            assert pipelined(modest, head("/v1/control/list-runs"), 20) == [502] * 20


def test_one_certificate_has_64_requests_under_way(consortium: Consortium, place: Path):
    site, body = consortium.people["site"], head("/v1/fleet/push-object", 100)
    with ear(consortium, place / "own") as door, contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(door.connect(site)).sendall(body)
            stack.enter_context(door.hear())  # and does not answer
        late = stack.enter_context(door.connect(site))
        late.sendall(body)
        assert until(late, b"429").startswith(b"HTTP/1.1 429")
        admin = stack.enter_context(door.connect(consortium.people["admin"]))
        admin.sendall(head("/v1/control/start-run", 100))
        assert b"/v1/control/start-run" in stack.enter_context(door.hear()).recv(65536)


def until(connection: ssl.SSLSocket, word: bytes) -> bytes:
    """What comes until the word has come, or the end."""
    found = b""
    while word not in found:
        data = connection.recv(65536)
        if not data:
            break
        found += data
    return found


def pipelined(connection: ssl.SSLSocket, request: bytes, times: int) -> list[int]:
    """The statuses of one request, sent so often, twenty at a time without waiting."""
    statuses: list[int] = []
    for place in range(0, times, 20):
        wanted, found, data = min(20, times - place), [], b""
        connection.sendall(request * wanted)
        while len(found) < wanted or not data.rstrip().endswith(b"</html>"):
            data += connection.recv(65536)
            found = re.findall(rb"HTTP/1\.1 (\d{3}) ", data)
        statuses += map(int, found)
    return statuses
