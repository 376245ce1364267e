"""Repeat a simulation over splits of its data: `python -m scenarios.repeat NAME RUNS RESULT [KEY=VALUE ...]`.

The figures in `results/RESULT.json` come from here; each file names the command that wrote it. With `--centre` in
front, a trusted centre is given all records and trains under the same budget, scored on the same held-out records:
what the federation is measured by, without playing it again.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import fill, load_table, override
from common.files import write_atomically
from scenarios.baselines import central
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Simulation, set_up

_HERE = Path(__file__).parent


def repeat(name: str, runs: int, overrides: list[str]) -> dict[str, Any]:
    """Final metrics of `runs` simulations of a shipped federation file, each on its own split (data.seed 0, 1, ...)."""
    rows = []
    for seed in range(runs):
        table = override(load_table(_HERE / f"{name}.toml"), [*overrides, f"data.seed={seed}"])
        with tempfile.TemporaryDirectory(prefix="veilfed-repeat-") as place:
            report = simulate(set_up(fill(Simulation, table), Path(place)))
        baselines = {"central": {}, "alone": {}, **report.get("baselines", {})}
        rows.append(
            {
                "seed": seed,
                "final": _values(report["final"]),
                "central": _values(baselines["central"]),
                "alone": {site: _values(metrics) for site, metrics in baselines["alone"].items()},
                "epsilon": max((site["epsilon"] or 0.0) for site in report["sites"]),
            }
        )
    return {
        "mean": means([row["final"] for row in rows]),
        "mean_central": means([row["central"] for row in rows]),
        "mean_alone": {site: means([row["alone"][site] for row in rows]) for site in rows[0]["alone"]},
        "runs": rows,
    }


def repeat_centre(name: str, runs: int, overrides: list[str]) -> dict[str, Any]:
    """Final metrics of a trusted centre in place of the federation."""
    rows = []
    for seed in range(runs):
        table = override(load_table(_HERE / f"{name}.toml"), [*overrides, f"data.seed={seed}"])
        with tempfile.TemporaryDirectory(prefix="veilfed-repeat-") as place:
            observer = Observer(set_up(fill(Simulation, table), Path(place)))
            model = central(observer.plan, [site.training_records for site in observer.sites])
        rows.append({"seed": seed, "final": _values(observer.score(model, observer.pooled))})
    return {"mean": means([row["final"] for row in rows]), "runs": rows}


def _values(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {metric: found["value"] for metric, found in metrics.items()}


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure over the runs."""
    return {metric: statistics.mean(row[metric] for row in rows) for metric in rows[0]}


if __name__ == "__main__":
    play = repeat_centre if sys.argv[1] == "--centre" else repeat
    name, runs, file, *overrides = (word for word in sys.argv[1:] if word != "--centre")
    told = [word for word in sys.argv[1:] if not word.startswith("data.directory=")]  # a place on this machine
    result = {"command": f"python -m scenarios.repeat {' '.join(told)}", **play(name, int(runs), overrides)}
    path = _HERE / "results" / f"{file}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(result, indent=1, sort_keys=True).encode() + b"\n", mode=0o644)
    print(path)
