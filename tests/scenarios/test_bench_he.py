"""The encryption bench prints what was agreed, its sums are right, and ours are the cheap ones."""

import json
import subprocess
import sys

import pytest

from common.errors import ConfigError
from scenarios.bench.he import run

SYSTEMS = ["veilfed-compact", "veilfed-compact-masked", "veilfed-precise", "tenseal-ckks-8192", "plain-float32"]
COSTS = {"encrypt_cpu_s", "sum_cpu_s_per_site", "open_cpu_s", "bytes_per_parameter", "bytes_down_per_parameter"}


def test_the_object_is_the_agreed_one() -> None:
    result = run(params=20_000, sites=3)
    assert (result["bench"], result["params"], result["sites"]) == ("he", 20_000, 3)
    rows = {row["system"]: row for row in result["rows"]}
    assert list(rows)[:5] == SYSTEMS
    assert ("seal-python" in rows) != any("seal-python" in line for line in result["skipped"])
    for row in rows.values():
        assert set(row) == COSTS | {"system", "max_abs_error"}
    assert rows["plain-float32"]["bytes_per_parameter"] == 4
    assert 50 < rows["tenseal-ckks-8192"]["bytes_per_parameter"] < 80
    for name, step in (("veilfed-compact", 0.1 / 32767), ("veilfed-precise", 0.1 / (2**22 - 1))):
        assert rows[name]["max_abs_error"] < 3 * step  # each of three sites rounds by less than a step
    assert rows["veilfed-precise"]["max_abs_error"] < 10 * max(rows["plain-float32"]["max_abs_error"], 1e-8)
    json.dumps(result, allow_nan=False)


def test_only_the_object_is_printed() -> None:
    code = "import json; from scenarios.bench.he import run; print(json.dumps(run(9000, 2)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["bench"] == "he"


@pytest.mark.parametrize(("params", "sites"), [(0, 3), (10, 1), (10, 1025)])
def test_senseless_sizes_are_refused(params: int, sites: int) -> None:
    with pytest.raises(ConfigError):
        run(params, sites)


@pytest.mark.slow
def test_it_shows_what_was_promised() -> None:
    result = run(params=1_000_000, sites=8)
    rows = {row["system"]: row for row in result["rows"]}
    compact, masked = result["ratios"]["veilfed-compact"], result["ratios"]["veilfed-compact-masked"]
    assert rows["veilfed-compact"]["bytes_per_parameter"] <= 3.2
    assert rows["veilfed-precise"]["bytes_per_parameter"] <= 4.6
    assert all(rows[name]["bytes_down_per_parameter"] <= 7 for name in SYSTEMS[:3])
    # A quiet machine shows 7.1, 4.4, 4.4 and 6.8; a busy one must not fail a test of what is promised.
    assert compact["encrypt_cpu_s"] >= 3
    assert compact["sum_cpu_s_per_site"] >= 2
    assert compact["open_cpu_s"] >= 2
    assert masked["encrypt_cpu_s"] >= 2.5
