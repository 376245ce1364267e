"""What a party takes in memory grows with its vector and its message, and by no more."""

import json

import pytest

from scenarios.bench.memory import run


@pytest.mark.parametrize("preset", ["compact", pytest.param("precise", marks=pytest.mark.slow)])
def test_peaks_stay_below_what_was_promised(preset: str) -> None:
    """Per parameter, from the growth between two sizes, so that what each process takes anyway does not count.

    Site: vector 4 bytes, message thrice while it is made. Sum: words, one message, the result. Open: the message, 8
    bytes of result. Anything that was held twice, or a vector of masks or of rounded numbers, would exceed these.
    """
    small, large = (run(params, preset) for params in (2_000_000, 10_000_000))
    up, down = (3.2, 6.75) if preset == "compact" else (4.3, 8.6)
    words = 4.1 if preset == "compact" else 8.2
    most = {"site": 4 + 3 * up, "sum": words + max(up, down), "open": down + 8}
    for before, after in zip(small["rows"], large["rows"], strict=True):
        grown = (after["peak_mb"] - before["peak_mb"]) * 2**20 / 8_000_000
        assert grown < 1.1 * most[after["party"]], after
    json.dumps(large, allow_nan=False)
