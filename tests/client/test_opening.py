"""A sum that was opened once is taken again only where everything that it depends on is the same."""

import contextlib
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from client import opening
from client.opening import open_published, openings_shared
from common.errors import FederationError, ProtocolError
from common.he.masks import MaskStream, masks_left_in_sum, site_mask
from common.he.scheme import PRESETS, CohortKey, coefficients, encrypt
from common.masking import Lifting, Published
from server.aggregate_encrypted import BlindSum

SCHEME, LENGTH, NAMES = PRESETS["compact"], 100, ("adler", "birke")
COUNT, BITS = coefficients(SCHEME, LENGTH), SCHEME.plain_modulus_bits
KEY = CohortKey.generate(SCHEME)
SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}
PAIR = {("adler", "cedar"): b"p" * 32, ("birke", "cedar"): b"q" * 32}


def published(shift: int = 0, key: CohortKey = KEY) -> tuple[Published, np.ndarray]:
    vectors = [np.arange(LENGTH) + shift, np.arange(LENGTH) * 2]
    total = BlindSum(SCHEME, LENGTH)
    for name, vector in zip(NAMES, vectors, strict=True):
        pairs = {"cedar": PAIR[name, "cedar"]}
        total.add(encrypt(vector, key, site_mask(name, SEEDS[name], pairs, COUNT, BITS)))
    return Published(NAMES, (), Lifting(SEEDS, PAIR), total.result().encode()), sum(vectors)


def masks(of: Published) -> MaskStream:
    seeds, pairs = of.lifting.self_seeds, of.lifting.broken_pairs
    return MaskStream(COUNT, lambda count, start: masks_left_in_sum(seeds, pairs, count, BITS, start))


def opened(of: Published, key: CohortKey = KEY, length: int = LENGTH) -> np.ndarray:
    (total,) = open_published(of, (of.sites,), length, key, [masks(of)])
    return total


@pytest.fixture
def openings(monkeypatch) -> list[int]:
    """One entry per sum that was really opened."""
    counted: list[int] = []
    really = opening.open_sum
    monkeypatch.setattr(opening, "open_sum", lambda *given: counted.append(1) or really(*given))
    return counted


def test_a_site_opens_for_itself_unless_openings_are_shared(openings):
    message, true = published()
    assert np.array_equal(opened(message), true)
    assert np.array_equal(opened(message), true)
    assert len(openings) == 2
    with openings_shared():
        for _ in range(3):  # each site reads its own copy of the message and of the key
            again = Published.decode(bytes(message.encode()))
            key = CohortKey.load(SCHEME, KEY.export_for_wrapping())
            assert np.array_equal(opened(again, key), true)
        assert len(openings) == 3
    assert np.array_equal(opened(message), true)
    assert len(openings) == 4


def test_nothing_is_shared_with_another_key_sum_list_length_or_mask(openings):
    message, true = published()
    flipped = bytearray(message.total)
    flipped[-1] ^= 1
    other_seed = Lifting({**SEEDS, "birke": bytes(32)}, PAIR)
    other_pair = Lifting(SEEDS, {**PAIR, ("birke", "cedar"): bytes(32)})
    swapped = Lifting(dict(zip(NAMES, reversed(SEEDS.values()), strict=True)), {})
    alike = [
        (replace(message, total=bytes(flipped)), KEY, LENGTH),
        (replace(message, lifting=other_seed), KEY, LENGTH),
        (replace(message, lifting=other_pair), KEY, LENGTH),
        (replace(message, lifting=swapped), KEY, LENGTH),
        (replace(message, sites=("adler",)), KEY, LENGTH),
        (replace(message, sites=("adler", "dorn")), KEY, LENGTH),
        (message, CohortKey.generate(SCHEME), LENGTH),
        (message, KEY, LENGTH + 1),
    ]
    with openings_shared():
        for changed in alike:
            assert np.array_equal(opened(message), true)
            shared = opening._shared[-1].made_of
            with contextlib.suppress(FederationError):
                opened(*changed)
                assert opening._shared[-1].made_of != shared  # opened afresh, whatever came of it
            assert opening._made_of(changed[0], (changed[0].sites,), changed[2], changed[1]) != shared
            assert not opening._shared[-1].totals or opening._shared[-1].made_of != shared


def test_a_second_sum_takes_the_place_of_the_first_and_a_failure_leaves_none(openings):
    (one, true_one), (two, true_two) = published(), published(shift=5)
    with openings_shared():
        assert np.array_equal(opened(one), true_one)
        first = weakref.ref(opening._shared[-1].totals[0])
        assert np.array_equal(opened(two), true_two)
        gc.collect()
        assert first() is None
        with pytest.raises(ProtocolError):
            opened(one, CohortKey.generate(SCHEME))
        assert not opening._shared[-1].totals
        assert np.array_equal(opened(two), true_two)
        last = weakref.ref(opening._shared[-1].totals[0])
        assert len(openings) == 4
    gc.collect()
    assert last() is None
    assert opening._shared == []


def test_what_is_shared_cannot_be_written_to_and_is_not_shown():
    message, _ = published()
    with openings_shared():
        with pytest.raises(ValueError, match="read-only"):
            opened(message)[0] = 1
        assert repr(opening._shared[-1]) == "_Shared()"
