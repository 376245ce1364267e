"""Proves: noise has the promised law, streams never meet or repeat, and a seed cannot be guessed from 32 bits.

Statistics: each test below raises a false alarm with chance at most 1e-7 per run, over fresh randomness.
"""

import copy
import itertools
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.randomness import Randomness

FALSE_ALARM = 1e-7
CONTEXTS = st.lists(st.integers() | st.text(max_size=4), max_size=3).map(tuple)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products over sqrt(n): standard normal when a and b are independent standard normals."""
    return float(np.dot(a.astype(np.float64), b) / np.sqrt(len(a)))


def z_limit(comparisons: int = 1) -> float:
    from scipy.stats import norm

    return float(norm.isf(FALSE_ALARM / 2 / comparisons))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("std", [1e-3, 1.0, 37.5])
def test_noise_has_the_promised_scale(dtype: type, std: float) -> None:
    """A scale wrong by 3 % is caught in over 999 of 1000 runs."""
    from scipy.stats import chi2

    n = 100_000
    noise = Randomness.from_os().gaussian(n, std, dtype)
    assert noise.dtype == dtype
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=n)
    assert low < np.sum((noise.astype(np.float64) / std) ** 2) < high


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_is_normal_in_the_middle_and_in_the_tail(dtype: type) -> None:
    from scipy.stats import binom, kstest, norm

    noise = Randomness.from_os().gaussian(300_000, dtype=dtype)
    assert kstest(noise[:100_000], "norm").pvalue > FALSE_ALARM
    for level in (3.0, 4.0):
        chance = 2 * norm.sf(level)
        low, high = binom.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], len(noise), chance)
        assert low <= np.sum(np.abs(noise) > level) <= high


def test_the_tail_reaches_as_far_as_its_docstring_says() -> None:
    """The smallest and the largest radius word, through the real code, with the words chosen by hand."""

    class Chosen(Randomness):
        def bytes(self, n: int) -> bytes:
            words = np.array([0, 2**64 - 1], np.uint64)
            return words.tobytes() + bytes(n - words.nbytes)

    noise = np.abs(Chosen(bytes(32), secure=False).gaussian(4, dtype=np.float64)[:2])
    assert noise[0] == pytest.approx(8.5716, abs=1e-3)
    assert 0 < noise[1] < 2e-8


def test_the_tail_of_float32_reaches_further_than_its_words() -> None:
    """Words of 31 bits would end it at 6.56 and leave a gap around 0; what stands near either end is drawn finer."""

    class Chosen(Randomness):
        def bytes(self, n: int) -> bytes:
            return np.array([0, 2**31 - 1], np.int32).tobytes() + bytes(n - 8)

        def uniform(self, n: int) -> np.ndarray:
            return np.full(n, 1 - 2.0**-52)

    noise = np.abs(Chosen(bytes(32), secure=False).gaussian(4)[:2])
    assert noise[0] == pytest.approx(np.sqrt(2 * 82 * np.log(2)), abs=1e-3)
    assert 0 < noise[1] < 6e-5


def test_radii_near_both_ends_follow_the_law_of_a_pair() -> None:
    """Squared they are exponential, on the finer grid and beside it, where a slip between the two would show."""
    from scipy.stats import binom

    noise = Randomness.from_os().gaussian(2**22).astype(np.float64)
    pairs = noise.reshape(-1, 2, 2**16)  # a piece holds its cosines, then its sines
    chances = np.exp(-(pairs**2).sum(1).ravel() / 2)
    edges = [0, 2.0**-14, 2.0**-11, 2.0**-10, 2.0**-9, 0.5, 1 - 2.0**-6, 1 - 2.0**-7, 1 - 2.0**-8, 1 - 2.0**-14, 1]
    for low, high in itertools.pairwise(edges):
        found = np.sum((chances >= low) & (chances < high))
        tail = FALSE_ALARM / 20
        assert binom.ppf(tail, len(chances), high - low) <= found <= binom.ppf(1 - tail, len(chances), high - low)


def test_noise_is_independent_over_coordinates_calls_and_children() -> None:
    n = 60_000  # one piece, so that its two halves come from the same radii
    root = Randomness.from_os()
    first, second = root.gaussian(n), root.gaussian(n)
    children = [root.child("site", 1), root.child("site", 2), root.child("site", 1), root.child("site", 1).child()]
    draws = [first, second, *(child.gaussian(n) for child in children), Randomness.from_os().gaussian(n)]
    pairs = [(a, b) for i, a in enumerate(draws) for b in draws[:i]]
    lags = [(first[lag:], first[:-lag]) for lag in (1, 2, n // 2)]
    limit = z_limit(3 * len(pairs + lags))
    for a, b in pairs + lags:
        assert abs(correlation(a, b)) < limit
        assert abs(correlation((a**2 - 1) / np.sqrt(2), (b**2 - 1) / np.sqrt(2))) < limit + 1  # heavier tails
        assert abs(correlation(a, (b**2 - 1) / np.sqrt(2))) < limit + 0.5


def test_uniform_draws_are_uniform_multiples_of_2_to_the_minus_53() -> None:
    from scipy.stats import kstest

    drawn = Randomness.from_os().uniform(100_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.array_equal(drawn * 2**53 % 1, np.zeros(len(drawn)))
    assert kstest(drawn, "uniform").pvalue > FALSE_ALARM


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    """Against a construction of its own: HKDF by hand, then AES of the counters 0, 1, 2."""
    import hashlib
    import hmac

    secret = bytes(range(32))
    key = hmac.new(secret, b"veilfed randomness stream\x01", hashlib.sha256).digest()
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - single blocks, to build the counter mode from
    expected = b"".join(block.update(i.to_bytes(16, "big")) for i in range(3))
    stream = Randomness(secret, secure=False)
    assert stream.bytes(5) + stream.bytes(43) == expected


def test_a_seed_is_not_shortened_to_32_bits() -> None:
    """PyTorch gives the same noise for s and s + 2^32, so 2^32 trials find it."""
    for offset in (2**32, 2**64, 2**200):
        assert not np.array_equal(Randomness.insecure(5).gaussian(8), Randomness.insecure(5 + offset).gaussian(8))


@given(CONTEXTS, CONTEXTS)
def test_contexts_share_a_stream_only_when_equal(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    same = one == other and [type(part) for part in one] == [type(part) for part in other]
    for make in (lambda c: Randomness.insecure(3, *c), lambda c: Randomness.insecure(3).child(*c)):
        assert (make(one).bytes(16) == make(other).bytes(16)) is same


def test_no_child_is_given_out_twice() -> None:
    """Noise drawn twice from one stream could be subtracted."""
    root = Randomness.insecure(1)
    assert root.child("round", 1).bytes(16) != root.child("round", 1).bytes(16)


def test_an_insecure_stream_says_so_and_its_children_too() -> None:
    assert Randomness.from_os().child("x").secure
    assert not Randomness.insecure(1).child("x").secure
    assert Randomness.insecure(1, "a").bytes(9) == Randomness.insecure(1, "a").bytes(9)


def test_the_secret_is_neither_shown_nor_copied() -> None:
    stream = Randomness(b"s" * 32, secure=True)
    assert repr(stream) == "Randomness(secure=True)"
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled or copied"):
            copier(stream)


def test_a_forked_process_cannot_draw_the_same_noise_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Randomness.from_os()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for draw in (lambda: stream.gaussian(3), lambda: stream.child("x")):
        with pytest.raises(PrivacyError, match="fork"):
            draw()


@given(st.integers(0, 40))
def test_any_number_can_be_drawn(n: int) -> None:
    stream = Randomness.insecure(0)
    assert stream.bytes(n).__len__() == stream.uniform(n).size == stream.gaussian(n).size == n
