"""Masks are noise to whoever lacks a seed, and vanish for exactly the set that survived."""

import json
import runpy
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from common.errors import ConfigError, ProtocolError, TrustError
from common.he.masks import expand, masks_left_in_sum, pairwise_seed, site_mask
from common.he.sealing import ExchangeKey

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "mask_vectors.json").read_text(encoding="utf-8"))
CONTEXT = bytes.fromhex(VECTORS["context"])
KEYS = {name: ExchangeKey.from_private_bytes(bytes.fromhex(key)) for name, (key, _) in VECTORS["exchange"].items()}
SEED = bytes(range(32))


def seeds_of(names: list[str]) -> dict[frozenset[str], bytes]:
    """A seed for each pair, and under {name} each site's self seed."""
    groups = chain(combinations(names, 1), combinations(names, 2))
    return {frozenset(group): bytes([nth]) * 32 for nth, group in enumerate(groups)}


def masks_of(names: list[str], count: int, bits: int) -> dict[str, np.ndarray]:
    seeds = seeds_of(names)
    masks = {}
    for me in names:
        pairwise = {them: seeds[frozenset([me, them])] for them in names if them != me}
        masks[me] = site_mask(me, seeds[frozenset([me])], pairwise, count, bits)
    return masks


def left_over(names: list[str], survivors: list[str], count: int, bits: int) -> np.ndarray:
    seeds = seeds_of(names)
    vanished = [name for name in names if name not in survivors]
    broken = {(here, gone): seeds[frozenset([here, gone])] for here in survivors for gone in vanished}
    return masks_left_in_sum({name: seeds[frozenset([name])] for name in survivors}, broken, count, bits)


def test_the_golden_vectors_are_what_their_generator_makes():
    assert runpy.run_path(str(FOLDER / "make_mask_vectors.py"))["vectors"]() == VECTORS


@pytest.mark.parametrize("vector", VECTORS["expand"], ids=lambda v: f"{v['bits']} bits from {v['start']}")
def test_expand_gives_the_golden_values(vector):
    values = expand(bytes.fromhex(vector["seed"]), len(vector["values"]), vector["bits"], vector["start"])
    assert values.dtype == np.uint64
    assert values.tolist() == vector["values"]


def test_both_sites_of_a_pair_find_the_golden_seed():
    for one, other, seed in VECTORS["pairs"]:
        assert pairwise_seed(KEYS[one], KEYS[other].public, one, other, CONTEXT).hex() == seed
        assert pairwise_seed(KEYS[other], KEYS[one].public, other, one, CONTEXT).hex() == seed


def test_each_site_adds_the_golden_mask():
    seeds = {frozenset([one, other]): bytes.fromhex(seed) for one, other, seed in VECTORS["pairs"]}
    for vector in VECTORS["masks"]["sites"]:
        me = vector["site"]
        pairwise = {them: seeds[frozenset([me, them])] for them in KEYS if them != me}
        mask = site_mask(me, bytes.fromhex(vector["self_seed"]), pairwise, 4, VECTORS["masks"]["bits"])
        assert mask.tolist() == vector["values"]


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 200_000), count=st.integers(0, 200_000), bits=st.integers(1, 64))
def test_a_mask_made_in_pieces_is_the_mask_made_at_once(start, count, bits):
    whole = expand(SEED, start + count, bits)
    assert np.array_equal(whole[start:], expand(SEED, count, bits, start))
    mask = site_mask("b", SEED, {"a": bytes(32), "c": b"c" * 32}, start + count, bits)
    assert np.array_equal(mask[start:], site_mask("b", SEED, {"a": bytes(32), "c": b"c" * 32}, count, bits, start))


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True),
    bits=st.integers(1, 64),
    count=st.integers(0, 40),
)
def test_masks_vanish_for_every_set_of_survivors(names, bits, count):
    masks = masks_of(names, count, bits)
    secret = {name: expand(name.encode().ljust(32, b"\0")[:32], count, bits) for name in names}
    low = np.uint64((1 << bits) - 1)
    for size in range(1, len(names) + 1):
        for survivors in combinations(names, size):
            total = sum((secret[name] + masks[name] for name in survivors), np.zeros(count, np.uint64))
            opened = (total - left_over(names, list(survivors), count, bits)) & low
            true_sum = sum((secret[name] for name in survivors), np.zeros(count, np.uint64)) & low
            assert np.array_equal(opened, true_sum)


def test_nothing_but_the_exact_set_of_survivors_opens():
    names, count, bits = ["a", "b", "c", "d"], 8, 44
    masks = masks_of(names, count, bits)
    low = np.uint64((1 << bits) - 1)
    subsets = [s for size in range(1, 5) for s in combinations(names, size)]
    for summed in subsets:
        total = sum((masks[name] for name in summed), np.zeros(count, np.uint64))
        for claimed in subsets:
            rest = (total - left_over(names, list(claimed), count, bits)) & low
            assert bool((rest == 0).all()) == (summed == claimed)


def test_a_seed_serves_one_pair_and_one_round_only():
    keys = list(KEYS.values())
    found = {
        pairwise_seed(keys[0], keys[1].public, "a", "b", b"round 1"),
        pairwise_seed(keys[0], keys[1].public, "a", "b", b"round 2"),
        pairwise_seed(keys[0], keys[1].public, "b", "a", b"round 1"),
        pairwise_seed(keys[0], keys[1].public, "a", "bround 1", b""),
        pairwise_seed(keys[0], keys[2].public, "a", "b", b"round 1"),
    }
    assert len(found) == 5


def uniform(cells: np.ndarray, odds: float) -> bool:
    """Whether counts per cell look even; a fair source fails with chance `odds`."""
    expected = cells.sum() / cells.size
    low, high = chi2.ppf([odds / 2, 1 - odds / 2], df=cells.size - 1)
    return bool(low < ((cells - expected) ** 2 / expected).sum() < high)


def top_byte(values: np.ndarray, bits: int) -> np.ndarray:
    return np.bincount((values >> np.uint64(bits - 8)).astype(np.int64), minlength=256)


def low_byte(values: np.ndarray) -> np.ndarray:
    return np.bincount((values & np.uint64(255)).astype(np.int64), minlength=256)


@pytest.mark.parametrize("bits", [8, 22, 44, 58, 64])
def test_values_are_uniform(bits):
    """19 chi-square tests over 5 widths: false alarm 1e-6 per run. A byte likelier by 30% is caught in 99.9%."""
    odds = 1e-6 / 19
    count, low = 1_000_000, np.uint64((1 << bits) - 1)
    fresh = np.random.default_rng().bytes
    one, two = expand(fresh(32), count, bits), expand(fresh(32), count, bits)
    for values in (one, (one - two) & low, (one[1:] - one[:-1]) & low):
        assert uniform(top_byte(values, bits), odds)
    if bits > 8:
        assert uniform(low_byte(one), odds)


def test_one_sites_masked_vector_is_uniform_whatever_it_holds():
    """Even with every other site's help except one. 2 tests: false alarm 1e-6 per run."""
    bits, count = 44, 1_000_000
    fresh = np.random.default_rng().bytes
    known = fresh(32)
    mask = site_mask("b", fresh(32), {"a": known, "c": fresh(32)}, count, bits)
    vector = np.arange(count, dtype=np.uint64)
    sent = (vector + mask + expand(known, count, bits)) & np.uint64((1 << bits) - 1)
    assert uniform(top_byte(sent, bits), 0.5e-6)
    assert uniform(low_byte(sent), 0.5e-6)


@pytest.mark.parametrize("bits", [-1, 0, 65])
def test_widths_that_do_not_fit_a_word_are_refused(bits):
    with pytest.raises(ConfigError, match="bits"):
        expand(SEED, 1, bits)


@pytest.mark.parametrize(("count", "start"), [(-1, 0), (1, -1)])
def test_negative_places_are_refused(count, start):
    with pytest.raises(ConfigError):
        expand(SEED, count, 44, start)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_seeds_of_another_length_are_refused(seed):
    with pytest.raises(ProtocolError, match="32 bytes"):
        expand(seed, 1, 44)


def test_no_site_masks_with_itself():
    key = ExchangeKey.generate()
    with pytest.raises(ProtocolError):
        pairwise_seed(key, key.public, "a", "a", b"")
    with pytest.raises(ProtocolError):
        site_mask("a", SEED, {"a": SEED}, 1, 44)


def test_a_key_that_forces_the_seed_is_refused():
    with pytest.raises(TrustError):
        pairwise_seed(ExchangeKey.generate(), bytes(32), "a", "b", b"")


@pytest.mark.parametrize("pair", [("c", "d"), ("a", "b"), ("a", "a"), ("c", "a")])
def test_broken_pairs_join_a_survivor_and_a_vanished_site(pair):
    with pytest.raises(ProtocolError):
        masks_left_in_sum({"a": SEED, "b": SEED}, {pair: SEED}, 1, 44)
