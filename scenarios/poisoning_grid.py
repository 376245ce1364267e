"""Attacks against rules on MNIST: `python -m scenarios.poisoning_grid RESULT [DIRECTORY]`.

It writes results/RESULT.json and a table, results/RESULT.md. DIRECTORY: where MNIST lies, as `data.directory`.

Twenty sites with 600 images each train a linear model on gradient orientations. A fifth or three tenths of them
send poison and know what all others send. Each rule is tried on single updates, which only a coordinator that reads
them can do, and on means of ten buckets of two, which sites open under encryption: smaller buckets there are none.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.features import hog
from common.breakdown import tolerated
from common.evaluators.utility import accuracy
from common.federation import ModelSettings, TrainingSettings
from common.files import write_atomically
from common.robust_rules import RULES
from common.updates import Vector
from scenarios.poisoned_sites import Attack, Cohort, Defence, Part
from scenarios.poisoning import ATTACKS, flipped, marked, with_backdoor
from scenarios.public_sets import Pool, pool

SITES, BUCKETS, ROUNDS, IMAGES = 20, 10, 8, 600
SHARES = (0.2, 0.3)
ATTACKED = ("label-flip", *ATTACKS, "backdoor")
NEAR = 0.03  # of the clean run: what a rule that bears an attack may lose
_MODEL = ModelSettings("logistic", (680,), 10)
_LOCAL = TrainingSettings(sampling="shuffle", local_epochs=1, batch_size=100, learning_rate=20.0)
_MARK = {28 * row + column: 255.0 for row in range(23, 27) for column in range(23, 27)}  # a white square in a corner
_TARGET = 7
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """share: of bad sites. on: `single` updates or `buckets`. opens: marked digits read as the target, else None.

    promised: whether the rule's theory bears so many bad vectors, each bad site spoiling one.
    """

    share: float
    on: str
    attack: str
    rule: str
    promised: bool
    accuracy: float
    opens: float | None = None


class Digits:
    """MNIST as the grid needs it; test images are those that MNIST reserves."""

    def __init__(self, directory: str) -> None:
        self.features, self.images = (pool("mnist", directory, kind) for kind in ("hog", "none"))
        self.cohort = Cohort(SITES, _MODEL, _LOCAL, self.part)
        self._kept: dict[tuple[int, str], Part] = {}

    def part(self, site: int, attack: str) -> Part:
        """A site's records as it uses them, made once."""
        if (site, attack) not in self._kept:
            self._kept[site, attack] = self._part(site, attack)
        return self._kept[site, attack]

    def _part(self, site: int, attack: str) -> Part:
        places = np.arange(site, SITES * IMAGES, SITES)
        if attack == "backdoor":
            pixels = _pixels(self.images, places)
            shown, labels = with_backdoor(
                pixels, self.images.labels[places], _MARK, _TARGET, 0.5, np.random.default_rng(site)
            )
            return hog(shown.reshape(-1, 28, 28).astype(np.uint8)), labels
        records = self.features.records(places)
        return records.features, flipped(records.labels, 10) if attack == "label-flip" else records.labels

    @cached_property
    def tested(self) -> Part:
        records = self.features.records(np.flatnonzero(self.features.reserved))
        return records.features, records.labels

    @cached_property
    def asked(self) -> NDArray[np.float32]:
        """Features of every test image of another digit than the target, with the mark."""
        places = np.flatnonzero(self.images.reserved & (self.images.labels != _TARGET))
        shown = marked(_pixels(self.images, places), np.ones(len(places), bool), _MARK)
        return hog(shown.reshape(-1, 28, 28).astype(np.uint8))

    def score(self, model: Vector) -> float:
        if not np.isfinite(model).all():
            return 0.0
        features, labels = self.tested
        return accuracy(self.cohort.predicted(model, features), labels).value

    def opens(self, model: Vector) -> float:
        return float((self.cohort.predicted(model, self.asked).argmax(axis=1) == _TARGET).mean())


def _pixels(images: Pool, places: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(images.features[places].reshape(len(places), -1), np.float32)


def grid(digits: Digits) -> dict[str, Any]:
    """Every cell, and each rule without attack."""
    clean = {}
    for on, buckets in (("single", 0), ("buckets", BUCKETS)):
        for rule in RULES:
            model = digits.cohort.trained(
                Attack(), Defence(RULES[rule], tolerated(rule, buckets or SITES), buckets), ROUNDS
            )
            clean[f"{rule} on {on}"] = digits.score(model)
    cells = []
    for share in SHARES:
        bad = tuple(range(round(share * SITES)))
        for attack in ATTACKED:
            for on, buckets in (("single", 0), ("buckets", BUCKETS)):
                cells += [_cell(digits, share, on, Attack(attack, bad), rule, buckets) for rule in RULES]
            print(f"{share:.0%} {attack}", file=sys.stderr, flush=True)
    return {
        "clean": clean,
        "cells": [asdict(cell) for cell in cells],
        "summary": summary(clean["mean on single"], cells),
    }


def _cell(digits: Digits, share: float, on: str, attack: Attack, rule: str, buckets: int) -> Cell:
    most = tolerated(rule, buckets or SITES)
    model = digits.cohort.trained(attack, Defence(RULES[rule], min(len(attack.bad), most), buckets), ROUNDS)
    opens = digits.opens(model) if attack.name == "backdoor" else None
    return Cell(share, on, attack.name, rule, len(attack.bad) <= most, digits.score(model), opens)


def summary(clean: float, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each share of bad sites and kind of vectors: each rule's worst attack, and the best of those that promise."""
    found = []
    for share, on in sorted({(cell.share, cell.on) for cell in cells}):
        rows = [cell for cell in cells if (cell.share, cell.on) == (share, on)]
        worst = {rule: min((c for c in rows if c.rule == rule), key=lambda c: c.accuracy) for rule in RULES}
        able = [cell for cell in worst.values() if cell.promised]
        best = max(able, key=lambda cell: cell.accuracy) if able else None
        found.append(
            {
                "share": share,
                "on": on,
                "best": best.rule if best else None,
                "lost": clean - best.accuracy if best else None,
                "near": bool(best) and clean - best.accuracy <= NEAR if best else None,
                "worst": {rule: {"attack": cell.attack, "accuracy": cell.accuracy} for rule, cell in worst.items()},
            }
        )
    return found


def table(result: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    cells = [Cell(**cell) for cell in result["cells"]]
    lines = [
        "# Poison against rules",
        f"`{result['command']}` wrote this. Accuracy on MNIST's test images, %; clean run: "
        f"{100 * result['clean']['mean on single']:.1f}.",
        "In brackets: the rule promises nothing against so many bad ones.",
        "Backdoor: accuracy without the mark / marked digits that are read as sevens.",
    ]
    for told in result["summary"]:
        rows = [cell for cell in cells if (cell.share, cell.on) == (told["share"], told["on"])]
        bad = round(told["share"] * SITES)
        on = "single updates" if told["on"] == "single" else f"means of {BUCKETS} buckets, as under encryption"
        lines += ["", f"## {bad} bad sites of {SITES}, on {on}", "", f"| attack | {' | '.join(RULES)} |"]
        lines += ["|---" * (len(RULES) + 1) + "|"]
        for attack in ATTACKED:
            of = {cell.rule: cell for cell in rows if cell.attack == attack}
            lines.append(f"| {attack} | {' | '.join(_shown(of[rule]) for rule in RULES)} |")
        lost = (100 * (result["clean"]["mean on single"] - told["worst"][rule]["accuracy"]) for rule in RULES)
        lines.append(f"| **points lost at worst** | {' | '.join(f'{points:.1f}' for points in lost)} |")
        lines += ["", _verdict(told, bad)]
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    told = f"{100 * cell.accuracy:.1f}" + (f" / {100 * cell.opens:.0f}" if cell.opens is not None else "")
    return told if cell.promised else f"({told})"


def _verdict(told: Mapping[str, Any], bad: int) -> str:
    if told["best"] is None:
        return (
            f"No rule can: {bad} bad sites may spoil {bad} of {BUCKETS} buckets, no rule bears half of its vectors, "
            "and smaller buckets than two sites are never opened."
        )
    kept = f"{'within' if told['near'] else 'NOT within'} {100 * NEAR:.0f} of the clean run"
    return f"Best under its worst attack: {told['best']}, which loses {100 * told['lost']:.1f} points, {kept}."


if __name__ == "__main__":
    name, *place = sys.argv[1:]
    result = {"command": f"python -m scenarios.poisoning_grid {name}", **grid(Digits(*place or [""]))}
    write_atomically(_RESULTS / f"{name}.json", json.dumps(result, indent=1, sort_keys=True).encode() + b"\n", 0o644)
    write_atomically(_RESULTS / f"{name}.md", table(result).encode(), 0o644)
    print(_RESULTS / f"{name}.md")
