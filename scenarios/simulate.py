"""The main job: play every party, watch the rounds, evaluate on held-out records, write the report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from client.datasets import Records
from client.runs import SiteRun
from client.site import Site
from common.config import to_table
from common.evaluators.contribution import Game, valued
from common.evaluators.drift import output_shift
from common.evaluators.utility import Floats, evaluate
from common.model_state import ModelState
from common.models import build, load_parameters, parameters_of, predict
from scenarios import baselines
from scenarios.contribution import game_of
from scenarios.engines import run_local, run_ray
from scenarios.grid import Delivery, as_it_is
from scenarios.mitigation import before_and_after
from scenarios.simulation import Workplace
from server.outcome import report_of, unprotected, wire
from server.report import write_report
from server.signature import sign_report
from server.store import RunStore
from server.watched import alerts_of

Engine = Literal["local", "ray"]
Metrics = dict[str, dict[str, float]]


def simulate(
    workplace: Workplace,
    engine: Engine = "local",
    on_round: Callable[[Mapping[str, Any]], None] = lambda record: None,
    deliver: Delivery = as_it_is,
) -> dict[str, Any]:
    """Play the run to its end, or from where it stopped, and return the report that was written.

    on_round: called after each round with its record and the metrics of the model so far.
    """
    observer = Observer(workplace)

    def closed(record: Mapping[str, Any]) -> None:
        observed = {**record, "metrics": observer.metrics()}
        rounds[record["round"]] = observed
        on_round(observed)

    rounds: dict[int, Mapping[str, Any]] = {}
    sites = list(workplace.sites)
    if engine == "ray":
        traffic = run_ray(workplace.run, sites, closed)
    else:
        traffic = run_local(workplace.run, sites, closed, deliver)
    return _report(workplace, engine, observer, rounds, traffic)


class Observer:
    """Reads the model from the parties' disks and evaluates it: a simulation may, a coordinator could not."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.sites = [Site.open(place) for place in workplace.sites]
        self.plan = RunStore.open(workplace.run).plan
        self.network = build(self.plan.model)
        self.held_out = {site.name: site.held_out_records for site in self.sites}
        self.pooled = baselines.pooled(list(self.held_out.values()))
        self.watches_outputs = any(rule.figure == "output_shift" for rule in self.plan.monitoring.alerts)
        self._said: Floats | None = None

    def state(self) -> ModelState:
        """The model as it stands: at a site when it travels encrypted, else at the coordinator."""
        store = RunStore.open(self.workplace.run)
        if self.plan.encryption.preset == "none":
            return store.state() or ModelState.initial(parameters_of(build(self.plan.model)))
        return self.furthest(store.run).state()

    def furthest(self, run: bytes) -> SiteRun:
        """The run at the site that has applied most of it; others may have missed rounds, or never joined."""
        site = max(self.sites, key=lambda site: SiteRun.applied(site, run))
        return SiteRun.open(site.directory / "runs", run)

    def metrics(self) -> Metrics:
        """Of the model as it stands; where a rule watches it, also how far its outputs moved since the last time."""
        found = self.score(self.state(), self.pooled)
        if found and self.watches_outputs:
            before, self._said = self._said, predict(self.network, self.pooled.features)
            if before is not None:
                found["output_shift"] = asdict(output_shift(before, self._said, np.random.default_rng()))
        return found

    def mended(self, fairness: Mapping[str, Any]) -> dict[str, Any]:
        """What the thresholds that were told make of the model on held-out records, by attribute."""
        load_parameters(self.network, self.state().released)
        probabilities = predict(self.network, self.pooled.features)
        return {
            name: before_and_after(probabilities, self.pooled, name, thresholds)
            for name, thresholds in fairness.get("thresholds", {}).items()
            if set(thresholds) <= set(self.pooled.groups[name].tolist())
        }

    def game(self) -> tuple[str, Game]:
        """What coalitions of sites are worth by that metric, on all held-out records."""
        training = {site.name: site.training_records for site in self.sites}
        metric = "auc" if "auc" in self.score(self.state(), self.pooled) else "accuracy"
        return metric, game_of(self.plan, training, lambda state: self.score(state, self.pooled)[metric]["value"])

    def score(self, state: ModelState, records: Records) -> Metrics:
        """Metrics with 95 % intervals; none at all where nothing is held out."""
        if not len(records):
            return {}
        load_parameters(self.network, state.released)
        estimates = evaluate(predict(self.network, records.features), records.labels)
        return {name: asdict(estimate) for name, estimate in estimates.items()}


def _report(
    workplace: Workplace,
    engine: Engine,
    observer: Observer,
    rounds: Mapping[int, Mapping[str, Any]],
    traffic: list[dict[str, Any]],
) -> dict[str, Any]:
    store, simulation = RunStore.open(workplace.run), workplace.simulation
    state = observer.state()
    records = [dict(rounds.get(record["round"], record)) for record in store.rounds()]
    report: dict[str, Any] = report_of(store, [], engine) | {
        "report": str(workplace.out / "report.html"),
        "insecure": _insecure(workplace),
        "config": to_table(simulation),
        "rounds": records,
        "alerts": alerts_of(simulation.monitoring.alerts, records),
        "final": observer.score(state, observer.pooled),
        "final_by_site": {name: observer.score(state, part) for name, part in observer.held_out.items() if len(part)},
        "sites": [_site_row(observer, site, traffic) for site in observer.sites],
        "wire": wire(store) | _measured(observer, state.model.size, store),
    }
    if records and (mended := observer.mended(records[-1].get("fairness", {}))):
        report["mitigation"] = mended
    if simulation.simulation.baselines:
        report["baselines"] = _baselines(observer)
    if simulation.simulation.contribution:
        report["contribution"] = _contribution(observer)
    write_report(workplace.out, report)
    sign_report(workplace.out, store.identity)
    return report


def _baselines(observer: Observer) -> dict[str, Any]:
    training = {site.name: site.training_records for site in observer.sites}
    pooled, plan = observer.pooled, observer.plan
    private = plan.privacy.mode in ("local", "distributed")
    return {
        "non_private": observer.score(baselines.non_private(plan, list(training.values())), pooled),
        "central": observer.score(baselines.central(plan, list(training.values())), pooled) if private else {},
        "alone": {
            name: observer.score(baselines.alone(plan, part), pooled)
            for name, part in training.items()
            if plan.privacy.mode != "site"
        },
    }


def _contribution(observer: Observer) -> dict[str, Any]:
    """What each site adds to the score on all held-out records."""
    metric, game = observer.game()
    return {"metric": metric, **asdict(valued(game, np.random.default_rng(observer.plan.model.seed)))}


def _site_row(observer: Observer, site: Site, traffic: list[dict[str, Any]]) -> dict[str, Any]:
    link = next((link for link in traffic if link["site"] == site.name), None)
    ledger = site.ledger if observer.plan.privacy.mode != "none" else None
    return {
        "site": site.name,
        "epsilon": ledger.epsilon if ledger else None,
        "delta": site.policy.delta if ledger else None,
        "bytes_up": link["bytes_up"] if link else 0,
        "bytes_down": link["bytes_down"] if link else 0,
        "refusals": len(link["refusals"]) if link else 0,
        "records": None,
        "noise_multiplier": observer.plan.privacy.noise_multiplier if ledger else None,
        "ledger_head": ledger.head.hex() if ledger else None,
        "trials": ledger.trials if ledger else None,
    }


def _measured(observer: Observer, parameters: int, store: RunStore) -> dict[str, Any]:
    """The bytes of the last update that a site really sent."""
    if observer.plan.encryption.preset == "none":
        return {}
    run = observer.furthest(store.run)
    sent = len(run.sealed_update(run.state().round_number) or b"")
    return {"bytes_per_update": sent, "bytes_up_per_parameter": sent / parameters}


def _insecure(workplace: Workplace) -> list[str]:
    simulation, reasons = workplace.simulation, []
    if simulation.simulation.insecure_randomness:
        reasons.append("noise and sampling were fixed by a test-only switch: anyone can subtract the noise")
    return reasons + unprotected(simulation.plan)
