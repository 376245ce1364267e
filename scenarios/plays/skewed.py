"""Sites whose labels differ: what that costs in the clear and under privacy, and who may learn of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from client.site import Site
from common.evaluators.utility import Floats
from scenarios import baselines, pictures
from scenarios.plays.models import kept, most_spent
from scenarios.plays.spying import Overheard, likeness
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Workplace
from scenarios.stage import Picture, Played, Stage

_CLEAR, _OWN, _SHARES = "in the clear", "own noise", "noise in shares"
_WAYS: Mapping[str, Mapping[str, object]] = {
    _CLEAR: {
        "privacy.mode": "none",
        "encryption.preset": "none",
        "training.sampling": "shuffle",
        "training.local_epochs": 2,
        "training.batch_size": 16,
        "training.learning_rate": 0.1,
        "training.server_momentum": 0.0,
    },
    _OWN: {
        "privacy.mode": "local",
        "privacy.max_update_norm": 8.0,
        "training.local_steps": 4,
        "training.sample_rate": 0.25,
        "training.lot_size": 50,
        "training.learning_rate": 1.0,
        "training.server_momentum": 0.5,
    },
    _SHARES: {
        "privacy.mode": "distributed",
        "privacy.max_update_norm": 20.0,
        "training.local_steps": 1,
        "training.sample_rate": 0.5,
        "training.lot_size": 105,
        "training.learning_rate": 8.0,
        "training.server_momentum": 0.9,
    },
}
_SKEWED, _CLASSES = "dirichlet", 10


@dataclass(frozen=True)
class _Trial:
    """One run. told: how like the sites' labels are to what the first updates look like. labels: (sites, classes)."""

    place: Workplace
    report: Mapping[str, Any]
    told: float
    labels: Floats

    @property
    def accuracy(self) -> float:
        return _accuracy(self.report["final"])


def skewed(stage: Stage) -> Played:
    """Every way of training on even and on skewed sites; outside of `--quick` over three splits."""
    splits, laws = range(1 if stage.quick else 3), ("iid", _SKEWED)
    trials = {each: [_tried(stage, *each, split) for split in splits] for each in product(_WAYS, laws)}
    means = {each: statistics.mean(trial.accuracy for trial in found) for each, found in trials.items()}
    cost = {way: means[way, "iid"] - means[way, _SKEWED] for way in _WAYS}
    told = {way: [trial.told for trial in trials[way, _SKEWED]] for way in _WAYS}
    private = [trial for (way, _), found in trials.items() if way != _CLEAR for trial in found]
    labels = trials[_SHARES, _SKEWED][0].labels
    figures = {
        "epsilon": max(most_spent(trial.place.sites, trial.report) for trial in private),
        "labels_sealed": max(told[_SHARES] + told[_OWN]),
        "labels_readable": min(told[_CLEAR]),
        "skew": float(np.abs(labels - labels.mean(axis=0)).sum(axis=1).mean() / 2),
        "extra_shares": cost[_SHARES] - cost[_CLEAR],
        "extra_own": cost[_OWN] - cost[_CLEAR],
        "shares": means[_SHARES, _SKEWED],
        "gain_over_alone": means[_SHARES, _SKEWED] - max(_best_alone(trial) for trial in trials[_CLEAR, _SKEWED]),
    }
    last = trials[_SHARES, _SKEWED][-1]
    return Played(figures, _pictures(last.place, labels, means, cost, told), facts=kept(last.report))


def _tried(stage: Stage, way: str, law: str, split: int) -> _Trial:
    changes = {**_WAYS[way], "data.partition": law, "data.seed": split}
    where = f"{law}-{way.replace(' ', '-')}-{split}"
    place = stage.set_up(where, *(f"{key}={value}" for key, value in changes.items()))
    heard = Overheard(place)
    report = simulate(place, deliver=heard)
    records = [Site.open(path).training_records.labels for path in place.sites]
    labels = np.stack([np.bincount(each, minlength=_CLASSES) / len(each) for each in records])
    size = report["wire"]["parameters"]
    biases = np.stack([heard.guessed(1, path.name, size)[-_CLASSES:] for path in place.sites])
    return _Trial(place, report, likeness(biases.reshape(-1), labels.reshape(-1)), labels)


def _best_alone(trial: _Trial) -> float:
    """The best that any site comes to by itself, on everybody's held-out records."""
    observer = Observer(trial.place)
    models = [baselines.alone(observer.plan, site.training_records) for site in observer.sites]
    return max(_accuracy(observer.score(model, observer.pooled)) for model in models)


def _accuracy(metrics: Mapping[str, Any]) -> float:
    return float(metrics["accuracy"]["value"])


def _pictures(
    place: Workplace,
    labels: Floats,
    means: Mapping[tuple[str, str], float],
    cost: Mapping[str, float],
    told: Mapping[str, Sequence[float]],
) -> list[Picture]:
    sites, digits = [path.name for path in place.sites], [str(digit) for digit in range(_CLASSES)]
    shown = {f"{way}, {'even' if law == 'iid' else 'skewed'}": value for (way, law), value in means.items()}
    lost = {way: 100 * value for way, value in cost.items()}
    reads = {way: max(values) for way, values in told.items()}
    alt = f"How large a share of its records each of {len(sites)} sites has of each digit"
    return [
        Picture("Who has which digits", pictures.grid(sites, digits, labels, alt), "Of every site's digits, per cent."),
        Picture("The model", pictures.bars(shown, "accuracy", pictures.said(shown))),
        Picture(
            "What skew costs",
            pictures.bars(lost, "points of accuracy", pictures.said(lost)),
            "Below 0 the skewed sites did better than the even ones.",
        ),
        Picture(
            "What an update tells of a site's labels",
            pictures.bars(reads, "correlation", pictures.said(reads), 0.6, "chance"),
            "The last layer's biases in the first round, against the labels of all sites.",
        ),
    ]
