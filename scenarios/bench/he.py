"""`veilfed bench he`: what encryption costs, ours beside the field's usual way, in one process and one thread.

Every system takes a site's float32 vector to bytes, sums bytes into bytes, and takes those back to numbers, so framing,
checks and quantisation are inside the measured seconds on both sides. Systems take turns at every step; medians of CPU
seconds. Masked rows run the real mask protocol's arithmetic over all pairs, given the agreed seeds, and round and mask
block by block, as a site does.
"""

import importlib.util
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.federation import require
from common.he.masks import MaskStream, masks_left_in_sum, site_mask
from common.he.quantize import QuantizeStream, dequantize_sum
from common.he.scheme import Aggregate, Ciphertext, CohortKey, choose_scheme, coefficients, encrypt, open_sum
from common.randomness import Randomness
from common.updates import Clipped
from scenarios.bench.he_peers import CKKS, PlainFloat32, SealPython, TensealCkks, Update
from server.aggregate_encrypted import BlindSum

Result = TypeVar("Result")
_LARGEST = 0.1  # the public scale: no coordinate of an update is larger
_ROUNDS = 3


class System(Protocol):
    name: str

    def encrypt(self, site: int, update: Update) -> bytes: ...

    def sum(self, messages: Sequence[bytes]) -> bytes: ...

    def open(self, total: bytes) -> NDArray[np.floating]: ...


def run(params: int, sites: int) -> dict[str, Any]:
    """One row per system, CPU seconds; `ratios` says how many times cheaper than the reference each is."""
    require(params >= 1, "--params", params, "1 or more")
    require(2 <= sites <= 1024, "--sites", sites, "2 to 1024")
    rng = np.random.default_rng(0)
    updates = [np.clip(rng.normal(0, 0.02, params), -_LARGEST, _LARGEST).astype(np.float32) for _ in range(sites)]
    systems, skipped = _systems(params, sites)
    with _quiet_library(), _one_process():
        rows = _measure(systems, updates)
    reference = next(row for row in rows if row["system"] == CKKS)
    costs = [key for key in reference if key not in ("system", "max_abs_error")]
    ratios = {row["system"]: {key: reference[key] / row[key] for key in costs if row[key] > 0} for row in rows}
    return {"bench": "he", "params": params, "sites": sites, "rows": rows, "ratios": ratios, "skipped": skipped}


def _systems(params: int, sites: int) -> tuple[list[System], list[str]]:
    systems: list[System] = [
        Veilfed("compact", params, sites, masked=False),
        Veilfed("compact", params, sites, masked=True),
        Veilfed("precise", params, sites, masked=False),
        TensealCkks(),
        PlainFloat32(),
    ]
    if importlib.util.find_spec("seal") is None:
        return systems, ["seal-python: the package is not installed"]
    return [*systems, SealPython(params, sites, _LARGEST)], []


def _measure(systems: Sequence[System], updates: Sequence[Update]) -> list[dict[str, Any]]:
    expected = np.sum(updates, axis=0, dtype=np.float64)
    sites, params = len(updates), updates[0].size
    encrypt_s: dict[str, list[float]] = {system.name: [] for system in systems}
    sum_s, open_s = ({system.name: list[float]() for system in systems} for _ in range(2))
    messages: dict[str, list[bytes]] = {system.name: [b""] * sites for system in systems}
    totals: dict[str, bytes] = {}
    errors: dict[str, float] = {}
    for turn in range(max(sites, _ROUNDS)):
        for system in systems:
            site = turn % sites
            messages[system.name][site] = _timed(encrypt_s[system.name], system.encrypt, site, updates[site])
    for _ in range(_ROUNDS):
        for system in systems:
            totals[system.name] = _timed(sum_s[system.name], system.sum, messages[system.name])
    for _ in range(_ROUNDS):
        for system in systems:
            opened = _timed(open_s[system.name], system.open, totals[system.name])
            errors[system.name] = float(np.abs(opened[:params] - expected).max())
    return [
        {
            "system": system.name,
            "encrypt_cpu_s": statistics.median(encrypt_s[system.name]),
            "sum_cpu_s_per_site": statistics.median(sum_s[system.name]) / sites,
            "open_cpu_s": statistics.median(open_s[system.name]),
            "bytes_per_parameter": len(messages[system.name][0]) / params,
            "bytes_down_per_parameter": len(totals[system.name]) / params,
            "max_abs_error": errors[system.name],
        }
        for system in systems
    ]


def _timed(seconds: list[float], work: Callable[..., Result], *arguments: Any) -> Result:
    started = time.process_time()
    result = work(*arguments)
    seconds.append(time.process_time() - started)
    return result


class Veilfed:
    """This project, by its own functions."""

    def __init__(self, preset: str, params: int, sites: int, masked: bool) -> None:
        self.name = f"veilfed-{preset}-masked" if masked else f"veilfed-{preset}"
        self._scheme = choose_scheme(preset, sites, params)
        self._params, self._masked = params, masked
        self._key = CohortKey.generate(self._scheme)
        self._randomness = Randomness.from_os()
        self._names = [f"site-{number}" for number in range(sites)]
        self._self_seeds = {name: secrets.token_bytes(32) for name in self._names}
        self._pairs = {frozenset((a, b)): secrets.token_bytes(32) for a in self._names for b in self._names if a < b}

    def encrypt(self, site: int, update: Update) -> bytes:
        clipped = Clipped(update.astype(np.float64), _LARGEST)
        values = QuantizeStream(clipped, self._scheme.value_bits, self._randomness.uniform)
        return encrypt(values, self._key, self._mask(site) if self._masked else None).encode()

    def sum(self, messages: Sequence[bytes]) -> bytes:
        total = BlindSum(self._scheme, self._params)
        for message in messages:
            total.add(Ciphertext.decode(self._scheme, self._params, message))
        return bytes(total.message())

    def open(self, total: bytes) -> NDArray[np.floating]:
        aggregate = Aggregate.decode(self._scheme, self._params, total)
        left = self._masked_by(lambda count, bits, start: masks_left_in_sum(self._self_seeds, {}, count, bits, start))
        total = open_sum(aggregate, self._key, left if self._masked else None)
        return dequantize_sum(total, _LARGEST, self._scheme.value_bits)

    def _mask(self, site: int) -> MaskStream:
        me = self._names[site]
        pairwise = {them: self._pairs[frozenset((me, them))] for them in self._names if them != me}
        seed = self._self_seeds[me]
        return self._masked_by(lambda count, bits, start: site_mask(me, seed, pairwise, count, bits, start))

    def _masked_by(self, grow: Callable[[int, int, int], NDArray[np.uint64]]) -> MaskStream:
        count, bits = coefficients(self._scheme, self._params), self._scheme.plain_modulus_bits
        return MaskStream(count, lambda count, start: grow(count, bits, start))


@contextmanager
def _one_process() -> Iterator[None]:
    """CPU seconds of helper processes would not be counted."""
    before = os.environ.get("VEILFED_PROCESSES")
    os.environ["VEILFED_PROCESSES"] = "1"
    try:
        yield
    finally:
        del os.environ["VEILFED_PROCESSES"]
        if before is not None:
            os.environ["VEILFED_PROCESSES"] = before


@contextmanager
def _quiet_library() -> Iterator[None]:
    """TenSEAL warns at every long vector, on standard output, where only the result may stand."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
