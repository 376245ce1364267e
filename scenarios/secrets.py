"""Random codes planted in text that a tiny model of characters learns by the real training, and how exposed they are.

A record is a window of text and the character after it; so a code is behind several records, and noise that is
calibrated for one hides all of a code's only as far as group privacy goes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.train import train
from common.evaluators.exposure import Secrets
from common.evaluators.utility import Floats, Predict
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build, predict
from common.randomness import Randomness

_LETTERS = "abcdefghijklmnopqrstuvwxyz .0123456789"
_WINDOW = 8
_DIGITS = 4
CODES = 10**_DIGITS
_ASKED = "code is "
_PHRASES = ("bed {} is free. ", "ward {} is full. ", "he is {} years old. ", "room {} was cleaned. ")
MODEL = ModelSettings("mlp", (_WINDOW * len(_LETTERS),), len(_LETTERS), hidden=(64,))


@dataclass(frozen=True)
class Windows:
    """features: (n, window x letters), one-hot; labels: (n,), the character after each window."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def windows(text: str) -> Windows:
    """Of every character but the first few. Raises ValueError for a character that the model does not know."""
    codes = np.array([_LETTERS.index(letter) for letter in text])
    places = np.arange(len(text) - _WINDOW)[:, None] + np.arange(_WINDOW)
    return Windows(_one_hot(codes[places]), codes[_WINDOW:])


def everyday_text(phrases: int, rng: np.random.Generator) -> str:
    """What a ward writes down all day: digits occur, codes do not."""
    return "".join(_PHRASES[rng.integers(len(_PHRASES))].format(rng.integers(10, 100)) for _ in range(phrases))


def exposed(
    text: str,
    repeats: int,
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
    rng: np.random.Generator,
) -> Secrets:
    """Exposure of a random code of four digits that is written `repeats` times among the text; all codes are ranked.

    rng: draws the code, which is all that the odds of a code that was not learnt rest on.
    """
    code = int(rng.integers(CODES))
    return ranked(
        code, perplexities(learnt(with_code(text, code, repeats), training, privacy, noise_multiplier, randomness))
    )


def with_code(text: str, code: int, repeats: int) -> str:
    return text + f"{_ASKED}{code:0{_DIGITS}}. " * repeats


def learnt(
    text: str, training: TrainingSettings, privacy: PrivacySettings, noise_multiplier: float, randomness: Randomness
) -> Predict:
    """What comes after each of the given windows (n, letters), says a model that the real training made of the text."""
    model, written = build(MODEL), windows(text)
    train(model, written.features, written.labels, training, privacy, noise_multiplier, randomness)
    return lambda features: predict(model, features)


def ranked(code: int, told: Floats) -> Secrets:
    """That code among all others. told: as `perplexities` gives them."""
    return Secrets(told[code : code + 1], np.delete(told, code), _DIGITS * math.log2(10))


def perplexities(predict_next: Predict) -> Floats:
    """(10^4,): nats that each code costs after the words that announce one."""
    total = np.zeros(1)
    digits = np.array([_LETTERS.index(str(digit)) for digit in range(10)])
    for known in range(_DIGITS):
        contexts = [f"{_ASKED}{code:0{known}}"[-_WINDOW:] if known else _ASKED for code in range(10**known)]
        coded = np.array([[_LETTERS.index(letter) for letter in context] for context in contexts])
        losses = -np.log(np.maximum(predict_next(_one_hot(coded))[:, digits], np.finfo(np.float64).tiny))
        total = (total[:, None] + losses).reshape(-1)
    return total


def _one_hot(codes: NDArray[np.int64] | Sequence[Sequence[int]]) -> NDArray[np.float32]:
    table = np.eye(len(_LETTERS), dtype=np.float32)[np.asarray(codes)]
    return table.reshape(len(table), -1)
