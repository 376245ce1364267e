"""Proves, on real sites: what is opened carries the noise that was paid for, and the ledger follows who was there."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from client import round as local_round
from client.runs import SiteRun
from client.site import Site
from client.train import train
from common.config import fill, to_table
from common.dp.cost import round_events
from common.dp.noise_shares import NoiseShares
from common.errors import ConfigError
from common.evaluators.counts import tally
from common.federation import Plan
from common.he.ciphertexts import Aggregate
from common.he.scheme import open_sum
from common.masking import Published
from common.models import build, load_parameters, predict
from common.updates import clip
from common.wire import plan_hash
from scenarios.simulate import simulate
from tests.by_hand import NAMES, Coordinator, restart, workplace

SHARES = ("privacy.mode=distributed", "federation.min_cohort=3", "metrics.every=1", "metrics.noise_multiplier=5.0")
WIDE = ("model.factory=mlp", "model.hidden=[1500]")


def run_of(coordinator: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


def opened(coordinator: Coordinator, number: int, published: Published, name: str) -> np.ndarray:
    """The integers of a round's sum, as any site opens them."""
    run = run_of(coordinator, name)
    aggregate = Aggregate.decode(run.scheme, run.layout(number).length, published.total)
    order = coordinator.read(coordinator.order(number, published.encode()))
    (masks,) = local_round.masking.masks_in(coordinator.site(name), run, order, published, (published.sites,))
    return open_sum(aggregate, run.cohort_key(run.plan.encryption.epoch_of(number)), masks)


def without_noise(coordinator: Coordinator, name: str, number: int) -> np.ndarray:
    """The update of a site whose draw of records is fixed for the test, before its share of noise."""
    site, run = coordinator.site(name), run_of(coordinator, name)
    network = build(run.plan.model)
    load_parameters(network, run.state().model)
    records, settings = site.training_records, run.plan
    randomness = site.randomness("train", number)
    made = train(network, records.features, records.labels, settings.training, settings.privacy, 0.1, randomness)
    return clip(made.update, settings.privacy.max_update_norm).values


@pytest.mark.parametrize("received", [NAMES, NAMES[:3]])
def test_the_opened_sum_carries_the_shares_of_those_on_the_list(tmp_path, received):
    """False alarm 1e-6 per run; the site's switch fixes its draw of records, noise is the operating system's.

    9,002 coordinates: a site that forgot its share would lower the variance by a quarter, fourteen deviations.
    """
    played = Coordinator.ready(tmp_path / "run", NAMES, *SHARES, *WIDE)
    made = played.offers(1)
    updates = played.train(1, made, received)
    published = played.publish(1, made, received, played.total(updates.values()))
    totals = opened(played, 1, published, received[0])
    expected = np.sum([without_noise(played, name, 1) for name in received], axis=0)
    noise = local_round._encoding(run_of(played, NAMES[0]), 1).decode(totals) - expected
    plan: Plan = played.store.plan
    reach = plan.privacy.max_grad_norm * plan.training.learning_rate / plan.training.lot_size
    std = plan.privacy.noise_multiplier * reach * math.sqrt(len(received) / (len(NAMES) - plan.privacy.colluding))
    low, high = chi2.ppf([0.5e-6, 1 - 0.5e-6], df=noise.size)
    assert low < np.sum((noise / std) ** 2) < high


def test_the_ledger_reserves_for_the_fewest_and_settles_for_those_that_were_opened(tmp_path):
    played = Coordinator.ready(tmp_path / "run", NAMES, *SHARES)
    plan, run = played.store.plan, played.store.run.hex()
    ledger = played.site("adler").ledger
    made = played.offers(1)
    updates = played.train(1, made)
    reserved = round_events(plan, 1, 4, 3)["train"]
    assert ledger.events == reserved
    assert reserved[0].noise_multiplier == plan.privacy.noise_multiplier * NoiseShares(4, 1).left(3)
    published = played.publish(1, made, NAMES, played.total(updates.values()))
    restart()
    assert played.site("adler").ledger.events == reserved  # signing a list alone settles nothing
    played.apply(1, published)
    restart()
    assert played.site("adler").ledger.events == round_events(plan, 1, 4, 4)["train"]
    assert played.site("adler").ledger.charged(run, 1)


def test_a_list_that_a_site_signs_alone_lowers_no_price(tmp_path):
    """The coordinator shows adler a list of all seven and the others one of six: six are opened, adler among them."""
    names = (*NAMES, "esche", "fichte", "ginkgo")
    played = Coordinator.ready(tmp_path / "run", names, *SHARES)
    made = played.offers(1)
    updates = played.train(1, made)
    played.ask("adler", "agree", 1, played.wanted(names, played.total(updates.values())))
    six = names[:6]
    published = played.publish(1, made, six, played.total(updates[name] for name in six), silent=["adler"])
    played.apply(1, published, six[1:])
    restart()
    assert played.site("birke").ledger.events == round_events(played.store.plan, 1, 7, 6)["train"]
    assert played.site("adler").ledger.events == round_events(played.store.plan, 1, 7, 5)["train"]


def test_a_site_whose_update_came_too_late_stays_charged_for_the_worst(tmp_path):
    """Six of seven are summed, one more than the fewest: the six pay for six, the late one for five."""
    names = (*NAMES, "esche", "fichte", "ginkgo")
    played = Coordinator.ready(tmp_path / "run", names, *SHARES)
    made = played.offers(1)
    updates = played.train(1, made)
    published = played.publish(1, made, names[:6], played.total(updates[name] for name in names[:6]))
    played.apply(1, published)
    restart()
    paid = {name: played.site(name).ledger.events for name in names}
    settled, worst = (round_events(played.store.plan, 1, 7, summed)["train"] for summed in (6, 5))
    assert paid == dict.fromkeys(names[:6], settled) | {"ginkgo": worst}


def test_counts_in_the_sum_are_those_of_the_held_out_records(tmp_path):
    """Without noise (privacy off, still encrypted) they are the very counts."""
    overrides = ("privacy.mode=none", "metrics.every=1", "federation.rounds=2")
    place = workplace(tmp_path / "run", NAMES, *overrides)
    report = simulate(place)
    held_out = sum(len(Site.open(path).held_out_records) for path in place.sites)
    found = {entry["round"]: entry["reported"] for entry in report["rounds"]}
    assert found[1] == {}
    assert set(found) == {1, 2, 3}
    final = report["final"]
    assert found[3]["accuracy"]["value"] == pytest.approx(final["accuracy"]["value"], abs=1e-6)
    assert found[3]["records"]["value"] == held_out


def test_every_site_opens_the_same_counts_and_pays_for_them(tmp_path):
    place = workplace(tmp_path / "run", NAMES, *SHARES, "federation.rounds=2")
    report = simulate(place)
    played = Coordinator(place)
    counts = {tuple(run_of(played, name).counts(3)) for name in NAMES}
    assert len(counts) == 1
    assert {entry["round"] for entry in report["rounds"] if entry["reported"]} == {2, 3}
    restart()
    for name in NAMES:
        charged = {(charge.round_number, charge.purpose) for charge in played.site(name).ledger.entries}
        assert charged == {(1, "train"), (2, "train"), (2, "metrics"), (3, "metrics")}
    spent = {site["epsilon"] for site in report["sites"]}
    assert spent == {played.site(NAMES[0]).ledger.epsilon}
    assert report["rounds"][-1]["epsilon"] == dict.fromkeys(NAMES, spent.pop())


def test_metrics_that_the_plan_does_not_make_public_stay_at_the_sites(tmp_path):
    place = workplace(tmp_path / "run", NAMES, *SHARES, "federation.rounds=1", 'federation.public=["epsilon"]')
    report = simulate(place)
    assert [entry["reported"] for entry in report["rounds"]] == [{}, {}]
    assert run_of(Coordinator(place), NAMES[0]).counts(2)


def test_no_count_leaves_without_its_noise(tmp_path):
    """What a site adds to its counts is drawn afresh and of the promised scale. False alarm 1e-6 per run."""
    fresh = ("metrics.every=1", "metrics.noise_multiplier=5.0", "simulation.insecure_randomness=0")
    played = Coordinator.ready(tmp_path / "run", NAMES, *fresh)
    made = played.offers(1)
    total = played.total(played.train(1, made).values())
    played.apply(1, played.publish(1, made, NAMES, total))
    site, run = played.site("adler"), run_of(played, "adler")
    network = build(run.plan.model)
    load_parameters(network, run.state().released)
    records = site.held_out_records
    exact = tally(predict(network, records.features), records.labels)
    bill, code = round_events(run.plan, 2, 4, 4), run.metrics_codes(2)["counts"]
    noise = []
    for _ in range(200):
        values = local_round.count_and_charge(site, run, 2, run.state(), bill)
        noise.append(code.decode(values) - exact)
    scaled = np.array(noise) / code.std
    low, high = chi2.ppf([0.5e-6, 1 - 0.5e-6], df=scaled.size)
    assert low < np.sum(scaled**2) < high
    charges = [charge for charge in site.ledger.entries if charge.purpose == "metrics"]
    assert len(charges) == 1


@pytest.mark.parametrize(
    ("overrides", "most"),
    [(("privacy.colluding=2",), 1), (("encryption.threshold=4", "privacy.colluding=4", "federation.min_cohort=5"), 3)],
)
def test_more_colluders_than_masks_hold_out_against_are_refused_before_anything_is_set_up(tmp_path, overrides, most):
    """Four sites: with threshold 3, two of them could sign two lists; with 4 one only, and 4 rebuild every secret."""
    with pytest.raises(ConfigError) as refusal:
        workplace(tmp_path / "run", (*NAMES, "esche") if most == 3 else NAMES, *SHARES, *overrides)
    assert "privacy.colluding" in refusal.value.message


def test_a_site_refuses_such_a_plan_itself(tmp_path):
    played = Coordinator(workplace(tmp_path / "run", NAMES, *SHARES))
    privacy = to_table(played.store.plan.privacy) | {"colluding": 2}
    body = played.join_order(privacy=privacy)
    code, message = played.refused("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))
    assert (code, message) == ("ConfigError", "privacy.colluding = 2 is not possible")
    assert not (played.directories["adler"] / "runs").exists()
