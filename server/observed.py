"""The coordinator watched by its administrator: each round and each end of a run, in the log and as numbers.

The numbers are made of the round records alone: so they say what the coordinator sees anyway (who, when, how many
bytes) and what the plan declares public, no more.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from common.alerts import AlertRule
from common.errors import FederationError
from common.log import say, say_error
from common.monitoring import expiry_of, expose
from common.telemetry import Meter, Number, reason
from server.watched import watched

log = logging.getLogger("veilfed.executor")
NUMBERS = "run/executor.numbers"  # below the coordinator's directory
_CERTIFICATES = {"gateway": "tls/gateway.crt", "superlink": "tls/superlink.crt", "root": "root/root.crt"}


class Watch:
    """One run, watched: `round_closed` is called with each record, `ended` once, with the error if there was one."""

    def __init__(
        self, directory: Path, run: str, rules: Sequence[AlertRule] = (), before: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """directory: the coordinator's. run: as in the names of directories, hexadecimal.

        rules: the plan's, for alerts. before: the records of rounds that were closed already.
        """
        self._meter, self._run = Meter(directory / NUMBERS), run
        self._rules, self._rounds = rules, list(before)
        self._bytes: Mapping[str, int] = {}  # as of the last round: a record has what came since the run was resumed

    def round_closed(self, record: Mapping[str, Any]) -> None:
        """record: of one closed round, as `server/strategy.py` makes it."""
        self._meter.add(numbers_of(record, self._bytes))
        self._bytes = record["bytes_up"]
        self._look_for_alerts(record)
        say(
            log,
            "round closed",
            run=self._run,
            round=record["round"],
            cohort=len(record["sites"]),
            seconds=round(record["seconds"], 3),
        )
        for left in (*record["left_out"], *record["late"]):
            fields = {"run": self._run, "round": record["round"], "site": left["site"], "message": left["message"]}
            say(log, "answer left out", logging.WARNING, code=reason(left["reason"]), **fields)

    def _look_for_alerts(self, record: Mapping[str, Any]) -> None:
        self._rounds.append(record)
        for each in watched(self._rules, self._rounds):
            if record["round"] not in each.series:
                continue
            figure, rule = each.series[record["round"]]["value"], str(each.rule)
            numbers = [Number("veilfed_coordinator_figure", figure, (each.rule.figure,))]
            if record["round"] in each.fired:
                numbers.append(Number("veilfed_coordinator_alerts_total", 1, (rule,)))
                fields = {"run": self._run, "round": record["round"], "message": f"{rule}: {figure:.4g}"}
                say(log, "alert", logging.WARNING, **fields)
            self._meter.add(numbers)

    def ended(self, error: FederationError | None = None) -> None:
        self._meter.add([Number("veilfed_coordinator_runs_total", 1, (reason(error.code) if error else "done",))])
        if error:
            say_error(log, "run ended", error, run=self._run)
        else:
            say(log, "run ended", run=self._run, outcome="done")


def numbers_of(record: Mapping[str, Any], before: Mapping[str, int]) -> list[Number]:
    """What one closed round adds. before: each site's bytes up to the round before it."""
    phases = {name.removesuffix("_s"): seconds for name, seconds in record.items() if name.endswith("_s")}
    came = {site: total - before.get(site, 0) for site, total in record["bytes_up"].items()}
    return [
        Number("veilfed_coordinator_rounds_total", 1),
        Number("veilfed_coordinator_round_seconds_total", record["seconds"]),
        Number("veilfed_coordinator_cohort", len(record["sites"])),
        Number("veilfed_coordinator_round", record["round"]),
        Number("veilfed_coordinator_last_round_timestamp_seconds", time.time()),
        *(Number("veilfed_coordinator_phase_seconds_total", spent, (phase,)) for phase, spent in phases.items()),
        *(Number("veilfed_coordinator_bytes_total", count, (site,)) for site, count in came.items()),
        *(
            Number("veilfed_coordinator_left_out_total", 1, (left["site"], reason(left["reason"])))
            for left in (*record["left_out"], *record["late"])
        ),
        *(Number("veilfed_coordinator_site_epsilon", lost, (site,)) for site, lost in record["epsilon"].items()),
    ]


def expose_coordinator(directory: Path, address: tuple[str, int]) -> ThreadingHTTPServer:
    """For the executor: what all runs have added, and when the certificates end."""
    certificates = {name: directory / path for name, path in _CERTIFICATES.items()}
    return expose(address, [directory / NUMBERS], lambda: expiry_of(certificates), lambda: True)
