"""A box opens for one recipient, from one sender, for one context; else always the same refusal."""

import copy
import hmac
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, TrustError
from common.he.sealing import ExchangeKey, derive_key, open_sealed, seal

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/mask_vectors.json").read_text(encoding="utf-8"))
GOLDEN, CONTEXT = VECTORS["seal"], bytes.fromhex(VECTORS["context"])
KEYS = {name: ExchangeKey.from_private_bytes(bytes.fromhex(key)) for name, (key, _) in VECTORS["exchange"].items()}
SENDER, RECIPIENT, OTHER = (ExchangeKey.generate() for _ in range(3))

# Points of small order (RFC 7748, section 6.1): whoever sends one as a key forces the shared secret to zero.
SMALL_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def refusal(recipient: ExchangeKey, sender_public: bytes, data: bytes, context: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        open_sealed(recipient, sender_public, data, context)
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_keys_and_agreement_follow_rfc_7748_section_6_1():
    alice = ExchangeKey.from_private_bytes(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = ExchangeKey.from_private_bytes(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    extracted = hmac.digest(bytes(32), shared, "sha256")
    expected = hmac.digest(extracted, b"use" + b"\1", "sha256")
    assert alice.agree(bob.public, b"use") == bob.agree(alice.public, b"use") == expected


def test_derived_keys_follow_rfc_5869_test_case_3():
    """Whose 42 bytes begin with our 32: no salt, no info."""
    assert derive_key(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_the_golden_keys_and_the_golden_box_open():
    for name, (_, public) in VECTORS["exchange"].items():
        assert KEYS[name].public.hex() == public
    plaintext = open_sealed(KEYS[GOLDEN["to"]], KEYS[GOLDEN["from"]].public, bytes.fromhex(GOLDEN["box"]), CONTEXT)
    assert plaintext.hex() == GOLDEN["plaintext"]


@given(plaintext=st.binary(max_size=300), context=st.binary(max_size=80))
def test_what_was_sealed_opens(plaintext, context):
    box = seal(SENDER, RECIPIENT.public, plaintext, context)
    assert len(box) == len(plaintext) + 28
    assert open_sealed(RECIPIENT, SENDER.public, box, context) == plaintext


def test_equal_plaintexts_make_unequal_boxes():
    boxes = {seal(SENDER, RECIPIENT.public, b"same", b"same") for _ in range(100)}
    assert len({box[:12] for box in boxes}) == 100


def test_every_wrong_box_gets_the_same_answer():
    box = seal(SENDER, RECIPIENT.public, b"plaintext", b"context")
    answers = {refusal(RECIPIENT, SENDER.public, box[:size], b"context") for size in range(len(box))}
    answers.add(refusal(RECIPIENT, SENDER.public, box + b"\0", b"context"))
    for place in range(len(box)):
        for bit in range(8):
            wrong = bytearray(box)
            wrong[place] ^= 1 << bit
            answers.add(refusal(RECIPIENT, SENDER.public, bytes(wrong), b"context"))
    answers.add(refusal(RECIPIENT, SENDER.public, box, b"another context"))
    answers.add(refusal(RECIPIENT, OTHER.public, box, b"context"))
    answers.add(refusal(OTHER, SENDER.public, box, b"context"))
    answers |= {refusal(RECIPIENT, public, box, b"context") for public in (*SMALL_ORDER, b"", bytes(31), bytes(33))}
    assert len(answers) == 1


def test_a_box_cannot_be_sent_back_to_its_sender():
    box = seal(SENDER, RECIPIENT.public, b"plaintext", b"context")
    refusal(SENDER, RECIPIENT.public, box, b"context")


@pytest.mark.parametrize("public", [*SMALL_ORDER, b"", bytes(31), bytes(33)], ids=lambda public: public.hex()[:16])
def test_nothing_is_sealed_to_a_key_that_protects_nothing(public):
    with pytest.raises(TrustError):
        seal(SENDER, public, b"plaintext", b"context")


@given(st.binary(max_size=100))
def test_any_bytes_at_all_are_refused(data):
    refusal(RECIPIENT, SENDER.public, data, b"context")


def test_a_key_survives_its_bytes():
    again = ExchangeKey.from_private_bytes(SENDER.private_bytes())
    assert again.public == SENDER.public


@pytest.mark.parametrize("length", [0, 31, 33])
def test_private_keys_of_another_length_are_refused(length):
    with pytest.raises(ConfigError, match="32 bytes"):
        ExchangeKey.from_private_bytes(bytes(length))


def test_an_exchange_key_is_never_pickled_copied_or_shown():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(SENDER, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(SENDER)
    assert repr(SENDER) == str(SENDER) == "ExchangeKey()"
