"""A party's numbers where Prometheus can fetch them: http://HOST:PORT/metrics, and beside it /healthz and /readyz.

Off unless `VEILFED_METRICS=HOST:PORT` is in the environment of the process with the network. The address is a loopback
one, or one of a network that only the party's own monitoring reaches: it asks nobody for a password.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.log import say
from common.telemetry import METRICS, Number, read

VARIABLE = "VEILFED_METRICS"
_PATIENCE = 5.0  # seconds for a client to say what it wants

log = logging.getLogger("veilfed.monitoring")


def address_in(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Host and port of `VEILFED_METRICS`; None when nobody asks. Raises ConfigError for what is no address."""
    text = environment.get(VARIABLE, "")
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{VARIABLE} = {text!r} is not HOST:PORT", f"for example {VARIABLE}=127.0.0.1:9464")
    return host.strip("[]"), int(port)


def expose(
    address: tuple[str, int],
    meters: Sequence[Path],
    now: Callable[[], Iterable[Number]],
    ready: Callable[[], bool],
) -> ThreadingHTTPServer:
    """Answers in a thread of its own, which ends with the process. `.server_port` is where.

    meters: files of numbers, read for every answer. now: numbers that are looked up for it. ready: whether the process
    can do its work; /healthz says only that it is there.
    Raises ConfigError when the extra `monitoring` is not installed or the address is not to be had.
    """
    exposition([])
    handler = partial(_Answer, meters=meters, now=now, ready=ready)
    try:
        server = _Server(address, handler)
    except OSError as error:
        raise ConfigError(
            f"{address[0]}:{address[1]}: {error.strerror}", f"set another address in {VARIABLE}"
        ) from None
    threading.Thread(target=server.serve_forever, name="monitoring", daemon=True).start()
    return server


def exposition(numbers: Iterable[Number]) -> bytes:
    """The numbers in Prometheus' text format. Of two under the same name and labels the last counts."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    except ImportError:
        raise ConfigError("prometheus-client is not installed", "pip install 'veilfed[monitoring]'") from None

    class Collected:
        def collect(self) -> Iterable[Metric]:
            values = {(number.name, number.labels): number.value for number in numbers}
            for name in sorted({name for name, _ in values}):
                known = METRICS[name]
                kind = CounterMetricFamily if known.kind == "counter" else GaugeMetricFamily
                family = kind(name, known.about, labels=known.labels)
                for (_, labels), value in sorted(item for item in values.items() if item[0][0] == name):
                    family.add_metric(labels, value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry)


def expiry_of(certificates: Mapping[str, Path]) -> list[Number]:
    """When each certificate ends, of those that are there. name: how the number is labelled."""
    from cryptography import x509

    ends = []
    for name, path in certificates.items():
        try:
            end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            continue  # not joined yet: the number is absent, which an alert can ask for
        ends.append(Number("veilfed_certificate_expiry_timestamp_seconds", end.timestamp(), (name,)))
    return ends


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away. The standard one prints to standard error, past the log."""
        say(log, "a request for numbers failed", logging.DEBUG)


class _Answer(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server_version, sys_version = "veilfed", ""

    def __init__(
        self,
        *request: Any,
        meters: Sequence[Path],
        now: Callable[[], Iterable[Number]],
        ready: Callable[[], bool],
    ) -> None:
        self._meters, self._now, self._ready = meters, now, ready
        super().__init__(*request)

    def do_GET(self) -> None:
        match self.path:
            case "/metrics":
                held = [number for path in self._meters for number in read(path)]
                self._say(200, exposition([*held, *self._now()]), "text/plain; version=0.0.4; charset=utf-8")
            case "/healthz":
                self._say(200, b"here\n")
            case "/readyz":
                ready = self._ready()
                self._say(200 if ready else 503, b"ready\n" if ready else b"not ready\n")
            case _:
                self._say(404, b"/metrics, /healthz or /readyz\n")

    def _say(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: every scrape would be a line."""
