"""What an attacker rebuilds of images from each thing that training may show: an update, a sum, noise, a ciphertext.

All updates are the real training's; the ciphertext is what a site really sends. The model is known to the attacker.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.train import train
from common.encoding import Encoding
from common.evaluators.inversion import Rebuilt, from_first_layer, label_counts, peak_signal_to_noise
from common.evaluators.utility import Floats
from common.federation import ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.he.parameters import choose_scheme
from common.he.scheme import CohortKey, encrypt
from common.models import build, layer_sizes, predict
from common.randomness import Randomness
from common.updates import Vector, clip

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]  # images (n, d) with values 0 to 1, and labels (n,)
NO_PRIVACY = PrivacySettings(mode="none")


def update_of(
    settings: ModelSettings,
    batch: Batch,
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
) -> Vector:
    """(d,): what one site's training on these records makes of the settings' initial model."""
    return train(build(settings), *batch, training, privacy, noise_multiplier, randomness).update


def candidates(settings: ModelSettings, seen: Vector) -> Floats:
    """(k, d): the images that the first layer of `seen`, an update or a sum of them, tells of; least squares first."""
    width, hidden = settings.inputs[0], settings.hidden[0]
    weights, biases = seen[: width * hidden].reshape(hidden, width), seen[width * hidden :][:hidden]
    return from_first_layer(weights, biases)


def rebuilt(settings: ModelSettings, seen: Vector, truth: NDArray[np.float32], each_neuron: bool = True) -> Rebuilt:
    """How near `candidates` come to each image of truth (n, d).

    each_neuron: whether the attacker tries all neurons, or only least squares over them, which a sum of ten sites
    defeats. Neurons that one image alone excites give it away in any sum; only noise stops that.
    """
    tried = candidates(settings, seen) if each_neuron else candidates(settings, seen)[:1]
    return Rebuilt(peak_signal_to_noise(tried, np.asarray(truth, np.float64)))


def seen_in_ciphertext(plan: Plan, update: Vector, key: CohortKey, randomness: Randomness) -> Vector:
    """(d,): the words of what one site sends instead of `update`, taken for numbers, as whoever has no key must."""
    encoding = Encoding.of(plan, b"inversion attack", 1, key.scheme.value_bits, [update.size], 2)
    sent = encrypt(encoding.encode(clip(update, plan.privacy.max_update_norm), randomness), key)
    return np.resize(np.frombuffer(bytes(sent.c0), "<u2").astype(np.float64) - 2.0**15, update.size)


def fresh_key(plan: Plan, parameters: int, sites: int) -> CohortKey:
    return CohortKey.generate(choose_scheme(plan.encryption.preset, sites, parameters))


def labels_told(settings: ModelSettings, seen: Vector, records: int, gradient_scale: float) -> NDArray[np.int64]:
    """(classes,): how many records of each class the last layer's biases tell of.

    seen: (d,), an update or a sum of them, over `records` records in all; gradient_scale: what one step makes of the
    summed gradient, its learning rate over its lot. The model's mean probabilities on grey images stand for those on
    the records, which the attacker has not.
    """
    model = build(settings)
    grey = np.full((1, *settings.inputs), 0.5, np.float32)
    biases = -seen[-layer_sizes(model)[-1] :] / gradient_scale
    return np.rint(label_counts(biases, records, predict(model, grey)[0])).clip(0).astype(np.int64)


def share_of_labels_found(told: Sequence[NDArray[np.int64]], labels: Sequence[NDArray[np.int64]]) -> float:
    """Of all records behind some vectors, the share whose label was told as often as it occurs."""
    right = sum(int(np.minimum(t, np.bincount(y, minlength=len(t))).sum()) for t, y in zip(told, labels, strict=True))
    return right / sum(map(len, labels))
