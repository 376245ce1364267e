"""What a person sees while rounds go by: one row a round, on standard error, live on a terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

_SHOWN = 15  # rows; older ones scroll out of a live table


class Progress:
    """Call it with each observed round."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console, self._rounds = console, rounds
        self._seen: list[Mapping[str, Any]] = []
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self

    def __call__(self, record: Mapping[str, Any]) -> None:
        self._seen.append(record)
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            cells = [f"{name} {cell}".replace("\n", "") for name, cell in _cells(record, self._rounds).items()]
            self._console.print("  ".join(cells), highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
        rows = [_cells(record, self._rounds) for record in self._seen[-_SHOWN:]]
        for heading in rows[-1]:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row.values())
        return table


def _cells(record: Mapping[str, Any], rounds: int) -> dict[str, str]:
    metrics, epsilon, sent = record.get("metrics", {}), record.get("epsilon", {}), record.get("bytes_up", {})
    name = "auc" if "auc" in metrics else "accuracy"
    score = metrics.get(name)
    phases = ("train_s", "encrypt_s", "sum_s", "unmask_s", "open_s")
    return {
        "round": f"{record['round']}/{rounds}",
        "loss": f"{metrics['loss']['value']:.3f}" if "loss" in metrics else "-",
        name: f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else "-",
        "epsilon": _range(list(epsilon.values())) if any(epsilon.values()) else "-",
        "kB/site": f"{max(sent.values()) / 1000:.0f}" if sent else "-",
        "ms: train/seal\n/sum/lift/open": "/".join(f"{record.get(phase, 0.0) * 1000:.0f}" for phase in phases),
        "left out": ", ".join(left["site"] for left in record.get("left_out", [])) or "-",
    }


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{high:.2f}" if high - low < 0.005 else f"{low:.2f}-{high:.2f}"
