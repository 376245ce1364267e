"""Packing is lossless for every width, and slots hold a whole cohort at its extremes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidUpdate
from common.he.packing import add_packed, blocks, largest_word, pack_slots, pack_words, unpack_slots, unpack_words
from common.he.parameters import GUARDS, PRESETS, Scheme

COMPACT = PRESETS["compact"]


def packed(words: np.ndarray, width: int) -> np.ndarray:
    dense = np.zeros((len(words), words.shape[1] * width // 64), np.uint64)
    pack_words(words, width, dense)
    return dense


@pytest.mark.parametrize("width", range(1, 65))
def test_words_of_every_width_come_back(width: int) -> None:
    words = np.random.default_rng().integers(0, 2**width, (3, 128), dtype=np.uint64, endpoint=False)
    words[0, :2] = 0, 2**width - 1
    dense, again = packed(words, width), np.ones_like(words)
    unpack_words(dense, width, again)
    np.testing.assert_array_equal(again, words)
    assert largest_word(dense, width) == 2**width - 1


def test_the_bit_layout_is_golden() -> None:
    """Runs of 2 words (50 bits: 32 lanes of 64 words): the first integer holds word 0 and the low bits of word 2."""
    dense = packed(np.arange(1, 65, dtype=np.uint64).reshape(1, 64), 50)
    assert dense[0, 0] == 1 | (3 << 50) % 2**64
    assert hashlib.sha256(dense.astype("<u8").tobytes()).hexdigest()[:16] == "eceb726542eaadb9"


@pytest.mark.parametrize("width", [34, 50, 60])
def test_adding_packed_words_is_adding_words(width: int) -> None:
    rng = np.random.default_rng()
    words = rng.integers(0, 2**width, (5, 128), dtype=np.uint64)
    totals = rng.integers(0, 2**60, (9, 128), dtype=np.uint64)
    expected = totals[2:7] + words
    untouched = totals[:2].copy()
    add_packed(totals[2:7], packed(words, width), width)
    np.testing.assert_array_equal(totals[2:7], expected)
    np.testing.assert_array_equal(totals[:2], untouched)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 200 * 8192), ring_and_slots=st.sampled_from([(4096, 2), (2048, 1), (4096, 1)]))
def test_blocks_cover_every_value_and_coefficient_once(length: int, ring_and_slots: tuple[int, int]) -> None:
    ring, slots = ring_and_slots
    scheme = Scheme("any", ring, (50,), value_bits=16, headroom_bits=6, slots=slots, dropped_bits=3)
    found = list(blocks(scheme, length))
    for name, end in (
        ("rows", scheme.ciphertexts(length)),
        ("values", length),
        ("coefficients", scheme.coefficients(length)),
    ):
        edges = [0, *(getattr(block, name).stop for block in found)]
        assert [getattr(block, name).start for block in found] == edges[:-1]
        assert edges[-1] == end
    assert all(block.shape[0] * block.used == block.coefficients.stop - block.coefficients.start for block in found)
    assert all(block.used == ring for block in found[:-1])
    assert scheme.coefficients(length) - length / slots < 64 + GUARDS * scheme.ciphertexts(length)
    assert scheme.coefficients(length) - length / slots >= GUARDS * scheme.ciphertexts(length)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 20_000), sites=st.integers(1, 64), extreme=st.sampled_from(["low", "high", "random"]))
def test_slots_of_a_full_cohort_never_carry(length: int, sites: int, extreme: str) -> None:
    (*_, block) = blocks(COMPACT, length)  # full blocks and the last, partly used one take turns
    rng = np.random.default_rng()
    low, high = -(1 << 15), (1 << 15) - 1
    fixed = {"low": low, "high": high}.get(extreme)
    size = block.values.stop - block.values.start
    vectors = [np.full(size, fixed) if fixed else rng.integers(low, high + 1, size) for _ in range(sites)]
    total = sum((pack_slots(vector, block, COMPACT) for vector in vectors), np.zeros(block.shape, np.uint64))
    assert total.max() < 1 << COMPACT.plain_modulus_bits
    opened = np.empty(size, np.int64)
    assert unpack_slots(total, sites, COMPACT, opened)
    np.testing.assert_array_equal(opened, np.sum(vectors, axis=0))


@pytest.mark.parametrize("bad", [1 << 15, -(1 << 15) - 1, 2**63 - 1, -(2**63)])
def test_values_that_do_not_fit_are_refused(bad: int) -> None:
    (block,) = blocks(COMPACT, 3)
    with pytest.raises(InvalidUpdate):
        pack_slots(np.array([0, bad, 0]), block, COMPACT)


def test_what_no_cohort_could_have_sent_does_not_unpack() -> None:
    (block,) = blocks(COMPACT, 100)
    coefficients = pack_slots(np.zeros(100, np.int64), block, COMPACT)
    assert coefficients.shape == (1, 128)
    values = np.empty(100, np.int64)
    assert unpack_slots(coefficients, 1, COMPACT, values)
    padding = coefficients.copy()
    padding[0, 60] |= np.uint64(1 << COMPACT.slot_bits)  # values 100 to 191 of this block do not exist
    assert not unpack_slots(padding, 1, COMPACT, values)
    for guard in range(128 - GUARDS, 128):
        disturbed = coefficients.copy()
        disturbed[0, guard] = 1
        assert not unpack_slots(disturbed, 64, COMPACT, values)
    too_large = coefficients.copy()
    too_large[0, 0] = 1 << 16
    assert not unpack_slots(too_large, 1, COMPACT, values)
    assert unpack_slots(too_large, 2, COMPACT, values)
