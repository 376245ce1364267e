"""What privacy costs the model: trained in the clear, under differential privacy, encrypted, with noise in shares."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.site import Site
from common.errors import FederationError
from common.wire import from_hex
from scenarios import pictures
from scenarios.grid import Reply
from scenarios.plays.spying import Overheard
from scenarios.simulate import Observer, simulate
from scenarios.stage import Picture, Played, Stage, Table
from server.signature import verify_report
from server.store import RunStore

_CURVES, _ROWS = 7, 20  # most in one picture, in one table


def baseline(stage: Stage) -> Played:
    """All sites together in the clear, against each alone."""
    report = simulate(stage.set_up("run"))
    metric, alone = metric_of(report), {}
    for site, found in report["baselines"]["alone"].items():
        if metric in found:
            alone[site] = found[metric]["value"]
    together = report["final"][metric]["value"]
    figures = {
        "together": together,
        "gain_over_best_alone": together - max(alone.values()),
        "warnings": float(len(report["insecure"])),
    }
    values = {"all together": together, **{f"{site} alone": value for site, value in alone.items()}}
    alt = f"{metric}: {'; '.join(f'{name} {value:.3f}' for name, value in values.items())}"
    return Played(
        figures,
        [Picture("Together and alone", pictures.bars(values, metric, alt)), by_round(report)],
        facts=kept(report),
    )


def private(stage: Stage) -> Played:
    """The same under record-level privacy; what was spent is read from the sites' own ledgers."""
    place = stage.set_up("run")
    report = simulate(place)
    metric = metric_of(report)
    value, plain = (found[metric]["value"] for found in (report["final"], report["baselines"]["non_private"]))
    figures = {
        "epsilon": most_spent(place.sites, report),
        metric: value,
        "cost": plain - value,
    }
    shown = [by_round(report), *([spent_by_round(report)] if math.isfinite(figures["epsilon"]) else [])]
    return Played(figures, shown, facts=kept(report))


def encrypted(stage: Stage) -> Played:
    """Twice the same run, once encrypted and once readable, with noise fixed alike, overheard by the coordinator."""
    fixed = ("simulation.insecure_randomness=7",)
    readable, sealed = stage.set_up("readable", *fixed, "encryption.preset=none"), stage.set_up("sealed", *fixed)
    plain = simulate(readable)
    heard = Overheard(sealed)
    report = simulate(sealed, deliver=heard)
    difference = np.abs(Observer(sealed).state().released - Observer(readable).state().released).max()
    largest = np.abs(Observer(readable).state().released).max()
    files = [path.name for path in sealed.run.rglob("*") if path.is_file()]
    figures = {
        "difference": float(difference / largest),
        "models_at_coordinator": float(sum(name in ("model", "released.safetensors") for name in files)),
        "byte_surprise": heard.byte_surprise(),
        "bytes_per_parameter": float(report["wire"]["bytes_up_per_parameter"]),
    }
    seconds = {
        name: sum(entry["seconds"] for entry in each["rounds"]) / len(each["rounds"])
        for name, each in (("readable", plain), ("encrypted", report))
    }
    alt = f"seconds a round: readable {seconds['readable']:.2f}, encrypted {seconds['encrypted']:.2f}"
    shown = [heard.histogram(), Picture("Seconds a round", pictures.bars(seconds, "seconds", alt))]
    return Played(figures, shown, facts=kept(report))


def distributed(stage: Stage) -> Played:
    """Noise by each site for itself, and in shares that only the sum completes, at the same epsilon."""
    alone, shares = stage.set_up("local", "privacy.mode=local"), stage.set_up("shares")
    own, shared = simulate(alone), simulate(shares)
    metric = metric_of(shared)
    values = {"each its own noise": own["final"][metric]["value"], "noise in shares": shared["final"][metric]["value"]}
    premises = {premise for site in shares.sites for premise in _premises(site)}
    figures = {
        "epsilon": most_spent(shares.sites, shared),
        "shares": values["noise in shares"],
        "gain": values["noise in shares"] - values["each its own noise"],
        "premises": float(len(premises)),
    }
    alt = f"{metric}: {'; '.join(f'{name} {value:.3f}' for name, value in values.items())}"
    return Played(
        figures,
        [Picture("The same epsilon", pictures.bars(values, metric, alt)), by_round(shared)],
        notes=[f"The ledgers say what their price rests on: {premise}." for premise in sorted(premises)],
        facts=kept(shared),
    )


def everything(stage: Stage) -> Played:
    """All protections in one run, over a network that fails, overheard; and its report, verified."""
    place = stage.set_up("run")
    network, heard = stage.network(place), Overheard(place)

    def deliver(reply: Reply) -> Iterable[Reply]:
        return (each for sent in heard(reply) for each in network(sent))

    report = simulate(place, deliver=deliver)
    try:
        verified = bool(verify_report(place.out, RunStore.open(place.run).identity.public.hex()).signer)
    except FederationError:
        verified = False
    metric = metric_of(report)
    figures = {
        "epsilon": most_spent(place.sites, report),
        metric: report["final"][metric]["value"],
        "byte_surprise": heard.byte_surprise(),
        "smallest_opened": float(min(len(record["sites"]) for record in report["rounds"])),
        "keys": float(report["wire"]["cohort_keys"]),
        "measured": float(sum(bool(record["reported"]) for record in report["rounds"])),
        "report_verified": float(verified),
        "happened": float(sum(map(bool, network.happened))),
    }
    shown = [by_round(report), *([spent_by_round(report)] if math.isfinite(figures["epsilon"]) else [])]
    return Played(figures, [*shown, heard.histogram()], [rounds_table(report)], facts=kept(report))


def _premises(site: Path) -> set[str]:
    return {charge.premise for charge in Site.open(site).ledger.entries if charge.premise}


def metric_of(report: Mapping[str, Any]) -> str:
    return "auc" if "auc" in report["final"] else "accuracy"


def most_spent(sites: tuple[Path, ...], report: Mapping[str, Any]) -> float:
    """The largest epsilon of any site's ledger; infinite where a run had no privacy, or report and ledger disagree."""
    if report["config"]["privacy"]["mode"] == "none":
        return math.inf
    spent = [Site.open(place).ledger for place in sites]
    told = [from_hex(site["ledger_head"]) for site in report["sites"]]
    return max(ledger.epsilon for ledger in spent) if [ledger.head for ledger in spent] == told else math.inf


def by_round(report: Mapping[str, Any]) -> Picture:
    metric = metric_of(report)
    points = {r["round"]: r["metrics"][metric]["value"] for r in report["rounds"] if metric in r.get("metrics", {})}
    alt = f"{metric} by round, at the end {report['final'][metric]['value']:.3f}"
    return Picture("After each round", pictures.lines({metric: points}, "round", metric, alt))


def spent_by_round(report: Mapping[str, Any]) -> Picture:
    """Every ledger, or, where the curves would be too many, the fullest and the emptiest of each round."""
    spent: dict[str, dict[float, float]] = {}
    for entry in report["rounds"]:
        for site, value in entry["epsilon"].items():
            spent.setdefault(site, {})[entry["round"]] = value
    if len(spent) > _CURVES:
        each = [(entry["round"], entry["epsilon"].values()) for entry in report["rounds"] if entry["epsilon"]]
        spent = {"most": {r: max(values) for r, values in each}, "least": {r: min(values) for r, values in each}}
    config = report["config"]
    limit = config["simulation"]["site_epsilon"] or config["privacy"]["epsilon"]
    alt = f"epsilon of {len(report['sites'])} ledgers after each round, all under {limit:g}"
    return Picture("Privacy spent", pictures.lines(spent, "round", "ε spent", alt, limit, f"limit {limit:g}"))


def kept(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a scenario's report keeps of a run."""
    return {key: report[key] for key in ("run", "final", "sites", "wire", "insecure")} | {
        "rounds": [{key: r[key] for key in ("round", "sites", "left_out", "late")} for r in report["rounds"]]
    }


def rounds_table(report: Mapping[str, Any]) -> Table:
    """Who was summed in each round, and who was left out and why; of many rounds only those that missed somebody."""
    rounds, caption = report["rounds"], ""
    if len(rounds) > _ROWS:
        rounds = [each for each in rounds if each["left_out"] or each["late"]]
        caption = f"In all others of {len(report['rounds'])} rounds nobody was left out."
    rows = tuple((r["round"], len(r["sites"]), "; ".join(_who_was_out(r)) or "nobody") for r in rounds)
    return Table("Round by round", ("round", "sites summed", "left out"), rows, caption)


def _who_was_out(record: Mapping[str, Any]) -> list[str]:
    late = [f"{out['site']}: {out['reason']}, but its own update of this round counts" for out in record["late"]]
    return [*(f"{out['site']}: {out['reason']}" for out in record["left_out"]), *late]
