"""Proves: Prometheus can read what is shown, the page says what is true now, and a rude client stops nothing."""

import datetime
import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families

from common.errors import ConfigError
from common.monitoring import address_in, expiry_of, expose, exposition
from common.telemetry import METRICS, Meter, Number

ROOT = Path(__file__).parents[2]


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """As Prometheus' own reader understands it."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def get(server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture
def shown(place):
    """A meter, whether the process is ready, and its page."""
    state = {"ready": False, "cohort": 4.0}
    numbers = place / "numbers"
    server = expose(
        ("127.0.0.1", 0),
        [numbers],
        lambda: [Number("veilfed_coordinator_cohort", state["cohort"])],
        lambda: state["ready"],
    )
    yield Meter(numbers), state, server
    server.shutdown()
    server.server_close()


def test_every_number_we_know_can_be_shown_and_read_back():
    numbers = [Number(name, 7.5, tuple('a"\\\n' for _ in metric.labels)) for name, metric in METRICS.items()]
    read = samples(exposition(numbers))
    assert read == {(name, *('a"\\\n' for _ in metric.labels)): 7.5 for name, metric in METRICS.items()}


def test_the_page_says_what_is_true_when_it_is_asked_for(shown):
    meter, state, server = shown
    assert samples(get(server, "/metrics")[1]) == {("veilfed_coordinator_cohort",): 4}
    meter.add([Number("veilfed_coordinator_rounds_total", 1)])
    state["cohort"] = 3.0
    assert samples(get(server, "/metrics")[1]) == {
        ("veilfed_coordinator_cohort",): 3,
        ("veilfed_coordinator_rounds_total",): 1,
    }


def test_here_is_not_ready(shown):
    _, state, server = shown
    assert get(server, "/healthz")[0] == 200
    assert get(server, "/readyz")[0] == 503
    state["ready"] = True
    assert get(server, "/readyz")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics/../../etc/passwd", "/metrics?x"])
def test_there_is_no_other_page(shown, path):
    assert get(shown[2], path)[0] == 404


def test_a_client_that_says_nothing_or_rubbish_keeps_nobody_else_waiting(shown, capfd):
    server = shown[2]
    silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(20)]
    silent[0].sendall(b"\x16\x03\x01 garbage\r\n\r\n")
    silent[1].close()
    assert get(server, "/healthz")[0] == 200
    for other in silent:
        other.close()
    assert capfd.readouterr() == ("", "")


def test_only_reading_is_possible(shown):
    for method in ("POST", "PUT", "DELETE"):
        connection = http.client.HTTPConnection("127.0.0.1", shown[2].server_port, timeout=60)
        connection.request(method, "/metrics", b"x")
        assert connection.getresponse().status == 501


def test_a_certificate_is_read_again_for_every_answer(place):
    path = place / "node.crt"
    assert expiry_of({"node": path}) == []
    path.write_text("not a certificate")
    assert expiry_of({"node": path}) == []
    for days in (30, 90):
        end = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=days)
        path.write_bytes(certificate(end))
        (number,) = expiry_of({"node": path})
        assert (number.value, number.labels) == (end.timestamp(), ("node",))


def certificate(end: datetime.datetime) -> bytes:
    key, name = Ed25519PrivateKey.generate(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "adler")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), start, end)
    return made.sign(key, None).public_bytes(Encoding.PEM)


def test_nobody_listens_unless_asked():
    assert address_in({}) is None
    assert address_in({"VEILFED_METRICS": ""}) is None
    assert address_in({"VEILFED_METRICS": "127.0.0.1:9464"}) == ("127.0.0.1", 9464)
    assert address_in({"VEILFED_METRICS": "[::1]:9464"}) == ("::1", 9464)


@pytest.mark.parametrize("text", ["9464", ":9464", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1"])
def test_what_is_no_address_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="VEILFED_METRICS"):
        address_in({"VEILFED_METRICS": text})


def test_an_address_that_is_taken_is_an_error_at_start(shown):
    with pytest.raises(ConfigError, match="in use"):
        expose(("127.0.0.1", shown[2].server_port), [], list, lambda: True)


def test_without_the_extra_the_error_names_it(place):
    """In an interpreter that cannot import it."""
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from common.monitoring import expose\n"
        "from common.errors import ConfigError\n"
        "try: expose(('127.0.0.1', 0), [], list, lambda: True)\n"
        "except ConfigError as error: print(error.message, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert "veilfed[monitoring]" in done.stdout
