"""The envelope: what goes in comes out, and nothing else does."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FederationError, TrustError, WireError
from common.signing import Identity
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, header_bytes, names, to_json

ALICE = Identity.from_private_bytes(bytes(range(32)))
ROSTER = {"alice": ALICE.public, "bob": Identity.generate().public}


def public_key_of(name: str) -> bytes:
    if name not in ROSTER:
        raise TrustError(name)
    return ROSTER[name]


def envelope(kind: Kind = Kind.UPDATE, body: bytes = b"body", sender: str = "alice", number: int = 7) -> Envelope:
    return Envelope(kind, b"r" * 16, number, b"p" * 32, sender, body)


@given(st.sampled_from(Kind), st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_round_trip(kind, body, number):
    sent = envelope(kind, body, number=number)
    data = encode(sent, ALICE if kind.signed else None)
    assert decode(data, public_key_of) == sent
    assert len(data) == header_bytes("alice") + len(body)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_and_never_crash(data):
    with pytest.raises(FederationError):
        decode(data, public_key_of)


@given(st.data())
def test_every_changed_byte_is_noticed(data):
    good = encode(envelope(), ALICE)
    place = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FederationError):
        decode(bytes(changed), public_key_of)


@given(st.integers(0, len(encode(envelope(), ALICE)) - 1))
def test_every_truncation_is_noticed(length):
    with pytest.raises(WireError):
        decode(encode(envelope(), ALICE)[:length], public_key_of)


def test_a_header_that_promises_too_much_costs_nothing():
    good = bytearray(encode(envelope(), ALICE))
    start = header_bytes("alice") - 64 - 8
    good[start : start + 8] = (2**60).to_bytes(8, "big")
    with pytest.raises(WireError, match="promises"):
        decode(bytes(good), public_key_of)


def test_nobody_signs_for_another():
    with pytest.raises(TrustError):
        decode(encode(envelope(sender="bob"), ALICE), public_key_of)
    with pytest.raises(TrustError):
        decode(encode(envelope(sender="mallory"), ALICE), public_key_of)


def test_signed_kinds_need_a_signature_and_readable_ones_take_none():
    with pytest.raises(WireError):
        encode(envelope(Kind.UPDATE), None)
    with pytest.raises(WireError):
        encode(envelope(Kind.READABLE_UPDATE), ALICE)
    relabelled = bytearray(encode(envelope(Kind.READABLE_UPDATE)))
    relabelled[3] = Kind.UPDATE
    with pytest.raises(TrustError):
        decode(bytes(relabelled), public_key_of)


def test_golden_bytes():
    """A change of format needs a new version: this is version 1, assembled here by hand."""
    data = encode(envelope(Kind.ORDER, to_json({"b": 1.0, "a": "x"})), ALICE)
    body = b'{"a":"x","b":1}'
    header = b"VF" + b"\x01" + b"\x01" + b"r" * 16 + b"\0\0\0\x07" + b"p" * 32 + b"\x05alice" + bytes(7) + b"\x0f"
    assert data[:-64] == header + body
    assert data[-64:] == ALICE.sign("veilfed.envelope.v1", header + hashlib.sha256(body).digest())


def test_json_bodies_are_strict():
    for bad in (b"[1]", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000):
        with pytest.raises(WireError):
            from_json(bad)
    for bad in ("zz", None, 5):
        with pytest.raises(WireError):
            from_hex(bad)


@pytest.mark.parametrize("value", [None, 5, "abc", [1], ["a", None], {"a": 1}])
def test_a_list_of_names_is_a_list_of_texts(value):
    with pytest.raises(WireError):
        names({"received": value}, "received")
    assert names({"received": ["b", "a"]}, "received") == ["b", "a"]
