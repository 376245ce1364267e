"""Parameters are secure, fit their library, and fail less often than promised, or they do not exist."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.he.parameters import PRESETS, SAFE_FAILURE_LOG2, Scheme, choose_scheme, fit_scheme, largest_primes

COMPACT, PRECISE = PRESETS["compact"], PRESETS["precise"]


def test_presets_keep_their_promises() -> None:
    million = 1_000_000
    for scheme, most_bytes in ((COMPACT, 3.2), (PRECISE, 4.6)):
        assert scheme.message_bytes(million) / million <= most_bytes
        assert scheme.max_sites == 64
        assert scheme.failure_log2(64, 100 * million) <= SAFE_FAILURE_LOG2
        assert scheme.security_bits >= 128


def test_primes_are_the_known_ones() -> None:
    """Golden values: a changed prime is a changed wire format."""
    assert COMPACT.primes == (1152921504606830593,)
    assert PRECISE.primes == (17179754497, 17179672577)
    assert largest_primes(2048, (30, 30)) == (1073692673, 1073668097)


def test_fingerprints_are_golden_and_ignore_the_name() -> None:
    assert COMPACT.fingerprint.hex() == "21ee965a95a39a3d" + COMPACT.fingerprint.hex()[16:]
    assert replace(COMPACT, name="another").fingerprint == COMPACT.fingerprint
    assert replace(COMPACT, dropped_bits=9).fingerprint != COMPACT.fingerprint
    assert len(PRECISE.fingerprint) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"ring_degree": 1024},
        {"ring_degree": 2048},  # 60 bits at degree 2048 are no longer 128-bit secure
        {"modulus_bits": (60, 60)},
        {"modulus_bits": (61,)},
        {"modulus_bits": ()},
        {"value_bits": 1},
        {"headroom_bits": 0},
        {"headroom_bits": 11},
        {"slots": 0},
        {"slots": 3},  # 66 bits of plaintext
        {"dropped_bits": 14},
        {"dropped_bits": 1},  # words of 59 bits: 64 sites would carry out of 64
        {"dropped_bits": -1},
        {"modulus_bits": (34, 34), "dropped_bits": 1},
    ],
)
def test_impossible_parameters_are_never_born(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(COMPACT, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", PRESETS.values(), ids=PRESETS)
def test_the_failure_bound_lies_above_the_gaussian_tail_and_not_far(scheme: Scheme) -> None:
    sites, coefficients = 64, 4096
    rounding = 4**scheme.dropped_bits / 12 if scheme.dropped_bits else 0
    down = 4096 * 4**scheme.dropped_bits_down / 12 if scheme.dropped_bits_down else 0
    z = math.prod(scheme.primes) / 2 ** (scheme.plain_modulus_bits + 1) / math.sqrt(sites * (10.5 + rounding) + down)
    tail = math.log2(coefficients * math.erfc(z / math.sqrt(2)))
    assert tail < scheme.failure_log2(sites, scheme.values_per_ciphertext) < 0.8 * tail


def test_certain_failure_is_probability_one() -> None:
    assert replace(COMPACT, dropped_bits=13).failure_log2(64, 1_000_000) == 0.0


def test_a_preset_is_used_as_it_is_up_to_its_cohort() -> None:
    assert choose_scheme("compact", 64, 1_000_000) is COMPACT
    assert choose_scheme("precise", 2, 60) is PRECISE


def test_a_larger_cohort_keeps_the_precision_and_pays_bytes() -> None:
    wide = choose_scheme("compact", 65, 1_000_000)
    assert (wide.value_bits, wide.max_sites) == (16, 128)
    assert COMPACT.bytes_per_parameter < wide.bytes_per_parameter < 4


def test_a_stricter_failure_bound_is_met_or_refused() -> None:
    strict = choose_scheme("compact", 64, 1_000_000, failure_log2=-1000)
    assert strict.failure_log2(64, 1_000_000) <= -1000
    with pytest.raises(ConfigError, match=r"2\^-inf"):
        choose_scheme("compact", 64, 1_000_000, failure_log2=-math.inf)


def test_a_refusal_says_what_would_fit() -> None:
    with pytest.raises(ConfigError) as refusal:
        fit_scheme(1024, 60, 1_000_000)
    assert "49 value bits would fit" in refusal.value.hint
    with pytest.raises(ConfigError, match="sites"):
        choose_scheme("compact", 1025, 60)
    with pytest.raises(ConfigError) as unknown:
        choose_scheme("loose", 2, 60)
    assert "compact, precise" in unknown.value.hint


@settings(max_examples=60, deadline=None)
@given(sites=st.integers(1, 1024), value_bits=st.integers(2, 32), parameters=st.integers(1, 10**8))
def test_whatever_is_chosen_holds(sites: int, value_bits: int, parameters: int) -> None:
    scheme = fit_scheme(sites, value_bits, parameters)
    assert scheme.max_sites >= sites
    assert scheme.value_bits == value_bits
    assert scheme.failure_log2(sites, parameters) <= SAFE_FAILURE_LOG2
    assert scheme.security_bits >= 128


def test_the_chooser_never_pays_more_than_a_preset() -> None:
    for preset in PRESETS.values():
        chosen = fit_scheme(64, preset.value_bits, 1_000_000)
        assert chosen.message_bytes(1_000_000) <= preset.message_bytes(1_000_000)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        COMPACT.slots = 3  # type: ignore[misc]
    assert isinstance(COMPACT, Scheme)
