"""Proves: nothing of a signed object is believed before everybody who was asked for has signed it, as what it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import TrustError, WireError
from common.signed_json import SignedJson, signed_table
from common.signing import Identity
from common.wire import from_json, to_json

ADA, BEN, EVE = Identity.generate(), Identity.generate(), Identity.generate()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


@given(OBJECTS)
def test_what_was_said_is_read_back_from_bytes(said):
    data = to_json(signed_table("c", said, [ADA, BEN]))
    assert SignedJson.of(from_json(data)).said_by("c", [BEN.public, ADA.public]) == said


def test_every_signature_that_is_asked_for_must_be_there_and_hold():
    table = signed_table("c", {"a": 1}, [ADA, BEN])
    read = SignedJson.of(table)
    read.said_by("c", [ADA.public])  # more signatures than were asked for do no harm
    with pytest.raises(TrustError, match="missing"):
        read.said_by("c", [ADA.public, EVE.public])
    with pytest.raises(TrustError, match="does not hold"):
        read.said_by("d", [ADA.public])
    with pytest.raises(TrustError, match="nobody"):
        read.said_by("c", [])
    swapped = {ADA.public.hex(): table["signatures"][BEN.public.hex()]}
    with pytest.raises(TrustError, match="does not hold"):
        SignedJson.of({**table, "signatures": swapped}).said_by("c", [ADA.public])
    for said in ({"a": 2}, {"a": 1, "b": 1}, {}):
        with pytest.raises(TrustError, match="does not hold"):
            SignedJson.of({**table, "said": said}).said_by("c", [ADA.public])


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        {},
        {"said": {}},
        {"said": {}, "signatures": {}, "more": 1},
        {"said": [], "signatures": {}},
        {"said": {}, "signatures": []},
        {"said": {}, "signatures": {"zz": "00"}},
        {"said": {}, "signatures": {"00": 1}},
        {"said": {}, "signatures": {f"{n:02x}": "00" for n in range(17)}},
    ],
)
def test_another_shape_is_refused(table):
    with pytest.raises(WireError):
        SignedJson.of(table)
