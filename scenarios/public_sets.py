"""The public data sets a simulation can use, read whole: facts that need no reading, and the pools themselves."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from client import features as extractors
from client.datasets import Records, read_adult, read_heart, read_idx
from client.tables import ADULT, HEART, HEART_SITES
from common.errors import ConfigError
from common.files import write_atomically
from scenarios.fetch import cache_directory, find, scikit_learn_data

Features = Literal["none", "hog", "scattering"]

HEART_TABLE = Path(__file__).parent / "heart" / "heart_disease_uci.csv"


@dataclass(frozen=True)
class PublicSet:
    """What is publicly known of a data set before anybody reads it. natural: its own sites, if it has any."""

    records: int
    inputs: tuple[int, ...]
    classes: int
    natural: tuple[str, ...] = ()


PUBLIC_SETS = {
    "heart": PublicSet(920, (HEART.width,), 2, tuple(HEART_SITES)),
    "digits": PublicSet(1797, (64,), 10),
    "breast-cancer": PublicSet(569, (30,), 2),
    "mnist": PublicSet(70_000, (1, 28, 28), 10),
    "adult": PublicSet(48_842, (ADULT.width,), 2),
}
EXTRACTED_INPUTS: Mapping[Features, tuple[int, ...]] = {"hog": (680,), "scattering": (3969,)}

# Ranges for the 30 measurements of a cell nucleus: the minima and maxima that the data set's published documentation
# prints (scikit-learn, breast_cancer.rst), rounded outwards. Order: mean, standard error, worst of ten measurements.
_BREAST_CANCER_RANGES = np.array(
    [
        *[
            (6, 30),
            (9, 40),
            (40, 200),
            (100, 2600),
            (0.05, 0.2),
            (0, 0.4),
            (0, 0.5),
            (0, 0.25),
            (0.1, 0.35),
            (0.04, 0.1),
        ],
        *[(0, 3), (0, 5), (0, 25), (0, 600), (0, 0.04), (0, 0.15), (0, 0.4), (0, 0.06), (0, 0.1), (0, 0.03)],
        *[(7, 40), (10, 50), (50, 260), (150, 4500), (0.05, 0.25), (0, 1.1), (0, 1.3), (0, 0.3), (0.1, 0.7), (0, 0.25)],
    ]
).T


@dataclass(frozen=True, eq=False)
class Pool:
    """All records of a data set. Features stay compact (bytes, halves, a memory map) and count `scale` times."""

    features: NDArray[Any] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    reserved: NDArray[np.bool_] = field(repr=False)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    scale: float = 1.0
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def records(self, places: NDArray[np.int64]) -> Records:
        """The records at `places`, and no others."""
        features = self.features[places].astype(np.float32) * np.float32(self.scale)
        groups = {name: values[places] for name, values in self.groups.items()}
        return Records(features, self.labels[places], groups, self.reserved[places], self.columns)


def pool(name: str, directory: str = "", features: Features = "none") -> Pool:
    """The whole of a public data set, read once per process. directory, features: see `DataSettings`."""
    if name in ("mnist", "adult"):
        files = tuple(sorted(find(name, directory).items()))
        return _mnist(files, features) if name == "mnist" else _adult(files)
    return {"heart": _heart, "digits": _digits, "breast-cancer": _breast_cancer}[name]()


@lru_cache(maxsize=1)
def _heart() -> Pool:
    return _joined(read_heart(HEART_TABLE))


@lru_cache(maxsize=1)
def _adult(files: tuple[tuple[str, Path], ...]) -> Pool:
    path = dict(files)
    return _joined(read_adult(path["adult.data"]), read_adult(path["adult.test"], reserved=True))


def _joined(*parts: Records) -> Pool:
    return Pool(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.reserved for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in parts[0].groups},
        columns=parts[0].columns,
    )


@lru_cache(maxsize=1)
def _digits() -> Pool:
    table = _scikit_learn_table("digits.csv.gz")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
    return Pool(pixels.astype(np.uint8), labels, np.zeros(len(labels), bool), scale=1 / 16)  # pixels are 0 to 16


@lru_cache(maxsize=1)
def _breast_cancer() -> Pool:
    table = _scikit_learn_table("breast_cancer.csv", skip_header=1)
    low, high = _BREAST_CANCER_RANGES
    scaled = (table[:, :-1] - low) / (high - low)
    features = (2 * scaled.clip(0, 1) - 1) / np.sqrt(len(low))  # norm <= 1
    return Pool(features, table[:, -1].astype(np.int64), np.zeros(len(table), bool))


def _scikit_learn_table(file: str, skip_header: int = 0) -> NDArray[np.float64]:
    """A table that scikit-learn ships, read without importing scikit-learn, which takes two seconds."""
    path = scikit_learn_data() / file
    if not path.is_file():
        from sklearn.datasets import load_breast_cancer, load_digits

        load = load_digits if file.startswith("digits") else load_breast_cancer
        features, labels = load(return_X_y=True)
        return np.column_stack([features, labels])
    return np.loadtxt(path, delimiter=",", skiprows=skip_header)


@lru_cache(maxsize=1)
def _mnist(files: tuple[tuple[str, Path], ...], features: Features) -> Pool:
    path = dict(files)
    images = [path["train-images-idx3-ubyte"], path["t10k-images-idx3-ubyte"]]
    train, test = (read_idx(path[f"{part}-labels-idx1-ubyte"]).astype(np.int64) for part in ("train", "t10k"))
    labels, reserved = np.concatenate([train, test]), np.arange(len(train) + len(test)) >= len(train)
    if features == "none":
        held = Pool(_read_images(images)[:, None], labels, reserved, scale=1 / 255)
    else:
        held = Pool(_extracted(images, features), labels, reserved)
    if len(held.features) != len(labels):
        raise ConfigError(f"{len(held.features)} images but {len(labels)} labels in {images[0].parent}")
    return held


def _read_images(paths: list[Path]) -> NDArray[np.uint8]:
    return np.concatenate([read_idx(path) for path in paths])


def _extracted(images: list[Path], features: Features) -> NDArray[np.float16]:
    """Features of all images as halves, mapped from the cache, where they are kept by file content and version."""
    content = hashlib.sha256(b"".join(path.read_bytes() for path in images)).hexdigest()[:16]
    cached = cache_directory() / "features" / f"{features}-{extractors.VERSION}-{content}.npy"
    try:
        return np.load(cached, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):  # not there yet, or not a whole file
        extract, pixels = getattr(extractors, features), _read_images(images)
        chunks = [pixels[start : start + 2000] for start in range(0, len(pixels), 2000)]  # for memory's sake
        extracted = np.concatenate([extract(chunk).astype(np.float16) for chunk in chunks])
    buffer = io.BytesIO()
    np.save(buffer, extracted)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, buffer.getvalue(), 0o644)
    except OSError:  # a full or read-only disk costs the next run ten seconds, and nothing else
        pass
    return extracted
