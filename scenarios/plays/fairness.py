"""A site whose labels are biased: what that does to the shared model, who sees it, and what mends it."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from client.datasets import Records
from common.models import load_parameters, predict
from scenarios import pictures
from scenarios.baselines import pooled
from scenarios.mitigation import before_and_after
from scenarios.plays.models import kept, most_spent
from scenarios.plays.spying import Overheard
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Simulation
from scenarios.stage import Picture, Played, Stage, Table

_GAP = "demographic_parity_difference"
_WIDTH, _PULL = 8, 3.0  # columns of a record; how much its best columns tell of its label
_HERE, _ELSEWHERE = 0.8, 0.05  # share of group b at the unfair site and at the others
_JUDGED = 20_000


def clinic_records(site: str, unfair: str, share: float, records: int, seed: int) -> Records:
    """Made records: two groups, labels that do not depend on them, and one column that tells them apart.

    unfair: the site that most of group b goes to, and that records a share of their positives as negatives.
    """
    rng = np.random.default_rng([seed, zlib.crc32(site.encode())])
    of_b = rng.random(records) < (_HERE if site == unfair else _ELSEWHERE)
    columns = rng.normal(size=(records, _WIDTH))
    truth = _PULL * columns[:, 1:4].mean(axis=1) + rng.logistic(size=records) * 0.5 > 0
    columns[:, 0] = np.where(of_b, 1.0, -1.0) + 0.5 * rng.normal(size=records)
    missed = of_b & truth & (rng.random(records) < share) & (site == unfair)
    features = columns / np.maximum(np.sqrt(_WIDTH), np.linalg.norm(columns, axis=1, keepdims=True))
    return Records(features.astype(np.float32), (truth & ~missed).astype(np.int64), {"group": np.where(of_b, "b", "a")})


def unfair_site(stage: Stage) -> Played:
    """The same federation with honest labels and with one site's biased ones; the second is mended by its counts."""
    honest, unfair = stage.set_up("honest", "data.options.share=0.0"), stage.set_up("unfair")
    before = simulate(honest)
    heard = Overheard(unfair)
    report = simulate(unfair, deliver=heard)
    observer, judges = Observer(unfair), _judges(unfair.simulation)
    load_parameters(observer.network, observer.state().released)
    told, clean = (each["rounds"][-1]["fairness"] for each in (report, before))
    figures = {
        "epsilon": most_spent(unfair.sites, report),
        "byte_surprise": heard.byte_surprise(),
        "smallest_opened": float(min(len(record["sites"]) for record in report["rounds"])),
    }
    if not (told.get("thresholds") and clean.get("thresholds")):  # nothing was counted, or noise drowned a group
        return Played(figures, facts=kept(report))
    found = before_and_after(predict(observer.network, judges.features), judges, "group", told["thresholds"]["group"])
    gap, fair = (each["figures"][f"group: {_GAP}"] for each in (told, clean))
    was, now = (found[when] for when in ("before", "after"))
    figures |= {
        "gap_honest": fair["high"],
        "seen": gap["low"],
        "off_by": abs(gap["value"] - report["mitigation"]["group"]["before"][_GAP]["value"]),
        "gap_unfair": was[_GAP]["value"],
        "gap_mended": now[_GAP]["value"],
        "accuracy_gain": now["accuracy"]["value"] - was["accuracy"]["value"],
    }
    shown = {"honest labels": fair["value"], "one unfair site": gap["value"], "mended": now[_GAP]["value"]}
    alt = "; ".join(f"{name} {value:.3f}" for name, value in shown.items())
    return Played(
        figures,
        [Picture("Gap in the share named class 1", pictures.bars(shown, "gap", alt))],
        [_rates(told), _judged(found)],
        facts=kept(report) | {"fairness": told, "mitigation": found},
    )


def _judges(simulation: Simulation) -> Records:
    """Records that no site has, some like those of either kind of clinic, with honest labels."""
    seed = int(simulation.data.options["seed"])
    return pooled([clinic_records(name, "judges", 0.0, _JUDGED, seed) for name in ("judges", "others")])


def _rates(told: Mapping[str, Any]) -> Table:
    rows = tuple(
        (group, *(round(rates[name]["value"], 3) for name in ("selection_rate", "true_positive_rate", "accuracy")))
        for group, rates in told["groups"]["group"].items()
    )
    columns = ("group", "named class 1", "true positives", "accuracy")
    return Table("What the opened counts say", columns, rows, "By the sites' own labels, and with the noise.")


def _judged(found: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, *(round(found[when][key]["value"], 3) for key in (_GAP, "accuracy")))
        for name, when in (("0.5 for all", "before"), ("by group", "after"))
    )
    caption = "On records that no site has, with honest labels."
    return Table("Thresholds", ("thresholds", "gap", "accuracy"), rows, caption)
