"""Records that must be forgotten: everything trained again without them, or, in shards, only what saw them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.datasets import Records, read_heart, split
from client.site import Site
from common.erasure import Constituents, Fit, train_shards
from common.evaluators.membership import confidences, likelihood_ratios
from common.evaluators.utility import Floats, accuracy, auroc
from scenarios import pictures
from scenarios.plays import attacks
from scenarios.plays.joining import ledger_of
from scenarios.plays.models import kept, most_spent
from scenarios.public_sets import HEART_TABLE
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Workplace
from scenarios.stage import Picture, Played, Stage

_HOSPITAL, _PATIENTS_HOSPITAL = "switzerland", "cleveland"
_SITES, _EACH, _SHARDS, _OTHERS = 8, 150, 4, 400  # of the second half: sites, records each, shards, never members
Places = NDArray[np.int64]


def patients(site: str, erased: bool = False) -> Records:
    """One hospital's patients. erased: without the one who asked for it."""
    records = read_heart(HEART_TABLE, site)
    if not erased or site != _PATIENTS_HOSPITAL:
        return records
    return records.subset(np.arange(len(records)) != _patient(records))


def forgets(stage: Stage) -> Played:
    """Both halves: the federation that trains again, and the shards."""
    again = _train_again(stage)
    shards = _Shards.played(shadows=6 if stage.quick else 16)
    areas = {
        "erased records, before": shards.area(shards.before, shards.erased),
        "erased records, after": shards.area(shards.after, shards.erased),
        "other members, after": shards.area(shards.after, shards.remaining),
    }
    figures = {
        **again.figures,
        "shards_difference": shards.difference,
        "auc_before": areas["erased records, before"],
        "auc_after": areas["erased records, after"],
        "auc_kept": areas["other members, after"],
        "trained_again": shards.after.trained / shards.before.trained,
        "shards_accuracy": shards.accuracy,
    }
    work = {"everything again": float(len(shards.remaining)), "in shards": float(shards.after.trained)}
    shown = [
        *again.pictures,
        Picture(
            "Members told from others",
            pictures.bars(areas, "AUC of the attack", pictures.said(areas), 0.5, "guessing"),
            "The strongest common attack (LiRA) on the shards' models.",
        ),
        Picture(
            "Records to train on again",
            pictures.bars(work, "records", pictures.said(work)),
            f"{len(shards.erased)} of {shards.before.trained} records are erased.",
        ),
    ]
    notes = [
        "Training again is a release like any other: the erasure costs the others privacy, and gives nobody any back.",
        "In shards every model has seen a part of the records only: that is what the cheap way costs.",
    ]
    return Played(figures, shown, notes=notes, facts=again.facts)


def erase(stage: Stage) -> Workplace:
    """The same consortium after the erasure: three hospitals, one of them with a patient less."""
    return stage.set_up("consortium", *_without())


def forgotten(shards: Constituents, erased: Places, fit: Fit) -> Constituents:
    """The shards after the erasure."""
    return shards.without(erased, fit)


def _without(patient: bool = True) -> tuple[str, str]:
    names = [name for name in ("cleveland", "hungary", "switzerland", "va-long-beach") if name != _HOSPITAL]
    return f"data.site_names={names}", f"data.options.erased={str(patient).lower()}"


def _train_again(stage: Stage) -> Played:
    place = stage.set_up("consortium")
    simulate(place)
    before = {path.name: (ledger_of(path), Site.open(path).ledger.epsilon) for path in place.sites}
    smaller = erase(stage)
    report = simulate(smaller)
    never, still_there = stage.set_up("never", *_without()), stage.set_up("kept", *_without(patient=False))
    simulate(never)
    simulate(still_there)
    model, without, with_patient = (Observer(each).state().released for each in (smaller, never, still_there))
    figures = {
        "difference": float(np.abs(model - without).max()),
        "patient_matters": float(np.abs(model - with_patient).max()),
        "refunded": float(sum(not ledger_of(path).startswith(before[path.name][0]) for path in place.sites)),
        "epsilon": most_spent(smaller.sites, report),
    }
    spent = {f"{name}, before": epsilon for name, (_, epsilon) in before.items()}
    spent |= {f"{path.name}, after": Site.open(path).ledger.epsilon for path in place.sites}
    spent = dict(sorted(spent.items(), key=lambda each: (each[0].split(",")[0], "after" in each[0])))
    cap = stage.simulation().simulation.site_epsilon
    drawn = pictures.bars(spent, "ε", pictures.said(spent), cap, f"each allows {cap:g}")
    return Played(figures, [Picture("Spent, and not given back", drawn)], facts=kept(report))


@dataclass(frozen=True, eq=False)
class _Shards:
    """The second half. erased, remaining: places of members. scores: of all models, by an attacker's shadows."""

    before: Constituents
    after: Constituents
    erased: Places
    remaining: Places
    difference: float
    accuracy: float
    shadows: Floats = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def played(cls, shadows: int) -> "_Shards":
        features, labels, true = attacks.mislabelled()
        members, rng = np.arange(_SITES * _EACH), np.random.default_rng(0)
        pool, test = np.arange(len(members) + _OTHERS), np.arange(len(members) + _OTHERS, len(labels))
        owner = np.concatenate([members // _EACH, rng.integers(0, _SITES, _OTHERS)])
        erased = np.flatnonzero((owner == _SITES - 1) & (np.arange(len(pool)) < len(members)))
        erased = np.concatenate([[0], erased])  # one record of the first site, and the last site as a whole
        remaining = np.setdiff1d(members, erased)

        def dealt(places: Places) -> list[Places]:
            return [places[owner[places] % _SHARDS == shard] for shard in range(_SHARDS)]

        def fit(which: int) -> Fit:
            training = attacks.fitted(attacks.BY_HEART, attacks.NO_PRIVACY, 256, 0.0)
            return lambda places, shard: training(features[places], labels[places], _SHARDS * which + shard)

        before = train_shards(dealt(members), fit(0))
        after, never = forgotten(before, erased, fit(0)), train_shards(dealt(remaining), fit(0))
        inside = rng.random((shadows, len(pool))) < 0.5
        told = [train_shards(dealt(pool[half]), fit(1 + k))(features[pool]) for k, half in enumerate(inside)]
        return cls(
            before,
            after,
            erased,
            remaining,
            float(np.abs(after(features) - never(features)).max()),
            accuracy(before(features[test]), true[test]).value,
            np.stack([confidences(each, labels[pool]) for each in told]),
            inside,
        )

    def area(self, model: Constituents, members: Places) -> float:
        """The attack's AUC on these members of `model` against the records that nobody trained on."""
        features, labels, _ = attacks.mislabelled()
        count = self.inside.shape[1]
        scores = likelihood_ratios(confidences(model(features[:count]), labels[:count]), self.shadows, self.inside)
        asked = np.concatenate([members, np.arange(count - _OTHERS, count)])
        return auroc(scores[asked], np.isin(asked, members).astype(np.int64)).value


def _patient(records: Records) -> int:
    """The first patient who is trained on, so that it matters."""
    training, _ = split(records, 0.3, 0)
    return int(np.flatnonzero((records.features == training.features[0]).all(axis=1))[0])
