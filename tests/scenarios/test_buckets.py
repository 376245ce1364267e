"""Encrypted rounds by buckets: the model is the plain rule's, no small bucket is opened, poison is named."""

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Message
from safetensors.numpy import load_file

import client.round
from client.site import Site
from client.train import train
from common.buckets import filled, shuffled
from common.config import load_table
from common.dp.cost import noise_share, round_events
from common.errors import ConfigError, ProtocolError
from common.masking import Published
from common.model_state import ModelState, advance
from common.models import build, load_parameters, parameters_of
from common.robust_rules import RULES
from common.updates import Clipped, Vector, clip
from common.wire import decode
from scenarios.simulate import simulate
from scenarios.simulation import Workplace
from server.store import RunStore
from tests.by_hand import Coordinator, restart, workplace
from tests.scenarios.test_dropouts import Weather, run_until_done

SITES = tuple(f"site-{number}" for number in range(9))
MEDIAN = ("robustness.rule=median", "robustness.byzantine=1", "robustness.buckets=3", "federation.min_cohort=2")
TWO = "federation.rounds=2"
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - files that live as long as a test


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
        yield Path(place)


def updates_of(place: Workplace, model: Vector, number: int) -> dict[str, Vector]:
    """Each site's clipped update: the site's test switch fixes draws and noise."""
    plan, found = RunStore.open(place.run).plan, {}
    network = build(plan.model)
    for path in place.sites:
        site = Site.open(path)
        load_parameters(network, model)
        records, noise = site.training_records, plan.privacy.noise_multiplier
        given = (plan.training, plan.privacy, noise, site.randomness("train", number), number, plan.federation.rounds)
        made = train(network, records.features, records.labels, *given)
        found[site.name] = clip(made.update, plan.privacy.max_update_norm).values
    return found


def opened_lists(place: Workplace) -> dict[int, tuple[str, ...]]:
    store = RunStore.open(place.run)
    bodies = {number: store.aggregate(number) for number in range(1, store.plan.federation.rounds + 1)}
    return {n: Published.decode(decode(data, store.roster.public_key_of).body).sites for n, data in bodies.items()}


def true_hashes(place: Workplace) -> dict[int, bytes]:
    """Of the model after each round, as a site wrote it down."""
    logs = [entry.record for path in place.sites for entry in Site.open(path).audit.entries()]
    return {log["round"]: bytes.fromhex(log["model"]) for log in logs if log["event"] == "Opened"}


def plain_model(place: Workplace) -> Vector:
    """What the rule gives on readable means of the same buckets, round after round; nothing is encrypted or masked."""
    store = RunStore.open(place.run)
    plan, state = store.plan, ModelState.initial(parameters_of(build(store.plan.model)))
    hashes = {0: state.model_hash} | true_hashes(place)  # of the run's own models, which differ in the last digits
    for number, sites in opened_lists(place).items():
        updates = updates_of(place, state.model, number)
        buckets = shuffled(store.roster.sites, plan.robustness.buckets, store.run, number, hashes[number - 1])
        means = [np.mean([updates[site] for site in bucket], axis=0) for bucket in filled(buckets, sites)]
        moved = RULES[plan.robustness.rule](means, plan.robustness.byzantine)
        state = advance(state, moved, plan.training, plan.federation.rounds)
    return state.model


def released(place: Workplace) -> Vector:
    return load_file(place.run / "released.safetensors")["model"]


def first_buckets(place: Workplace) -> tuple[tuple[str, ...], ...]:
    store = RunStore.open(place.run)
    initial = ModelState.initial(parameters_of(build(store.plan.model)))
    return shuffled(store.roster.sites, store.plan.robustness.buckets, store.run, 1, initial.model_hash)


def losing(place: Workplace, lost: Mapping[str, Sequence[str]]) -> Callable[[Message], Iterable[Message]]:
    """In round 1, the answers to messages of these kinds by those sites. lost: kind -> sites."""
    names = [path.name for path in place.sites]

    def deliver(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        kind, site = about.message_type.removeprefix("query."), names[about.src_node_id - 2]
        return () if about.group_id == "1" and site in lost.get(kind, ()) else (reply,)

    return deliver


@pytest.mark.parametrize("rule", ["geometric-median", "multi-krum"])
def test_the_model_is_the_rules_on_plain_means_of_the_same_buckets(memory, rule):
    """Up to the rounding of 23 bits, 5e-7 a round and value; the model moves a million times as far."""
    sites = tuple(f"site-{number:02}" for number in range(11))
    five = (*MEDIAN, f"robustness.rule={rule}", "robustness.buckets=5", "encryption.preset=precise", TWO)
    place = workplace(memory / "run", sites, *five)
    report = simulate(place)
    assert np.abs(released(place) - plain_model(place)).max() < 5e-6
    assert np.abs(released(place)).max() > 0.1
    for record in report["rounds"]:
        assert sorted(len(bucket["sites"]) for bucket in record["buckets"]) == [2, 2, 2, 2, 3]
        assert {bucket["code"] for bucket in record["buckets"]} == {""}


def test_a_readable_run_applies_the_same_rule_to_the_same_buckets(memory):
    place = workplace(memory / "run", SITES, *MEDIAN, "encryption.preset=none", "federation.rounds=1")
    report = simulate(place)
    assert tuple(tuple(bucket["sites"]) for bucket in report["rounds"][0]["buckets"]) == first_buckets(place)
    initial = parameters_of(build(RunStore.open(place.run).plan.model))
    updates = updates_of(place, initial, 1)
    means = [np.mean([updates[site] for site in bucket], axis=0) for bucket in first_buckets(place)]
    assert np.abs(released(place) - (initial + np.median(means, axis=0))).max() < 1e-6
    alone = workplace(memory / "alone", SITES, *MEDIAN, "encryption.preset=none", "robustness.buckets=0")
    assert "buckets" not in simulate(alone)["rounds"][0]


def test_a_bucket_goes_on_without_those_that_vanish_and_peers_stand_in_for_those_that_fall_silent(memory):
    """In one bucket a site vanishes with its update, and another after it agreed: its self seed comes from shares."""
    place = workplace(memory / "run", SITES, *MEDIAN, "encryption.preset=precise", "encryption.threshold=5", TWO)
    gone, silent, left = first_buckets(place)[1]
    report = simulate(place, deliver=losing(place, {"train": [gone], "unmask": [silent]}))
    assert report["rounds"][0]["buckets"][1] == {"sites": sorted([silent, left]), "code": ""}
    assert [out["reason"] for out in report["rounds"][0]["left_out"]] == ["Silent"]
    assert np.abs(released(place) - plain_model(place)).max() < 5e-6


def test_a_bucket_that_has_become_too_small_is_left_out_with_its_reason(memory):
    four = (*MEDIAN, "robustness.buckets=4", "encryption.preset=precise", "encryption.threshold=5", TWO)
    place = workplace(memory / "run", SITES, *four)
    small = next(bucket for bucket in first_buckets(place) if len(bucket) == 2)
    record = simulate(place, deliver=losing(place, {"train": [small[0]]}))["rounds"][0]
    assert {(out["site"], out["reason"]) for out in record["left_out"]} == {
        (small[0], "Silent"),
        (small[1], "BucketTooSmall"),
    }
    assert len(record["buckets"]) == 3
    assert not set(small) & set(record["sites"])
    assert np.abs(released(place) - plain_model(place)).max() < 5e-6


def test_a_round_with_too_few_buckets_for_the_rule_opens_nothing_and_can_go_on(memory):
    place = workplace(memory / "run", SITES, *MEDIAN, "encryption.threshold=5", "federation.rounds=1")
    one = first_buckets(place)[0]
    with pytest.raises(ProtocolError, match="2 of at least 3 buckets could be used"):
        simulate(place, deliver=losing(place, {"train": one[:2]}))
    assert not RunStore.open(place.run).has_sum(1)
    assert len(simulate(place)["rounds"][0]["buckets"]) == 3


def test_runs_with_random_losses_end_with_the_plain_model_of_those_that_were_opened(memory):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # shown when the test fails
    dice = random.Random(seed)
    phases = ("offer", "train", "agree", "unmask", "stand_in", "evaluate")
    weather = Weather(dice.getrandbits(32), 0.1, frozenset(dice.sample(phases, k=3)))
    place = workplace(memory / "run", SITES, *MEDIAN, "encryption.preset=precise", "encryption.threshold=5")
    run_until_done(place, weather)
    assert np.abs(released(place) - plain_model(place)).max() < 5e-6


# What a site refuses.


@pytest.fixture
def played(memory: Path) -> Coordinator:
    return Coordinator.ready(memory / "run", SITES, *MEDIAN, "encryption.threshold=5")


def test_a_site_masks_only_within_its_bucket_and_refuses_to_train_when_that_is_too_small(played):
    made = played.offers(1)
    bucket = played.buckets(1)[0]
    alone = {name: made[name] for name in SITES if name not in bucket[1:]}
    code, message = played.refused(bucket[0], "train", 1, played.training(bucket[0], alone))
    assert (code, message) == ("CohortTooSmall", "1 sites of its bucket offer masks, 2 are required")
    assert not played.site(bucket[0]).ledger.entries
    two = {name: made[name] for name in SITES if name != bucket[2]}
    played.ask(bucket[0], "train", 1, played.training(bucket[0], two))


def test_no_list_is_agreed_on_that_leaves_a_bucket_short_or_too_few_buckets(played):
    made = played.offers(1)
    played.train(1, made)
    short, *others = played.buckets(1)
    listed = sorted([short[0], *others[0], *others[1]])
    code, message = played.refused(short[0], "agree", 1, played.wanted(listed, b"sum"))
    assert (code, message) == ("CohortTooSmall", "a sum of 1 sites is not opened, 2 are required")
    without = sorted([*others[0], *others[1]])
    code, message = played.refused(others[0][0], "agree", 1, played.wanted(without, b"sum"))
    assert code == "CohortTooSmall"
    assert "2 sums or updates are left" in message


def test_one_bucket_dressed_as_another_or_sums_in_another_order_do_not_open(played):
    made = played.offers(1)
    updates = played.train(1, made)
    first, *_ = played.buckets(1)
    totals = [played.total(updates[name] for name in bucket) for bucket in played.buckets(1)]
    published = played.publish(1, made, SITES, b"".join([totals[1], totals[0], totals[2]]))
    assert played.refused(first[0], "apply", 1, published.encode(), kind=client.round.Kind.AGGREGATE) == (
        "ProtocolError",
        "the aggregate does not open",
    )


def test_a_broken_pair_across_buckets_is_refused(played):
    made = played.offers(1)
    published = played.publish(1, made, SITES, played.total(played.train(1, made).values()))
    first, second, _ = played.buckets(1)
    pairs = {(first[0], second[0]): bytes(32)}
    crossed = replace(published, lifting=replace(published.lifting, broken_pairs=pairs))
    code, message = played.refused(first[0], "apply", 1, crossed.encode(), kind=client.round.Kind.AGGREGATE)
    assert (code, message) == ("ProtocolError", "the sum and what lifts its masks do not agree")
    played.apply(1, published)


def test_shares_of_a_mask_key_are_given_only_beside_a_silent_site(played):
    """Who vanished in another bucket keeps its mask key: nothing there depends on it."""
    made = played.offers(1)
    updates = played.train(1, made)
    first, second, third = played.buckets(1)
    gone, silent = first[2], first[1]
    received = sorted([*first[:2], *second[:2], *third])
    wanted = played.wanted(received, played.total(updates[name] for name in received))
    shown = {**wanted, "agreed": played.agree(1, wanted, received)}
    said = played.body(played.ask(third[0], "stand_in", 1, {**shown, "silent": [silent]}))
    assert (set(said["self"]), set(said["keys"])) == ({silent}, {gone})


@pytest.mark.parametrize("key", ["policy", "plan"])
def test_a_site_refuses_buckets_below_what_its_policy_or_the_plan_sums(memory, key):
    place = workplace(memory / "run", SITES, *MEDIAN)
    played = Coordinator(place)
    if key == "policy":
        path = place.sites[0] / "policy.toml"
        path.write_text(tomli_w.dumps({**load_table(path), "min_cohort": 3}))
        code, message = played.refused(SITES[0], "join", 0, played.join_order())
        assert code == "CohortTooSmall"
        assert message.startswith("policy.min_cohort: a sum of 2 sites could be opened")
    else:
        with pytest.raises(ConfigError, match=r"robustness.buckets = 5 is not possible"):
            workplace(memory / "small", SITES, *MEDIAN, "robustness.buckets=5")
    assert not (place.sites[0] / "runs").exists()


# The ledger.

SHARES = ("privacy.mode=distributed", "federation.rounds=1", "encryption.threshold=7", "privacy.max_update_norm=1")


def test_shares_of_noise_are_sized_and_charged_for_one_bucket(memory):
    """Nine sites in buckets of three, of which one may collude: noise for two, and for one where a site is missing."""
    place = workplace(memory / "run", SITES, *MEDIAN, *SHARES)
    plan, run = RunStore.open(place.run).plan, RunStore.open(place.run).run.hex()
    reach = plan.privacy.max_grad_norm * plan.training.learning_rate / plan.training.lot_size
    assert noise_share(plan, 9) == pytest.approx(plan.privacy.noise_multiplier * reach / np.sqrt(2))
    gone, *rest = first_buckets(place)[0]
    simulate(place, deliver=losing(place, {"train": [gone]}))
    restart()
    for path in place.sites:
        (charge,) = Site.open(path).ledger.entries
        left = 1 if path.name in (gone, *rest) else 2  # the absent one's update may turn up: it pays the worst
        assert charge.events == round_events(plan, 1, 9, left + 1)["train"]
        assert charge.events[0].noise_multiplier == pytest.approx(plan.privacy.noise_multiplier * np.sqrt(left / 2))
        assert charge.premise.startswith("of 3 sites summed together at most 1")
        assert charge.run == run


def test_noise_of_each_site_pays_alike_where_each_adds_all_of_it(memory):
    """In mode `local` buckets cost nothing."""
    with_buckets = workplace(memory / "buckets", SITES, *MEDIAN, "federation.rounds=1")
    without = workplace(memory / "one", SITES, "federation.rounds=1")
    events = []
    for place in (with_buckets, without):
        simulate(place)
        restart()
        events.append([Site.open(path).ledger.events for path in place.sites])
    assert events[0] == events[1]


# Poison.


def unclipped(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """That site sends what fills the integers that travel, instead of clipping as it agreed to."""
    honest, encoded = client.round.clip, client.round.train_and_charge
    who = [""]

    def trains(site: Site, *given: object) -> object:
        who[0] = site.name
        return encoded(site, *given)

    def clipping(update: Vector, most: float) -> Clipped:
        return Clipped(np.full(update.size, 20.0), 1e9) if who[0] == bad else honest(update, most)

    monkeypatch.setattr(client.round, "train_and_charge", trains)
    monkeypatch.setattr(client.round, "clip", clipping)


def test_a_bucket_longer_than_was_agreed_is_left_out_and_named_and_in_time_the_site(memory, monkeypatch):
    """Eight sites in pairs, one bad: chance puts an honest one beside it in 1 of 7 rounds, so it takes six."""
    sites = SITES[:8]
    bad = sites[4]
    overrides = ("robustness.buckets=4", "federation.rounds=7", "encryption.largest=20", "simulation.site_epsilon=1000")
    place = workplace(memory / "run", sites, *MEDIAN, *overrides, "encryption.preset=precise")
    unclipped(monkeypatch, bad)
    report = simulate(place)
    named = [{out["reason"]: out for out in record["left_out"]} for record in report["rounds"]]
    broken = [
        [bucket["sites"] for bucket in record["buckets"] if bucket["code"] == "BucketNormExceeded"]
        for record in report["rounds"]
    ]
    caught = next(place for place, reasons in enumerate(named) if "Quarantined" in reasons)
    assert caught == 6
    for record, buckets in zip(report["rounds"][:caught], broken, strict=False):
        assert len(buckets) == 1
        assert bad in buckets[0]
        assert {out["site"] for out in record["left_out"]} == set(buckets[0])
    for record, reasons in zip(report["rounds"][caught:], named[caught:], strict=True):
        assert reasons["Quarantined"]["site"] == bad
        assert "in 6 of 6 rounds" in reasons["Quarantined"]["message"]
        assert bad not in record["sites"]
    assert not any(broken[caught:])
    assert np.abs(released(place)).max() < 10  # one of its sums moves a mean by 20 / 8 in every value
    assert "BucketNormExceeded" in (place.out / "report.html").read_text()


def test_more_that_break_their_word_than_the_plan_bears_stop_the_run(memory, monkeypatch):
    place = workplace(memory / "run", SITES, *MEDIAN)
    monkeypatch.setattr(client.round, "clip", lambda update, most: Clipped(np.full(update.size, most), most * 1e9))
    with pytest.raises(ProtocolError, match="InvalidUpdate, 3 of 3 buckets are longer than their sites agreed to"):
        simulate(place)


def test_a_readable_update_longer_than_was_agreed_is_left_out_by_itself(memory, monkeypatch):
    """Where the coordinator reads updates it sees whose it is."""
    readable = (*MEDIAN, "encryption.preset=none", "robustness.buckets=0", "federation.rounds=1")
    place = workplace(memory / "run", SITES, *readable)
    unclipped(monkeypatch, SITES[4])
    record = simulate(place)["rounds"][0]
    assert [(out["site"], out["reason"]) for out in record["left_out"]] == [(SITES[4], "InvalidUpdate")]
    assert "longer than privacy.max_update_norm" in record["left_out"][0]["message"]
    assert len(record["sites"]) == 8
