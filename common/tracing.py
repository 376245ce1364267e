"""A party's spans on their way to its own OpenTelemetry collector: OTLP over HTTP, from a thread of its own.

Where they go is said in the party's file and nowhere else: neither OTEL_... variables nor proxies have a say. A
collector that is away, slow or full stops nothing: its spans are lost, which the log says once.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import fill
from common.errors import ConfigError
from common.log import say
from common.spans import Span, collector_in, recording

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_PATH = "/v1/traces"
_SECONDS = 3.0  # for the collector to take a batch, all tries together
_EVERY_MILLISECONDS = 1000  # between two batches
_WAITING = 512  # spans at most; the oldest are lost

log = logging.getLogger("veilfed.tracing")


def require_installed(traces: str) -> None:
    """Returns when no collector is named, or spans can be delivered. Raises ConfigError that names the extra."""
    try:
        if traces:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk  # noqa: F401
    except ImportError:
        raise ConfigError(
            "monitoring.traces names a collector, but opentelemetry is not installed", "pip install 'veilfed[tracing]'"
        ) from None


@contextmanager
def delivering(path: Path, service: str) -> Iterator[None]:
    """Within, the spans of this thread go to the collector that the party's file names, if it names one.

    Never stops the work: what is wrong with the file, its other readers say.
    """
    try:
        collector = Collector.named_in(path, service)
    except Exception as error:
        say(log, "traces are not delivered", logging.WARNING, message=str(error))
        collector = None
    if collector is None:
        yield
        return
    try:
        with recording(collector.take):
            yield
    finally:
        collector.close()


class Collector:
    """Takes spans and delivers them soon. `lost`: how many it could not since it last could."""

    def __init__(self, address: str, service: str) -> None:
        """address: see `Monitoring.traces`. service: whose spans they are, in the collector's words.

        Raises ConfigError when the extra `tracing` is not installed.
        """
        require_installed(address)
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            del os.environ[name]  # the library adds what they say to what it is told
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # `_delivered` says it, once
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._address, self._resource, self.lost = address, Resource({"service.name": service}), 0
        self._batches = BatchSpanProcessor(
            self._exporter(),
            max_queue_size=_WAITING,
            schedule_delay_millis=_EVERY_MILLISECONDS,
            max_export_batch_size=_WAITING,
            export_timeout_millis=_SECONDS * 1000,
        )

    @classmethod
    def named_in(cls, path: Path, service: str) -> "Collector | None":
        """The one that the party's file names, if it names one. Raises ConfigError as `collector_in` does, or above."""
        address = collector_in(path)
        return cls(address, service) if address else None

    def take(self, span: Span) -> None:
        """Returns at once, and never raises."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def at(number: str) -> SpanContext:
            return SpanContext(int(span.trace, 16), int(number, 16), False, TraceFlags(TraceFlags.SAMPLED))

        self._batches.on_end(
            ReadableSpan(
                span.name,
                at(span.number),
                at(span.parent) if span.parent else None,
                self._resource,
                dict(span.attributes),
                status=Status(StatusCode.ERROR if "code" in span.attributes else StatusCode.UNSET),
                start_time=span.begun * 1000,
                end_time=span.ended * 1000,
                instrumentation_scope=InstrumentationScope("veilfed"),
            )
        )

    def take_told(self, rows: Any) -> None:
        """Spans as another process of the same party wrote them, each as a table; what is none is passed over."""
        for row in rows if isinstance(rows, list) else []:
            with suppress(ConfigError, ValueError, AttributeError):
                self.take(fill(Span, row))

    def close(self) -> None:
        """Once what is left was delivered, or could not be: for a collector that is away that takes seconds."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _exporter(self) -> "SpanExporter":
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult

        delivered = self._delivered

        class Exporter(OTLPSpanExporter):
            def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
                try:
                    result = super().export(spans)
                except Exception:
                    result = SpanExportResult.FAILURE
                delivered(len(spans), result is SpanExportResult.SUCCESS)
                return result

        session = requests.Session()
        session.trust_env = False  # proxies, and passwords of ~/.netrc
        return Exporter(endpoint=self._address + _PATH, timeout=_SECONDS, session=session)

    def _delivered(self, spans: int, are: bool) -> None:
        if are and self.lost:
            say(log, "traces are delivered again", spans=self.lost)
            self.lost = 0
        elif not are:
            if not self.lost:
                say(log, "traces are not delivered", logging.WARNING, address=self._address)
            self.lost += spans
