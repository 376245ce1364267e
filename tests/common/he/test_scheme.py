"""A cohort's sum opens exactly, one update never does without its mask, and keys stay where they are."""

import copy
import pickle
import sys
import tracemalloc
import types
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from common.errors import ConfigError, InvalidUpdate, ProtocolError
from common.he import scheme as library
from common.he.scheme import (
    PRESETS,
    Aggregate,
    Ciphertext,
    CohortKey,
    Scheme,
    check_library,
    coefficients,
    encrypt,
    expand_seeds,
    open_sum,
)

Result = TypeVar("Result")
KEYS = {name: CohortKey.generate(scheme) for name, scheme in PRESETS.items()}
EVERY_PRESET = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
COMPACT = KEYS["compact"]


def alone(ciphertext: Ciphertext, expanded: bool = False) -> Aggregate:
    """One site's ciphertext dressed up as a sum."""
    if expanded:
        c1 = b"".join(expand_seeds(ciphertext.scheme, [ciphertext.seeds]))
        return Aggregate(ciphertext.scheme, ciphertext.length, 1, ciphertext.c0, c1=c1)
    return Aggregate(ciphertext.scheme, ciphertext.length, 1, ciphertext.c0, seeds=ciphertext.seeds)


def random_values(scheme: Scheme, length: int) -> np.ndarray:
    half = 1 << (scheme.value_bits - 1)
    values = np.random.default_rng().integers(-half, half, length)
    values[: min(2, length)] = (-half, half - 1)[: min(2, length)]
    return values


def random_mask(scheme: Scheme, length: int) -> np.ndarray:
    size = coefficients(scheme, length)
    return np.random.default_rng().integers(0, 1 << scheme.plain_modulus_bits, size, dtype=np.uint64)


@EVERY_PRESET
@pytest.mark.parametrize("expanded", [False, True], ids=["seeds-along", "expanded"])
@pytest.mark.parametrize("length", [1, 60, 8191, 8192, 8193])
def test_what_was_encrypted_opens(key: CohortKey, expanded: bool, length: int) -> None:
    values = random_values(key.scheme, length)
    sent = Ciphertext.decode(key.scheme, length, encrypt(values, key).encode())
    np.testing.assert_array_equal(open_sum(alone(sent, expanded), key), values)


@EVERY_PRESET
def test_a_key_travels_as_ternary_digits(key: CohortKey) -> None:
    raw = key.export_for_wrapping()
    assert len(raw) == key.scheme.ring_degree // 4
    again = CohortKey.load(key.scheme, raw)
    assert again.export_for_wrapping() == raw
    values = random_values(key.scheme, 60)
    np.testing.assert_array_equal(open_sum(alone(encrypt(values, key)), again), values)
    np.testing.assert_array_equal(open_sum(alone(encrypt(values, again)), key), values)


def test_two_keys_differ_and_are_balanced() -> None:
    """Digits are uniform over three values: chi-square on 4096, false alarm 1e-7 per run at 32.2 (2 degrees)."""
    raws = [CohortKey.generate(PRESETS["compact"]).export_for_wrapping() for _ in range(2)]
    assert raws[0] != raws[1]
    digits = np.array([byte >> shift & 3 for byte in raws[0] for shift in (0, 2, 4, 6)])
    counts = np.bincount(digits, minlength=4)
    assert counts[3] == 0
    assert ((counts[:3] - 4096 / 3) ** 2 / (4096 / 3)).sum() < 32.2


@given(data=st.one_of(st.binary(max_size=40), st.binary(min_size=1024, max_size=1024)))
@settings(max_examples=50, deadline=None)
def test_garbage_is_no_key_and_all_garbage_reads_alike(data: bytes) -> None:
    bad = data[:-1] + b"\xff" if data else data
    with pytest.raises(ProtocolError, match=r"^not a cohort key of this scheme$"):
        CohortKey.load(PRESETS["compact"], bad)


def test_a_key_shows_and_pickles_nothing() -> None:
    assert repr(COMPACT) == "CohortKey(compact)"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            attempt(COMPACT)


@EVERY_PRESET
@pytest.mark.parametrize("expanded", [False, True], ids=["seeds-along", "expanded"])
def test_another_key_does_not_open(key: CohortKey, expanded: bool) -> None:
    sent = alone(encrypt(random_values(key.scheme, 60), key), expanded)
    with pytest.raises(ProtocolError, match=r"^the aggregate does not open$"):
        open_sum(sent, CohortKey.generate(key.scheme))


def test_a_key_of_another_scheme_does_not_open() -> None:
    with pytest.raises(ProtocolError, match=r"^the aggregate does not open$"):
        open_sum(alone(encrypt(np.zeros(1, np.int64), COMPACT)), KEYS["precise"])


def test_every_encryption_is_fresh() -> None:
    values = random_values(COMPACT.scheme, 60)
    first, second = (encrypt(values, COMPACT) for _ in range(2))
    assert first.seeds != second.seeds
    assert np.count_nonzero(np.frombuffer(first.c0, "<u8") == np.frombuffer(second.c0, "<u8")) == 0  # chance 50 / 2^64
    long = encrypt(np.zeros(5 * COMPACT.scheme.values_per_ciphertext, np.int64), COMPACT).seeds
    assert len({long[start : start + 64] for start in range(0, len(long), 64)}) == 5


@EVERY_PRESET
def test_a_mask_covers_and_lifts(key: CohortKey) -> None:
    values, mask = random_values(key.scheme, 10_000), random_mask(key.scheme, 10_000)
    sent = encrypt(values, key, mask)
    np.testing.assert_array_equal(open_sum(alone(sent), key, mask), values)
    for wrong in (None, random_mask(key.scheme, 10_000)):
        with pytest.raises(ProtocolError, match=r"^the aggregate does not open$"):
            open_sum(alone(sent), key, wrong)


def test_one_masked_update_is_uniform_noise_to_a_key_holder() -> None:
    """What the server and one colluding site see of an honest site: 40,960 opened coefficients, bits 0-7 and 36-43.

    Chi-square with 255 degrees against uniform, false alarm 2e-9 per run in all. Unmasked, the constant vector gives
    a single value. The mask here is uniform by assumption; that real ones are is tested where they are made.
    """
    key, length = CohortKey.generate(COMPACT.scheme), 10 * COMPACT.scheme.values_per_ciphertext
    sent = encrypt(np.full(length, 7), key, random_mask(key.scheme, length))
    seen = opened_coefficients(sent, key)
    plain = opened_coefficients(encrypt(np.full(length, 7), key), key)
    for shift in (0, 36):
        assert chi_square(seen >> np.uint64(shift)) < chi2.isf(1e-9, 255)
        assert chi_square(plain >> np.uint64(shift)) > 1e6


def opened_coefficients(sent: Ciphertext, key: CohortKey) -> np.ndarray:
    """What a dishonest key holder computes: no range check between it and the plaintext modulo t."""
    ((_, opened),) = library._opened(alone(sent), key)
    return opened.reshape(-1)


def chi_square(words: np.ndarray) -> float:
    counts = np.bincount((words & np.uint64(255)).astype(np.int64), minlength=256)
    return float(((counts - words.size / 256) ** 2 / (words.size / 256)).sum())


def test_the_extreme_masks_wrap_correctly() -> None:
    values = random_values(COMPACT.scheme, 60)
    for fill in (0, (1 << 44) - 1):
        mask = np.full(64, fill, np.uint64)
        np.testing.assert_array_equal(open_sum(alone(encrypt(values, COMPACT, mask)), COMPACT, mask), values)


def test_only_a_vector_of_integers_is_encrypted() -> None:
    for bad in (np.zeros(3), np.zeros(0, np.int64), np.zeros((2, 2), np.int64)):
        with pytest.raises(InvalidUpdate):
            encrypt(bad, COMPACT)


def test_a_mask_of_another_shape_is_refused() -> None:
    values = np.zeros(60, np.int64)
    for bad in (np.zeros(60, np.uint64), np.zeros(64, np.int64), np.zeros((1, 64), np.uint64)):
        with pytest.raises(InvalidUpdate):
            encrypt(values, COMPACT, bad)
        with pytest.raises(InvalidUpdate):
            open_sum(alone(encrypt(values, COMPACT)), COMPACT, bad)


@EVERY_PRESET
def test_tampering_with_one_seed_does_not_open(key: CohortKey) -> None:
    sent = encrypt(random_values(key.scheme, 60), key)
    with pytest.raises(ProtocolError, match=r"^the aggregate does not open$"):
        open_sum(Aggregate(key.scheme, 60, 1, sent.c0, seeds=bytes(64)), key)


@pytest.mark.parametrize("length", [1_000_000, 3_000_000])
def test_the_working_set_does_not_grow_with_the_model(length: int) -> None:
    """Beyond what goes in and comes out at most 16 MiB, whatever the length (encrypting 6, opening 11 measured)."""
    values, mask = np.zeros(length, np.int64), np.zeros(coefficients(COMPACT.scheme, length), np.uint64)
    sent, extra = working_set(lambda: encrypt(values, COMPACT, mask))
    assert extra - len(sent.encode()) < 16 * 2**20
    total, extra = working_set(lambda: alone(sent, expanded=True))
    assert extra - len(total.c1) < 16 * 2**20
    opened, extra = working_set(lambda: open_sum(total, COMPACT, mask))
    assert extra - opened.nbytes < 16 * 2**20


def working_set(work: Callable[[], Result]) -> tuple[Result, int]:
    """The result, and the most bytes that were allocated at once on the way (its own included)."""
    tracemalloc.start()
    result = work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, peak


def test_the_installed_library_passes_its_check() -> None:
    check_library()


def test_a_library_without_seeded_encryption_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def encrypt_symmetric(self, plain: object) -> None:
            raise TypeError("incompatible function arguments")

    key = CohortKey.generate(PRESETS["compact"])
    key._encryptor = Old()
    with pytest.raises(ConfigError) as refusal:
        encrypt(np.zeros(1, np.int64), key)
    assert "tenseal>=0.3.18" in refusal.value.hint

    monkeypatch.setitem(sys.modules, "tenseal", types.ModuleType("tenseal"))
    monkeypatch.delitem(sys.modules, "tenseal.sealapi", raising=False)
    with pytest.raises(ConfigError) as refusal:
        library._Seal(PRESETS["compact"])
    assert "tenseal>=0.3.18" in refusal.value.hint
