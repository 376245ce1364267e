"""What a party counts of itself: the names of all numbers, and the small file that holds them.

A process that knows numbers (a site's worker, the coordinator's executor) adds them to its meter. The process with a
network (the node, the executor) reads the files and shows them: `monitoring.py`. So the worker needs no port.

A site's numbers are the site's own view and stay at the site; the coordinator's are those that it sees anyway or that
the plan declares public (`federation.public`). Labels are few, short and never chosen by the other side.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import FederationError
from common.files import exclusive, write_atomically
from common.log import say

log = logging.getLogger("veilfed.telemetry")


@dataclass(frozen=True)
class Metric:
    """A counter only grows; a gauge is what it was last."""

    kind: Literal["counter", "gauge"]
    about: str
    labels: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "veilfed_site_orders_total": Metric("counter", "Orders that this site acted on", ("action", "outcome")),
    "veilfed_site_order_seconds_total": Metric("counter", "Seconds spent on orders", ("action",)),
    "veilfed_site_bytes_total": Metric("counter", "Bytes of orders and answers", ("direction",)),
    "veilfed_site_refusals_total": Metric("counter", "Orders refused, by reason", ("code",)),
    "veilfed_site_round": Metric("gauge", "Round of the last update that was sealed"),
    "veilfed_site_last_order_timestamp_seconds": Metric("gauge", "When the last order was answered"),
    "veilfed_site_epsilon_spent": Metric("gauge", "What the records have lost, over all runs", ("data_set",)),
    "veilfed_site_epsilon_budget": Metric("gauge", "What they may lose at most", ("data_set",)),
    "veilfed_site_connected": Metric("gauge", "1 while the node is connected to the coordinator"),
    "veilfed_site_worker_up": Metric("gauge", "1 while the worker answers on its socket"),
    "veilfed_coordinator_runs_total": Metric("counter", "Runs that ended; outcome `done`, or why not", ("outcome",)),
    "veilfed_coordinator_rounds_total": Metric("counter", "Rounds that were closed"),
    "veilfed_coordinator_round_seconds_total": Metric("counter", "Seconds of closed rounds, from order to result"),
    "veilfed_coordinator_phase_seconds_total": Metric("counter", "Seconds by phase, summed over sites", ("phase",)),
    "veilfed_coordinator_bytes_total": Metric("counter", "Bytes of answers", ("site",)),
    "veilfed_coordinator_left_out_total": Metric("counter", "Answers that did not count, by reason", ("site", "code")),
    "veilfed_coordinator_cohort": Metric("gauge", "Sites in the last closed round"),
    "veilfed_coordinator_round": Metric("gauge", "The last closed round"),
    "veilfed_coordinator_last_round_timestamp_seconds": Metric("gauge", "When the last round was closed"),
    "veilfed_coordinator_site_epsilon": Metric("gauge", "What a site says its records have lost", ("site",)),
    "veilfed_coordinator_figure": Metric("gauge", "A figure that rules watch, as last measured", ("figure",)),
    "veilfed_coordinator_alerts_total": Metric("counter", "Rounds in which a rule of the plan fired", ("rule",)),
    "veilfed_site_input_shift": Metric(
        "gauge", "Largest stability index of any column, when last compared", ("data_set",)
    ),
    "veilfed_site_inputs_moved": Metric("gauge", "Columns that moved beyond chance", ("data_set",)),
    "veilfed_site_output_shift": Metric("gauge", "Stability index of the model's outputs", ("data_set",)),
    "veilfed_certificate_expiry_timestamp_seconds": Metric("gauge", "When a certificate ends", ("certificate",)),
}


@dataclass(frozen=True)
class Number:
    """One number under its name and labels. Raises ValueError for what `METRICS` does not know."""

    name: str
    value: float
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in METRICS or len(self.labels) != len(METRICS[self.name].labels):
            raise ValueError(f"{self.name} with {len(self.labels)} labels is no number of ours")
        if not math.isfinite(self.value) or any(not 0 < len(label) <= 255 for label in self.labels):
            raise ValueError(f"{self.name} is not finite, or a label is empty or too long")

    @property
    def counts(self) -> bool:
        return METRICS[self.name].kind == "counter"


class Meter:
    """The numbers in one file. Any number of processes may add to it; each sees what the others added."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, numbers: Iterable[Number]) -> None:
        """Counters grow by, gauges become, the given values. Never stops the work that is counted.

        When the disk is full, or somebody else's file is in the way, the numbers are lost and the log says so.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with exclusive(self._path.with_name(self._path.name + ".turn")):
                held = {(number.name, number.labels): number for number in read(self._path)}
                for number in numbers:
                    key, before = (number.name, number.labels), 0.0
                    if number.counts and key in held:
                        before = held[key].value
                    held[key] = Number(number.name, before + number.value, number.labels)
                rows = [[number.name, list(number.labels), number.value] for number in held.values()]
                write_atomically(self._path, json.dumps(rows).encode())
        except OSError as error:
            say(log, "numbers were lost", logging.WARNING, path=str(self._path), message=error.strerror)


def read(path: Path) -> Sequence[Number]:
    """The numbers in a meter's file; none when there is no file yet, or when it holds anything else."""
    try:
        return [Number(name, float(value), tuple(labels)) for name, labels, value in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, RecursionError):
        say(log, "numbers could not be read and start anew", logging.WARNING, path=str(path))
        return []


def reason(code: str) -> str:
    """An error's code as a label. One that no error of ours has becomes `other`: the other side may write anything."""
    return code if code in _codes(FederationError) | {"Silent"} else "other"


def _codes(kind: type[FederationError]) -> set[str]:
    return {kind.__name__}.union(*(_codes(child) for child in kind.__subclasses__()))
