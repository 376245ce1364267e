"""A collector of OpenTelemetry traces on the loopback, which understands OTLP over HTTP as protobuf and keeps all."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Arrived:
    service: str
    name: str
    trace: str
    number: str
    parent: str
    begun: int
    ended: int
    attributes: Mapping[str, Any]
    failed: bool


class Receiver:
    """status: what it answers with. patience: seconds until it does."""

    def __init__(self, status: int = 200, patience: float = 0.0, port: int = 0) -> None:
        self.status, self.patience = status, patience
        self.spans: list[Arrived] = []
        self.heard: list[tuple[str, dict[str, str], bytes]] = []  # path, headers and body of each request
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def until(self, wanted: int, seconds: float = 20.0) -> list[Arrived]:
        """The spans, once there are so many."""
        give_up = time.monotonic() + seconds
        while len(self.spans) < wanted:
            assert time.monotonic() < give_up, f"{len(self.spans)} of {wanted} spans arrived"
            time.sleep(0.02)
        return self.spans

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.heard.append((self.path, headers, body))
                if receiver.status == 200:
                    receiver.spans += read(body)
                time.sleep(receiver.patience)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler


@contextmanager
def listening(**how: Any) -> Iterator[Receiver]:
    receiver = Receiver(**how)
    try:
        yield receiver
    finally:
        receiver.close()


def read(body: bytes) -> list[Arrived]:
    """Every span of one request."""
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _table(group.resource.attributes)["service.name"]
        for scope in group.scope_spans:
            for one in scope.spans:
                numbers = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                times = (one.start_time_unix_nano, one.end_time_unix_nano)
                found.append(Arrived(service, one.name, *numbers, *times, _table(one.attributes), one.status.code == 2))
    return found


def _table(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
