"""Proves: every scenario loads, the quickest hold, and each promise fails as soon as what keeps it is switched off.

FLIPS says how: overrides of the federation, or one function of ours replaced by one that does not protect.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import client.masking
import client.round
import server.round
from common import append_log
from common.evaluators.mitigation import Thresholds
from common.federation import PrivacySettings
from common.he.parameters import Scheme
from common.he.scheme import CohortKey
from common.robust_rules import RULES
from common.signing import Identity
from scenarios.by_hand import restart
from scenarios.canaries import PLANTED
from scenarios.plays import attacks, erasure, joining, memorised, poisoned, properties
from scenarios.run import Outcome, play, require_data
from scenarios.scenario import PLAYS, Expectation, load, scenario_names
from scenarios.stage import Stage

Patch = Callable[[pytest.MonkeyPatch], None]
NO_NOISE = PLANTED["no noise"]
QUICKEST = ("colluding-site", "malicious-coordinator")


def nothing(*arguments: object, **named: object) -> None:
    """Stands where a check was."""


def accepts_any_round(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that takes an update for that of the round that is open, whichever it was made for."""
    honest = server.round.Collecting.receive

    def careless(self: Any, envelope: Any) -> Any:
        return honest(self, dataclasses.replace(envelope, round_number=self.round_number))

    patch.setattr(server.round.Collecting, "receive", careless)


def no_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.masking, "mask", nothing)
    patch.setattr(client.masking, "masks_in", lambda *arguments: [None])
    patch.setattr(client.masking, "require_list", nothing)


def only_the_mean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(poisoned, "rules", dict.fromkeys(RULES, RULES["mean"]))


def learns_by_heart(patch: pytest.MonkeyPatch) -> None:
    """The training of epsilon 4 becomes the one without privacy."""
    off = {"PRIVATE": attacks.BY_HEART, "CLAIMED": PrivacySettings(mode="none"), "WIDTH": 256}
    for name, value in off.items():
        patch.setattr(attacks, name, value)


def one_for_all(tables: Mapping[str, Any], slack: float) -> Thresholds:
    return Thresholds(dict.fromkeys(tables, 0.5))


def one_key_for_all(patch: pytest.MonkeyPatch) -> None:
    """Every cohort gets the key of the first."""
    honest, made = CohortKey.generate, []

    def generate(scheme: Scheme) -> CohortKey:
        made.append(honest(scheme).export_for_wrapping())
        return CohortKey.load(scheme, made[0])

    patch.setattr(CohortKey, "generate", generate)


def new_ledgers(patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """When the consortium changes, each site's ledger begins anew."""
    honest = getattr(module, name)

    def careless(stage: Stage) -> Any:
        for kept in ("ledgers/*.jsonl", "witnesses/*.json"):
            for path in stage.out.glob(f"consortium/sites/*/{kept}"):
                path.unlink()
        restart()
        return honest(stage)

    patch.setattr(module, name, careless)


def joins_carelessly(patch: pytest.MonkeyPatch) -> None:
    one_key_for_all(patch)
    new_ledgers(patch, joining, "admit")


def forgets_nothing(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks to be erased is told that it was done, and what was spent is written off."""
    patch.setattr(erasure, "erase", lambda stage: stage.set_up("consortium"))
    patch.setattr(erasure, "forgotten", lambda shards, erased, fit: shards)
    new_ledgers(patch, erasure, "erase")


@dataclass(frozen=True)
class Flip:
    """What is switched off, and the figures whose promises must then fail."""

    figures: Sequence[str]
    overrides: Sequence[str] = ()
    patch: Patch = lambda patch: None


FLIPS: Mapping[str, Sequence[Flip]] = {
    "baseline": [Flip(["warnings"], patch=lambda p: p.setattr("scenarios.simulate._insecure", lambda place: []))],
    "private": [Flip(["epsilon"], ["privacy.mode=none"])],
    "encrypted": [Flip(["byte_surprise", "models_at_coordinator"], ["encryption.preset=none"])],
    "distributed-noise": [Flip(["epsilon", "premises"], ["privacy.mode=none"])],
    "dropout": [Flip(["smallest_opened"], ["encryption.preset=none", "federation.min_cohort=2"])],
    "straggler": [Flip(["late_summed"], ["encryption.preset=none"], accepts_any_round)],
    "replay": [Flip(["accepted"], ["encryption.preset=none"])],
    "key-rotation": [Flip(["rounds_laid_open", "keys"], ["encryption.key_rounds=0"])],
    "budget-exhausted": [Flip(["refused", "epsilon", "charged"], ["simulation.site_epsilon=30"])],
    "roll-back": [
        Flip(["noticed", "trained_again"], patch=lambda p: p.setattr(append_log.AppendLog, "_compare", nothing))
    ],
    "curious-coordinator": [Flip(["likeness", "byte_surprise"], ["encryption.preset=none"])],
    "colluding-site": [Flip(["likeness", "lifted"], patch=no_masks)],
    "malicious-coordinator": [
        Flip(["done_as_asked"], patch=lambda p: p.setattr(client.masking, "require_list", nothing)),
        Flip(["done_as_asked"], patch=lambda p: p.setattr(client.masking, "_require_agreed", nothing)),
    ],
    "audit": [
        Flip(["certificate", "detector", "honest_flagged"], patch=lambda p: p.setattr(attacks, "SOUND", NO_NOISE)),
    ],
    "membership-inference": [Flip(["auc", "caught"], patch=learns_by_heart)],
    "gradient-inversion": [
        Flip(["noise", "labels_with_noise"], patch=lambda p: p.setattr(attacks, "NOISE", 1e-3)),
        Flip(["ciphertext"], patch=lambda p: p.setattr(attacks, "ENCRYPTED", False)),
        Flip(["sum_least_squares"], patch=lambda p: p.setattr(attacks, "_SITES", 1)),
    ],
    "exposure": [
        Flip(["largest", "median"], patch=lambda p: p.setattr(memorised, "_limited_to", lambda e: memorised._CLIPPED))
    ],
    "property-inference": [Flip(["sites"], patch=lambda p: p.setattr(properties, "SITE_NOISE_KEPT", 0.0))],
    "skewed-sites": [Flip(["epsilon", "labels_sealed"], ["privacy.mode=none", "encryption.preset=none"])],
    "new-site-joins": [
        Flip(
            ["rewritten", "epsilon", "newcomer_epsilon", "old_key_opens", "new_key_opens"],
            ["privacy.epsilon=4", "simulation.site_epsilon=30"],
            joins_carelessly,
        )
    ],
    "erasure": [
        Flip(
            ["difference", "shards_difference", "auc_after", "refunded", "epsilon"],
            ["privacy.epsilon=4", "simulation.site_epsilon=30"],
            forgets_nothing,
        )
    ],
    "hospital-network": [
        Flip(["epsilon"], ["privacy.mode=none"]),
        Flip(["byte_surprise"], ["privacy.mode=none", "encryption.preset=none", "metrics.every=0"]),
        Flip(["report_verified"], patch=lambda p: p.setattr("scenarios.simulate.sign_report", nothing)),
    ],
    "image-consortium": [
        Flip(
            ["epsilon", "byte_surprise", "report_verified"],
            ["privacy.mode=none", "encryption.preset=none", "metrics.every=0"],
            lambda p: p.setattr("scenarios.simulate.sign_report", nothing),
        )
    ],
    "poisoned-sites": [Flip(["lost_single", "lost_buckets"], patch=only_the_mean)],
    "unfair-site": [
        Flip(["epsilon"], ["privacy.mode=none"]),
        Flip(["byte_surprise"], ["privacy.mode=none", "encryption.preset=none", "metrics.every=0"]),
        Flip(["gap_mended"], patch=lambda p: p.setattr("server.fairness.parity_thresholds", one_for_all)),
        Flip(["seen"], ["metrics.noise_multiplier=500"]),
    ],
    "backdoor": [Flip(["opens"], patch=only_the_mean)],
}


def played(name: str, out: Path, overrides: Sequence[str] = ()) -> Outcome:
    return play(Stage(load(name), out, True, tuple(overrides)), Identity.generate())


def test_every_file_is_a_scenario_that_is_listed_and_asks_a_question():
    assert {path.stem for path in PLAYS.glob("*.toml")} - {"order"} == set(scenario_names())
    for scenario in map(load, scenario_names()):
        assert scenario.question.endswith("?")
        assert scenario.about.strip()
        assert any(expected.kind in ("privacy", "trust") for expected in scenario.expect)
        assert Stage(scenario, Path("nowhere"), True).simulation()


def test_no_quick_scenario_needs_data_from_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("VEILFED_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in scenario_names():
        require_data(Stage(load(name), tmp_path, True))


def test_every_scenario_has_a_protection_to_switch_off_and_no_promise_is_left_out():
    assert set(FLIPS) == set(scenario_names())
    for name, flips in FLIPS.items():
        private = {expected.figure for expected in load(name).expect if expected.kind == "privacy"}
        assert private <= {figure for flip in flips for figure in flip.figures}, name


@pytest.mark.parametrize("name", QUICKEST)
def test_the_quickest_hold(name, tmp_path):
    outcome = played(name, tmp_path / name)
    assert [row for row in outcome.rows if not row["passed"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in scenario_names() if name not in QUICKEST])
def test_and_so_do_the_others(name, tmp_path):
    outcome = played(name, tmp_path / name)
    assert [row for row in outcome.rows if not row["passed"]] == []


def flipped(name: str, flip: Flip, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip.patch(monkeypatch)
    rows = played(name, out, flip.overrides).rows
    failed = {row["figure"] for row in rows if not row["passed"]}
    assert set(flip.figures) <= failed, rows


@pytest.mark.parametrize(("name", "flip"), [(name, flip) for name in QUICKEST for flip in FLIPS[name]])
def test_a_promise_of_the_quickest_fails_without_its_protection(name, flip, tmp_path, monkeypatch):
    flipped(name, flip, tmp_path / name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flip"), [(name, flip) for name, flips in FLIPS.items() if name not in QUICKEST for flip in flips]
)
def test_every_promise_fails_without_its_protection(name, flip, tmp_path, monkeypatch):
    flipped(name, flip, tmp_path / name, monkeypatch)


@pytest.mark.parametrize(
    ("bound", "good", "bad"),
    [({"at_least": 2.0}, 2.0, 1.999), ({"at_most": 2.0}, 2.0, 2.001), ({"equals": 2.0}, 2.0, 2.1)],
)
def test_an_expectation_holds_up_to_its_bound_and_never_for_what_was_not_measured(bound, good, bad):
    expected = Expectation("figure", "says", "privacy", **bound)
    assert expected.holds(good)
    assert not expected.holds(bad)
    assert not expected.holds(float("nan"))
