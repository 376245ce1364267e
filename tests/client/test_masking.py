"""One site's part in the mask protocol: it repeats itself word for word, and never gives both halves of a secret."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from client import masking
from client.runs import SiteRun
from common.errors import FederationError, WrongRound
from common.he.masks import pairwise_seed, site_mask
from common.he.sealing import ExchangeKey, open_sealed
from common.he.shares import combine_shares, commit
from common.keystore import load_secret
from common.masking import Offer, Opening, mask_context, package_context, split_package
from common.signing import Identity
from common.wire import Envelope, Kind, decode, encode, from_hex, to_json
from tests.by_hand import NAMES, Coordinator, restart

ADLER, BIRKE, CEDAR, DORN = NAMES
HONEST, COLLUDER = NAMES[:3], DORN
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - files that live as long as a test


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return Coordinator.ready(tmp_path_factory.mktemp("joined") / "run")


@pytest.fixture
def begun(joined, tmp_path):
    return joined.copy(tmp_path / "run")


def run_of(coordinator: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


def secrets_of(run: SiteRun, number: int) -> tuple[bytes, ExchangeKey]:
    data = load_secret(run.directory / f"masks-{number:06d}", None)
    return data[:32], ExchangeKey.from_private_bytes(data[32:])


def offer_of(coordinator: Coordinator, made: dict, number: int) -> Offer:
    envelope = decode(from_hex(made["offer"]), coordinator.store.roster.public_key_of)
    return Offer.of(envelope, coordinator.store.run, coordinator.store.plan_hash, number)


def test_an_offer_is_made_once_and_repeated_word_for_word_after_a_restart(begun):
    site = begun.site(ADLER)
    first = masking.offer(site, run_of(begun, ADLER), 1)
    restart()
    assert masking.offer(begun.site(ADLER), run_of(begun, ADLER), 1) == first
    assert masking.offer(site, run_of(begun, ADLER), 2)["offer"] != first["offer"]


def test_an_offer_commits_to_the_secrets_whose_shares_it_packs(begun):
    run = run_of(begun, ADLER)
    made = masking.offer(begun.site(ADLER), run, 1)
    offered, (self_seed, mask_key) = offer_of(begun, made, 1), secrets_of(run, 1)
    assert (offered.commitment, offered.mask_key) == (commit(self_seed), mask_key.public)
    shares = {}
    for peer in (BIRKE, CEDAR, DORN):
        theirs = run_of(begun, peer)
        context = package_context(run.run, 1, ADLER, peer)
        package = open_sealed(theirs.exchange_key(1), run.peers(1)[ADLER], from_hex(made["packages"][peer]), context)
        shares[peer] = split_package(package)
    assert combine_shares({peer: share for peer, (share, _) in shares.items()}, 3) == self_seed
    assert combine_shares({peer: share for peer, (_, share) in shares.items()}, 3) == mask_key.private_bytes()


def test_a_crash_before_the_offer_was_said_loses_nothing(begun):
    """Secrets without an offer were promised to nobody: new ones take their place."""
    run = run_of(begun, ADLER)
    masking.offer(begun.site(ADLER), run, 1)
    before = secrets_of(run, 1)[0]
    (run.directory / "offer-000001").unlink()
    made = masking.offer(begun.site(ADLER), run, 1)
    assert secrets_of(run, 1)[0] != before
    assert offer_of(begun, made, 1).commitment == commit(secrets_of(run, 1)[0])


def test_masks_of_all_sites_cancel_but_for_their_self_masks(begun):
    made = begun.offers(1)
    total = np.zeros(64, np.uint64)
    for name in begun.names:
        masking.accept_offers(begun.site(name), run_of(begun, name), order(begun, 1, begun.training(name, made)))
        total += masking.mask(begun.site(name), run_of(begun, name), 1, begun.length)[:]
    seeds = {name: secrets_of(run_of(begun, name), 1)[0] for name in begun.names}
    left = masking.masks_left_in_sum(seeds, {}, 64, begun.scheme.plain_modulus_bits)
    assert ((total - left) % np.uint64(1 << begun.scheme.plain_modulus_bits) == 0).all()


def test_a_finished_round_leaves_no_secret_on_disk_but_its_list(tmp_path):
    coordinator = Coordinator.ready(tmp_path / "run", NAMES, "federation.rounds=1")
    coordinator.whole_round(1)
    left = {path.name for path in run_of(coordinator, ADLER).directory.iterdir()}
    assert {name for name in left if name.endswith("-000001")} == {"list-000001", "update-000001"}
    with pytest.raises(WrongRound):
        masking.mask(coordinator.site(ADLER), run_of(coordinator, ADLER), 1, coordinator.length)


def test_a_package_that_does_not_open_keeps_nobody_from_standing_in_for_others(begun):
    made = begun.offers(1)
    made[BIRKE]["packages"] = dict.fromkeys(made[BIRKE]["packages"], "00" * 96)
    made[CEDAR]["packages"] = dict.fromkeys(made[CEDAR]["packages"], "")
    begun.train(1, made)
    wanted = begun.wanted(NAMES, b"sum")
    shown = {**wanted, "agreed": begun.agree(1, wanted), "silent": [BIRKE, CEDAR, DORN]}
    assert set(begun.body(begun.ask(ADLER, "stand_in", 1, shown))["self"]) == {DORN}


def order(coordinator: Coordinator, number: int, body: dict) -> Envelope:
    return coordinator.read(coordinator.order(number, body))


_template: list[tuple[tempfile.TemporaryDirectory, Coordinator]] = []


def template() -> Coordinator:
    """Four sites that hold the cohort's key, made once for all examples."""
    if not _template:
        place = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        _template.append((place, Coordinator.ready(Path(place.name) / "run")))
    return _template[0][1]


class Adversary(RuleBasedStateMachine):
    """Coordinator and one of four sites (threshold 3) ask three honest sites for anything, in any order.

    What they learn is kept as bytes; the invariants say that no honest site's mask ever comes off.
    """

    lists = Bundle("lists")

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.played = template().copy(Path(self.place.name) / "run")
        self.own = Identity.from_private_bytes(load_secret(self.played.directories[COLLUDER] / "identity.key", None))
        self.number, self.made = 1, {}
        self.agreed: dict[str, dict[str, str]] = {}
        self.self_seeds: dict[tuple[int, str], bytes] = {}
        self.pairs: dict[tuple[int, str, str], bytes] = {}
        self.shares: dict[tuple[int, str, str], dict[str, bytes]] = {}  # (round, kind, owner) -> holder -> share
        self.sent: set[tuple[int, str]] = set()
        self.truth: dict[tuple[int, str], tuple[bytes, ExchangeKey]] = {}
        self.shown: dict[tuple[int, str], set[str]] = {}
        self.gather()

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.place.cleanup()

    def gather(self) -> None:
        """Everybody's offer, and the colluder's own shares of both kinds: it was given them."""
        self.made = self.played.offers(self.number)
        for name in HONEST:
            self.truth[self.number, name] = secrets_of(run_of(self.played, name), self.number)
            run = run_of(self.played, COLLUDER)
            box = from_hex(self.made[name]["packages"][COLLUDER])
            context = package_context(run.run, self.number, name, COLLUDER)
            pair = split_package(open_sealed(run.exchange_key(1), run.peers(1)[name], box, context))
            for kind, share in zip(("self", "keys"), pair, strict=True):
                self.shares.setdefault((self.number, kind, name), {})[COLLUDER] = share

    def ask(self, name: str, action: str, number: int, body: dict) -> dict | None:
        site, run = self.played.site(name), run_of(self.played, name)
        try:
            return self.played.body(getattr(masking, action)(site, run, order(self.played, number, body)))
        except FederationError:
            return None

    @rule(name=st.sampled_from(HONEST), among=st.sets(st.sampled_from(NAMES), min_size=2))
    def train(self, name: str, among: set[str]) -> None:
        """As `run_local_round` does: what was sent once is never sent otherwise."""
        site, run = self.played.site(name), run_of(self.played, name)
        if run.sealed_update(self.number):
            return
        body = self.played.training(name, {peer: self.made[peer] for peer in sorted(among)})
        try:
            masking.accept_offers(site, run, order(self.played, self.number, body))
            masking.mask(site, run, self.number, 8)
        except FederationError:
            return
        run.keep_sealed_update(self.number, b"sent")
        self.sent.add((self.number, name))
        self.shown[self.number, name] = among

    @rule(target=lists, received=st.sets(st.sampled_from(NAMES), min_size=2), total=st.sampled_from(["00", "01"]))
    def name_a_list(self, received: set[str], total: str) -> dict:
        return {"received": sorted(received), "sum": total * 32}

    @rule(wanted=lists, who=st.sets(st.sampled_from(HONEST)))
    def agree(self, wanted: dict, who: set[str]) -> None:
        """The colluder signs whatever there is."""
        key, run = to_json(wanted).hex(), run_of(self.played, COLLUDER)
        opening = Opening(tuple(wanted["received"]), wanted["sum"], run.state().model_hash.hex())
        body = to_json({"list": opening.digest(run.run, self.number)})
        envelope = Envelope(Kind.ANSWER, run.run, self.number, run.plan_hash, COLLUDER, body)
        signed = self.agreed.setdefault(key, {})
        signed[COLLUDER] = encode(envelope, self.own).hex()
        for name in sorted(who):
            data = self.played.send(name, "agree", self.played.order(self.number, wanted))
            if self.played.read(data).kind is Kind.ANSWER:
                signed[name] = data.hex()

    def agreements(self, wanted: dict, doubled: bool) -> list[str]:
        signed = list(self.agreed.get(to_json(wanted).hex(), {}).values())
        return signed * 2 if doubled else signed

    @rule(wanted=lists, name=st.sampled_from(HONEST), doubled=st.booleans(), late=st.booleans())
    def unmask(self, wanted: dict, name: str, doubled: bool, late: bool) -> None:
        number = self.number - late
        said = self.ask(name, "unmask", number, {**wanted, "agreed": self.agreements(wanted, doubled)})
        if said:
            self.self_seeds[number, name] = from_hex(said["self"])
            self.pairs |= {(number, name, peer): from_hex(seed) for peer, seed in said["pairs"].items()}

    @rule(
        wanted=lists,
        name=st.sampled_from(HONEST),
        silent=st.sets(st.sampled_from(NAMES)),
        doubled=st.booleans(),
        late=st.booleans(),
    )
    def stand_in(self, wanted: dict, name: str, silent: set[str], doubled: bool, late: bool) -> None:
        number = self.number - late
        body = {**wanted, "agreed": self.agreements(wanted, doubled), "silent": sorted(silent)}
        for kind, given in (self.ask(name, "stand_in", number, body) or {}).items():
            for owner, share in given.items():
                self.shares.setdefault((number, kind, owner), {})[name] = from_hex(share)

    @rule(received=st.sets(st.sampled_from(NAMES), min_size=2), total=st.sampled_from(["00", "01"]))
    def pursue(self, received: set[str], total: str) -> None:
        """One list through all its steps, as far as the sites go along: random orders seldom get that far."""
        wanted = {"received": sorted(received), "sum": total * 32}
        for name in HONEST:
            self.train(name, set(NAMES))
        self.agree(wanted, set(HONEST))
        for name in HONEST:
            self.unmask(wanted, name, doubled=False, late=False)
            self.stand_in(wanted, name, received, doubled=False, late=False)

    @rule()
    def restart(self) -> None:
        restart()

    @rule()
    def close_the_round(self) -> None:
        """As `apply_aggregate` does at its end, at those that sent something."""
        if self.number == 3 or not all((self.number, name) in self.sent for name in HONEST):
            return
        for name in NAMES:
            run = run_of(self.played, name)
            run.keep_state(replace(run.state(), round_number=self.number))
            masking.forget(run, self.number)
        self.number += 1
        self.agreed = {}
        self.gather()

    def known_self(self, number: int, name: str) -> bytes | None:
        shares = self.shares.get((number, "self", name), {})
        return self.self_seeds.get((number, name)) or (combine_shares(shares, 3) if len(shares) >= 3 else None)

    def known_key(self, number: int, name: str) -> bytes | None:
        shares = self.shares.get((number, "keys", name), {})
        return combine_shares(shares, 3) if len(shares) >= 3 else None

    def known_pair(self, number: int, one: str, other: str) -> bool:
        said = (number, one, other) in self.pairs or (number, other, one) in self.pairs
        return said or bool(self.known_key(number, one)) or bool(self.known_key(number, other))

    @invariant()
    def no_peer_gives_both_kinds_of_share(self) -> None:
        for number, kind, owner in getattr(self, "shares", {}):
            other = self.shares.get((number, {"self": "keys", "keys": "self"}[kind], owner), {})
            assert set(self.shares[number, kind, owner]) & set(other) <= {COLLUDER}

    @invariant()
    def no_mask_of_an_honest_site_comes_off(self) -> None:
        for number, name in getattr(self, "truth", {}):
            seed, mask_key = self.truth[number, name]
            known = self.known_self(number, name)
            assert known in (None, seed)  # what was learnt is the true secret: the model of the adversary is right
            assert self.known_key(number, name) in (None, mask_key.private_bytes())
            if known is None:
                continue
            assert self.known_key(number, name) is None
            hidden = [
                peer
                for peer in self.shown.get((number, name), set()) - {name, COLLUDER}
                if not self.known_pair(number, name, peer)
            ]
            assert hidden or (number, name) not in self.sent

    @invariant()
    def what_was_revealed_of_pairs_is_true(self) -> None:
        for (number, name, peer), seed in getattr(self, "pairs", {}).items():
            if peer != COLLUDER and number == self.number:
                run = run_of(self.played, name)
                context = mask_context(run.run, number, run.state().model_hash.hex())
                public = self.truth[number, peer][1].public
                assert pairwise_seed(self.truth[number, name][1], public, name, peer, context) == seed


TestNoSequenceOfRequestsTakesAMaskOff = Adversary.TestCase
TestNoSequenceOfRequestsTakesAMaskOff.settings = settings(
    max_examples=int(os.environ.get("VEILFED_EXAMPLES", "25")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_two_of_four_sites_colluding_is_beyond_the_promise(begun):
    """c < 2t - n, here 2 * 3 - 4: with cedar and dorn on its side the coordinator has adler's mask off."""
    made = begun.offers(1)
    begun.train(1, made)
    wanted = begun.wanted([ADLER, CEDAR, DORN], b"sum")
    shown = {**wanted, "agreed": begun.agree(1, wanted)}
    revealed = begun.body(begun.ask(ADLER, "unmask", 1, shown))
    pairs = {name: from_hex(seed) for name, seed in revealed["pairs"].items()}
    context = mask_context(begun.store.run, 1, begun.model_hash(ADLER))
    for name in (CEDAR, DORN):
        _, mask_key = secrets_of(run_of(begun, name), 1)
        pairs[name] = pairwise_seed(mask_key, offer_of(begun, made[ADLER], 1).mask_key, name, ADLER, context)
    bare = site_mask(ADLER, from_hex(revealed["self"]), pairs, 64, begun.scheme.plain_modulus_bits)
    assert (bare == masking.mask(begun.site(ADLER), run_of(begun, ADLER), 1, begun.length)[:]).all()
