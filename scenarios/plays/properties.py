"""What a round gives away of one hospital as a whole: noise for records is no promise about it, noise for sites is."""

from dataclasses import dataclass

import numpy as np

from common.dp.accounting import calibrate_noise
from common.dp.cost import calibrated, noise_share
from common.dp.events import PoissonGaussian
from common.evaluators.utility import auroc
from common.federation import FederationSettings, ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.randomness import Randomness
from common.updates import Vector
from scenarios import pictures
from scenarios.inversion import NO_PRIVACY, Batch
from scenarios.properties import guessed, sum_of
from scenarios.public_sets import PUBLIC_SETS, pool
from scenarios.stage import Picture, Played, Stage

SITE_NOISE_KEPT = 1.0  # of the noise that epsilon 1 for whole sites takes
_SITES, _RECORDS, _USUAL, _UNLIKE = 4, 200, 0.2, 0.8
_TRAINING = TrainingSettings(local_steps=5, sample_rate=0.5, lot_size=100.0, learning_rate=0.5)
_FOR_RECORDS = PrivacySettings(epsilon=3.0, delta=1e-5)
_FOR_SITES = PrivacySettings(mode="site", epsilon=1.0, delta=1e-5, max_update_norm=1.0)
_MODEL = ModelSettings("logistic", PUBLIC_SETS["heart"].inputs, PUBLIC_SETS["heart"].classes)


@dataclass(frozen=True)
class _Case:
    """women: their share at the hospital that may be unlike the others. share: of noise, added to each update."""

    women: float
    privacy: PrivacySettings
    noise_multiplier: float = 0.0
    share: float = 0.0

    def round(self, unlike: bool, random: np.random.Generator) -> Vector:
        """What is opened of a round: the sum of the hospitals' updates."""
        sites = [_hospital(random, self.women if unlike else _USUAL), *_others(random)]
        fixed = Randomness.insecure(0, int(random.integers(2**62)))
        total = sum_of(_MODEL, sites, _TRAINING, self.privacy, self.noise_multiplier, fixed)
        return np.asarray(total + random.normal(0, self.share, (_SITES, len(total))).sum(axis=0))


def women(stage: Stage) -> Played:
    """Whether one of four hospitals treats mostly women, told from the decrypted sum of a round."""
    shadows, targets = (40, 60) if stage.quick else (200, 400)
    noise = calibrate_noise(
        _FOR_RECORDS, lambda multiplier: [PoissonGaussian(multiplier, _TRAINING.sample_rate, _TRAINING.local_steps)]
    )
    plan = Plan(federation=FederationSettings(rounds=1, min_cohort=_SITES), training=_TRAINING, privacy=_FOR_SITES)
    share = SITE_NOISE_KEPT * noise_share(calibrated(plan, _SITES), _SITES)
    cases = {
        "no privacy": _Case(_UNLIKE, NO_PRIVACY),
        "epsilon 3 for records": _Case(_UNLIKE, _FOR_RECORDS, noise),
        "epsilon 1 for sites": _Case(_UNLIKE, _FOR_SITES, share=share),
        "nothing to be told": _Case(_USUAL, NO_PRIVACY),
    }
    found = {}
    for name, case in cases.items():
        random = np.random.default_rng(0)
        found[name] = guessed(lambda unlike: case.round(unlike, random), random, shadows, targets)  # noqa: B023
    areas = {name: auroc(each.scores, each.members.astype(np.int64)) for name, each in found.items()}
    figures = {
        "plain": areas["no privacy"].value,
        "records": areas["epsilon 3 for records"].value,
        "sites": areas["epsilon 1 for sites"].value,
        "nothing": areas["nothing to be told"].value,
        "noise": share * np.sqrt(_SITES * _MODEL.inputs[0]) / (_SITES * _FOR_SITES.max_update_norm),
    }
    alt = f"AUC of the attack on {targets} rounds: {pictures.said({name: area.value for name, area in areas.items()})}"
    shown = [Picture("Is that hospital unlike the others?", pictures.intervals(areas, alt), "0.5 is guessing.")]
    for name, each in list(found.items())[:3]:
        kinds = {"mostly women": each.scores[each.members], "like the others": each.scores[~each.members]}
        told = f"What the attacker says of rounds of both kinds, {name}"
        shown.append(Picture(f"Scores: {name}", pictures.histograms(kinds, "log-odds", told, 25)))
    return Played(
        figures,
        shown,
        notes=[
            "Encryption hides which hospital sent what, not the sum. Epsilon for records bounds what one patient "
            "changes; that a hospital is unlike the others is the doing of all its patients, and is told all the same.",
            'With sites as the unit (privacy.mode = "site") it is hidden, at a price: in this one round the noise is '
            f"{figures['noise']:.0f} times as long as four updates can add up to. That mode is for many sites.",
        ],
    )


def _hospital(random: np.random.Generator, share: float) -> Batch:
    """Patients drawn from the heart-disease records, that share of them women."""
    whole = pool("heart")
    women, men = (np.flatnonzero(whole.groups["sex"] == sex) for sex in ("Female", "Male"))
    drawn = int(random.binomial(_RECORDS, share))
    places = np.concatenate([random.choice(women, drawn), random.choice(men, _RECORDS - drawn)])
    records = whole.records(places)
    return records.features, records.labels


def _others(random: np.random.Generator) -> list[Batch]:
    return [_hospital(random, _USUAL) for _ in range(_SITES - 1)]
