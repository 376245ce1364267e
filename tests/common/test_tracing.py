"""Proves: spans arrive as they were told, where the file says and nowhere else; a bad collector disturbs nobody."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import tracing
from common.config import to_table
from common.errors import ConfigError
from common.log import Lines
from common.spans import Span, recording, span
from common.tracing import Collector, delivering, require_installed
from tests.otlp import Receiver, listening


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening() as made:
        yield made


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    """What is logged, of this room and of the library."""
    said: list[dict[str, object]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(json.loads(Lines("node").format(record)))

    handler = Kept()
    for name in (tracing.log.name, "opentelemetry"):
        logging.getLogger(name).addHandler(handler)
    tracing.log.setLevel(logging.INFO)
    yield said
    for name in (tracing.log.name, "opentelemetry"):
        logging.getLogger(name).removeHandler(handler)
    tracing.log.setLevel(logging.NOTSET)


def a_round(collector: Collector) -> None:
    with recording(collector.take), span("round", round=1), span("sum"):
        pass


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def settings(place: Path, address: str) -> Path:
    path = place / "consortium.toml"
    path.write_text(f'name = "x"\n[monitoring]\ntraces = "{address}"\n')
    return path


def test_a_span_arrives_as_it_was_told(receiver):
    told: list[Span] = []
    with recording(told.append), span("run", run="ab" * 16) as tell, span("round", round=3, train_seconds=0.25):
        tell(code="CohortTooSmall")
    collector = Collector(receiver.address, "veilfed-coordinator")
    for one in told:
        collector.take(one)
    collector.close()
    inner, outer = receiver.spans
    assert [(one.service, one.name) for one in receiver.spans] == [
        ("veilfed-coordinator", "round"),
        ("veilfed-coordinator", "run"),
    ]
    assert [(one.trace, one.number, one.parent) for one in (inner, outer)] == [
        (one.trace, one.number, one.parent) for one in told
    ]
    assert (inner.parent, outer.parent) == (outer.number, "")
    assert [(one.begun, one.ended) for one in (inner, outer)] == [(one.begun * 1000, one.ended * 1000) for one in told]
    assert (inner.attributes, inner.failed) == ({"round": 3, "train_seconds": 0.25}, False)
    assert (outer.attributes, outer.failed) == ({"run": "ab" * 16, "code": "CohortTooSmall"}, True)
    ((path, headers, _),) = receiver.heard
    assert path == "/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"


def test_spans_of_another_process_of_the_party_arrive_and_what_is_none_does_not(receiver):
    told: list[Span] = []
    with recording(told.append), span("order"):
        pass
    good = to_table(told[0])
    collector = Collector(receiver.address, "veilfed-site")
    secret = "ab" * 32
    collector.take_told([good, good | {"name": secret}, good | {"attributes": {"site": secret}}, {}, 3, [], None])
    for nonsense in (None, 3, {"name": "order"}, "order"):
        collector.take_told(nonsense)
    collector.close()
    assert [one.number for one in receiver.spans] == [told[0].number]


def test_no_variable_says_where_spans_go_or_what_goes_with_them(receiver, monkeypatch):
    with listening() as thief:
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            monkeypatch.setenv(name, thief.address)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, thief.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret-of-another")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=machine-of-ada")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
        monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "another")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "999999999")
        collector = Collector(receiver.address, "veilfed-site")
        a_round(collector)
        assert [one.name for one in receiver.until(2)] == ["sum", "round"]
        collector.close()
        assert thief.heard == []
    ((_, headers, body),) = receiver.heard
    for word in ("secret-of-another", "machine-of-ada", "another"):
        assert word not in str(headers)
        assert word.encode() not in body
    assert not [name for name in os.environ if name.startswith("OTEL_")]


def test_a_collector_that_is_away_costs_the_work_nothing_and_is_told_of_once(place, lines):
    path = settings(place, nobody())
    started = time.perf_counter()
    with delivering(path, "veilfed-coordinator"):
        for number in range(200):
            with span("round", round=number), span("sum"):
                pass
        worked = time.perf_counter() - started
        time.sleep(2.5)
    assert worked < 1.0
    assert time.perf_counter() - started < 2.5 + 3 * tracing._SECONDS
    assert [(line["event"], line["level"]) for line in lines] == [("traces are not delivered", "warning")]


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 503}, {"patience": 60.0}], ids=["500", "503", "silent"])
def test_one_that_fails_or_hangs_costs_seconds_after_the_end_and_no_more(place, lines, how):
    with listening(**how) as bad:
        started = time.perf_counter()
        with delivering(settings(place, bad.address), "veilfed-coordinator"):
            with span("run"):
                pass
            assert time.perf_counter() - started < 2.0
        assert time.perf_counter() - started < 2.0 + 3 * tracing._SECONDS
        assert len(bad.heard) >= 1
    assert [line["event"] for line in lines] == ["traces are not delivered"]


def test_one_that_comes_back_gets_what_comes_then(lines, monkeypatch):
    monkeypatch.setattr(tracing, "_SECONDS", 0.5)
    address = nobody()
    collector = Collector(address, "veilfed-site")
    a_round(collector)
    give_up = time.monotonic() + 20
    while not collector.lost:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    with listening(port=int(address.rpartition(":")[2])) as back:
        a_round(collector)
        assert len(back.until(2)) == 2
        collector.close()
    assert [(line["event"], line.get("spans")) for line in lines] == [
        ("traces are not delivered", None),
        ("traces are delivered again", 2),
    ]


def test_a_run_goes_on_where_the_file_or_the_library_is_broken(place, lines, monkeypatch):
    path = place / "consortium.toml"
    path.write_text("= nonsense")
    with delivering(path, "veilfed-coordinator"), span("run"):
        pass
    without_the_extra(monkeypatch)
    with delivering(settings(place, nobody()), "veilfed-coordinator"), span("run"):
        pass
    assert [line["event"] for line in lines] == ["traces are not delivered"] * 2


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where nobody installed it."""
    for name in ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_extra_is_named_to_whoever_asks_for_it(monkeypatch):
    require_installed("http://127.0.0.1:4318")
    without_the_extra(monkeypatch)
    require_installed("")
    with pytest.raises(ConfigError) as met:
        require_installed("http://127.0.0.1:4318")
    assert met.value.hint == "pip install 'veilfed[tracing]'"
