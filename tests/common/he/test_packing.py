"""Packing is lossless for every width, and slots hold a whole cohort at its extremes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidUpdate
from common.he.packing import add_packed, largest_word, pack_slots, pack_words, unpack_slots, unpack_words
from common.he.parameters import PRESETS

COMPACT = PRESETS["compact"]


@pytest.mark.parametrize("width", range(1, 65))
def test_words_of_every_width_come_back(width: int) -> None:
    words = np.random.default_rng().integers(0, 2**width, (3, 128), dtype=np.uint64, endpoint=False)
    words[0, :2] = 0, 2**width - 1
    packed = pack_words(words, width)
    assert packed.shape == (3, 128 * width // 64)
    np.testing.assert_array_equal(unpack_words(packed, width), words)
    assert largest_word(packed, width) == 2**width - 1


def test_the_bit_layout_is_golden() -> None:
    """Runs of 2 words (50 bits: 32 lanes of 64 words): the first integer holds word 0 and the low bits of word 2."""
    words = np.arange(1, 65, dtype=np.uint64).reshape(1, 64)
    packed = pack_words(words, 50)
    assert packed[0, 0] == 1 | (3 << 50) % 2**64
    assert hashlib.sha256(packed.astype("<u8").tobytes()).hexdigest()[:16] == "eceb726542eaadb9"


@pytest.mark.parametrize("width", [34, 50, 60])
def test_adding_packed_words_is_adding_words(width: int) -> None:
    rng = np.random.default_rng()
    words = rng.integers(0, 2**width, (5, 128), dtype=np.uint64)
    totals = rng.integers(0, 2**60, (9, 128), dtype=np.uint64)
    expected = totals[2:7] + words
    untouched = totals[:2].copy()
    add_packed(totals[2:7], pack_words(words, width), width)
    np.testing.assert_array_equal(totals[2:7], expected)
    np.testing.assert_array_equal(totals[:2], untouched)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 20_000), sites=st.integers(1, 64), extreme=st.sampled_from(["low", "high", "random"]))
def test_slots_of_a_full_cohort_never_carry(length: int, sites: int, extreme: str) -> None:
    rng = np.random.default_rng()
    low, high = -(1 << 15), (1 << 15) - 1
    fixed = {"low": low, "high": high}.get(extreme)
    vectors = [np.full(length, fixed) if fixed else rng.integers(low, high + 1, length) for _ in range(sites)]
    total = sum((pack_slots(vector, COMPACT) for vector in vectors), np.zeros((), np.uint64))
    assert total.max() < 1 << COMPACT.plain_modulus_bits
    np.testing.assert_array_equal(unpack_slots(total, length, sites, COMPACT), np.sum(vectors, axis=0))


def test_values_that_do_not_fit_are_refused() -> None:
    for bad in (np.array([1 << 15]), np.array([-(1 << 15) - 1]), np.array([]), np.zeros(3), np.zeros((2, 2), np.int64)):
        with pytest.raises(InvalidUpdate):
            pack_slots(bad, COMPACT)


def test_what_no_cohort_could_have_sent_does_not_unpack() -> None:
    coefficients = pack_slots(np.zeros(100, np.int64), COMPACT)
    assert unpack_slots(coefficients, 100, 1, COMPACT) is not None
    padding = coefficients.copy()
    padding[0, 4000] = 1
    assert unpack_slots(padding, 100, 1, COMPACT) is None
    too_large = coefficients.copy()
    too_large[0, 0] = 1 << 16
    assert unpack_slots(too_large, 100, 1, COMPACT) is None
    assert unpack_slots(too_large, 100, 2, COMPACT) is not None
