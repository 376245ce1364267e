"""Features see one image at a time and give vectors of norm 1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.features import _every_second, _low_pass, _modulus, _wavelets, hog, scattering
from common.errors import ConfigError


def images(n: int, seed: int = 0, side: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side), dtype=np.uint8)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("extract", [hog, scattering])
def test_features_of_an_image_do_not_depend_on_its_company(extract, seed):
    batch = images(5, seed)
    np.testing.assert_allclose(extract(batch)[3], extract(batch[3:4])[0], atol=1e-6)


def test_hog_is_centred_and_of_norm_one():
    features = hog(images(700))  # more than one batch
    assert features.shape == (700, 680)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-6)


def test_hog_puts_an_edge_into_its_own_direction():
    edge = np.zeros((1, 28, 28), np.uint8)
    edge[:, :, 14:] = 255
    cells = hog(edge)[0, 8 * 6 * 6 :].reshape(8, 7, 7)
    inside = cells[:, 1:-1, 3]  # the column of cells that holds the edge, away from the border
    assert inside.argmax(axis=0).tolist() == [0] * 5  # direction 0 points to the brighter right
    turned = hog(edge[:, :, ::-1].copy())[0, 8 * 6 * 6 :].reshape(8, 7, 7)
    assert turned[:, 1:-1, 3].argmax(axis=0).tolist() == [4] * 5


def stripes(period: int, axis: int, shift: int = 0) -> np.ndarray:
    wave = 127 + 120 * np.cos(2 * np.pi * (np.arange(28) + shift) / period)
    image = np.broadcast_to(wave[:, None] if axis == 0 else wave[None, :], (28, 28))
    return image.astype(np.uint8)[None]


def test_scattering_has_the_published_shape_and_a_bounded_norm():
    features = scattering(images(60))  # more than one batch
    assert features.shape == (60, 3969)
    assert features.dtype == np.float32
    assert np.linalg.norm(features, axis=1).max() <= 1


def test_scattering_tells_a_direction_from_a_shift_where_pixels_cannot():
    """Stripes of period 4: shifted by one pixel or turned by a right angle, their pixels change by as much."""
    looks = [stripes(4, 0), stripes(4, 0, shift=1), stripes(4, 1)]
    here, shifted, turned = (look / 255.0 for look in looks)
    assert np.linalg.norm(here - shifted) == pytest.approx(np.linalg.norm(here - turned), rel=0.01)
    here, shifted, turned = (scattering(look) for look in looks)
    assert np.linalg.norm(here - shifted) < 0.5 * np.linalg.norm(here - turned)


def test_scattering_hears_stripes_with_the_wavelet_of_their_direction():
    """Stripes of period 8/3 pixels are what the finest wavelets are tuned to; wavelet k looks along (3 - k) pi / 8."""
    for axis, direction in ((0, 3), (1, 7)):
        padded = np.pad(stripes(8 / 3, axis)[0] / 255.0, 4, mode="reflect")
        answers = np.abs(np.fft.ifft2(np.fft.fft2(padded) * _wavelets(36, 0))).mean(axis=(1, 2))
        assert answers.argmax() == direction


def test_wavelets_do_not_hear_constant_light():
    assert np.abs(_wavelets(36, 1)[:, 0, 0]).max() < 1e-6


def test_half_resolution_is_enough_even_for_white_noise():
    """The sampled moduli against the same at full resolution, as the definition has them."""
    pixels = images(1)[0] / 255.0
    padded = np.pad(pixels, 4, mode="reflect")
    x = np.minimum(np.arange(36), 36 - np.arange(36))
    gauss = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 1.6**2)) / (2 * np.pi * 1.6**2)
    spectrum = np.fft.fft2(padded)
    full = np.abs(np.fft.ifft2(spectrum * _wavelets(36, 1)))
    low = np.fft.ifft2(np.fft.fft2(full) * np.fft.fft2(gauss)).real[:, 4:-4:4, 4:-4:4]
    half = _low_pass(_modulus(_every_second(spectrum.astype(np.complex64) * _wavelets(36, 1))), 2)
    np.testing.assert_allclose(half, low, atol=0.05 * low.max())


@pytest.mark.parametrize("extract", [hog, scattering])
@pytest.mark.parametrize("grey", [0, 255])
def test_an_image_without_contrast_has_finite_features(extract, grey):
    assert np.isfinite(extract(np.full((1, 28, 28), grey, np.uint8))).all()


@pytest.mark.parametrize("extract", [hog, scattering])
@pytest.mark.parametrize(
    "batch", [images(1).astype(np.float32), images(1)[0], images(1, side=30), images(1, side=4), images(1)[:0]]
)
def test_images_of_another_kind_are_refused(extract, batch):
    with pytest.raises(ConfigError):
        extract(batch)
