"""A site that joins a consortium: what its coming changes for those that were there, and what it does not."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from client.datasets import Records
from client.runs import SiteRun
from client.site import Site
from common.errors import PrivacyError
from common.he.scheme import CohortKey
from scenarios import pictures
from scenarios.grid import Reply
from scenarios.plays.models import kept, metric_of, most_spent
from scenarios.plays.spying import PublishedSum, likeness
from scenarios.public_sets import pool
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Workplace
from scenarios.stage import Picture, Played, Stage
from server.store import RunStore

_NEWCOMER = "harbour"
_SITES = ("east", _NEWCOMER, "north", "south", "west")
_NEW_DIGITS = (8, 9)


def records(site: str) -> Records:
    """The digits of one site; only the newcomer has any of `_NEW_DIGITS`."""
    whole = pool("digits")
    owner = np.random.default_rng(1).integers(0, len(_SITES), len(whole.labels))
    owner[np.isin(whole.labels, _NEW_DIGITS)] = _SITES.index(_NEWCOMER)
    return whole.records(np.flatnonzero(owner == _SITES.index(site)))


def joins(stage: Stage) -> Played:
    """A run of four; then a fifth site is on the roster, and all five play another run."""
    old_names = [name for name in _SITES if name != _NEWCOMER]
    four = stage.set_up("consortium", f"data.site_names={old_names}")
    first_thief = Thief(four)
    simulate(four, deliver=first_thief)
    smaller = Observer(four).state()
    before = {path.name: ledger_of(path) for path in four.sites}
    five = admit(stage)
    second_thief = Thief(five)
    second = simulate(five, deliver=second_thief)
    observer, metric = Observer(five), metric_of(second)
    scores = {
        "four sites": observer.score(smaller, observer.pooled)[metric]["value"],
        "with the newcomer": second["final"][metric]["value"],
    }
    heard = {
        "old key, old sums": first_thief.opens(first_thief),
        "old key, new sums": first_thief.opens(second_thief),
        "new key, old sums": second_thief.opens(first_thief),
        "new key, new sums": second_thief.opens(second_thief),
    }
    spent = {path.name: Site.open(path).ledger.epsilon for path in five.sites}
    worst = most_spent(five.sites, second)
    figures = {
        "rewritten": float(sum(not ledger_of(path).startswith(before[path.name]) for path in four.sites)),
        "epsilon": worst,
        "newcomer_epsilon": spent[_NEWCOMER] if math.isfinite(worst) else worst,
        "old_key_opens": heard["old key, new sums"],
        "new_key_opens": heard["new key, old sums"],
        "own_key_opens": min(heard["old key, old sums"], heard["new key, new sums"]),
        "gain": scores["with the newcomer"] - scores["four sites"],
    }
    cap = stage.simulation().simulation.site_epsilon
    shown = [
        Picture(
            "Spent over both runs",
            pictures.bars(spent, "ε", pictures.said(spent), cap, f"each allows {cap:g}"),
            f"The {_NEWCOMER} was there for the second run alone.",
        ),
        Picture(
            "The model before and after",
            pictures.bars(scores, metric, pictures.said(scores)),
            f"On all held-out digits of the five; only the {_NEWCOMER} has any 8 or 9.",
        ),
        Picture(
            "What a stolen key opens",
            pictures.bars(heard, "correlation with the true sum", pictures.said(heard)),
            "The best of all rounds. The thief holds every sum, and all that lifts their masks.",
        ),
    ]
    return Played(figures, shown, facts=kept(second))


def admit(stage: Stage) -> Workplace:
    """The same consortium with its new member: a roster of five, and nothing else of those who were there."""
    return stage.set_up("consortium")


def ledger_of(site: Path) -> bytes:
    """Every line of it."""
    return b"".join(path.read_bytes() for path in sorted((site / "ledgers").glob("*.jsonl")))


class Thief:
    """Copies the cohort's key from a site's disk in the last round, and holds whatever the coordinator keeps."""

    def __init__(self, place: Workplace) -> None:
        self.store, self._site = RunStore.open(place.run), place.sites[0]
        self._key: CohortKey | None = None

    def __call__(self, reply: Reply) -> Iterable[Reply]:
        about, last = reply.metadata, self.store.plan.federation.rounds
        if about.message_type == "train" and about.group_id == str(last) and self._key is None:
            self._key = self.run.cohort_key(self.store.plan.encryption.epoch_of(last))
        return (reply,)

    @property
    def run(self) -> SiteRun:
        return SiteRun.open(self._site / "runs", self.store.run)

    @property
    def key(self) -> CohortKey:
        if self._key is None:
            raise PrivacyError("the thief came too late: no key was on the disk in the last round")
        return self._key

    def opens(self, other: "Thief") -> float:
        """How much of the other cohort's sums this one's key opens: the best of all rounds."""
        sums = [PublishedSum.of(other.store, other.run, entry["round"]) for entry in other.store.rounds()]
        return max(likeness(each.tried(self.key), each.opened(other.key)) for each in sums)
