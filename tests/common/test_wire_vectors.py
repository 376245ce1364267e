"""Golden envelopes: bytes that every version must read, and bytes that none may, written by other code than ours."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from common import errors
from common.roster import COORDINATOR
from common.signing import Identity
from common.wire import Envelope, Kind, decode, encode, from_json

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "envelopes.json").read_text(encoding="utf-8"))
KEYS = {name: bytes.fromhex(key) for name, key in VECTORS["roster"].items()}  # names as odd as the wire carries
RUN, PLAN = bytes.fromhex(VECTORS["run"]), bytes.fromhex(VECTORS["plan"])


def public_key_of(name: str) -> bytes:
    if name not in KEYS:
        raise errors.TrustError(name)
    return KEYS[name]


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: f"{vector['kind']} {vector['sender'][:9]}")
def test_good_envelopes_are_read_and_written_alike(vector):
    expected = Envelope(
        Kind[vector["kind"]], RUN, vector["round"], PLAN, vector["sender"], bytes.fromhex(vector["body"])
    )
    data = bytes.fromhex(vector["data"])
    assert decode(data, public_key_of) == expected
    signer = Identity.from_private_bytes(bytes.fromhex(VECTORS["private"][vector["sender"]]))
    assert encode(expected, signer if expected.kind.signed else None) == data


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["why"])
def test_bad_envelopes_are_refused_for_the_right_reason(vector):
    with pytest.raises(errors.FederationError) as refused:
        decode(bytes.fromhex(vector["data"]), public_key_of)
    assert refused.value.code == vector["error"]


@pytest.mark.parametrize("vector", VECTORS["bad_bodies"], ids=lambda vector: vector["why"])
def test_bodies_that_are_not_canonical_are_refused(vector):
    with pytest.raises(errors.WireError):
        from_json(bytes.fromhex(vector["body"]))


def test_every_kind_has_a_golden_envelope():
    assert {vector["kind"] for vector in VECTORS["good"]} == {kind.name for kind in Kind}
    assert COORDINATOR in VECTORS["roster"]


def test_the_file_is_what_its_generator_writes():
    spec = spec_from_file_location("make_envelopes", FOLDER / "make_envelopes.py")
    generator = module_from_spec(spec)
    sys.modules[spec.name] = generator
    spec.loader.exec_module(generator)
    assert json.loads(json.dumps(generator.vectors())) == VECTORS
