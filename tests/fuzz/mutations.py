"""Bytes that are nearly right: what a fuzzer feeds to a decoder, as hypothesis strategies that shrink."""

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from common.wire import to_json

EDGES = [0, 1, 2, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**60, 2**63, 2**64 - 1]
ODD = [None, True, False, 0, -1, 1, 2, 1e9, 2**53 - 1, -0.5, 1e-300, 1e300, 1e308, "", "0", "zz", "00" * 32, "ff" * 34]
ODD += ["coordinator", "x" * 300, "naïve ☃", [], {}, [None] * 3, [[]], {"": {}}, ["a", "a"], [1.5], [2**40] * 3]


@st.composite
def nearly(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A valid example after up to four accidents, or nothing but accident."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 7)):
            case 0 if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[place : place + 1] = draw(st.binary(max_size=3))
            case 2:
                del data[place : place + draw(st.integers(1, 64))]
            case 3:
                del data[place:]
            case 4:
                data[place:place] = data[place : place + draw(st.integers(1, 64))]
            case 5:
                width = draw(st.sampled_from([1, 2, 4, 8]))
                order = draw(st.sampled_from(["big", "little"]))
                data[place : place + width] = (draw(st.sampled_from(EDGES)) % 256**width).to_bytes(width, order)
            case 6:
                other = draw(st.sampled_from(seeds))
                data[place:] = other[draw(st.integers(0, len(other))) :]
            case _:
                data[place : place + 1] = draw(st.sampled_from([b'"', b"[", b"{", b"0", b"-", b"\\ud800", b"1e999"]))
    return bytes(data)


def bytes_like(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return nearly(seeds) | st.binary(max_size=200)


@st.composite
def tables_like(draw: st.DrawFn, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A valid table in which some value, key or branch became another."""
    table = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = table
        while (inner := _places(place)) and draw(st.integers(0, 3)):
            step = draw(st.sampled_from(inner))
            if not _places(place[step]):
                break
            place = place[step]
        odd = st.sampled_from(ODD).map(copy.deepcopy)
        value = draw(odd | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5))
        keys = _places(place)
        match draw(st.integers(0, 4)):
            case 0 if keys:
                del place[draw(st.sampled_from(keys))]
            case 1 if isinstance(place, dict):
                place[draw(st.sampled_from(["", "x", "received", "self", "coordinator"]))] = value
            case 2 if len(keys) > 1:
                place[draw(st.sampled_from(keys))] = copy.deepcopy(place[draw(st.sampled_from(keys))])
            case _ if keys:
                place[draw(st.sampled_from(keys))] = value
    return table


def json_like(seeds: Sequence[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Bodies of messages: broken in their structure, or in their bytes."""
    return tables_like(seeds).map(to_json) | nearly([to_json(seed) for seed in seeds])


def _places(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return sorted(value)
    return list(range(len(value))) if isinstance(value, list) else []
