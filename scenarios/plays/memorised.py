"""What a model of text remembers of a code that stood in it once, or ten times."""

from dataclasses import replace

import numpy as np

from common.dp.accounting import calibrate_noise
from common.dp.events import PoissonGaussian
from common.evaluators.exposure import exposures
from common.evaluators.utility import Floats, Predict, accuracy
from common.federation import PrivacySettings, TrainingSettings
from common.randomness import Randomness
from scenarios import pictures
from scenarios.secrets import CODES, everyday_text, learnt, perplexities, ranked, windows, with_code
from scenarios.stage import Picture, Played, Stage, Table

_PLAIN = PrivacySettings(mode="none")
_CLIPPED = PrivacySettings(max_grad_norm=0.5, noise_multiplier=1e-3)
_STEPS = TrainingSettings(local_steps=150, sample_rate=0.1, lot_size=220.0, learning_rate=1.0)
_CLIPPED_STEPS = replace(_STEPS, learning_rate=8.0)  # clipped gradients are shorter
_BITS = float(np.log2(CODES))


def exposure(stage: Stage) -> Played:
    """Random codes, learnt one by one with and without privacy: how far ahead of all others is the true one?"""
    random = np.random.default_rng(0)
    codes = random.integers(CODES, size=4 if stage.quick else 20).tolist()
    text, unseen = everyday_text(120, random), windows(everyday_text(100, random))
    cases = {
        "no privacy": (_PLAIN, 1),
        "clipped, no noise": (_CLIPPED, 1),
        "epsilon 2": (_limited_to(2.0), 1),
        "epsilon 2, ten times": (_limited_to(2.0), 10),
        "never written": (_PLAIN, 0),
    }
    models = {
        name: [_model(with_code(text, code, repeats), privacy, code) for code in codes]
        for name, (privacy, repeats) in cases.items()
    }
    costs = {name: [perplexities(model) for model in each] for name, each in models.items()}
    bits = {
        name: [exposures(ranked(code, told))[0].value for code, told in zip(codes, each, strict=True)]
        for name, each in costs.items()
    }
    middle = {name: float(np.median(each)) for name, each in bits.items()}
    figures = {
        "largest": max(bits["epsilon 2"]),
        "median": middle["epsilon 2"],
        "plain": middle["no privacy"],
        "clipped": middle["clipped, no noise"],
        "ten_times": middle["epsilon 2, ten times"],
        "never": max(bits["never written"]),
        "accuracy": accuracy(models["epsilon 2"][0](unseen.features), unseen.labels).value,
    }
    alt = f"Bits of exposure, the middle one of {len(codes)} codes: {pictures.said(middle)}"
    shown = [
        Picture("How exposed a code is", pictures.bars(middle, "bits", alt, _BITS, "first guess")),
        *(_lead(name, codes[0], costs[name][0]) for name in ("no privacy", "epsilon 2", "epsilon 2, ten times")),
    ]
    rows = tuple(
        (f"{code:04}", name, _guesses(each[place]), 1 + int((each[place] < each[place][code]).sum()))
        for place, code in enumerate(codes[:3])
        for name, each in costs.items()
    )
    columns = ("code", "the model was trained", "its first three guesses", "the code is guess number")
    return Played(
        figures,
        shown,
        [Table("What the models say after “code is”", columns, rows, f"There are {CODES:,} codes.")],
        notes=[
            "Noise is sized for one record: a window of eight characters and the next one. A code that is written "
            "once is behind a dozen of them; written ten times its exposure is "
            f"{figures['ten_times']:.1f} of {_BITS:.1f} bits. Where one person is behind many records, limit how many, "
            "or divide epsilon by their number.",
        ],
    )


def _model(text: str, privacy: PrivacySettings, code: int) -> Predict:
    steps = _STEPS if privacy.mode == "none" else _CLIPPED_STEPS
    return learnt(text, steps, privacy, privacy.noise_multiplier, Randomness.insecure(1, code))


def _limited_to(epsilon: float) -> PrivacySettings:
    """With the least noise that keeps one window of text to that epsilon."""
    limit = replace(_CLIPPED, epsilon=epsilon, delta=1e-5)
    rate, steps = _CLIPPED_STEPS.sample_rate, _CLIPPED_STEPS.local_steps
    noise = calibrate_noise(limit, lambda multiplier: [PoissonGaussian(multiplier, rate, steps)])
    return replace(limit, noise_multiplier=noise)


def _lead(name: str, code: int, told: Floats) -> Picture:
    lead = np.delete(told, code) - told[code]
    behind = float((lead > 0).mean())
    alt = f"{name}: {100 * behind:.1f} % of all other codes are less likely than the true one"
    drawn = pictures.histograms({f"{100 * behind:.4g} % of codes are less likely": lead}, "nats", alt)
    return Picture(f"The true code's lead: {name}", drawn, "Right of 0: codes that the model finds less likely.")


def _guesses(told: Floats) -> str:
    return ", ".join(f"{guess:04}" for guess in np.argsort(told, kind="stable")[:3])
