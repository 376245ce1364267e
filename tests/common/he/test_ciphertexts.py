"""Ciphertext bytes from outside are explained to the last byte or refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WireError
from common.he.ciphertexts import Aggregate, Ciphertext, dense_rows, from_dense, to_dense
from common.he.parameters import PRESETS, Scheme

COMPACT, PRECISE = PRESETS["compact"], PRESETS["precise"]
SCHEMES = pytest.mark.parametrize("scheme", PRESETS.values(), ids=PRESETS)


def words(scheme: Scheme, length: int) -> np.ndarray:
    rng = np.random.default_rng()
    rows = scheme.ciphertexts(length)
    return np.concatenate([rng.integers(0, q, (rows, scheme.ring_degree), dtype=np.uint64) for q in scheme.primes], 1)


def ciphertext(scheme: Scheme, length: int) -> Ciphertext:
    seeds = np.random.default_rng().bytes(64 * scheme.ciphertexts(length))
    return Ciphertext(scheme, length, to_dense(words(scheme, length), scheme, scheme.dropped_bits), seeds)


@SCHEMES
def test_polynomials_come_back_up_to_the_public_rounding(scheme: Scheme) -> None:
    before = words(scheme, 70 * scheme.values_per_ciphertext)  # more than one block
    dense = to_dense(before, scheme, scheme.dropped_bits)
    after = np.concatenate(
        [from_dense(part, scheme, scheme.dropped_bits) for _, part in dense_rows(dense, scheme, scheme.dropped_bits)]
    )
    error = np.abs(after.astype(np.int64) - before.astype(np.int64))
    assert error.max() <= (1 << scheme.dropped_bits) // 2
    assert all((half < q).all() for half, q in zip(np.split(after, len(scheme.primes), 1), scheme.primes, strict=True))


@SCHEMES
def test_the_largest_words_are_still_in_range(scheme: Scheme) -> None:
    top = np.concatenate([np.full((1, scheme.ring_degree), q - 1, np.uint64) for q in scheme.primes], axis=1)
    Ciphertext(scheme, 1, to_dense(top, scheme, scheme.dropped_bits), bytes(64))


@SCHEMES
def test_encoding_round_trips(scheme: Scheme) -> None:
    length = scheme.values_per_ciphertext + 1
    sent = ciphertext(scheme, length)
    assert len(sent.encode()) == 2 * scheme.ciphertext_bytes
    assert Ciphertext.decode(scheme, length, sent.encode()) == sent
    down = to_dense(words(scheme, length), scheme, scheme.dropped_bits_down)
    for aggregate in (
        Aggregate(scheme, length, 3, sent.c0, seeds=sent.seeds * 3),
        Aggregate(scheme, length, 3, sent.c0, c1=down),
    ):
        assert Aggregate.decode(scheme, length, aggregate.encode()) == aggregate


@SCHEMES
def test_a_word_beyond_the_prime_is_refused(scheme: Scheme) -> None:
    good = ciphertext(scheme, 5)
    with pytest.raises(WireError, match="out of range"):
        replace(good, c0=b"\xff" * len(good.c0))
    down = to_dense(words(scheme, 5), scheme, scheme.dropped_bits_down)
    with pytest.raises(WireError, match="out of range"):
        Aggregate(scheme, 5, 1, good.c0, c1=b"\xff" * len(down))


def test_wrong_sizes_are_refused() -> None:
    data = ciphertext(COMPACT, 5).encode()
    for bad in (b"", data[:-1], data + b"\0", data * 2):
        with pytest.raises(WireError):
            Ciphertext.decode(COMPACT, 5, bad)
    for length in (0, -1, 2**60):
        with pytest.raises(WireError):
            Ciphertext.decode(COMPACT, length, data)


def test_an_aggregate_of_no_site_or_too_many_is_refused() -> None:
    sent = ciphertext(COMPACT, 5)
    for sites in (0, 65):
        with pytest.raises(WireError):
            Aggregate(COMPACT, 5, sites, sent.c0, seeds=sent.seeds * sites)
    with pytest.raises(WireError):
        Aggregate(COMPACT, 5, 2, sent.c0, seeds=sent.seeds)
    with pytest.raises(WireError):  # both forms at once
        Aggregate(COMPACT, 5, 1, sent.c0, seeds=sent.seeds, c1=to_dense(words(COMPACT, 5), COMPACT, 4))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=64), keep=st.booleans(), length=st.integers(-5, 2**62))
def test_no_bytes_crash_a_decoder(data: bytes, keep: bool, length: int) -> None:
    real = Aggregate(COMPACT, 5, 1, ciphertext(COMPACT, 5).c0, seeds=bytes(64)).encode()
    damaged = data + real[len(data) :] if keep else data
    for kind in (Ciphertext, Aggregate):
        for claimed in (length, 5):
            try:
                kind.decode(COMPACT, claimed, damaged)
            except WireError:
                continue


def test_nothing_large_is_printed() -> None:
    assert len(repr(ciphertext(PRECISE, 5))) < 300
