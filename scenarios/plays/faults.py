"""Networks that lose, delay, repeat and change what travels, and sites that vanish or hold a new key."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.runs import SiteRun
from client.site import Site
from common.errors import FederationError
from scenarios import pictures
from scenarios.events import Network
from scenarios.grid import Reply
from scenarios.plays.models import kept, rounds_table
from scenarios.scenario import Event
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Workplace
from scenarios.stage import Picture, Played, Stage, Table
from server.store import RunStore


def faulty(stage: Stage) -> Played:
    """One run through the scenario's network."""
    place = stage.set_up("run")
    network = stage.network(place)
    report = simulate(place, deliver=network)
    records = {record["round"]: record for record in report["rounds"]}
    hit = [(event, event.site in records[event.round]["sites"]) for event in network.events]
    figures = {
        "rounds": float(len(records)),
        "accepted": float(sum(summed for _, summed in hit)),
        "late_summed": float(_late_summed(network, records.values())),
        "own_counted": float(_own_counted(records.values())),
        "models": float(len(models_of(place))),
        "happened": float(sum(map(bool, network.happened))),
        "overcharged": float(sum(len(Site.open(path).ledger.entries) > len(records) for path in place.sites)),
    }
    return Played(figures, [summed_by_round(report)], [rounds_table(report)], facts=kept(report))


def _late_summed(network: Network, records: Iterable[Mapping[str, Any]]) -> int:
    """How many answers that were held up were not dropped when they came."""
    out = [(left["site"], left["reason"]) for record in records for left in (*record["late"], *record["left_out"])]
    late = [
        (event.site, "LateUpdate")
        for event, times in zip(network.events, network.happened, strict=True)
        if event.action == "delay" and times
    ]
    return sum(each not in out for each in late)


def _own_counted(records: Iterable[Mapping[str, Any]]) -> int:
    """How many updates of their own round were summed although a late one of the same site came with them."""
    return sum(left["site"] in record["sites"] for record in records for left in record["late"])


def dropout(stage: Stage) -> Played:
    """A site vanishes after it has sent; then, in a run of its own, so many that too few would be summed."""
    place = stage.set_up("run")
    network = stage.network(place)
    report = simulate(place, deliver=network)
    second = stage.set_up("too-few")
    names = [path.name for path in second.sites]
    gone = [Event(2, name, "train", "lose") for name in names[:2]]
    said = "the run went on"
    try:
        simulate(second, deliver=stage.network(second, gone))
    except FederationError as error:
        said = f"{error.code}: {error.message}"
    opened = [len(record["sites"]) for each in (place, second) for record in RunStore.open(each.run).rounds()]
    figures = {
        "rounds": float(len(report["rounds"])),
        "smallest_opened": float(min(opened)),
        "stood_in": float(sum(_noted(path, "StoodIn") for path in place.sites)),
        "models": float(len(models_of(place))),
        "happened": float(sum(map(bool, network.happened))),
    }
    row = ((f"{' and '.join(names[:2])} do not answer in round 2", said),)
    return Played(
        figures,
        [summed_by_round(report)],
        [rounds_table(report), Table("When two of four are gone", ("what happens", "how it ends"), row)],
        facts=kept(report),
    )


def key_rotation(stage: Stage) -> Played:
    """The same run with one key and with a new one every few rounds; a thief copies all disks during the last round."""
    fixed = "simulation.insecure_randomness=7"
    one, several = stage.set_up("one-key", "encryption.key_rounds=0", fixed), stage.set_up("rotated", fixed)
    simulate(one)
    thief = _Thief(several)
    report = simulate(several, deliver=thief)
    same = np.abs(Observer(one).state().released - Observer(several).state().released).max()
    figures = {
        "keys": float(report["wire"]["cohort_keys"]),
        "rounds_laid_open": float(len(thief.laid_open)),
        "rounds_before": float(thief.last - 1),
        "difference": float(same),
    }
    rounds = {f"round {number}": float(number in thief.laid_open) for number in range(1, thief.last + 1)}
    alt = f"Rounds whose key was still on a disk in round {thief.last}: {sorted(thief.laid_open)}"
    return Played(figures, [Picture("Keys on the stolen disks", pictures.bars(rounds, "key is there", alt))])


class _Thief:
    """Looks at every site's disk each time that the site has trained in the last round."""

    def __init__(self, place: Workplace) -> None:
        self.place, self.store = place, RunStore.open(place.run)
        self.last = self.store.plan.federation.rounds
        self.laid_open: set[int] = set()

    def __call__(self, reply: Reply) -> tuple[Reply]:
        about = reply.metadata
        if about.message_type == "train" and about.group_id == str(self.last):
            for path in self.place.sites:
                run = SiteRun.open(path / "runs", self.store.run)
                epoch_of = self.store.plan.encryption.epoch_of
                self.laid_open |= {r for r in range(1, self.last + 1) if run.has_cohort_key(epoch_of(r))}
        return (reply,)


def models_of(place: Workplace) -> set[bytes]:
    """The different models that the sites hold in the end; the coordinator's, where that is the only one."""
    store = RunStore.open(place.run)
    runs = [SiteRun.open(path / "runs", store.run) for path in place.sites]
    return {run.version().model_hash for run in runs}


def summed_by_round(report: Mapping[str, Any]) -> Picture:
    points = {record["round"]: float(len(record["sites"])) for record in report["rounds"]}
    alt = f"Sites that were summed in each round: {', '.join(f'{value:g}' for value in points.values())}"
    return Picture("Sites in the sum", pictures.bars({f"round {r}": v for r, v in points.items()}, "sites", alt))


def _noted(site: Path, event: str) -> bool:
    return any(entry.record.get("event") == event for entry in Site.open(site).audit.entries())
