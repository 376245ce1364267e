"""Proves, on real sites: what features do for a model comes out of the encrypted sum as counted, noised and paid."""

import json

import numpy as np
import pytest
from scipy.stats import chi2

from client import round as local_round
from client.runs import SiteRun
from client.site import Site
from client.tables import HEART as HEART_TABLE
from common.config import fill, load_table, override, to_table
from common.dp.cost import round_events
from common.errors import ConfigError
from common.evaluators.importance import paired, tally
from common.federation import Plan
from common.models import build, load_parameters, predict
from common.wire import plan_hash
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Simulation, set_up
from tests.by_hand import NAMES, Coordinator, workplace
from tests.scenarios.test_simulate import HEART, SHORT

FEATURES = ("metrics.every=1", "metrics.noise_multiplier=5.0", 'metrics.importance=["others","first"]')
NAMED = json.dumps([*HEART_TABLE.places])


def run_of(played: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(played.directories[name] / "runs", played.store.run)


def counted(site: Site, model: np.ndarray, plan: Plan) -> np.ndarray:
    """What a site whose coins are fixed counts of that model in the last round, without noise."""
    network = build(plan.model)
    load_parameters(network, model)
    held_out, training = site.held_out_records, site.training_records
    coins = site.randomness("importance", plan.last_round)
    taking, giving = paired(coins.uniform(len(held_out)), coins.uniform(len(training)))
    columns = [training.columns[name] for name in plan.metrics.importance]
    taken, labels = held_out.features[taking], held_out.labels[taking]
    return tally(lambda asked: predict(network, asked), taken, labels, training.features[giving], columns)


def test_without_noise_the_report_says_what_the_sites_own_counts_add_up_to(tmp_path):
    """Encrypted and masked, privacy off: four hospitals, thirteen columns of a table, to the last digit."""
    learns = ("federation.rounds=4", "training.learning_rate=50", "privacy.max_update_norm=100", "privacy.mode=none")
    table = override(load_table(HEART), [*SHORT, *learns, "metrics.every=2", f"metrics.importance={NAMED}"])
    place = set_up(fill(Simulation, table), tmp_path)
    report = simulate(place)
    observer = Observer(place)
    compared, *kept = sum(counted(site, observer.state().released, observer.plan) for site in observer.sites).tolist()
    right, kept = kept[0], kept[-13:]
    told = report["rounds"][-1]["importance"]
    assert list(told) == list(HEART_TABLE.places)
    assert compared == len(observer.pooled)
    assert [found["value"] for found in told.values()] == pytest.approx([(right - each) / compared for each in kept])
    assert max(abs(found["value"]) for found in told.values()) > 0
    assert all(found["low"] < found["value"] < found["high"] for found in told.values())
    assert [bool(entry["importance"]) for entry in report["rounds"]] == [False] * 4 + [True]
    page = (tmp_path / "report.html").read_text()
    assert "What the model looks at" in page
    assert "right predictions with each of 13 features replaced" in page
    assert json.loads((tmp_path / "report.json").read_text())["rounds"][-1]["importance"] == told


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_every_site_opens_the_same_noised_sum_and_pays_what_it_would_without(tmp_path, mode):
    overrides = (f"privacy.mode={mode}", "federation.min_cohort=3", "federation.rounds=1", *FEATURES)
    ledgers = []
    for place in (
        workplace(tmp_path / "with", NAMES, *overrides),
        workplace(tmp_path / "without", NAMES, *overrides, "metrics.importance=[]"),
    ):
        report, played = simulate(place), Coordinator(place)
        assert len({tuple(run_of(played, name).counts(2)) for name in NAMES}) == 1
        ledgers.append(
            [
                [(charge.round_number, charge.purpose, charge.events) for charge in played.site(name).ledger.entries]
                for name in NAMES
            ]
        )
        asked = place.simulation.metrics.importance
        assert len(run_of(played, NAMES[0]).counts(2)) == 35 + (5 if asked else 0)
        assert set(report["rounds"][-1]["importance"]) <= set(asked)
    assert ledgers[0] == ledgers[1]


def test_with_noise_the_report_is_as_near_to_what_the_sites_counted_as_it_says(tmp_path):
    """Within 7 standard deviations of the noise; coins and noise are fixed."""
    little = ("metrics.noise_multiplier=0.5",)
    place = workplace(tmp_path / "run", NAMES, "federation.rounds=1", *FEATURES, *little)
    report, observer = simulate(place), Observer(place)
    model, run = observer.state().released, observer.furthest(Coordinator(place).store.run)
    compared, right, _, *kept = sum(counted(site, model, run.plan) for site in observer.sites).tolist()
    spread = run.metrics_codes(2)["importance"].noise_in_sum(4) / compared
    for name, each in zip(run.plan.metrics.importance, kept, strict=True):
        found = report["rounds"][-1]["importance"][name]
        assert found["value"] == pytest.approx((right - each) / compared, abs=7 * 2**0.5 * spread)
        assert found["high"] - found["low"] > spread


def test_no_count_of_features_leaves_without_its_noise(tmp_path):
    """Drawn afresh and of the promised scale, what pairs change left aside. False alarm 1e-6 per run."""
    fresh = ("federation.rounds=1", "simulation.insecure_randomness=0", *FEATURES)
    played = Coordinator.ready(tmp_path / "run", NAMES, *fresh)
    made = played.offers(1)
    played.apply(1, played.publish(1, made, NAMES, played.total(played.train(1, made).values())))
    site, run = played.site("adler"), run_of(played, "adler")
    bill, place, code = round_events(run.plan, 2, 4, 4), run.layout(2).kinds, run.metrics_codes(2)["importance"]
    truth = len(site.held_out_records)  # how many are compared is the same however pairs are drawn
    drawn = [local_round.count_and_charge(site, run, 2, run.state(), bill)[place["importance"]][0] for _ in range(300)]
    noise = (code.decode(np.array(drawn)) - truth) / code.std
    low, high = chi2.ppf([0.5e-6, 1 - 0.5e-6], df=noise.size)
    assert low < np.sum(noise**2) < high
    assert [charge.events for charge in site.ledger.entries if charge.purpose == "metrics"] == [bill["metrics"]]


def test_a_site_refuses_a_feature_that_its_records_do_not_name(tmp_path):
    played = Coordinator(workplace(tmp_path / "run", NAMES, *FEATURES))
    body = played.join_order(metrics=to_table(played.store.plan.metrics) | {"importance": ["first", "age"]})
    code, message = played.refused("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))
    assert code == "ProtocolError"
    assert "what age does for the model" in message
    assert not (played.directories["adler"] / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        (("metrics.every=1", 'metrics.importance=["age","height"]'), "of age, sex, cp, "),
        (("metrics.every=1", 'metrics.importance=["age"]', "data.loader=digits"), "names of features"),
        (('metrics.importance=["age"]',), "metrics.every = 0"),
    ],
)
def test_a_simulation_that_cannot_tell_is_refused_before_it_begins(tmp_path, overrides, way_out):
    digits = ("data.partition=iid", "data.sites=4") if "data.loader=digits" in overrides else ()
    with pytest.raises(ConfigError, match=r"metrics\.importance") as refusal:
        set_up(fill(Simulation, override(load_table(HEART), [*SHORT, *overrides, *digits])), tmp_path)
    assert way_out in refusal.value.hint
    assert not (tmp_path / "coordinator" / "runs").exists()
