"""Attacks on what the real training gives away: canaries, membership, images rebuilt."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from client.train import train
from common.dp.accounting import calibrate_noise
from common.dp.events import PoissonGaussian
from common.evaluators.inversion import RECOVERED_DB
from common.evaluators.membership import true_positives_at
from common.evaluators.privacy_audit import audit
from common.evaluators.utility import Predict, accuracy, auroc
from common.federation import ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.models import build, predict
from common.randomness import Randomness
from scenarios import pictures
from scenarios.canaries import PLANTED, Bug, audited_training
from scenarios.inversion import (
    NO_PRIVACY,
    candidates,
    fresh_key,
    labels_told,
    rebuilt,
    seen_in_ciphertext,
    share_of_labels_found,
    update_of,
)
from scenarios.membership import attacked_models
from scenarios.stage import Picture, Played, Stage, Table

_STEPS, _CLAIM = 10, PrivacySettings(epsilon=4.0, delta=1e-5)
_AUDITED = TrainingSettings(local_steps=_STEPS, sample_rate=1.0, lot_size=3000.0, learning_rate=0.3)
BY_HEART = TrainingSettings(sampling="shuffle", local_epochs=60, batch_size=32, learning_rate=0.1, momentum=0.9)
_SHALLOW = ModelSettings("mlp", (64,), 10, hidden=(128,), seed=3)
_RATE, _SITES = 0.1, 10
_POOL = 1200
Images = NDArray[np.float32]


def honest_and_broken(stage: Stage) -> Played:
    """The audit of a sound training, and of the same with each bug planted in it."""
    canaries, seed = 1000 if stage.quick else 5000, 0
    noise = calibrate_noise(_CLAIM, lambda multiplier: [PoissonGaussian(multiplier, 1.0, _STEPS)])
    features, labels = _digits()

    def verdict(bug: Bug | None):  # type: ignore[no-untyped-def]
        streams = Randomness.insecure(seed), np.random.default_rng(seed)
        return audit(
            audited_training(features[:500] / 8, labels[:500], canaries, _AUDITED, _CLAIM, noise, *streams, bug)
        )

    honest = verdict(SOUND)
    broken = {name: verdict(bug) for name, bug in PLANTED.items()}
    figures = {
        "certificate": honest.certificate,
        "detector": honest.detector,
        "honest_flagged": float(honest.flagged),
        "bugs_missed": float(sum(not each.flagged for each in broken.values())),
        "fit": honest.fit,
    }
    every = {"as it should be": honest, **broken}
    detected = {name: min(each.detector, 30.0) for name, each in every.items()}
    rows = tuple((n, v.certificate, v.detector, "refuted" if v.flagged else "stands") for n, v in every.items())
    columns = ("training", "certificate", "detector", "the claim of ε 4")
    alt = f"Lower bounds on epsilon: {'; '.join(f'{name} {value:.1f}' for name, value in detected.items())}"
    shown = Picture(
        "Epsilon is at least",
        pictures.bars(detected, "detector, 95 %, cut at 30", alt, _CLAIM.epsilon, "claimed"),
        f"{canaries:,} canaries. An honest run is flagged once in 1,000 at most.",
    )
    claim = {"claimed_epsilon": _CLAIM.epsilon, "certificate": honest.certificate, "detector": honest.detector}
    return Played(figures, [shown], [Table("Every training that was audited", columns, rows)], audit=claim)


def membership(stage: Stage) -> Played:
    """LiRA against models that learn by heart, and against models of epsilon 4 on the same records."""
    models, targets = (4, 2) if stage.quick else (9, 3)
    features, labels, true = mislabelled()
    noise = calibrate_noise(CLAIMED, lambda multiplier: [PoissonGaussian(multiplier, 0.2, 150)])
    found = {}
    for name, fit in {
        "no privacy": fitted(BY_HEART, NO_PRIVACY, 256, 0.0),
        "epsilon 4": fitted(PRIVATE, CLAIMED, WIDTH, noise * NOISE_KEPT),
    }.items():
        rng = np.random.default_rng(0)
        found[name] = attacked_models(features[:_POOL], labels[:_POOL], fit, rng, models, targets)
    private = fitted(PRIVATE, CLAIMED, WIDTH, noise * NOISE_KEPT)(features[:600], labels[:600], 99)
    areas = {name: auroc(each.scores, each.members.astype(np.int64)).value for name, each in found.items()}
    caught = {name: true_positives_at(each).value for name, each in found.items()}
    figures = {
        "plain_auc": areas["no privacy"],
        "auc": areas["epsilon 4"],
        "caught": caught["epsilon 4"],
        "accuracy": accuracy(private(features[_POOL:]), true[_POOL:]).value,
    }
    alt = "; ".join(f"{name}: AUC {areas[name]:.3f}, {100 * caught[name]:.1f} % found" for name in areas)
    at = {name: 100 * value for name, value in caught.items()}
    shown = [Picture("Members against others", pictures.bars(areas, "AUC of the attack", alt, 0.5, "guessing"))]
    shown += [Picture("Members surely found", pictures.bars(at, "% found at 1 % false alarms", alt, 1.0, "guessing"))]
    for name, each in found.items():
        kinds = {"members": each.scores[each.members], "others": each.scores[~each.members]}
        wide = np.percentile(np.concatenate(list(kinds.values())), [0.5, 99.5])
        cut = {kind: values[(values >= wide[0]) & (values <= wide[1])] for kind, values in kinds.items()}
        told = f"Scores of members and others, {name}"
        shown.append(Picture(f"Scores: {name}", pictures.histograms(cut, "likelihood ratio", told)))
    return Played(figures, shown, notes=["A fifth of the labels is drawn anew: what a model must learn by heart."])


def inversion(stage: Stage) -> Played:
    """The same attacker before four things: one update, a decrypted sum of ten, noise, and a ciphertext."""
    attacks = 20 if stage.quick else 100
    plan = Plan(model=_SHALLOW)
    key = fresh_key(plan, 9610, 2)
    looks: dict[str, list[tuple[NDArray[np.float64], Images]]] = {name: [] for name in _LOOKS}
    for place in range(attacks):
        plain, images = _seen(place)
        looks["one update, readable"].append((plain, images))
        others = range(attacks + place * (_SITES - 1), attacks + (place + 1) * (_SITES - 1))
        each = [_seen(one) for one in (place, *others)]
        total = np.sum([update for update, _ in each], axis=0)
        looks["sum of ten sites"].append((total, np.concatenate([image for _, image in each])))
        looks["one update, with noise"].append(_seen(place, noise=NOISE))
        sent = seen_in_ciphertext(plan, plain, key, Randomness.insecure(place))
        looks["one update, encrypted"].append((sent if ENCRYPTED else plain, images))
    each_neuron = {
        name: np.concatenate([rebuilt(_SHALLOW, *look).psnr for look in found]) for name, found in looks.items()
    }
    least = np.concatenate([rebuilt(_SHALLOW, *look, each_neuron=False).psnr for look in looks["sum of ten sites"]])
    share = {name: float((psnr > RECOVERED_DB).mean()) for name, psnr in each_neuron.items()}
    figures = {
        "plain": share["one update, readable"],
        "sum_least_squares": float((least > RECOVERED_DB).mean()),
        "sum_by_neuron": share["sum of ten sites"],
        "noise": share["one update, with noise"],
        "ciphertext": share["one update, encrypted"],
        "labels_of_sum": _labels(0.0),
        "labels_with_noise": _labels(NOISE),
    }
    pieces = {"the truth": [images[0].reshape(8, 8).astype(np.float64) for _, images in looks[_LOOKS[0]][:_SHOWN]]}
    for name in _LOOKS:
        pieces[name] = [_best(update, images[:1]) for update, images in looks[name][:_SHOWN]]
    percent = {name: 100 * value for name, value in share.items()}
    alt = "; ".join(f"{name}: {value:.0f} % recovered" for name, value in percent.items())
    return Played(
        figures,
        [
            Picture(
                "What the attacker rebuilds",
                pictures.images(pieces, f"Digits as they were and as they are rebuilt. {alt}"),
                "Nearest of all candidates to the image in the first row; the attacker would have to choose by eye.",
                wide=True,
            ),
            Picture("Images recovered", pictures.bars(percent, f"% over {RECOVERED_DB:g} dB", alt)),
        ],
        notes=[
            "Encryption hides each update, not the decrypted sum, which every site opens. In a sum of ten sites with "
            f"one image each, single neurons still give away {share['sum of ten sites']:.0%} of the images, and "
            f"{figures['labels_of_sum']:.0%} of the labels are told. Only noise stops that.",
        ],
    )


SOUND: Bug | None = None  # what the audit takes for an honest training
CLAIMED = PrivacySettings(epsilon=4.0, delta=1e-5)
PRIVATE = TrainingSettings(local_steps=150, sample_rate=0.2, lot_size=120.0, learning_rate=1.0)
WIDTH = 64  # of the private model
NOISE_KEPT = 1.0  # of the noise that epsilon 4 takes
NOISE = 2.8  # noise multiplier of the noisy update
ENCRYPTED = True
_LOOKS = ("one update, readable", "sum of ten sites", "one update, with noise", "one update, encrypted")
_SHOWN = 10


def fitted(training: TrainingSettings, privacy: PrivacySettings, hidden: int, noise: float):  # type: ignore[no-untyped-def]
    def fit(features: Images, labels: NDArray[np.int64], which: int) -> Predict:
        model = build(ModelSettings("mlp", (64,), 10, hidden=(hidden,)))
        train(model, features, labels, training, privacy, noise, Randomness.insecure(0, which))
        return lambda asked: predict(model, asked)

    return fit


def mislabelled() -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Shuffled digits, labels of which a fifth are drawn anew, and the true ones."""
    features, true = _digits()
    random = np.random.default_rng(7)
    order = random.permutation(len(true))
    features, true = features[order], true[order]
    wrong = random.random(len(true)) < 0.2
    return features, np.where(wrong, random.integers(0, 10, len(true)), true), true


def _seen(place: int, noise: float = 0.0) -> tuple[NDArray[np.float64], Images]:
    """One site's update of one image, and the image."""
    features, labels = _digits()
    batch = features[place % len(labels)][None], labels[place % len(labels)][None]
    training = TrainingSettings(local_steps=1, sample_rate=1.0, lot_size=1.0, learning_rate=_RATE)
    privacy = PrivacySettings() if noise else NO_PRIVACY
    return update_of(_SHALLOW, batch, training, privacy, noise, Randomness.insecure(place)), batch[0]


def _labels(noise: float) -> float:
    """The share of labels that the last layer of a sum of ten sites tells."""
    _, labels = _digits()
    told: list[NDArray[np.int64]] = []
    true: Sequence[NDArray[np.int64]] = []
    for place in range(20):
        chosen = range(place * _SITES, (place + 1) * _SITES)
        total = np.sum([_seen(each, noise)[0] for each in chosen], axis=0)
        told.append(labels_told(_SHALLOW, total, _SITES, _RATE))
        true = [*true, labels[list(chosen)]]
    return share_of_labels_found(told, true)


def _best(update: NDArray[np.float64], image: Images) -> NDArray[np.float64]:
    """Of all candidates the one nearest to the image, scaled to grey."""
    tried = candidates(_SHALLOW, update)
    nearest = tried[np.argmin(((tried - image) ** 2).mean(axis=1))]
    return np.asarray(np.clip(nearest, 0, 1).reshape(8, 8))


@lru_cache(maxsize=1)
def _digits() -> tuple[Images, NDArray[np.int64]]:
    features, labels = load_digits(return_X_y=True)
    return (features / 16).astype(np.float32), labels
