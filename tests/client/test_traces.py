"""Proves: a site's administrator sees where an order's time went, and neither node nor coordinator is told a secret."""

import json
from pathlib import Path

import pytest
import tomli_w

from client import node, observed
from client.node import Carrier, Worker
from client.start import start
from common.config import load_table
from common.errors import ConfigError
from common.spans import Span, recording
from common.tracing import Collector
from common.wire import Kind
from tests.by_hand import NAMES, Coordinator
from tests.client.test_node import Bundles, at_work, to_join
from tests.client.test_node import impatient as impatient
from tests.common.test_audit import told
from tests.common.test_tracing import without_the_extra
from tests.otlp import listening

ADLER = NAMES[0]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Coordinator:
    """Four sites that are about to train their first round."""
    return Coordinator.ready(tmp_path_factory.mktemp("traces") / "run")


def name_collector(directory: Path, address: str) -> None:
    path = directory / "site.toml"
    path.write_text(tomli_w.dumps(load_table(path) | {"monitoring": {"traces": address}}))


def spans_of(played: Coordinator, name: str, action: str, order: bytes) -> list[Span]:
    told: list[Span] = []
    with recording(told.append):
        observed.answer(played.site(name), action, order)
    return told


def test_an_order_is_a_span_and_its_phases_lie_within(played):
    offers = played.offers(1)
    order = played.order(1, played.training(ADLER, offers))
    *phases, whole = spans_of(played, ADLER, "train", order)
    assert [one.name for one in phases] == ["train", "charge", "mask", "encrypt"]
    assert {one.parent for one in phases} == {whole.number}
    assert (whole.name, whole.parent) == ("order", "")
    run, sent = played.store.run.hex(), whole.attributes["bytes_sent"]
    assert whole.attributes == {
        "site": ADLER,
        "action": "train",
        "bytes_received": len(order),
        "bytes_sent": sent,
        "run": run,
        "round": 1,
    }
    refused = spans_of(played, ADLER, "train", played.order(1, b"{}", plan=bytes(32)))
    assert [(one.name, one.attributes["code"]) for one in refused] == [("order", "TrustError")]
    strange = spans_of(played, ADLER, "a name of somebody", b"garbage")
    assert [(one.attributes["action"], one.attributes["code"]) for one in strange] == [("other", "WireError")]
    said = json.dumps([str(one) for one in [*phases, whole, *refused, *strange]])
    for secret in secrets_of(played):
        assert secret not in said


def secrets_of(played: Coordinator) -> list[str]:
    """Whatever lies in a site's run as a key, its identity, its records, and where they come from."""
    site = played.site(ADLER)
    files = [path for path in (site.directory / "runs").rglob("*") if path.is_file() and path.stat().st_size >= 16]
    assert files
    return [
        site.identity.private_bytes().hex(),
        *(path.read_bytes()[:16].hex() for path in files),
        *map(str, site.training_records.features[0]),
        site.settings.data.loader,
        str(site.directory),
    ]


def test_a_bug_ends_its_span_under_no_name_of_its_own(played):
    told: list[Span] = []

    def broken(*arguments: object) -> None:
        raise RuntimeError("0.7, 1.3: a record")

    with pytest.raises(RuntimeError), recording(told.append):
        observed.answer(played.site(ADLER), "apply", b"", broken)
    assert [(one.name, one.attributes["code"]) for one in told] == [("order", "other")]


def test_the_worker_tells_its_node_which_tells_the_sites_collector_and_not_the_coordinator(played, impatient):
    directory, content = played.directories[ADLER], b"no bundle"
    with listening() as receiver:
        for named in (True, False):
            name_collector(directory, receiver.address if named else "")
            with at_work(directory):
                carrier = Carrier(directory, Collector(receiver.address, "veilfed-site"))
                reply, _ = carrier._answered(Bundles(content, "f"), to_join(played))
            (record,) = [reply.content[key] for key in reply.content]
            assert set(record) == {"envelope"}
            assert played.read(record["envelope"]).kind is Kind.REFUSAL
        (arrived,) = receiver.until(1)
        assert (arrived.service, arrived.name, arrived.parent) == ("veilfed-site", "order", "")
        assert arrived.attributes["action"] == "join"
        assert arrived.trace not in record["envelope"].hex()


def test_a_node_that_knows_no_collector_says_so_once_and_carries_on(played, impatient, caplog):
    directory = played.directories[ADLER]
    name_collector(directory, "http://127.0.0.1:4318")
    node._say_that_no_collector_is_known.cache_clear()
    with at_work(directory):
        worker = Worker(directory)
        for _ in range(3):
            data, _ = worker.ask({"action": "offer"}, played.order(1, {}))
            assert played.read(data).kind is Kind.REFUSAL
    assert caplog.text.count("traces are not delivered") == 1
    name_collector(directory, "")


def test_without_the_extra_a_site_says_so_before_it_starts(played, capsys, monkeypatch, tmp_path):
    directory = played.directories[ADLER]
    name_collector(directory, "http://127.0.0.1:4318")
    without_the_extra(monkeypatch)
    code, answer = told(capsys, "site", "check", directory)
    assert code == 2
    assert any("veilfed[tracing]" in problem for problem in answer["problems"])
    (directory / "node.crt").write_text("")
    with pytest.raises(ConfigError, match="opentelemetry is not installed"):
        start(directory, lambda line: None)
    assert not (directory / "run" / "lock").exists()
