"""Sites vanish at every moment there is: each round opens the exact sum of the agreed list or stops cleanly."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from safetensors.numpy import load_file

from client import masking
from client.app import app as client_app
from client.runs import SiteRun
from common.errors import CohortTooSmall, ProtocolError, TrustError
from common.keystore import load_secret
from common.masking import Published
from common.signing import Identity
from common.wire import Envelope, Kind, decode, encode
from scenarios.engines import run_local
from scenarios.grid import LocalGrid
from scenarios.simulation import Workplace
from server.app import build_app
from server.links import Link, Links
from server.mask_relay import MaskRelay
from server.round import LeftOut, too_few
from server.store import RunStore
from tests.by_hand import NAMES, Coordinator, envelope_of, restart, with_envelope, workplace

IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - files that live as long as a test
CLEAN = (ProtocolError, CohortTooSmall)


class Weather:
    """A network that loses orders before they arrive, and answers after the site has acted, by `chance` and phase."""

    def __init__(self, seed: int, chance: float, phases: frozenset[str] = frozenset()) -> None:
        self.random, self.chance, self.phases = random.Random(seed), chance, phases
        self.lost: Counter[str] = Counter()
        self.gone = False

    def carry(self, message: Message, context: Context) -> Message:
        phase = message.metadata.message_type.removeprefix("query.")
        self.gone = (not self.phases or phase in self.phases) and self.random.random() < self.chance
        if self.gone:
            self.lost[phase] += 1
            if self.random.random() < 0.5:
                return Message(Error(1, "never arrived"), reply_to=message)
        return client_app(message, context)

    def deliver(self, reply: Message) -> Iterable[Message]:
        return () if self.gone else (reply,)

    def grid(self, sites: Iterable[Path]) -> LocalGrid:
        contexts = [
            Context(1, number, {"site-directory": str(site)}, RecordDict(), {}) for number, site in enumerate(sites, 2)
        ]
        return LocalGrid(self.carry, contexts, self.deliver)


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
        yield Path(place)


class MaskedRounds:
    """Round after round of the true mask protocol, both sides of it, over vectors of four numbers.

    There is no training and no encryption: the sum travels bare but for its masks, so every wrong bit shows.
    """

    def __init__(self, place: Path, names: tuple[str, ...], threshold: int, seed: int) -> None:
        overrides = (f"encryption.threshold={threshold}", "federation.rounds=100000", "federation.min_cohort=3")
        overrides = (*overrides, "privacy.epsilon=1000", "privacy.noise_multiplier=100", "training.sample_rate=0.01")
        self.played = Coordinator.ready(place, names, *overrides)
        self.played.store.keep_ceremony(1, {"joined": self.played.joined, "made": self.played.made_key})
        self.weather = Weather(seed, chance=0.15)
        self.random = random.Random(seed)
        self.size = 4
        self.bits = self.played.scheme.plain_modulus_bits
        self.published: dict[int, Published] = {}
        self.at = dict.fromkeys(names, 0)
        self.outcomes: Counter[str] = Counter()
        self.connect()

    def connect(self) -> None:
        """Both sides start anew: what is left is what is on disk."""
        restart()
        links = Links(self.weather.grid(self.played.place.sites), self.played.store.roster, self.played.store.cohort)
        for node, name in enumerate(self.played.directories, 2):
            links.by_site[name] = links._by_node[node] = Link(name, node, self.at[name], "")
        self.relay = MaskRelay(self.played.store, links)

    def run_of(self, name: str) -> SiteRun:
        return SiteRun.open(self.played.directories[name] / "runs", self.played.store.run)

    def values(self, number: int, name: str) -> np.ndarray:
        return np.random.default_rng([number, *name.encode()]).integers(0, 2**16, self.size, np.uint64)

    def play(self, number: int) -> None:
        """One round to its end, however often it is stopped on the way; the weather clears up in the end."""
        received: list[str] = []
        total = np.zeros(self.size, np.uint64)
        for attempt in range(20):
            self.weather.chance = 0.15 if attempt < 6 else 0.0
            if self.random.random() < 0.1:
                self.connect()
            try:
                self.catch_up(number)
                ready = [name for name in self.played.names if self.at[name] == number - 1]
                if not received:
                    received, total = self.collect(number, ready)
                version = self.played.model_hash(ready[0])
                published = self.relay.publish(number, received, version, total.tobytes())
            except CLEAN as error:
                self.outcomes[error.code] += 1
                continue
            opened = self.opened(number, published, ready[0])
            assert (opened == sum(self.values(number, name) for name in received)).all()
            assert list(published.sites) == received
            self.published[number] = published
            self.outcomes["exact"] += 1
            self.outcomes[f"{len(received)} of {len(ready)}"] += 1
            return
        raise AssertionError(f"round {number} never ends")

    def collect(self, number: int, ready: list[str]) -> tuple[list[str], np.ndarray]:
        """Updates of those that were asked and are not lost; a late one is masked like any other and not counted."""
        if len(ready) < self.relay.threshold:
            raise too_few(number, len(ready), self.relay.threshold, ())
        orders = self.relay.orders(number, ready, self.played.model_hash(ready[0]))
        sums, received = np.zeros(self.size, np.uint64), []
        for name, order in orders.items():
            fates = ["sent"] * 9 + ["vanished before sending", "too late"] * bool(self.weather.chance)
            fate = self.random.choice(fates)
            if fate == "vanished before sending":
                continue
            masked = self.values(number, name) + self.mask(number, name, order)
            if fate == "sent":
                received.append(name)
                sums += masked
        if len(received) < self.relay.threshold:
            raise too_few(number, len(received), self.relay.threshold, (LeftOut("", "Silent", ""),))
        return sorted(received), sums & np.uint64((1 << self.bits) - 1)

    def mask(self, number: int, name: str, order: bytes) -> np.ndarray:
        """As in `run_local_round`: what is sent once is sent the same again."""
        site, run = self.played.site(name), self.run_of(name)
        if run.sealed_update(number) is None:
            masking.accept_offers(site, run, self.played.read(order))
            run.keep_sealed_update(number, b"sent")
        return masking.mask(site, run, number, 1)[: self.size]

    def opened(self, number: int, published: Published, name: str) -> np.ndarray:
        order = self.played.read(self.played.order(number, published.encode(), kind=Kind.AGGREGATE))
        (masks,) = masking.masks_in(self.played.site(name), self.run_of(name), order, published, (published.sites,))
        total = np.frombuffer(published.total, np.uint64) - masks[: self.size]
        return total & np.uint64((1 << self.bits) - 1)

    def catch_up(self, number: int) -> None:
        """Some sites apply what was published late; all that do check it as if it had come in time."""
        for name in self.played.names:
            while self.at[name] < number - 1 and self.random.random() < 0.9:
                behind = self.at[name] + 1
                self.opened(behind, self.published[behind], name)
                run = self.run_of(name)
                state = run.state()
                run.keep_state(replace(state, round_number=behind, model=state.model + np.float32(1)))
                masking.forget(run, behind)
                self.at[name] = behind


def masked_rounds(place: Path, names: tuple[str, ...], threshold: int, rounds: int) -> Counter[str]:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # shown when the test fails
    played = MaskedRounds(place / "run", names, threshold, seed)
    for number in range(1, rounds + 1):
        played.play(number)
    assert played.outcomes["exact"] == rounds
    return played.outcomes + played.weather.lost


SHAPES = [(("a", "b", "c", "d"), 3), (("a", "b", "c", "d", "e"), 3), (("a", "b", "c", "d", "e", "f", "g"), 5)]
MANY = tuple(f"site-{number:02}" for number in range(18))  # more than hold shares of one secret


@pytest.mark.parametrize(("names", "threshold"), SHAPES)
def test_rounds_with_random_losses_open_the_exact_sum_or_stop(memory, names, threshold):
    seen = masked_rounds(memory, names, threshold, 20)
    assert seen["offer"] + seen["agree"] + seen["unmask"] > 0


@pytest.mark.slow
def test_rounds_of_more_sites_than_hold_shares(memory):
    masked_rounds(memory, MANY, 13, 15)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("names", "threshold"), SHAPES)
def test_a_thousand_rounds_with_random_losses(memory, names, threshold):
    seen = masked_rounds(memory, names, threshold, 334)
    assert {"offer", "agree", "unmask", "stand_in", "ProtocolError", "CohortTooSmall"} <= set(seen)


# Whole runs: training, encryption, Flower's loop.

PHASES = ("join", "make_key", "install_key", "offer", "train", "agree", "unmask", "stand_in", "evaluate", "release")


def run_until_done(place: Workplace, weather: Weather) -> Counter[str]:
    """The run, resumed after every stop; the weather clears up in the end. Anything but a clean stop goes through."""
    stops: Counter[str] = Counter()
    for attempt in range(12):
        weather.chance = weather.chance if attempt < 6 else 0.0
        restart()
        app = build_app()
        try:
            app(weather.grid(place.sites), Context(1, 1, {}, RecordDict(), {"run-directory": str(place.run)}))
            return stops
        except CLEAN as error:
            stops[error.code] += 1
    raise AssertionError("the run never ends")


def summed(place: Workplace) -> dict[int, tuple[str, ...]]:
    """The signed survivors of each round, from what the coordinator published."""
    store = RunStore.open(place.run)
    bodies = {number: store.aggregate(number) for number in range(1, store.plan.federation.rounds + 1)}
    return {
        number: Published.decode(decode(data, store.roster.public_key_of).body).sites for number, data in bodies.items()
    }


def readable_model(out: Path, survivors: dict[int, tuple[str, ...]], *overrides: str) -> np.ndarray:
    """The model that the same survivors train when everybody reads everything."""
    place = workplace(out, NAMES, "encryption.preset=none", *overrides)

    def deliver(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        counted = about.message_type != "train" or NAMES[about.src_node_id - 2] in survivors[int(about.group_id)]
        return (reply,) if counted else ()

    run_local(place.run, list(place.sites), lambda record: None, deliver)
    return load_file(place.run / "released.safetensors")["model"]


def whole_runs(memory: Path, runs: int, preset: str) -> Counter[str]:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # shown when the test fails
    dice, seen = random.Random(seed), Counter[str]()
    for number in range(runs):
        phases = frozenset(dice.sample(PHASES, k=dice.randint(1, 4)))
        weather = Weather(dice.getrandbits(32), dice.choice([0.15, 0.3, 0.5]), phases)
        key_rounds = f"encryption.key_rounds={number % 3}"
        overrides = ("federation.min_cohort=3", f"simulation.insecure_randomness={1 + number}")
        place = workplace(memory / f"masked-{number}", NAMES, f"encryption.preset={preset}", key_rounds, *overrides)
        seen += run_until_done(place, weather) + weather.lost
        survivors = summed(place)
        expected = readable_model(memory / f"readable-{number}", survivors, *overrides)
        step = 2.0 / (2**15 - 1 if preset == "compact" else 2**22 - 1)
        assert np.abs(load_file(place.run / "released.safetensors")["model"] - expected).max() < 6 * step
        assert np.abs(expected).max() > 100 * step
        seen += Counter(f"{len(sites)} sites" for sites in survivors.values())
        for path in place.sites:
            assert len(Coordinator(place).site(path.name).ledger.entries) <= 3
    return seen


def test_runs_with_random_losses_end_with_the_model_of_their_survivors(memory):
    assert whole_runs(memory, 4, "precise")


def test_a_round_short_of_the_threshold_fixes_no_list_that_no_site_would_open(memory):
    """Two of four are enough for min_cohort but not to lift masks: else the run could never go on."""
    place = workplace(memory / "run", NAMES, "federation.min_cohort=2")

    def deliver(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        return () if (about.message_type, about.group_id) == ("train", "2") and about.src_node_id > 3 else (reply,)

    with pytest.raises(ProtocolError, match="round 2 stopped: 2 of at least 3"):
        run_local(place.run, list(place.sites), lambda record: None, deliver)
    assert not RunStore.open(place.run).has_sum(2)
    run_local(place.run, list(place.sites), lambda record: None)
    assert summed(place) == dict.fromkeys((1, 2, 3), NAMES)


@pytest.mark.parametrize("body", [b"\xff", b"{}", b"[]", None])
def test_one_site_whose_answers_to_the_sum_are_nonsense_or_old_stops_nobody(memory, body):
    place = workplace(memory / "run", NAMES, "federation.min_cohort=3")
    store, stale = RunStore.open(place.run), []
    signer = Identity.from_private_bytes(load_secret(place.sites[1] / "identity.key", None))

    def deliver(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        if about.message_type != "evaluate" or about.src_node_id != 3:
            return (reply,)
        stale.append(envelope_of(reply))
        answer = Envelope(Kind.ANSWER, store.run, int(about.group_id), store.plan_hash, NAMES[1], body or b"")
        data = stale[0] if body is None else encode(answer, signer)
        return (with_envelope(reply, data),)

    if body == b"{}":  # it says that it holds no model at all: not a site to go on with unseen
        with pytest.raises(TrustError, match="different models"):
            run_local(place.run, list(place.sites), lambda record: None, deliver)
        return
    run_local(place.run, list(place.sites), lambda record: None, deliver)
    expected = readable_model(memory / "readable", summed(place), "federation.min_cohort=3")
    assert np.abs(load_file(place.run / "released.safetensors")["model"] - expected).max() < 12 / (2**15 - 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["compact", "precise"])
def test_thirty_runs_with_random_losses(memory, preset):
    assert whole_runs(memory, 30, preset)
