"""Runs whose sites change their key on the way: the same model, bit for bit, wherever the run is stopped."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from safetensors.numpy import load_file

from client.app import app as client_app
from client.runs import SiteRun
from scenarios.engines import run_local
from scenarios.grid import Delivery, LocalGrid, as_it_is
from scenarios.simulate import simulate
from scenarios.simulation import Workplace
from server.app import build_app
from server.store import RunStore
from tests.by_hand import NAMES, restart, workplace


def play(place: Workplace, deliver: Delivery = as_it_is) -> list[Mapping]:
    rounds: list[Mapping] = []
    run_local(place.run, list(place.sites), rounds.append, deliver)
    return rounds


def released(place: Workplace) -> np.ndarray:
    return load_file(place.run / "released.safetensors")["model"]


def rotating(out, key_rounds: int, rounds: int = 4) -> Workplace:
    overrides = (f"encryption.key_rounds={key_rounds}", f"federation.rounds={rounds}", "federation.min_cohort=3")
    return workplace(out, NAMES, *overrides)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The model of a run with one key."""
    place = rotating(tmp_path_factory.mktemp("one") / "run", 0)
    play(place)
    assert RunStore.open(place.run).makers() == ["adler"]
    return released(place)


@pytest.mark.parametrize(
    ("key_rounds", "makers"), [(1, list(NAMES)), (2, ["adler", "birke"]), (3, ["adler", "birke"]), (4, ["adler"])]
)
def test_new_keys_change_no_bit_of_the_model(tmp_path, expected, key_rounds, makers):
    place = rotating(tmp_path / "run", key_rounds)
    assert [record["round"] for record in play(place)] == [1, 2, 3, 4]
    assert released(place).tobytes() == expected.tobytes()
    assert RunStore.open(place.run).makers() == makers
    hashes = {path.read_bytes() for site in place.sites for path in site.glob("runs/*/cohort-*.hash")}
    assert len(hashes) == len(makers)
    report = simulate(place)  # of a run that is over: it only reports
    assert report["wire"]["cohort_keys"] == len(makers)
    page = Path(report["report"]).read_text()
    assert f'Keys of the sites, one after the other</th><td class="number">{len(makers)}</td>' in page
    assert not [path for site in place.sites for path in site.glob("runs/*/*.key")]


class Unplugged(Exception):
    pass


def unplugged_at(count: int) -> Delivery:
    seen = []

    def deliver(reply: Message) -> Iterable[Message]:
        seen.append(reply)
        if len(seen) > count:
            raise Unplugged
        return (reply,)

    return deliver


@pytest.mark.parametrize("count", [4, 5, 8, 9, 12, 29, 30, 32, 33, 34, 35, 37, 38, 41, 58, 59, 60, 62, 63, 66])
def test_a_run_unplugged_at_any_message_resumes_to_the_same_model(tmp_path, expected, count):
    """One key a round, so that most of these messages belong to a ceremony or stand beside one."""
    place = rotating(tmp_path / "run", 1)
    with pytest.raises(Unplugged):
        play(place, unplugged_at(count))
    restart()
    play(place)
    assert released(place).tobytes() == expected.tobytes()
    assert RunStore.open(place.run).makers() == list(NAMES)


def quiet(site: int, kinds: dict[str, set[str]]) -> Delivery:
    """Answers of one site to messages of some kinds, in some rounds, are lost."""

    def deliver(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        lost = about.src_node_id == site + 1 and about.group_id in kinds.get(about.message_type, set())
        return () if lost else (reply,)

    return deliver


def test_a_site_that_is_away_when_the_key_changes_catches_up(tmp_path):
    """It had announced its exchange key before; the old sum opens with the old key, the later one with the new."""
    place = rotating(tmp_path / "run", 2)
    store, closed, held = RunStore.open(place.run), [], []
    dorn = place.sites[3] / "runs" / store.run.hex()

    def carry(message: Message, context: Context) -> Message:
        if message.metadata.dst_node_id == 5 and closed in ([1], [1, 2]):
            return Message(Error(1, "never arrived"), reply_to=message)
        if message.metadata.dst_node_id == 5:
            held.append({path.name for path in dorn.glob("cohort-*")})
        return client_app(message, context)

    contexts = [
        Context(1, number, {"site-directory": str(site)}, RecordDict(), {})
        for number, site in enumerate(place.sites, 2)
    ]
    app = build_app(lambda record: closed.append(record["round"]))
    app(LocalGrid(carry, contexts, as_it_is), Context(1, 1, {}, RecordDict(), {"run-directory": str(place.run)}))
    states = [SiteRun.open(site / "runs", store.run).state() for site in place.sites]
    assert {state.round_number for state in states} == {4}
    assert len({state.model_hash for state in states}) == 1
    assert {"cohort-000001.hash"} in held
    assert {"cohort-000001.hash", "cohort-000002.key"} in held
    assert [len(record["sites"]) for record in store.rounds()] == [4, 3, 3, 4]


@pytest.mark.parametrize("site", [1, 2])
def test_when_one_sites_turn_passes_unheard_the_next_one_makes_the_key(tmp_path, expected, site):
    place = rotating(tmp_path / "run", 2)
    play(place, quiet(site, {"query.make_key": {"1", "3"}}))
    assert released(place).tobytes() == expected.tobytes()
    assert RunStore.open(place.run).makers() == [["birke", "birke"], ["adler", "cedar"]][site - 1]


def test_a_lost_acknowledgement_does_not_cost_a_site_the_next_key(tmp_path, expected):
    place = rotating(tmp_path / "run", 2)
    seen: list[str] = []

    def once(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        if (about.message_type, about.src_node_id) == ("query.install_key", 5) and not seen:
            seen.append(about.group_id)
            return ()
        return (reply,)

    play(place, once)
    assert seen == ["1"]
    assert RunStore.open(place.run).ceremony(2)["joined"].keys() == set(NAMES)
