"""`veilfed bench deploy --params N`: a private round of a large model over the network, and what each process took.

Three idle sites and their coordinator, as processes of their own on this machine, train an `mlp` of about N weights on
digits for one round, masked and encrypted, and release it. A peak is the largest resident set that Linux has noted for
the process (VmHWM), the libraries that it shares with others included.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import tomli_w

from common.config import fill, to_table
from common.federation import require
from common.files import write_atomically
from common.supervisor import status
from scenarios.quickstart import Consortium, policy_of
from scenarios.simulation import Simulation

_INPUTS, _CLASSES, _SITES = 64, 10, 3
_SAMPLE_SECONDS = 0.1
_MOST = 400_000_000  # what a coordinator builds unless its administrator says otherwise, and some room


def run(params: int) -> dict[str, Any]:
    """One row per kind of process: peak_mb of the largest of its kind, and times_plain, that over 4 bytes a weight."""
    require(10_000 <= params <= _MOST, "--params", params, f"10,000 to {_MOST:,}")
    with tempfile.TemporaryDirectory(prefix="veilfed-") as place:
        return measured(Path(place), federation(params))


def measured(place: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """The same for any federation file of one round; all parties live below `place`."""
    simulation = fill(Simulation, table)
    consortium = Consortium(place / "consortium", lambda line: print(line, file=sys.stderr))
    consortium.found(simulation)
    _allow_any_size(consortium, simulation)
    file = place / "large.toml"
    write_atomically(file, tomli_w.dumps(table).encode())
    with consortium.running(), _peaks(consortium) as peaks:
        started = time.perf_counter()
        report = consortium.give("run", file, "--home", consortium.home, "--out", place / "report")
        command = time.perf_counter() - started
    plain = 4 * report["wire"]["parameters"] / 2**20
    rows = [
        {"party": party, "process": process, "peak_mb": peak / 1024, "times_plain": peak / 1024 / plain}
        for (party, process), peak in sorted(peaks.items())
    ]
    (record,) = report["rounds"]
    seconds = {"round_s": record["seconds"], "command_s": command}
    return {"bench": "deploy", "params": report["wire"]["parameters"], "plain_mb": plain, **seconds, "rows": rows}


def federation(params: int) -> dict[str, Any]:
    """The federation file: one round, two hidden layers as wide as it takes."""
    more = _INPUTS + _CLASSES + 2  # width^2 + more * width + classes = params
    width = (isqrt(more * more + 4 * (params - _CLASSES)) - more) // 2
    return {
        "federation": {"name": "large", "rounds": 1, "min_cohort": _SITES},
        "model": {"factory": "mlp", "hidden": [width, width]},
        "training": {"local_steps": 1, "sample_rate": 0.05, "lot_size": 16.0, "learning_rate": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-5},
        "data": {"loader": "digits", "partition": "iid", "sites": _SITES, "holdout": 0.2},
    }


def _allow_any_size(consortium: Consortium, simulation: Simulation) -> None:
    policy = replace(policy_of(simulation), max_weights=2 * _MOST)
    for site in consortium.sites:
        write_atomically(site / "policy.toml", tomli_w.dumps(to_table(policy)).encode())


@contextmanager
def _peaks(consortium: Consortium) -> Iterator[dict[tuple[str, str], int]]:
    """(party, process) -> KiB, of every process while the block lasts; the mapping is whole when it ends."""
    parties = {consortium.home: "coordinator"} | dict.fromkeys(consortium.sites, "site")
    peaks: dict[tuple[str, str], int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            _note(parties, peaks)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _note(parties: Mapping[Path, str], peaks: dict[tuple[str, str], int]) -> None:
    """Each process of the supervisors' tables, and its children under a name of their own."""
    children = _children()
    for place, party in parties.items():
        for row in status(place)["rows"]:
            below = {"executor": "conductor", "gateway": "gateway"}.get(row["name"], f"{row['name']}'s helper")
            family = [(row["pid"], row["name"]), *((child, below) for child in children.get(row["pid"], ()))]
            for process, name in family:
                peaks[party, name] = max(peaks.get((party, name), 0), _peak_kb(process))


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            found.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    return found


def _peak_kb(process: int) -> int:
    with suppress(OSError, StopIteration):  # it has ended, or is about to
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return 0
