"""Sites whose labels differ: what that costs in the clear and under privacy, and who may learn of it."""

import statistics
from collections.abc import Mapping
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
_LAWS = {"even": "iid", "skewed": "dirichlet"}


def skewed(stage: Stage) -> Played:
    """Every way of training on even and on skewed sites; outside of `--quick` over three splits."""
    found: dict[tuple[str, str], list[float]] = {}
    alone: list[float] = []
    spent: list[float] = []
    told: dict[str, list[float]] = {way: [] for way in _WAYS}
    for split in range(1 if stage.quick else 3):
        for way, settings in _WAYS.items():
            for name, law in _LAWS.items():
                changes = {**settings, "data.partition": law, "data.seed": split}
                place = stage.set_up(f"{split}-{law}-{way}", *(f"{key}={value}" for key, value in changes.items()))
                heard = Overheard(place)
                report = simulate(place, deliver=heard)
                found.setdefault((way, name), []).append(_accuracy(report["final"]))
                if way != _CLEAR:
                    spent.append(most_spent(place.sites, report))
                if name == "skewed":
                    last, labels = report, _label_shares(place)
                    told[way].append(_told(heard, labels))
                    alone += _alone(place) if way == _CLEAR else []
    means = {each: statistics.mean(values) for each, values in found.items()}
    cost = {way: means[way, "even"] - means[way, "skewed"] for way in _WAYS}
    figures = {
        "epsilon": max(spent),
        "labels_sealed": max(told[_SHARES] + told[_OWN]),
        "labels_readable": min(told[_CLEAR]),
        "skew": float(np.abs(labels - labels.mean(axis=0)).sum(axis=1).mean() / 2),
        "extra_shares": cost[_SHARES] - cost[_CLEAR],
        "extra_own": cost[_OWN] - cost[_CLEAR],
        "shares": means[_SHARES, "skewed"],
        "gain_over_alone": means[_SHARES, "skewed"] - max(alone),
    }
    shown = {f"{way}, {name}": value for (way, name), value in means.items()}
    lost = {way: 100 * value for way, value in cost.items()}
    reads = {way: max(values) for way, values in told.items()}
    sites = [path.name for path in place.sites]
    return Played(
        figures,
        [
            Picture(
                "Who has which digits",
                pictures.grid(sites, [str(digit) for digit in range(labels.shape[1])], labels, _said("labels", shown)),
                "Of every site's digits, per cent.",
            ),
            Picture("The model", pictures.bars(shown, "accuracy", _said("accuracy", shown))),
            Picture(
                "What skew costs",
                pictures.bars(lost, "points of accuracy", _said("points", lost)),
                "Below 0 the skewed sites did better than the even ones.",
            ),
            Picture(
                "What an update tells of a site's labels",
                pictures.bars(reads, "correlation", _said("correlation", reads), 0.6, "chance"),
                "The last layer's biases in the first round, against the labels of all sites.",
            ),
        ],
        facts=kept(last),
    )


def _accuracy(metrics: Mapping[str, Any]) -> float:
    return float(metrics["accuracy"]["value"])


def _label_shares(place: Workplace) -> Floats:
    """(sites, classes): of every site's training records, how large a share each class has."""
    records = [Site.open(path).training_records.labels for path in place.sites]
    return np.stack([np.bincount(labels, minlength=10) / len(labels) for labels in records])


def _told(heard: Overheard, labels: Floats) -> float:
    """How like the labels are to the last layer's biases in the first updates, as whoever carries them reads them."""
    size = Observer(heard.place).state().model.size
    sites = [path.name for path in heard.place.sites]
    seen = np.stack([heard.guessed(1, site, size)[-labels.shape[1] :] for site in sites])
    return likeness(seen.reshape(-1), labels.reshape(-1))


def _alone(place: Workplace) -> list[float]:
    """Each site's own model, on everybody's held-out records."""
    observer = Observer(place)
    models = [baselines.alone(observer.plan, site.training_records) for site in observer.sites]
    return [_accuracy(observer.score(model, observer.pooled)) for model in models]


def _said(what: str, values: Mapping[str, float]) -> str:
    return f"{what}: {'; '.join(f'{name} {value:.3g}' for name, value in values.items())}"
