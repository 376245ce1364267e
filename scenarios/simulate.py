"""The main job: play every party, watch the rounds, evaluate on held-out records, write the report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

from client.datasets import Records
from client.runs import SiteRun
from client.site import Site
from common.config import to_table
from common.evaluators.utility import evaluate
from common.model_state import ModelState
from common.models import build, load_parameters, parameters_of, predict
from scenarios import baselines
from scenarios.engines import run_local, run_ray
from scenarios.grid import Delivery, as_it_is
from scenarios.mitigation import before_and_after
from scenarios.simulation import Workplace
from server.outcome import report_of, unprotected, wire
from server.report import write_report
from server.signature import sign_report
from server.store import RunStore

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
        return self.score(self.state(), self.pooled)

    def mended(self, fairness: Mapping[str, Any]) -> dict[str, Any]:
        """What the thresholds that were told make of the model on held-out records, by attribute."""
        load_parameters(self.network, self.state().released)
        probabilities = predict(self.network, self.pooled.features)
        return {
            name: before_and_after(probabilities, self.pooled, name, thresholds)
            for name, thresholds in fairness.get("thresholds", {}).items()
            if set(thresholds) <= set(self.pooled.groups[name].tolist())
        }

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
        "final": observer.score(state, observer.pooled),
        "final_by_site": {name: observer.score(state, part) for name, part in observer.held_out.items() if len(part)},
        "sites": [_site_row(observer, site, traffic) for site in observer.sites],
        "wire": wire(store) | _measured(observer, state.model.size, store),
    }
    if records and (mended := observer.mended(records[-1]["fairness"])):
        report["mitigation"] = mended
    if simulation.simulation.baselines:
        report["baselines"] = _baselines(observer)
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
