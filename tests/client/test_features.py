"""Features see one image at a time and give vectors of norm 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.features import hog
from common.errors import ConfigError


def images(n: int, seed: int = 0, side: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side), dtype=np.uint8)


@given(seed=st.integers(0, 2**32))
def test_hog_of_an_image_does_not_depend_on_its_company(seed):
    batch = images(5, seed)
    np.testing.assert_allclose(hog(batch)[3], hog(batch[3:4])[0], atol=1e-6)


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


def test_an_image_without_contrast_has_finite_features():
    assert np.isfinite(hog(np.zeros((1, 28, 28), np.uint8))).all()


@pytest.mark.parametrize("batch", [images(1).astype(np.float32), images(1)[0], images(1, side=30), images(1, side=4)])
def test_images_of_another_kind_are_refused(batch):
    with pytest.raises(ConfigError):
        hog(batch)
