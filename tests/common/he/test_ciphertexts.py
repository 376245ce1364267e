"""Ciphertext bytes from outside are explained to the last byte or refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WireError
from common.he.ciphertexts import Aggregate, Ciphertext, from_dense, round_words, to_dense, whole
from common.he.packing import Block, blocks
from common.he.parameters import PRESETS, Scheme

COMPACT, PRECISE = PRESETS["compact"], PRESETS["precise"]
SCHEMES = pytest.mark.parametrize("scheme", PRESETS.values(), ids=PRESETS)


def words(scheme: Scheme, block: Block) -> np.ndarray:
    rng = np.random.default_rng()
    return np.stack([rng.integers(0, q, block.shape, dtype=np.uint64) for q in scheme.primes], axis=1)


def dense(scheme: Scheme, length: int, dropped_bits: int) -> bytes:
    parts = []
    for block in blocks(scheme, length):
        random = words(scheme, block)
        round_words(random, dropped_bits)
        parts.append(to_dense(random, scheme, dropped_bits).tobytes())
    return b"".join(parts)


def dense_down(scheme: Scheme, length: int) -> bytes:
    return dense(scheme, whole(scheme, length), scheme.dropped_bits_down)


def ciphertext(scheme: Scheme, length: int) -> Ciphertext:
    seeds = np.random.default_rng().bytes(64 * scheme.ciphertexts(length))
    return Ciphertext(scheme, length, dense(scheme, length, scheme.dropped_bits), seeds)


@SCHEMES
def test_polynomials_come_back_up_to_the_public_rounding(scheme: Scheme) -> None:
    length = 70 * scheme.values_per_ciphertext + 500  # full blocks, and a last ciphertext that is partly used
    before = [words(scheme, block) for block in blocks(scheme, length)]
    parts = []
    for exact in before:
        rounded = exact.copy()
        round_words(rounded, scheme.dropped_bits)
        parts.append(to_dense(rounded, scheme, scheme.dropped_bits).tobytes())
    primes = np.array(scheme.primes, np.uint64)[:, None]
    for block, exact in zip(blocks(scheme, length), before, strict=True):
        after = from_dense(b"".join(parts), block, scheme, scheme.dropped_bits)
        assert (after < primes).all()
        assert not after[..., block.used :].any()
        error = np.abs(after[..., : block.used].astype(np.int64) - exact.astype(np.int64))
        assert error.max() <= (1 << scheme.dropped_bits) // 2


@SCHEMES
def test_the_largest_words_are_still_in_range(scheme: Scheme) -> None:
    (block,) = blocks(scheme, 1)
    top = np.stack([np.full(block.shape, q - 1, np.uint64) for q in scheme.primes], axis=1)
    round_words(top, scheme.dropped_bits)
    Ciphertext(scheme, 1, to_dense(top, scheme, scheme.dropped_bits).tobytes(), bytes(64))


@SCHEMES
def test_encoding_round_trips(scheme: Scheme) -> None:
    length = scheme.values_per_ciphertext + 1
    sent = ciphertext(scheme, length)
    assert len(sent.encode()) == scheme.message_bytes(length) < 1.1 * length * scheme.bytes_per_parameter
    assert Ciphertext.decode(scheme, length, sent.encode()) == sent
    down = dense_down(scheme, length)
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
    down = dense_down(scheme, 5)
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
        Aggregate(COMPACT, 5, 1, sent.c0, seeds=sent.seeds, c1=dense_down(COMPACT, 5))


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


def test_a_small_model_travels_small() -> None:
    assert COMPACT.message_bytes(60) == 64 * 50 // 8 + 64  # 464 bytes: only coefficients that carry something
    assert COMPACT.message_bytes(1_000_000) <= 3.16 * 1_000_000


def test_nothing_large_is_printed() -> None:
    assert len(repr(ciphertext(PRECISE, 5))) < 300
