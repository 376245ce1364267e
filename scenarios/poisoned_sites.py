"""A federation some of whose sites send poison, in one process: the true training, shuffle and rules.

Nothing is encrypted. That an encrypted run by buckets gives the same model as these means of buckets do is what
`tests/scenarios/test_buckets.py` proves; so a grid of attacks and rules need not encrypt each of its cells.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.train import train
from common.buckets import shuffled
from common.federation import ModelSettings, TrainingSettings
from common.models import build, load_parameters, parameters_of, predict
from common.randomness import Randomness
from common.robust_rules import Rule
from common.updates import Vector
from scenarios.inversion import NO_PRIVACY
from scenarios.poisoning import ATTACKS

Part = tuple[NDArray[np.float32], NDArray[np.int64]]
OF_RECORDS = ("label-flip", "backdoor")  # attacks that a site makes by training as it should, on poisoned records
_LOUDER = 5  # a backdoor's updates are so much longer, so that a fifth of the sites weighs as much as all
_RUN = bytes(16)


@dataclass(frozen=True)
class Attack:
    """name: "" for none, one of OF_RECORDS or of `poisoning.ATTACKS`. bad: the places of the sites that make it."""

    name: str = ""
    bad: tuple[int, ...] = ()


@dataclass(frozen=True)
class Defence:
    """told: how many bad vectors the rule is to bear. buckets: 0 where it acts on each update."""

    rule: Rule
    told: int = 0
    buckets: int = 0


@dataclass(frozen=True)
class Cohort:
    """part: a site's place, and an attack of OF_RECORDS or "", to the records that it trains on."""

    sites: int
    model: ModelSettings
    local: TrainingSettings
    part: Callable[[int, str], Part]

    def trained(self, attack: Attack, defence: Defence, rounds: int) -> Vector:
        """The model after so many rounds. All is drawn from fixed seeds, so cells differ in what they name alone."""
        rng = np.random.default_rng(0)
        model = parameters_of(build(self.model)).astype(np.float64)
        for number in range(1, rounds + 1):
            updates = self._updates(model, attack, number, rng)
            model = model + defence.rule(self._means(updates, defence.buckets, number, model), defence.told)
        return np.asarray(model)

    def predicted(self, model: Vector, features: NDArray[np.float32]) -> NDArray[np.float64]:
        network = build(self.model)
        load_parameters(network, model.astype(np.float32))
        return predict(network, features)

    def _updates(self, model: Vector, attack: Attack, number: int, rng: np.random.Generator) -> Mapping[str, Vector]:
        forged = attack.name in ATTACKS
        trained = [site for site in range(self.sites) if not (forged and site in attack.bad)]
        updates: dict[int, Vector] = {site: self._update(model, site, attack, number) for site in trained}
        if forged:
            poison = ATTACKS[attack.name](np.stack(list(updates.values())), len(attack.bad), rng)
            updates |= dict(zip(attack.bad, poison, strict=True))
        return {_name(site): updates[site] for site in range(self.sites)}

    def _update(self, model: Vector, site: int, attack: Attack, number: int) -> Vector:
        network = build(self.model)
        load_parameters(network, model.astype(np.float32))
        bad = site in attack.bad
        part = self.part(site, attack.name if bad else "")
        update = train(network, *part, self.local, NO_PRIVACY, 0.0, Randomness.insecure(1, number)).update
        return np.asarray(update * (_LOUDER if bad and attack.name == "backdoor" else 1))

    def _means(self, updates: Mapping[str, Vector], buckets: int, number: int, model: Vector) -> Sequence[Vector]:
        if not buckets:
            return list(updates.values())
        version = hashlib.sha256(model.astype("<f4").tobytes()).digest()
        shuffle = shuffled(list(updates), buckets, _RUN, number, version)
        return [np.mean([updates[site] for site in bucket], axis=0) for bucket in shuffle]


def _name(site: int) -> str:
    return f"site-{site:02}"
