"""Peak memory of each party at a model's true size, each in a process of its own: `python -m scenarios.bench.memory`.

    site      quantise, mask, pack, encrypt, seal an update whose float32 vector lies in memory
    sum       check and add what three sites sent, read from disk one after the other; the sum as it travels, to disk
    open      take the masks off a sum of three that lies in memory as it came, and open it

The update is given; what training takes is not measured here. Peaks are the process's high-water mark less what it had
when its libraries were loaded, beside 4 bytes per parameter, the plain update.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.federation import require
from common.files import write_atomically
from common.he.ciphertexts import Ciphertext
from common.he.masks import MaskStream, masks_left_in_sum, site_mask
from common.he.quantize import QuantizeStream
from common.he.scheme import Aggregate, CohortKey, choose_scheme, coefficients, encrypt, open_sum
from common.keystore import load_secret, save_secret
from common.randomness import Randomness
from common.signing import Identity
from common.updates import Clipped
from common.wire import Envelope, Kind, decode, encode
from server.aggregate_encrypted import BlindSum

NAMES = ("adler", "birke", "cedar")
_LARGEST = 0.1
_SELF_SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}
_PAIR_SEED = b"p" * 32
_MODEL_HASH = bytes(32)
# The allocator gives pieces above 32 MiB back to the system at once, small models' messages only when told to.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def run(params: int, preset: str = "compact") -> dict[str, Any]:
    """One row per party: peak_mb, times_plain (peak over 4 bytes per parameter), seconds."""
    require(params >= 1, "--params", params, "1 or more")
    with tempfile.TemporaryDirectory(prefix="veilfed-memory-") as place:
        save_secret(
            Path(place, "key"), CohortKey.generate(choose_scheme(preset, 3, params)).export_for_wrapping(), None
        )
        rows = []
        for party, *rest in (*(("site", name) for name in NAMES), ("sum",), ("open",)):
            command = [sys.executable, "-m", "scenarios.bench.memory", "--params", str(params), "--preset", preset]
            command += ["--party", party, "--place", place, *(["--name", *rest] if rest else [])]
            done = subprocess.run(command, env=os.environ | _GIVE_BACK, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{party} ended with exit code {done.returncode}: {done.stderr[-500:]}")
            rows.append(json.loads(done.stdout))
    return {"bench": "memory", "params": params, "preset": preset, "plain_mb": 4 * params / 2**20, "rows": rows}


class _Party:
    """One party's work on files below `place`."""

    def __init__(self, params: int, preset: str, place: Path) -> None:
        self.params, self.place, self.scheme = params, place, choose_scheme(preset, len(NAMES), params)
        self.count, self.bits = coefficients(self.scheme, params), self.scheme.plain_modulus_bits

    def site(self, name: str) -> None:
        update = _update(self.params, name)
        pairs = {other: _PAIR_SEED for other in NAMES if other != name}
        values = QuantizeStream(Clipped(update, _LARGEST), self.scheme.value_bits, Randomness.from_os().uniform)
        mask = MaskStream(
            self.count, lambda count, start: site_mask(name, _SELF_SEEDS[name], pairs, count, self.bits, start)
        )
        body = encrypt(values, self.key(), mask).encode(_MODEL_HASH)
        envelope = Envelope(Kind.UPDATE, bytes(16), 1, bytes(32), name, body)
        write_atomically(self.place / name, encode(envelope, Identity.from_private_bytes(_SELF_SEEDS[name])))

    def sum(self) -> None:
        total = BlindSum(self.scheme, self.params)
        for name in NAMES:
            data = (self.place / name).read_bytes()
            body = decode(data, lambda site: Identity.from_private_bytes(_SELF_SEEDS[site]).public).body
            total.add(Ciphertext.decode(self.scheme, self.params, body[len(_MODEL_HASH) :]))
            del data, body
        write_atomically(self.place / "sum", (total.message(),))

    def open(self) -> None:
        mask = MaskStream(self.count, lambda count, start: masks_left_in_sum(_SELF_SEEDS, {}, count, self.bits, start))
        data = (self.place / "sum").read_bytes()
        total = open_sum(Aggregate.decode(self.scheme, self.params, data), self.key(), mask)
        steps = _LARGEST / ((1 << (self.scheme.value_bits - 1)) - 1)
        first = min(self.params, 1000)
        expected = sum(_update(first, name).astype(np.float64) for name in NAMES)
        if np.abs(total[:first] * steps - expected).max() > 3 * steps:
            raise RuntimeError("the sum is wrong")

    def key(self) -> CohortKey:
        return CohortKey.load(self.scheme, load_secret(self.place / "key", None))


def _update(params: int, name: str) -> np.ndarray:
    """(params,) float32 below the largest, made in place so that the vector itself is all that it takes."""
    update = np.empty(params, np.float32)
    for start in range(0, params, 1 << 20):
        part = update[start : start + (1 << 20)]
        rng = np.random.default_rng([NAMES.index(name), start])
        np.multiply(rng.random(part.size, np.float32) - np.float32(0.5), np.float32(2 * _LARGEST), out=part)
    return update


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _measured(work: Callable[[], None], warm: Callable[[], object]) -> dict[str, float]:
    warm()
    before, started = _status_kb("VmRSS:"), time.perf_counter()
    work()
    return {"peak_mb": (_status_kb("VmHWM:") - before) / 1024, "seconds": time.perf_counter() - started}


def _child(chosen: argparse.Namespace) -> dict[str, Any]:
    party = _Party(chosen.params, chosen.preset, Path(chosen.place))
    work = {"site": lambda: party.site(chosen.name), "sum": party.sum, "open": party.open}[chosen.party]
    warm = np.zeros(1, np.int64)
    measured = _measured(work, lambda: encrypt(warm, CohortKey.generate(party.scheme)))
    return {"party": chosen.party, **measured, "times_plain": measured["peak_mb"] * 2**20 / (4 * chosen.params)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=100_000_000)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--party", choices=["site", "sum", "open"], help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    print(json.dumps(_child(arguments) if arguments.party else run(arguments.params, arguments.preset)))
