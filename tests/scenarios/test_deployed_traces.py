"""Real processes, each party with a collector of its own: what arrives there is that party's alone, and no secret."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w

from common.config import load_table
from tests.common.test_tracing import nobody
from tests.deployment import Deployment, Run, require_nginx, simulation
from tests.otlp import Arrived, Receiver, listening
from tests.scenarios.test_deployed import Watched, secrets_of, spelled
from tests.server.test_traces import ENCRYPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WITHOUT = "va-long-beach"  # the site whose collector is away


@dataclass(frozen=True)
class Traced:
    deployment: Deployment
    run: Run
    watched: Watched
    collectors: Mapping[str, Receiver]
    thief: Receiver

    def spans(self, party: str) -> list[Arrived]:
        return self.collectors[party].spans


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """One run, of which all parties but one have traces; variables name another collector, in vain."""
    require_nginx()
    made = Deployment(tmp_path_factory.mktemp("t") / "t", simulation("privacy.epsilon=0.5"), epsilon=100.0)
    made.found(made.settings)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        thief = stack.enter_context(listening())
        patch.setitem(os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT", thief.address)
        collectors = {}
        for path in (made.home / "consortium.toml", *(site / "site.toml" for site in made.sites)):
            name = path.parent.name
            collectors[name] = stack.enter_context(listening())
            name_collector(path, nobody() if name == WITHOUT else collectors[name].address)
        with made.running(), Watched(made) as watched:
            run = made.run()
            run.report()
            collectors["coordinator"].until(3 * len(ENCRYPTED) + 3)
            for site in {site.name for site in made.sites} - {WITHOUT}:
                collectors[site].until(30)
            yield Traced(made, run, watched, collectors, thief)


def name_collector(path: Path, address: str) -> None:
    path.write_text(tomli_w.dumps(load_table(path) | {"monitoring": {"traces": address}}))


def test_the_run_is_told_round_by_round_and_goes_on_beside_a_collector_that_is_away(traced):
    assert traced.run.rounds == [1, 2, 3]
    told = sorted(traced.spans("coordinator"), key=lambda one: one.ended)
    assert [one.name for one in told] == ["gather", *3 * ENCRYPTED, "release", "run"]
    assert told[-1].attributes == {"run": traced.run.number}
    assert {one.service for one in told} == {"veilfed-coordinator"}
    assert traced.spans(WITHOUT) == []
    assert traced.deployment.log(traced.deployment.site(WITHOUT), "node").count("traces are not delivered") == 1


def test_a_site_is_told_of_its_own_orders_and_of_nobody_elses(traced):
    for site in traced.deployment.sites:
        if site.name == WITHOUT:
            continue
        told = traced.spans(site.name)
        orders = {one.number: one for one in told if one.name == "order"}
        assert {one.attributes["site"] for one in orders.values()} == {site.name}
        trained = [one for one in orders.values() if one.attributes["action"] == "train"]
        assert sorted(one.attributes["round"] for one in trained) == [1, 2, 3]
        for order in trained:
            phases = [one.name for one in told if one.parent == order.number]
            assert sorted(phases) == sorted(["train", "charge", "mask", "encrypt"])
        assert {one.service for one in told} == {"veilfed-site"}


def test_no_two_parties_share_a_trace_and_no_number_of_one_is_in_a_file_of_another(traced):
    traces = {party: {one.trace for one in receiver.spans} for party, receiver in traced.collectors.items()}
    assert sum(map(len, traces.values())) == len(set().union(*traces.values()))
    written = [path.read_bytes() for path in traced.deployment.place.rglob("*") if path.is_file()]
    for trace in set().union(*traces.values()):
        for spelling in spelled(bytes.fromhex(trace)):
            assert not any(spelling in text for text in written)


def test_no_secret_reaches_a_collector(traced):
    heard = b"".join(body for one in traced.collectors.values() for _, _, body in one.heard)
    for name, secret in secrets_of(traced.deployment).items():
        for spelling in spelled(secret):
            assert spelling not in heard, name
    for word in (traced.deployment.place, "records", "passphrase"):
        assert str(word).encode() not in heard


def test_variables_name_no_collector_and_the_worker_still_has_no_network(traced):
    assert traced.thief.heard == []
    assert "node" in traced.watched.networked
    assert "worker" not in traced.watched.networked
