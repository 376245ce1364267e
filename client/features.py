"""Image features that look at one image at a time: no constant is learnt from any data set, so they cost no privacy.

Every image becomes one vector of norm 1 (or 0 for an image without any contrast), which is what makes a linear model
under DP-SGD strong: Tramer and Boneh 2021, arXiv:2011.11660.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Images = NDArray[np.uint8]  # (n, height, width)
Floats = NDArray[np.float32]

VERSION = 1  # of every extractor here; a change of any number they return must raise it, for caches' sake

_ORIENTATIONS = 8
_BATCH = 500


def hog(images: Images) -> Floats:
    """(n, k) float32: histograms of oriented gradients over cells of 8 x 8 (every 4) and of 4 x 4 pixels.

    Each scale is brought to norm 1, then the whole vector is centred and brought to norm 1, all within one image.
    k = 680 for 28 x 28. Height and width: multiples of 4, at least 8.
    Reference: Dalal and Triggs 2005 (their blocks reduced to one per scale).
    """
    return _in_batches(images, _hog)


def _hog(pixels: Floats) -> Floats:
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    n, height, width = pixels.shape
    cells = np.empty((n, _ORIENTATIONS, height // 4, width // 4), np.float32)
    # The rectified squares over all directions sum to this many squared gradients: their common magnitude.
    magnitude = np.sqrt(_ORIENTATIONS / 4 * (right**2 + down**2) + np.float32(1e-6))
    for k in range(_ORIENTATIONS):
        angle = 2 * math.pi * k / _ORIENTATIONS
        along = np.maximum(right * np.float32(math.cos(angle)) + down * np.float32(math.sin(angle)), 0)
        cells[:, k] = _block_mean(along**2 / magnitude)
    windows = (cells[:, :, :-1, :-1] + cells[:, :, 1:, :-1] + cells[:, :, :-1, 1:] + cells[:, :, 1:, 1:]) / 4
    scales = [_unit(scale.reshape(n, -1), floor=1e-3) for scale in (windows, cells)]
    joined = _unit(np.concatenate(scales, axis=1))
    return _unit(joined - joined.mean(axis=1, keepdims=True))


def _block_mean(values: Floats) -> Floats:
    n, height, width = values.shape
    return values.reshape(n, height // 4, 4, width // 4, 4).mean(axis=(2, 4))


def _unit(rows: Floats, floor: float = 1e-12) -> Floats:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(floor))


def _in_batches(images: Images, extract: Callable[[Floats], Floats]) -> Floats:
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ConfigError(f"images must be bytes (n, height, width), got {images.dtype} {images.shape}")
    if any(size < 8 or size % 4 for size in images.shape[1:]):
        raise ConfigError(f"image sides must be multiples of 4, at least 8, got {images.shape[1:]}")
    starts = range(0, len(images), _BATCH)
    return np.concatenate([extract(images[i : i + _BATCH].astype(np.float32) / 255) for i in starts])
