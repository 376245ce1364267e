"""A signature holds for one key, one purpose and one text; else always the same refusal."""

import copy
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, TrustError
from common.signing import Identity, verify

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors/mask_vectors.json").read_text(encoding="utf-8"))["signature"]
SITE, OTHER = Identity.generate(), Identity.generate()


def refusal(public: bytes, context: str, data: bytes, signature: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        verify(public, context, data, signature)
    assert caught.value.__suppress_context__
    return str(caught.value)


@pytest.mark.parametrize(
    ("private", "public"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
    ],
)
def test_keys_follow_rfc_8032_section_7_1(private, public):
    assert Identity.from_private_bytes(bytes.fromhex(private)).public.hex() == public


def test_the_golden_signature_is_made_and_accepted():
    """Ed25519 leaves no choice to the signer: another implementation made these very bytes."""
    identity = Identity.from_private_bytes(bytes.fromhex(GOLDEN["private"]))
    data, signature = bytes.fromhex(GOLDEN["data"]), bytes.fromhex(GOLDEN["signature"])
    assert identity.public.hex() == GOLDEN["public"]
    assert identity.sign(GOLDEN["context"], data) == signature
    verify(identity.public, GOLDEN["context"], data, signature)


@given(context=st.text(max_size=40), data=st.binary(max_size=200))
def test_what_was_signed_verifies(context, data):
    verify(SITE.public, context, data, SITE.sign(context, data))


@given(text=st.binary(min_size=2, max_size=40).map(lambda b: b.hex()), data=st.data())
def test_context_and_data_never_trade_bytes(text, data):
    cut, other = (data.draw(st.integers(0, len(text))) for _ in range(2))
    signature = SITE.sign(text[:cut], text[cut:].encode())
    if cut == other:
        verify(SITE.public, text[:other], text[other:].encode(), signature)
    else:
        refusal(SITE.public, text[:other], text[other:].encode(), signature)


def test_every_wrong_signature_gets_the_same_answer():
    signature = SITE.sign("veilfed.update.v1", b"data")
    answers = {
        refusal(SITE.public, "veilfed.update.v2", b"data", signature),
        refusal(SITE.public, "veilfed.update.v1", b"data!", signature),
        refusal(OTHER.public, "veilfed.update.v1", b"data", signature),
        *(refusal(public, "veilfed.update.v1", b"data", signature) for public in (b"", bytes(31), bytes(33))),
        *(refusal(SITE.public, "veilfed.update.v1", b"data", signature[:size]) for size in range(64)),
        refusal(SITE.public, "veilfed.update.v1", b"data", signature + b"\0"),
    }
    for place in range(64):
        wrong = bytearray(signature)
        wrong[place] ^= 1 << (place % 8)
        answers.add(refusal(SITE.public, "veilfed.update.v1", b"data", bytes(wrong)))
    assert len(answers) == 1


@given(public=st.binary(max_size=40), signature=st.binary(max_size=80))
def test_any_bytes_at_all_are_refused(public, signature):
    refusal(public, "veilfed.update.v1", b"data", signature)


def test_the_other_form_of_a_signature_is_refused():
    """S + L in place of S: one message, one signature (RFC 8032, section 8.4)."""
    signature = SITE.sign("veilfed.update.v1", b"data")
    order = 2**252 + 27742317777372353535851937790883648493
    other = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    refusal(SITE.public, "veilfed.update.v1", b"data", signature[:32] + other)


def test_an_identity_survives_its_bytes():
    assert Identity.from_private_bytes(SITE.private_bytes()).public == SITE.public


@pytest.mark.parametrize("length", [0, 31, 33])
def test_private_keys_of_another_length_are_refused(length):
    with pytest.raises(ConfigError, match="32 bytes"):
        Identity.from_private_bytes(bytes(length))


def test_an_identity_is_never_pickled_copied_or_shown():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(SITE, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(SITE)
    assert repr(SITE) == str(SITE) == "Identity()"
