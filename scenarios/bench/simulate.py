"""`veilfed bench simulate`: the same rounds by Veilfed, a bare loop and Flower on Ray, one after the other."""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from scenarios.bench.rounds import BATCH, LEARNING_RATE, MOMENTUM, WORKS, Work
from scenarios.engines import OFFLINE

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_PEERS = ("bare-loop", "flower-ray")


def run(works: tuple[str, ...] = tuple(WORKS)) -> dict[str, Any]:
    """One row per work and system. command_s and first_round_s count from the start of the command; peak_mb is the
    proportional set size of all its processes together, sampled every half second.

    veilfed-private is veilfed-dp and encryption: the two rows differ in nothing else.
    """
    rows, skipped = [], []
    for name in works:
        for system in ("bare-loop", "veilfed-plain", "veilfed-dp", "veilfed-private", "flower-ray"):
            if system == "flower-ray" and importlib.util.find_spec("ray") is None:
                skipped.append(f"{name} {system}: install the extra `simulation`")
                continue
            rows.append({"work": name, "system": system, **_measure(system, name)})
        skipped.append(f"{name} pfl: compared by hand, its releases pin other versions of torch")
    return {"bench": "simulate", "rows": rows, "skipped": skipped}


def federation(work: Work, private: bool, encrypted: bool | None = None) -> dict[str, Any]:
    """The federation file of a work: plain, or with DP-SGD, and then encryption too unless it is switched off."""
    encrypted = private if encrypted is None else encrypted
    training: dict[str, Any] = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "batch_size": BATCH}
    if private:
        training |= {"sampling": "poisson", "local_steps": 2, "sample_rate": 0.5, "lot_size": float(BATCH)}
    else:
        training |= {"sampling": "shuffle"}
    return {
        "federation": {"name": "bench", "rounds": min(work.rounds, 3) if private else work.rounds, "min_cohort": 2},
        "model": {"factory": "mlp", "hidden": list(work.hidden)},
        "training": training,
        "privacy": {"mode": "local" if private else "none", "epsilon": 8.0, "delta": 1e-5},
        "encryption": {"preset": "compact" if encrypted else "none"},
        "data": {"loader": "digits", "partition": "iid", "sites": work.sites, "holdout": 0.2},
        "simulation": {"baselines": False},
    }


def _measure(system: str, work: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="veilfed-bench-") as place:
        environment = os.environ | OFFLINE | _ONE_THREAD | {"FLWR_HOME": place}
        started, peer = time.perf_counter(), system in _PEERS
        report = Path(place, "report.json")  # a file: nobody reads it while the rounds are watched
        with report.open("w") as file:
            child = subprocess.Popen(
                _command(system, work, Path(place)),
                env=environment,
                stdout=subprocess.PIPE if peer else file,
                stderr=subprocess.DEVNULL if peer else subprocess.PIPE,
                text=True,
            )
        memory = _Memory(child.pid)
        with memory:
            stream = child.stdout if peer else child.stderr
            assert stream is not None  # noqa: S101 - a pipe was asked for
            lines = []
            first = 0.0
            for line in stream:
                if re.match(r"round 1[ /]", line):
                    first = time.perf_counter() - started
                lines.append(line)
            child.wait()
            command = time.perf_counter() - started
        if child.returncode != 0:
            raise RuntimeError(f"{system} on {work} ended with exit code {child.returncode}: {''.join(lines[-5:])}")
        seconds = list(_round_seconds(lines, report.read_text()))
        return {
            "seconds_per_round": statistics.median(seconds[1:] or seconds),
            "first_round_s": first,
            "command_s": command,
            "peak_mb": memory.peak_mb,
        }


def _command(system: str, work: str, place: Path) -> list[str]:
    if system in _PEERS:
        return [sys.executable, "-m", "scenarios.bench.rounds", system, work]
    path = place / "federation.toml"
    private, encrypted = system in ("veilfed-dp", "veilfed-private"), system == "veilfed-private"
    path.write_text(tomli_w.dumps(federation(WORKS[work], private, encrypted)))
    return [sys.executable, "-m", "scenarios.cli", "simulate", str(path), "--out", str(place / "out"), "--json"]


def _round_seconds(lines: list[str], output: str) -> Iterator[float]:
    if output:
        yield from (record["seconds"] for record in json.loads(output)["rounds"])
    else:
        yield from (float(line.split()[2]) for line in lines if line.startswith("round "))


class _Memory:
    """Samples the memory of a process and its descendants; where the kernel does not tell, peak_mb stays 0."""

    def __init__(self, process: int) -> None:
        self._process, self._stop, self.peak_mb = process, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            total = sum(_proportional_kb(process) for process in _descendants(self._process))
            self.peak_mb = max(self.peak_mb, total / 1024)


def _descendants(process: int) -> list[int]:
    found = [process]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def _proportional_kb(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0
