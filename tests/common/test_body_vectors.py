"""Golden bodies: what crosses the border inside an envelope, written by other code than ours, good and bad."""

import hashlib
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from common.errors import TrustError, WireError
from common.he.ciphertexts import Aggregate, Ciphertext, from_dense, whole
from common.he.keys import unwrap
from common.he.packing import blocks
from common.he.parameters import PRESETS
from common.he.sealing import ExchangeKey
from common.masking import Opening, Published, mask_context, package_context
from common.wire import digest

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "bodies.json").read_text(encoding="utf-8"))
RUN, MODEL = bytes.fromhex(VECTORS["run"]), VECTORS["model"]
_spec = spec_from_file_location("make_bodies", FOLDER / "make_bodies.py")
GENERATOR = module_from_spec(_spec)
sys.modules[_spec.name] = GENERATOR
_spec.loader.exec_module(GENERATOR)


def golden(vector: dict, data: bytes) -> bytes:
    """The generator's bytes, after checking that they are those on record."""
    assert vector.get("data", data.hex()) == data.hex()
    assert vector.get("sha256", hashlib.sha256(data).hexdigest()) == hashlib.sha256(data).hexdigest()
    return data


def words_of(data, scheme, length, dropped_bits, used_only=True) -> list[int]:
    found: list[int] = []
    for block in blocks(scheme, length):
        words = from_dense(data, block, scheme, dropped_bits)[:, :, : block.used if used_only else None]
        found += (words >> np.uint64(dropped_bits)).reshape(-1).tolist()
    return found


@pytest.mark.parametrize("vector", VECTORS["ciphertexts"], ids=lambda v: f"{v['preset']} {v['length']}")
def test_ciphertexts_hold_the_words_that_were_written(vector):
    preset, length = vector["preset"], vector["length"]
    data, scheme = golden(vector, GENERATOR.ciphertext(preset, length)), PRESETS[preset]
    read = Ciphertext.decode(scheme, length, data)
    assert read.encode() == data
    assert words_of(read.c0, scheme, length, scheme.dropped_bits) == GENERATOR.polynomials("c0", preset, length)[1]
    assert read.seeds == data[-64 * scheme.ciphertexts(length) :]


@pytest.mark.parametrize(
    "vector", VECTORS["aggregates"], ids=lambda v: f"{v['preset']} {v['length']} {v['form']} {v['sites']}"
)
def test_sums_hold_the_words_that_were_written(vector):
    preset, length, form, sites = (vector[key] for key in ("preset", "length", "form", "sites"))
    data, scheme = golden(vector, GENERATOR.aggregate(preset, length, form, sites)), PRESETS[preset]
    read = Aggregate.decode(scheme, length, data)
    assert read.encode() == data
    assert read.sites == sites
    assert words_of(read.c0, scheme, length, scheme.dropped_bits) == GENERATOR.polynomials("sum", preset, length)[1]
    if form:
        full = whole(scheme, length)
        expected = GENERATOR.polynomials("c1", preset, length, whole=True)[1]
        assert words_of(read.c1, scheme, full, scheme.dropped_bits_down, used_only=False) == expected


def test_what_is_published_and_what_was_agreed_on():
    vector = VECTORS["published"]
    data, total = bytes.fromhex(vector["data"]), bytes.fromhex(vector["total"])
    read = Published.decode(data)
    assert read.encode() == data
    assert (read.sites, read.total) == (("adler", "birke", "cedar"), total)
    assert read.lifting.broken_pairs["birke", "dorn"] == GENERATOR.drawn("pair 2", 32)
    assert read.lifting.self_seeds["cedar"] == GENERATOR.drawn("self cedar", 32)
    opening = Opening(read.sites, digest(total).hex(), MODEL)
    assert opening.digest(RUN, vector["round"]) == vector["list"]


def test_a_wrapped_key_opens_to_the_ternary_key_that_was_wrapped():
    vector = VECTORS["wrapped_key"]
    wrapped, box, public, context = (
        bytes.fromhex(vector[key]) for key in ("wrapped", "box", "maker_public", "context")
    )
    mine, scheme = ExchangeKey.from_private_bytes(bytes.fromhex(vector["private"])), PRESETS["precise"]
    key = unwrap(wrapped, box, "birke", mine, public, context, scheme)
    assert digest(key.export_for_wrapping()).hex() == vector["raw_sha256"]
    for other in (context[:-6] + b"\4" + context[-5:], context + b"x", b"x" + context):
        with pytest.raises(TrustError):
            unwrap(wrapped, box, "birke", mine, public, other, scheme)
    with pytest.raises(TrustError):
        unwrap(wrapped, box, "cedar", mine, public, context, scheme)


def test_contexts_are_spelt_alike():
    assert mask_context(RUN, 7, MODEL).hex() == VECTORS["contexts"]["mask"]
    assert package_context(RUN, 7, "adler", "\u00e9del").hex() == VECTORS["contexts"]["package"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: f"{v['of']}: {v['why']}")
def test_bad_bodies_are_refused(vector):
    scheme = PRESETS["compact"]
    read = {
        "ciphertext": lambda data: Ciphertext.decode(scheme, 10, data),
        "aggregate": lambda data: Aggregate.decode(scheme, 10, data),
        "published": Published.decode,
    }[vector["of"]]
    with pytest.raises(WireError):
        read(bytes.fromhex(vector["data"]))


def test_the_file_is_what_its_generator_writes():
    assert json.loads(json.dumps(GENERATOR.vectors())) == VECTORS
