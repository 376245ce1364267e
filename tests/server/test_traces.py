"""Proves: a coordinator's trace has run, rounds and phases in their order; no number of it crosses to a site."""

import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from client import app as client
from common.errors import FederationError
from common.spans import Span, recording, span
from common.tracing import delivering
from scenarios.grid import LocalGrid, envelope_of
from server.app import build_app
from server.home import ConsortiumSettings
from tests.by_hand import NAMES, workplace
from tests.common.test_tracing import nobody, settings
from tests.otlp import listening

ENCRYPTED = ["prepare", "updates", "sum", "unmask", "results", "round"]
READABLE = ["prepare", "updates", "sum", "results", "round"]


class Apart(LocalGrid):
    """Sites that share neither thread nor context with their coordinator: each records traces of its own."""

    def __init__(self, sites: dict[int, list[Span]], contexts: list[Context]) -> None:
        super().__init__(client.app, contexts)
        self.sites, self.carried = sites, []

    def _ask(self, message: Message) -> Message:
        def asked() -> Message:
            with recording(self.sites[message.metadata.dst_node_id].append):
                return super(Apart, self)._ask(message)

        reply: Message = contextvars.Context().run(asked)
        self.carried += [envelope_of(message), envelope_of(reply)]
        return reply


def run(out: Path, *overrides: str, on_round: Callable[[Any], None] = lambda record: None) -> Apart:
    """A whole run whose coordinator records into whatever is entered here."""
    place = workplace(out, NAMES, *overrides)
    config = {number: {"site-directory": str(site)} for number, site in enumerate(place.sites, 2)}
    contexts = [Context(1, number, each, RecordDict(), {}) for number, each in config.items()]
    grid = Apart({number: [] for number in config}, contexts)
    build_app(on_round)(grid, Context(1, 1, {}, RecordDict(), {"run-directory": str(place.run)}))
    return grid


def test_the_coordinators_trace_tells_its_rounds_and_no_partys_trace_tells_of_another(tmp_path):
    told: list[Span] = []
    records: list[Any] = []
    with recording(told.append), span("run", run="ab" * 16):
        grid = run(tmp_path, on_round=records.append)
    assert [one.name for one in told] == ["gather", *3 * ENCRYPTED, "release", "run"]
    whole, rounds = told[-1], [one for one in told if one.name == "round"]
    assert [one.attributes for one in rounds] == [{"round": 1}, {"round": 2}, {"round": 3}]
    assert {one.parent for one in (told[0], *rounds, told[-2])} == {whole.number}
    for each, record in zip(rounds, records, strict=True):
        phases = [one for one in told if one.parent == each.number]
        assert [one.name for one in phases] == ENCRYPTED[:-1]
        updates, results = phases[1], phases[4]
        assert updates.attributes["cohort"] == len(record["sites"]) == len(NAMES)
        assert updates.attributes["train_seconds"] == record["train_s"] > 0
        assert results.attributes["open_seconds"] == record["open_s"] > 0
        assert phases[2].ended - phases[2].begun == pytest.approx(1e6 * record["sum_s"], rel=0.2, abs=2e4)

    traces = {one.trace for one in told}
    theirs = [{one.trace for one in spans} for spans in grid.sites.values()]
    assert len(traces) == 1
    assert all(theirs)
    assert len(traces.union(*theirs)) == 1 + sum(map(len, theirs))
    carried = b"".join(map(bytes, grid.carried))
    for one in (*told, *(one for spans in grid.sites.values() for one in spans)):
        for number in (one.trace, one.number):
            assert number.encode() not in carried
            assert bytes.fromhex(number) not in carried


def test_a_readable_run_has_fewer_phases(tmp_path):
    told: list[Span] = []
    with recording(told.append), span("run"):
        run(tmp_path, "encryption.preset=none", "federation.rounds=1")
    assert [one.name for one in told] == ["gather", *READABLE, "release", "run"]


def test_what_stops_a_run_is_told_by_its_code(tmp_path):
    told: list[Span] = []
    with pytest.raises(FederationError), recording(told.append), span("run"):
        run(tmp_path, "federation.rounds=1", "simulation.site_epsilon=0.01")
    assert told[-1].attributes == {"code": "CohortTooSmall"}


def test_a_run_ends_as_well_with_a_collector_as_with_none_and_with_one_that_is_away(tmp_path):
    with listening() as receiver:
        for name, address in (("there", receiver.address), ("away", nobody())):
            (tmp_path / name).mkdir()
            with delivering(settings(tmp_path / name, address), "veilfed-coordinator"), span("run"):
                run(tmp_path / name / "out", "federation.rounds=1")
        assert [one.name for one in receiver.spans] == ["gather", *ENCRYPTED, "release", "run"]
        assert {one.service for one in receiver.spans} == {"veilfed-coordinator"}
        assert str(tmp_path).encode() not in b"".join(body for _, _, body in receiver.heard)


def test_consortium_toml_names_no_collector_unless_somebody_writes_one():
    assert ConsortiumSettings("x", "a:1").monitoring.traces == ""
