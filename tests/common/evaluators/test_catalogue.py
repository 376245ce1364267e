"""The contract of every evaluator: it needs what it says, gives the same twice, cites its source, stays in bounds."""

import inspect
import math
import re
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from common.errors import ConfigError
from common.evaluators import (
    calibration,
    contribution,
    drift,
    explanation,
    exposure,
    fairness,
    inversion,
    membership,
    privacy_audit,
    property_inference,
    robustness,
    utility,
)
from common.evaluators.catalogue import EVALUATORS, evaluate_all
from common.evaluators.contribution import Game
from common.evaluators.exposure import Secrets
from common.evaluators.groups import GroupCells, GroupCounts
from common.evaluators.inversion import Rebuilt
from common.evaluators.membership import Attacked
from common.evaluators.privacy_audit import Canaries
from common.evaluators.report import Evaluator, Material

EVERY = pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: each.name)
YEAR = r"[A-Z][a-z]+(?s:.)*?\b(18|19|20)\d\d\b"
CITATION = re.compile(YEAR + "|[Rr]eferences?: (those of|`|the functions')")
MODULES = (
    *(calibration, contribution, drift, explanation, exposure, fairness),
    *(inversion, membership, privacy_audit, property_inference, robustness, utility),
)
GATHER = {"evaluate", "cross_site"}  # what others define, side by side


def everything(seed: int = 0, classes: int = 2) -> Material:
    """A linear model of five features, as numpy, and whatever else there is to evaluate."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(5, classes))

    def logits(features: np.ndarray) -> np.ndarray:
        return features @ weights

    def predict(features: np.ndarray) -> np.ndarray:
        scaled = np.exp(logits(features) - logits(features).max(axis=1, keepdims=True))
        return scaled / scaled.sum(axis=1, keepdims=True)

    def input_gradients(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return (predict(features) - np.eye(classes)[labels]) @ weights.T

    features, reference = (random.normal(size=(n, 5)).astype(np.float32) for n in (80, 120))
    labels = (logits(features) + random.normal(size=(80, classes))).argmax(axis=1)
    cells, coins = GroupCells({"sex": ("f", "m"), "site": ("a", "b", "c")}, 4), random.random(200) < 0.5
    sums = random.integers(20, 60, cells.size) + 2.0 * random.normal(size=cells.size)
    return Material(
        probabilities=predict(features),
        labels=labels,
        features=features,
        reference=reference,
        strange=(features[:40] + 9).astype(np.float32),
        predict=predict,
        logits=logits,
        input_gradients=input_gradients,
        groups=GroupCounts(cells, sums, 2.0),
        canaries=Canaries(random.normal(size=200) + 0.9 * coins, coins, 4.0, 1e-5),
        attacked=Attacked(random.normal(size=200) + coins, coins),
        rebuilt=Rebuilt(random.normal(20, 10, 50)),
        game=Game(("adler", "birke", "cedar"), lambda who: len(who) ** 0.5 / 2),
        secrets=Secrets(random.normal(size=3), random.normal(1, 1, 500), 20.0),
        guessed=Attacked(random.normal(size=50), random.random(50) < 0.5),
        seed=seed,
    )


def only(material: Material, parts: frozenset[str]) -> Material:
    return replace(material, **dict.fromkeys(material.parts - parts - {"seed"}))


@EVERY
@pytest.mark.parametrize("classes", [2, 3])
def test_it_finds_the_same_twice_from_no_more_than_it_says_it_needs(evaluator: Evaluator, classes: int) -> None:
    material = everything(1, classes)
    found = evaluator.evaluate(only(material, evaluator.needs))
    assert found == evaluator.evaluate(material)
    assert found.evaluator == evaluator.name
    assert found.figures
    for name, figure in found.figures.items():
        assert name == name.strip()
        assert figure.low <= figure.value <= figure.high
        assert all(map(math.isfinite, (figure.low, figure.high)))


@EVERY
def test_without_a_part_it_needs_it_says_so_by_name(evaluator: Evaluator) -> None:
    material = everything()
    for part in evaluator.needs:
        with pytest.raises(ConfigError, match=part) as refused:
            evaluator.evaluate(replace(material, **{part: None}))
        assert evaluator.name in refused.value.message


@EVERY
def test_it_cites_its_definition(evaluator: Evaluator) -> None:
    assert CITATION.search(type(evaluator).__doc__ or "")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_every_figure_cites_its_definition_or_the_function_it_follows_from(module: ModuleType) -> None:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and "Estimate" in str(function.__annotations__.get("return")):
            assert name.startswith("_") or name in GATHER or re.search(YEAR + "|`", function.__doc__ or ""), name


def test_names_are_unique_and_all_run_on_whole_material() -> None:
    assert len({each.name for each in EVALUATORS}) == len(EVALUATORS)
    assert [found.evaluator for found in evaluate_all(everything())] == [each.name for each in EVALUATORS]
    few = only(everything(), frozenset({"probabilities", "labels"}))
    assert [found.evaluator for found in evaluate_all(few)] == ["utility"]


def test_material_shows_nothing() -> None:
    assert repr(everything()) == "Material(seed=0)"
