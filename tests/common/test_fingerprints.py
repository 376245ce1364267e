"""Proves: what people compare by phone depends on every byte of every part, and however they space it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, TrustError
from common.fingerprints import fingerprint, require_same

PARTS = st.lists(st.binary(max_size=40), max_size=4)


def test_a_known_answer():
    """By hand: SHA-256 over the label, then each part behind its length in 8 bytes; the last forty digits."""
    hashed = hashlib.sha256(b"veilfed.fingerprint.v1\0" + (3).to_bytes(8, "big") + b"abc" + bytes(8)).hexdigest()
    digits = f"{int(hashed, 16) % 10**40:040d}"
    assert fingerprint(b"abc", b"") == " ".join(digits[at : at + 5] for at in range(0, 40, 5))


@given(PARTS, PARTS)
def test_different_parts_have_different_fingerprints(one, other):
    """A false alarm takes two in 10^40."""
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def test_spaces_and_dashes_do_not_matter_and_digits_do():
    seen = fingerprint(b"key")
    for told in (seen, seen.replace(" ", ""), seen.replace(" ", "-"), f" {seen}\n"):
        require_same(told, seen, "it")
    for place in range(40):
        digits = seen.replace(" ", "")
        wrong = digits[:place] + str((int(digits[place]) + 1) % 10) + digits[place + 1 :]
        with pytest.raises(TrustError, match="not the one that was told"):
            require_same(wrong, seen, "it")


@pytest.mark.parametrize("told", ["", "yes", "12345", fingerprint(b"x") + " 0", "é" * 40, "²" * 40, "٣" * 40])
def test_what_is_no_fingerprint_is_no_answer(told):
    with pytest.raises(ConfigError, match="no fingerprint"):
        require_same(told, fingerprint(b"x"), "it")
