"""Repeat a simulation over splits of its data: `python -m scenarios.repeat NAME RUNS RESULT [KEY=VALUE ...]`.

The figures in `results/RESULT.json` come from here; each file names the command that wrote it.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.config import fill, load_table, override
from common.files import write_atomically
from scenarios.simulate import simulate
from scenarios.simulation import Simulation, set_up

_HERE = Path(__file__).parent


def repeat(name: str, runs: int, overrides: list[str]) -> dict[str, Any]:
    """Final metrics of `runs` simulations of a shipped federation file, each on its own split (data.seed 0, 1, ...)."""
    rows = []
    for seed in range(runs):
        table = override(load_table(_HERE / f"{name}.toml"), [*overrides, f"data.seed={seed}"])
        with tempfile.TemporaryDirectory(prefix="veilfed-repeat-") as place:
            report = simulate(set_up(fill(Simulation, table), Path(place)))
        alone = report.get("baselines", {}).get("alone", {})
        rows.append(
            {
                "seed": seed,
                "final": {metric: value["value"] for metric, value in report["final"].items()},
                "alone": {site: {m: v["value"] for m, v in values.items()} for site, values in alone.items()},
                "epsilon": max((site["epsilon"] or 0.0) for site in report["sites"]),
            }
        )
    means = {metric: statistics.mean(row["final"][metric] for row in rows) for metric in rows[0]["final"]}
    alone_means = {
        site: {metric: statistics.mean(row["alone"][site][metric] for row in rows) for metric in rows[0]["final"]}
        for site in rows[0]["alone"]
    }
    return {"mean": means, "mean_alone": alone_means, "runs": rows}


if __name__ == "__main__":
    name, runs, file, *overrides = sys.argv[1:]
    told = [word for word in sys.argv[1:] if not word.startswith("data.directory=")]  # a place on this machine
    result = {"command": f"python -m scenarios.repeat {' '.join(told)}", **repeat(name, int(runs), overrides)}
    path = _HERE / "results" / f"{file}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(result, indent=1, sort_keys=True).encode() + b"\n", mode=0o644)
    print(path)
