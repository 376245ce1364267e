"""Proves, on real sites: counts by group come out of the encrypted sum as fairlearn has them, noised, paid, agreed."""

import json

import numpy as np
import pytest
import tomli_w
from scipy.stats import chi2

from client import round as local_round
from client.datasets import Records
from client.runs import SiteRun
from common.config import fill, load_table, override, to_table
from common.dp.cost import round_events
from common.errors import ConfigError
from common.evaluators.counts import tally
from common.federation import Plan
from common.layout import group_cells
from common.models import build, load_parameters, predict
from common.wire import plan_hash
from scenarios.data import DataSettings, site_loader, site_names
from scenarios.fairness import _parted
from scenarios.fetch import find
from scenarios.mitigation import before_and_after
from scenarios.plays.spying import with_key_and_mask, with_the_key
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Simulation, set_up
from tests.by_hand import NAMES, Coordinator, restart, workplace
from tests.scenarios.test_simulate import HEART, SHORT

BY_SEX = ("metrics.every=1", "metrics.noise_multiplier=5.0", 'metrics.groups={sex=["f","m"]}')
LEVELS = 'metrics.groups={sex=["Female","Male"]}'


def run_of(played: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(played.directories[name] / "runs", played.store.run)


def exact(played: Coordinator, name: str) -> np.ndarray:
    """What a site counts of the model it holds now, without noise."""
    run, records = run_of(played, name), played.site(name).held_out_records
    network = build(run.plan.model)
    load_parameters(network, run.state().released)
    probabilities, cells = predict(network, records.features), group_cells(run.plan)
    by_group = cells.tally(probabilities, records.labels, records.groups)
    return np.concatenate([tally(probabilities, records.labels), by_group])


def test_without_noise_the_report_says_what_fairlearn_says_of_pooled_records(tmp_path):
    """Encrypted and masked, privacy off: four hospitals' counts, opened as one sum, against pooled predictions."""
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn: pip install 'veilfed[dev]'")
    table = override(load_table(HEART), [*SHORT, "privacy.mode=none", "metrics.every=1", LEVELS])
    place = set_up(fill(Simulation, table), tmp_path)
    report = simulate(place)
    told = report["rounds"][-1]["fairness"]
    observer = Observer(place)
    pooled = observer.pooled
    load_parameters(observer.network, observer.state().released)
    named = predict(observer.network, pooled.features)[:, 1] >= 0.5
    asked = {"sensitive_features": pooled.groups["sex"]}
    for name in ("demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference"):
        expected = getattr(metrics, name)(pooled.labels, named, **asked)
        assert told["figures"][f"sex: {name}"]["value"] == pytest.approx(expected, abs=1e-9)
    right = named == pooled.labels
    accuracy = {group: right[pooled.groups["sex"] == group].mean() for group in ("Female", "Male")}
    assert told["figures"]["sex: worst_accuracy"]["value"] == pytest.approx(min(accuracy.values()), abs=1e-9)
    for group, value in accuracy.items():
        assert told["groups"]["sex"][group]["accuracy"]["value"] == pytest.approx(value, abs=1e-9)
    assert [bool(entry["fairness"]) for entry in report["rounds"]] == [False, True, True]
    page = (tmp_path / "report.html").read_text()
    assert "Whether it treats groups alike" in page
    assert json.loads((tmp_path / "report.json").read_text())["rounds"][-1]["fairness"] == told


def test_no_count_by_group_leaves_without_its_noise_and_the_ledger_is_charged_once(tmp_path):
    """Drawn afresh and of the promised scale, for either kind of count. False alarm 2e-6 per run."""
    played = Coordinator.ready(tmp_path / "run", NAMES, *BY_SEX, "simulation.insecure_randomness=0")
    made = played.offers(1)
    played.apply(1, played.publish(1, made, NAMES, played.total(played.train(1, made).values())))
    site, run = played.site("adler"), run_of(played, "adler")
    layout, bill, truth = run.layout(2), round_events(run.plan, 2, 4, 4), exact(played, "adler")
    drawn = [local_round.count_and_charge(site, run, 2, run.state(), bill) for _ in range(200)]
    for kind, code in run.metrics_codes(2).items():
        chosen = layout.kinds[kind]
        noise = np.array([code.decode(values[chosen]) - truth[chosen] for values in drawn]) / code.std
        low, high = chi2.ppf([0.5e-6, 1 - 0.5e-6], df=noise.size)
        assert low < np.sum(noise**2) < high
    charges = [charge for charge in site.ledger.entries if charge.purpose == "metrics"]
    assert [(charge.round_number, charge.events) for charge in charges] == [(2, bill["metrics"])]


def test_a_sites_counts_are_not_read_by_the_coordinator_even_with_a_sites_key(tmp_path):
    """Privacy off, so that only masks and encryption hide them; what opens them is the mask on the site's own disk.

    One value in four million agrees by chance."""
    played = Coordinator.ready(tmp_path / "run", NAMES, *BY_SEX, "privacy.mode=none")
    made = played.offers(1)
    played.apply(1, played.publish(1, made, NAMES, played.total(played.train(1, made).values())))
    sent = {name: played.read(data).body for name, data in played.train(2, played.offers(2)).items()}
    for name in NAMES:
        run, truth = run_of(played, name), exact(played, name)
        counted = slice(run.layout(2).update, None)
        codes = run.metrics_codes(2)
        steps = np.repeat([codes["counts"].step, codes["groups"].step], [run.layout(2).counts, run.layout(2).groups])
        own = with_key_and_mask(played.site(name), run, 2, sent[name])[counted]
        np.testing.assert_allclose(own * steps, truth, atol=steps.max())
        offset = 1 << (run.scheme.value_bits - 1)  # how a value travels
        seen = with_the_key(run, 2, sent[name])[counted] - offset
        assert np.sum(np.abs(seen - own) < 1) <= 2


def test_a_site_refuses_to_count_by_what_its_policy_does_not_name_or_its_records_do_not_have(tmp_path):
    played = Coordinator(workplace(tmp_path / "run", NAMES, *BY_SEX))
    metrics = to_table(played.store.plan.metrics) | {"groups": {"age": ["old", "young"], "sex": ["f", "m"]}}
    body = played.join_order(metrics=metrics)
    code, message = played.refused("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))
    assert (code, message.partition(":")[0]) == ("PrivacyError", "policy.protected_attributes")
    assert "by age" in message
    assert not (played.directories["adler"] / "runs").exists()
    policy = played.directories["adler"] / "policy.toml"
    policy.write_text(tomli_w.dumps({**load_table(policy), "protected_attributes": ["age", "sex"]}))
    restart()
    code, message = played.refused("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))
    assert (code, "counts by age" in message) == ("ProtocolError", True)
    assert not (played.directories["adler"] / "runs").exists()


def test_what_a_protected_attribute_does_for_the_model_is_asked_where_the_policy_names_it(tmp_path):
    played = Coordinator(workplace(tmp_path / "run", NAMES, "metrics.every=1"))
    body = played.join_order(metrics=to_table(played.store.plan.metrics) | {"importance": ["sex"]})
    code, message = played.refused("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))
    assert (code, message.partition(":")[0]) == ("PrivacyError", "policy.protected_attributes")


def test_levels_that_no_record_has_count_as_none_and_are_not_told_by_a_refusal(tmp_path):
    """Whoever submits plans would learn without noise whether one such record is there."""
    played = Coordinator(workplace(tmp_path / "run", NAMES, *BY_SEX))
    metrics = to_table(played.store.plan.metrics) | {"groups": {"sex": ["x", "y"]}}
    body = played.join_order(metrics=metrics)
    played.ask("adler", "join", 0, body, plan=plan_hash(fill(Plan, body["plan"])))


def test_every_site_opens_the_same_sum_of_counts_by_group(tmp_path):
    overrides = ("privacy.mode=distributed", "federation.min_cohort=3", "federation.rounds=1")
    place = workplace(tmp_path / "run", NAMES, *BY_SEX, *overrides)
    report = simulate(place)
    played = Coordinator(place)
    assert len({tuple(run_of(played, name).counts(2)) for name in NAMES}) == 1
    assert len(run_of(played, NAMES[0]).counts(2)) == 35 + 8
    assert set(report["rounds"][-1]["fairness"]) == {"figures", "remarks", "groups", "thresholds"}
    restart()
    for name in NAMES:
        charged = {(charge.round_number, charge.purpose) for charge in played.site(name).ledger.entries}
        assert charged == {(1, "train"), (2, "metrics")}


def test_before_and_after_by_hand():
    records = Records(np.zeros((4, 1)), np.array([0, 1, 1, 1]), {"sex": np.array(["f", "f", "m", "m"])})
    scores = np.array([0.2, 0.4, 0.8, 0.9])
    found = before_and_after(np.column_stack([1 - scores, scores]), records, "sex", {"f": 0.3, "m": 0.85})
    told = {
        when: [found[when][key]["value"] for key in ("accuracy", "demographic_parity_difference")]
        for when in ("before", "after")
    }
    assert told == {"before": [0.75, 1.0], "after": [0.75, 0.0]}


def test_records_that_thresholds_are_judged_by_are_given_to_no_site():
    try:
        find("adult")
    except ConfigError as error:
        pytest.skip(error.message)
    settings = DataSettings("adult", "iid", 10)
    for site in site_names(settings)[:2]:
        loader, options = site_loader(settings, site)
        counted, judged = _parted(site, options)
        assert loader == "scenarios.data:simulated_site"
        assert judged.reserved.all()
        assert len(judged) == pytest.approx(0.4 * (len(judged) + counted.reserved.sum()), abs=2)
        assert (~counted.reserved).sum() == pytest.approx(3256, abs=1)
