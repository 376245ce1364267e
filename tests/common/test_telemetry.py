"""Proves: no count is lost between processes, names and labels are ours to choose, and nothing stops work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.telemetry import METRICS, Meter, Number, read, reason

ROOT = Path(__file__).parents[2]
ROUNDS, COHORT = "veilfed_coordinator_rounds_total", "veilfed_coordinator_cohort"
REFUSALS = "veilfed_site_refusals_total"


def values(path: Path) -> dict[tuple[str, ...], float]:
    return {(number.name, *number.labels): number.value for number in read(path)}


def test_counters_grow_and_gauges_are_replaced(place):
    meter = Meter(place / "run" / "numbers")
    meter.add([Number(ROUNDS, 1), Number(COHORT, 4)])
    meter.add([Number(ROUNDS, 2), Number(COHORT, 3), Number(REFUSALS, 1, ("BudgetExceeded",))])
    assert values(place / "run" / "numbers") == {(ROUNDS,): 3, (COHORT,): 3, (REFUSALS, "BudgetExceeded"): 1}


def test_another_process_goes_on_where_one_stopped(place):
    Meter(place / "numbers").add([Number(ROUNDS, 5)])
    Meter(place / "numbers").add([Number(ROUNDS, 1)])
    assert values(place / "numbers") == {(ROUNDS,): 6}


def test_processes_that_count_at_once_lose_nothing(place):
    program = (
        "import sys; from pathlib import Path; from common.telemetry import Meter, Number\n"
        f"for _ in range(50): Meter(Path(sys.argv[1])).add([Number({ROUNDS!r}, 1)])"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(place / "numbers")], cwd=ROOT) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert values(place / "numbers") == {(ROUNDS,): 200}


@given(st.dictionaries(st.sampled_from(["TrustError", "WireError", "other"]), st.floats(0, 1e12), max_size=3))
def test_what_is_written_is_what_is_read(tmp_path_factory, counts):
    path = tmp_path_factory.mktemp("numbers") / "numbers"
    Meter(path).add([Number(REFUSALS, count, (code,)) for code, count in counts.items()])
    assert values(path) == {(REFUSALS, code): count for code, count in counts.items()}


@pytest.mark.parametrize(
    ("name", "value", "labels"),
    [
        ("veilfed_site_records", 303.0, ()),
        (ROUNDS, float("nan"), ()),
        (ROUNDS, float("inf"), ()),
        (ROUNDS, 1.0, ("adler",)),
        (REFUSALS, 1.0, ()),
        (REFUSALS, 1.0, ("",)),
        (REFUSALS, 1.0, ("x" * 256,)),
    ],
)
def test_a_number_that_nobody_declared_is_none(name, value, labels):
    with pytest.raises(ValueError, match=name):
        Number(name, value, labels)


@pytest.mark.parametrize("content", [b"", b"[]x", b"{}", b'[["x",[],1]]', b"[" * 100_000, b'[["a"]]', b"\xff"])
def test_a_broken_file_starts_anew_instead_of_stopping_the_site(place, content, caplog):
    path = place / "numbers"
    path.write_bytes(content)
    assert read(path) == []
    Meter(path).add([Number(ROUNDS, 1)])
    assert values(path) == {(ROUNDS,): 1}


def test_a_disk_that_takes_nothing_stops_nothing_and_the_log_says_so(caplog):
    Meter(Path("/dev/full/numbers")).add([Number(ROUNDS, 1)])
    assert "numbers were lost" in caplog.text


def test_a_reason_is_an_error_of_ours_or_other():
    assert reason("BudgetExceeded") == "BudgetExceeded"
    assert reason("Silent") == "Silent"
    for strange in ("", "x" * 10_000, "BudgetExceeded ", '"} 1\n', "Exception"):
        assert reason(strange) == "other"


def test_names_keep_to_the_conventions_of_prometheus():
    for name, metric in METRICS.items():
        assert name.startswith(("veilfed_site_", "veilfed_coordinator_", "veilfed_certificate_"))
        assert name.endswith("_total") == (metric.kind == "counter"), name


def test_the_file_is_for_its_owner_alone(place):
    Meter(place / "numbers").add([Number(ROUNDS, 1)])
    assert (place / "numbers").stat().st_mode & 0o077 == 0
    assert json.loads((place / "numbers").read_bytes()) == [[ROUNDS, [], 1.0]]
