"""Clipping: never longer than the bound, never another direction, never NaN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import InvalidUpdate
from common.updates import clip

VECTORS = arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6))


@given(VECTORS, st.floats(1e-3, 1e3))
def test_a_clipped_update_is_bounded_and_keeps_its_direction(update, bound):
    clipped = clip(update, bound)
    norm = np.linalg.norm(clipped.values)
    assert norm <= bound * (1 + 1e-12)
    if np.linalg.norm(update) <= bound:
        assert clipped.values is update
    else:
        assert np.allclose(clipped.values * np.linalg.norm(update), update * norm, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(InvalidUpdate):
        clip(np.array([1.0, bad]), 1.0)
