"""Image features that look at one image at a time: no constant is learnt from any data set, so they cost no privacy.

Every image becomes one vector of norm 1 (or 0 for an image without any contrast), which is what makes a linear model
under DP-SGD strong: Tramer and Boneh 2021, arXiv:2011.11660.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Images = NDArray[np.uint8]  # (n, height, width)
Floats = NDArray[np.float32]

VERSION = 1  # of every extractor here; a change of any number they return must raise it, for caches' sake

_ORIENTATIONS = 8


def hog(images: Images) -> Floats:
    """(n, k) float32: histograms of oriented gradients over cells of 8 x 8 (every 4) and of 4 x 4 pixels.

    Each scale is brought to norm 1, then the whole vector is centred and brought to norm 1, all within one image.
    k = 680 for 28 x 28. Height and width: multiples of 4, at least 8.
    Reference: Dalal and Triggs 2005 (their blocks reduced to one per scale).
    """
    return _in_batches(images, _hog, batch=500)


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


def scattering(images: Images) -> Floats:
    """(n, k) float32: scattering coefficients of two layers of Morlet wavelets, 2 scales and 8 orientations.

    81 low-passed maps of moduli (1 + 16 + 64), sampled every 4 pixels, normalised in 27 groups of 3 maps within one
    image; the vector's norm is at most 1. k = 3969 for 28 x 28. Height and width: equal, multiples of 4, at least 8.
    Reference: Oyallon and Mallat 2015, arXiv:1412.8659; in DP-SGD: Tramer and Boneh 2021, arXiv:2011.11660.
    """
    if images.ndim == 3 and images.shape[1] != images.shape[2]:
        raise ConfigError(f"images must be square, got {images.shape[1:]}")
    return _in_batches(images, _scattering, batch=50)


def _scattering(pixels: Floats) -> Floats:
    border = 4
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border)), mode="reflect")
    n, size, _ = padded.shape
    fine, coarse = _wavelets(size, scale=0), _wavelets(size, scale=1)
    whole = np.fft.fft2(padded)[:, None]
    first = _modulus(whole * fine)  # (n, 8, size, size): details of one pixel, by direction
    first_coarse = _modulus(_every_second(whole * coarse))  # of two pixels: half the samples are enough
    second = _modulus(_every_second(np.fft.fft2(first)[:, :, None] * coarse))  # (n, 8, 8, half, half)
    maps = [_low_pass(padded[:, None], 4), _low_pass(first, 4), _low_pass(first_coarse, 2), _low_pass(second, 2)]
    grouped = np.concatenate([each.reshape(n, -1, maps[0].shape[-1] ** 2) for each in maps], axis=1).reshape(n, 27, -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + np.float32(1e-5))
    return normal.reshape(n, -1) / np.float32(math.sqrt(normal.shape[1] * normal.shape[2]))


def _modulus(spectrum: NDArray[np.complex64]) -> Floats:
    signal = np.fft.ifft2(spectrum)
    return np.sqrt(signal.real**2 + signal.imag**2)  # three times as fast as np.abs, which guards against overflow


def _every_second(spectrum: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The spectrum of the same signal sampled at every second place."""
    half = spectrum.shape[-1] // 2
    rows = spectrum[..., :half, :] + spectrum[..., half:, :]
    return (rows[..., :half] + rows[..., half:]) / 4


@lru_cache(maxsize=4)
def _wavelets(size: int, scale: int) -> NDArray[np.complex64]:
    """(8, size, size): Fourier transforms of Morlet wavelets of 2^scale pixels in 8 directions, on a torus."""
    return np.stack([np.fft.fft2(_morlet(size, scale, (3 - k) * math.pi / 8)) for k in range(8)]).astype(np.complex64)


def _morlet(size: int, scale: int, angle: float) -> NDArray[np.complex128]:
    wave = _gabor(size, scale, angle, 3 * math.pi / 4 / 2**scale)
    envelope = _gabor(size, scale, angle, 0.0)
    return wave - wave.sum() / envelope.sum() * envelope  # without a mean: constant light gives nothing


def _gabor(size: int, scale: int, angle: float, frequency: float) -> NDArray[np.complex128]:
    """A wave along `angle` under a Gaussian twice as long across it, wrapped around the torus."""
    width, slant = 0.8 * 2**scale, 0.5
    line = np.arange(-2 * size, 3 * size)
    x, y = line[:, None], line[None, :]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    wave = np.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2) + 1j * frequency * along)
    return wave.reshape(5, size, 5, size).sum(axis=(0, 2)) * slant / (2 * math.pi * width**2)


def _low_pass(maps: Floats, stride: int) -> Floats:
    """Gaussian means around every `stride`-th place of the maps, those on the padding left out."""
    smooth = _smoothing(maps.shape[-1], stride)
    return smooth @ maps @ smooth.T


@lru_cache(maxsize=4)
def _smoothing(size: int, stride: int) -> Floats:
    width = 0.4 * stride  # 1.6 pixels: the stride is 4 pixels of the image, whatever the maps' resolution
    distance = np.arange(stride, size - stride, stride)[:, None] - np.arange(-2 * size, 3 * size)
    gauss = np.exp(-(distance**2) / (2 * width**2)) / math.sqrt(2 * math.pi) / width
    return gauss.reshape(-1, 5, size).sum(axis=1).astype(np.float32)


def _block_mean(values: Floats) -> Floats:
    n, height, width = values.shape
    return values.reshape(n, height // 4, 4, width // 4, 4).mean(axis=(2, 4))


def _unit(rows: Floats, floor: float = 1e-12) -> Floats:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(floor))


def _in_batches(images: Images, extract: Callable[[Floats], Floats], batch: int) -> Floats:
    if images.ndim != 3 or images.dtype != np.uint8 or not len(images):
        raise ConfigError(f"images must be bytes (n, height, width), n > 0, got {images.dtype} {images.shape}")
    if any(size < 8 or size % 4 for size in images.shape[1:]):
        raise ConfigError(f"image sides must be multiples of 4, at least 8, got {images.shape[1:]}")
    starts = range(0, len(images), batch)
    return np.concatenate([extract(images[i : i + batch].astype(np.float32) / 255) for i in starts])
