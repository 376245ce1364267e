"""Canaries through the real training: how well they are found afterwards is what an audit judges. Pure but for noise.

A canary is a record with one feature that no other record has, so large that its gradient is as long as clipping lets
it be and meets no other's; the audit sees every weight. No record can be found more easily, so what it finds is the
mechanism's own privacy, not that of one data set.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from client.train import train
from common.encoding import Encoding
from common.evaluators.privacy_audit import Canaries
from common.evaluators.utility import Floats
from common.federation import ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.he.parameters import choose_scheme
from common.he.scheme import CohortKey, encrypt, open_sum
from common.models import build, layer_sizes
from common.randomness import Randomness
from common.updates import Vector, clip
from server.aggregate_encrypted import BlindSum

_LOUD = 20.0  # a canary's feature, in units of the gradient bound


@dataclass(frozen=True)
class Bug:
    """What a broken mechanism does while it claims what the sound one costs. The default is sound.

    noise: what all noise is multiplied by. clipping: what the bound is multiplied by, the noise left as it was.
    rounds: how often training goes on from where it was, after the accountant was told of one.
    """

    noise: float = 1.0
    clipping: float = 1.0
    rounds: int = 1


PLANTED = {
    "noise halved": Bug(noise=0.5),
    "no noise": Bug(noise=1e-6),
    "no clipping": Bug(clipping=10.0),
    "accountant reset": Bug(rounds=10),
}


class _Weakened(Randomness):
    """A generator whose normal draws are too small: the bug that nothing but an audit sees."""

    def __init__(self, source: Randomness, factor: float) -> None:
        super().__init__(source.bytes(32), source.secure)
        self._factor = factor

    def gaussian(self, n: int, std: float = 1.0, dtype: DTypeLike = np.float32) -> NDArray[np.floating]:
        return super().gaussian(n, std, dtype) * np.asarray(self._factor, dtype)


def audited_training(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    canaries: int,
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
    rng: np.random.Generator,
    bug: Bug | None = None,
) -> Canaries:
    """What `client.train` shows of canaries among the records (n, d), of a linear model; the claim is `privacy`'s.

    rng: tosses the canaries' coins, which is all that the audit's own odds rest on.
    """
    bug = bug or Bug()
    linear, mixed, answers, coins, ways = _with_canaries(features, labels, canaries, privacy, rng)
    model = build(linear)
    broken = replace(privacy, max_grad_norm=privacy.max_grad_norm * bug.clipping)
    source = randomness if bug.noise == 1 else _Weakened(randomness, bug.noise)
    update = np.zeros(sum(layer_sizes(model)))
    for _ in range(bug.rounds):
        update += train(model, mixed, answers, training, broken, noise_multiplier / bug.clipping, source).update
    return Canaries(_scores(update, ways, features.shape[1]), coins, privacy.epsilon, privacy.delta)


def audited_shares(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    canaries: int,
    plan: Plan,
    cohort: int,
    randomness: Randomness,
    rng: np.random.Generator,
    bug: Bug | None = None,
) -> Canaries:
    """What one decrypted sum of a cohort shows of canaries at its first site, noise coming in shares.

    Every step is the real one: clipped gradients, each site's share on the integer grid, encryption, the blind sum,
    opening. The other sites send nothing but their shares of the noise. plan: of mode "distributed".
    """
    bug = bug or Bug()
    linear, mixed, answers, coins, ways = _with_canaries(features, labels, canaries, plan.privacy, rng)
    model = build(linear)
    broken = replace(plan.privacy, max_grad_norm=plan.privacy.max_grad_norm * bug.clipping)
    source = randomness if bug.noise == 1 else _Weakened(randomness, bug.noise)
    planned = plan.privacy.noise_multiplier  # for the checks on it: with shares, training adds none
    trained = train(model, mixed, answers, plan.training, broken, planned, randomness).update
    scheme = choose_scheme(plan.encryption.preset, cohort, trained.size)
    key, total = CohortKey.generate(scheme), BlindSum(scheme, trained.size)
    encoding = Encoding.of(plan, b"audit of shares.", 1, scheme.value_bits, layer_sizes(model), cohort)
    for site in range(cohort):
        update = clip(trained if site == 0 else np.zeros_like(trained), plan.privacy.max_update_norm)
        total.add(encrypt(encoding.encode(update, source), key))
    summed = encoding.decode(open_sum(total.result(), key))
    return Canaries(_scores(summed, ways, features.shape[1]), coins, plan.privacy.epsilon, plan.privacy.delta)


def _with_canaries(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    canaries: int,
    privacy: PrivacySettings,
    rng: np.random.Generator,
) -> tuple[ModelSettings, NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], Floats]:
    """A linear model, records and labels with the included canaries among them, every canary's coin, and its direction.

    Directions: (m, classes), what a canary's label moves the weights of its feature along, length 1.
    """
    classes, width = int(labels.max()) + 1, features.shape[1]
    linear = ModelSettings("logistic", (width + canaries,), classes)
    coins, named = rng.random(canaries) < 0.5, np.arange(canaries) % classes
    mixed = np.zeros((len(labels) + int(coins.sum()), width + canaries), np.float32)
    mixed[: len(labels), :width] = features
    mixed[np.arange(len(labels), len(mixed)), width + np.flatnonzero(coins)] = _LOUD * privacy.max_grad_norm
    ways = np.eye(classes)[named] - 1 / classes
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    return linear, mixed, np.concatenate([labels, named[coins]]), coins, ways


def _scores(update: Vector, ways: Floats, width: int) -> Floats:
    """(m,): how far each canary's own weights moved in its direction."""
    canaries, classes = ways.shape
    weights = update[: classes * (width + canaries)].reshape(classes, width + canaries)
    return np.asarray((weights[:, width:].T * ways).sum(axis=1))
