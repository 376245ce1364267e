"""What a person sees in a terminal of 80 columns: every number whole, a site that is left out named."""

import io

from rich.console import Console

from scenarios.progress import Progress

RECORD = {
    "round": 13,
    "metrics": {"auc": {"value": 0.9271, "low": 0.888, "high": 0.953}, "loss": {"value": 0.366}},
    "epsilon": {"cleveland": 2.316, "hungary": 2.316},
    "bytes_up": {"cleveland": 35_400, "hungary": 33_000},
    "left_out": [{"site": "hungary", "reason": "Silent", "message": ""}],
    "train_s": 0.021,
    "encrypt_s": 0.024,
    "sum_s": 0.006,
    "unmask_s": 0.064,
    "open_s": 0.019,
}


def shown(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    with Progress(console, 20).shown() as progress:
        progress(RECORD)
    return out.getvalue()


def test_nothing_is_cut_off_in_eighty_columns():
    table = shown(terminal=True)
    for cell in ("13/20", "0.366", "0.927 [0.888, 0.953]", "2.32", "35", "21/24/6/64/19", "hungary"):
        assert cell in table
    assert "…" not in table


def test_without_a_terminal_each_round_is_one_line():
    (line,) = shown(terminal=False).splitlines()
    assert line.startswith("round 13/20  loss 0.366  auc 0.927 [0.888, 0.953]  epsilon 2.32  kB/site 35")
