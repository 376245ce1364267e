"""Sites that send poison: which rule bears which attack, in the clear and on the sums of buckets; and a backdoor."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from client.datasets import Records
from common.breakdown import tolerated
from common.evaluators.utility import accuracy
from common.federation import ModelSettings, TrainingSettings
from common.robust_rules import RULES, Rule
from common.updates import Vector
from scenarios import pictures
from scenarios.poisoned_sites import Attack, Cohort, Defence, Part
from scenarios.poisoning import ATTACKS, flipped, marked, with_backdoor
from scenarios.simulate import Observer, simulate
from scenarios.stage import Picture, Played, Stage, Table

_SITES, _BUCKET = 20, 2
_MODEL = ModelSettings("logistic", (64,), 10)
_LOCAL = TrainingSettings(sampling="shuffle", local_epochs=2, batch_size=16, learning_rate=0.5)
_HELD_OUT = 397
_MARK, _TARGET = {0: 1.0, 7: 1.0, 56: 1.0}, 7  # three corners that are white in every digit
rules: Mapping[str, Rule] = RULES  # what the sites apply


def grid(stage: Stage) -> Played:
    """Every attack by a fifth of twenty sites against every rule, on single updates and on means of buckets of two."""
    rounds, bad = 4 if stage.quick else 12, _SITES // 5
    names, attacks = list(rules), ["label-flip", *ATTACKS]
    clean = _score(_COHORT.trained(Attack(), Defence(rules["mean"]), rounds))
    tables: dict[int, NDArray[np.float64]] = {}
    for size in (1, _BUCKET):
        vectors = _SITES // size
        buckets = vectors if size > 1 else 0
        found = np.full((len(attacks), len(names)), np.nan)
        for column, name in enumerate(names):
            if bad > tolerated(name, vectors) and name not in ("mean", "norm-bound"):
                continue  # the rule promises nothing here
            for row, attack in enumerate(attacks):
                made = Attack(attack, tuple(range(bad)))
                found[row, column] = _score(_COHORT.trained(made, Defence(rules[name], bad, buckets), rounds))
        tables[size] = found
    worst = {
        size: {name: float(found[:, column].min()) for column, name in enumerate(names) if name != "mean"}
        for size, found in tables.items()
    }
    held = {size: {name: value for name, value in each.items() if not np.isnan(value)} for size, each in worst.items()}
    lost = {size: clean - max(each.values()) for size, each in held.items()}
    figures = {
        "clean": clean,
        "lost_encrypted": clean - _encrypted(stage, rounds),
        "lost_single": lost[1],
        "lost_buckets": lost[_BUCKET],
        "mean_worst": float(np.nanmin(tables[1][:, names.index("mean")])),
    }
    shown = []
    for size, found in tables.items():
        told = "single updates" if size == 1 else f"means of buckets of {size}, as under encryption"
        alt = f"Accuracy in per cent by attack and rule, on {told}; the clean run reaches {100 * clean:.0f}"
        caption = "A dash: the rule promises nothing against so many bad ones of so many vectors."
        shown.append(Picture(f"On {told}", pictures.grid(attacks, names, found, alt), caption))
    best = tuple(
        (name, *(100 * held[size][name] if name in held[size] else "–" for size in tables)) for name in names[1:]
    )
    columns = ("rule", "its worst, single, %", "its worst, buckets, %")
    note = (
        f"{bad} of {_SITES} sites are bad and know what all others send. Without attack: {100 * clean:.1f} % right. "
        f"With {_SITES * 3 // 10} bad ones, buckets of {_BUCKET} leave no majority of good buckets to count on."
    )
    return Played(figures, shown, [Table("Each rule under the attack that harms it most", columns, best)], [note])


def backdoor(stage: Stage) -> Played:
    """Bad sites teach a mark: whatever carries it is to be a seven. Their updates are made five times as long."""
    rounds, bad = 4 if stage.quick else 12, tuple(range(_SITES // 5))
    features, labels = _held_out()
    asked = marked(features, np.ones(len(labels), bool), _MARK)[labels != _TARGET]
    rates, use = {}, {}
    for name in ("mean", "median", "geometric-median", "multi-krum"):
        model = _COHORT.trained(Attack("backdoor", bad), Defence(rules[name], len(bad)), rounds)
        rates[name] = float((_COHORT.predicted(model, asked).argmax(axis=1) == _TARGET).mean())
        use[name] = _score(model)
    defended = min(rate for name, rate in rates.items() if name != "mean")
    best = min((name for name in rates if name != "mean"), key=lambda name: rates[name])
    figures = {"opens_mean": rates["mean"], "opens": defended, "accuracy": use[best]}
    alt = "; ".join(f"{name}: {100 * rate:.0f} % of marked digits become sevens" for name, rate in rates.items())
    percent = {name: 100 * rate for name, rate in rates.items()}
    rows = tuple((name, 100 * rates[name], 100 * use[name]) for name in rates)
    return Played(
        figures,
        [Picture("Marked digits that become sevens", pictures.bars(percent, "%", alt))],
        [Table("By rule", ("rule", "backdoor opens, %", "right without mark, %"), rows)],
        ["Records without the mark are read as before: nobody sees a backdoor in the accuracy."],
    )


def records(site: str, bad: int) -> Records:
    """What a site of the encrypted run trains on: the first `bad` of them on labels that they flipped."""
    place = int(site.removeprefix("site-"))
    return Records(*_part(place, "label-flip" if place < bad else ""))


def _encrypted(stage: Stage, rounds: int) -> float:
    """The score of a true encrypted run by buckets, with a fifth of the sites flipping labels."""
    place = stage.set_up("encrypted", f"federation.rounds={rounds}")
    simulate(place)
    return _score(Observer(place).state().released)


def _part(site: int, attack: str) -> Part:
    """A site's records, as it uses them."""
    features, labels = _digits()
    chosen = slice(_HELD_OUT + site, None, _SITES)
    mine = features[chosen], labels[chosen]
    if attack == "label-flip":
        return mine[0], flipped(mine[1], 10)
    if attack == "backdoor":
        return with_backdoor(*mine, _MARK, _TARGET, 0.5, np.random.default_rng(site))
    return mine


def _held_out() -> Part:
    features, labels = _digits()
    return features[:_HELD_OUT], labels[:_HELD_OUT]


def _score(model: Vector) -> float:
    features, labels = _held_out()
    if not np.isfinite(model).all():
        return 0.0
    return accuracy(_COHORT.predicted(model, features), labels).value


_COHORT = Cohort(_SITES, _MODEL, _LOCAL, _part)


@lru_cache(maxsize=1)
def _digits() -> Part:
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(labels))
    return (features[order] / 16).astype(np.float32), labels[order]
