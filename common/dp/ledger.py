"""What one data set of one site has lost, over all runs, kept where a restart or a new job cannot forget it.

A charge is on disk before anything it pays for may leave the site. So a crash can overcharge, never undercharge.
Where a cost depends on what happens later (noise in shares: on who is summed), the charge is a reservation for the
worst that may happen, and `settle` replaces it, once, by what did.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.append_log import AppendLog, Sign, Verify
from common.dp import accounting
from common.dp.events import DpEvent, event_from_dict, event_to_dict
from common.errors import BudgetExceeded, ConfigError, PrivacyError, TrustError
from common.federation import require


@dataclass(frozen=True)
class PrivacyBudget:
    """The most one record's owner may ever lose. No `+`: only an accountant composes costs."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require(0 < self.epsilon < math.inf, "budget.epsilon", self.epsilon, "positive and finite")
        require(0 < self.delta < 0.1, "budget.delta", self.delta, "above 0, below 1 / records of the data set")


@dataclass(frozen=True)
class Charge:
    """What was released on account of one purpose in one round of one run.

    premise: what must hold for the events to tell the truth, where that is not this site's alone to see to.
    """

    run: str
    round_number: int
    purpose: str
    events: tuple[DpEvent, ...]
    premise: str = ""

    def __post_init__(self) -> None:
        require(bool(self.run), "run", self.run, "a non-empty name")
        require(type(self.round_number) is int and self.round_number >= 0, "round", self.round_number, "0 or more")
        require(bool(self.purpose), "purpose", self.purpose, "train, metrics, statistics, tuning, ...")
        require(bool(self.events), "events", self.events, "what was released: at least one event")

    @property
    def key(self) -> tuple[str, int, str]:
        return self.run, self.round_number, self.purpose


class Ledger:
    """One file per site and data set, in all processes that ever train on it. Made by `open` or `read`."""

    def __init__(self, log: AppendLog) -> None:
        self._log = log
        self._seen = 0  # entries of the log that the fields below tell of
        self._charges: dict[tuple[str, int, str], Charge] = {}
        self._settled: set[tuple[str, int, str]] = set()
        self._sealed: dict[tuple[str, int], str] = {}
        self._update()
        if not self._seen:
            raise TrustError(f"{log.path} is empty: not a ledger")

    @classmethod
    def open(
        cls,
        path: Path,
        site: str,
        data_set: str,
        budget: PrivacyBudget,
        witness: Path | None = None,
        sign: Sign | None = None,
        verify: Verify | None = None,
    ) -> "Ledger":
        """The ledger at `path`, made if need be. From now on `budget` is the cap; a change of it is on record too.

        witness, sign, verify: as in AppendLog. Raises TrustError if the file was tampered with (naming the line),
        was rolled back, or belongs to another site or data set.
        """
        log = AppendLog(path, witness, sign, verify)
        with log.exclusive():
            cap = {"epsilon": budget.epsilon, "delta": budget.delta}
            if not log.entries():
                owner = {"kind": "ledger", "version": 1, "site": site, "data_set": data_set}
                about = {"neighbouring": accounting.NEIGHBOURING, "unit": accounting.UNIT}
                log.append({**owner, **about, **cap})
            ledger = cls(log)
            if (ledger.site, ledger.data_set) != (site, data_set):
                raise TrustError(
                    f"{path}, line 1: the ledger of data set {ledger.data_set!r} at {ledger.site!r}, not of "
                    f"{data_set!r} at {site!r}"
                )
            if ledger.budget != budget:
                log.append({"kind": "budget", **cap})
                ledger._update()
            return ledger

    @classmethod
    def read(cls, path: Path, witness: Path | None = None, verify: Verify | None = None) -> "Ledger":
        """The ledger as it is now, every line verified, without a lock. It can be asked but not charged."""
        return cls(AppendLog(path, witness, verify=verify, read_only=True))

    @property
    def entries(self) -> tuple[Charge, ...]:
        return tuple(self._charges.values())

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """Everything ever released from this data set."""
        return tuple(event for charge in self._charges.values() for event in charge.events)

    @property
    def trials(self) -> int:
        """Runs that were attempts at better settings: they count like all others."""
        return len({charge.run for charge in self._charges.values() if charge.purpose == "tuning"})

    @property
    def epsilon(self) -> float:
        """What has been lost at the budget's delta."""
        return accounting.epsilon(self.events, self.budget.delta)

    @property
    def remaining_epsilon(self) -> float:
        """Budget less what has been lost. Costs do not add up exactly; ask `require` whether something fits."""
        return max(0.0, self.budget.epsilon - self.epsilon)

    @property
    def head(self) -> bytes:
        """Fixes all entries: sign it or give it to others, and this ledger cannot be rolled back unnoticed."""
        return self._log.head

    def charged(self, run: str, round_number: int, purpose: str = "train") -> bool:
        """Whether this has been paid for, on disk."""
        return (run, round_number, purpose) in self._charges

    def require(self, events: Sequence[DpEvent]) -> None:
        """Raise BudgetExceeded unless `events` can be released as well. Nothing is written."""
        total = accounting.epsilon((*self.events, *events), self.budget.delta)
        if not total <= self.budget.epsilon:  # NaN refuses too
            raise BudgetExceeded(
                f"data set {self.data_set!r} at {self.site!r} would come to epsilon {total:.4f}, over its budget of "
                f"{self.budget.epsilon:g} at delta {self.budget.delta:g}; {self.remaining_epsilon:.4f} remains",
                "fewer rounds or more noise; only the site's own administrator can raise the budget",
            )

    def charge(
        self, run: str, round_number: int, events: Sequence[DpEvent], purpose: str = "train", premise: str = ""
    ) -> None:
        """Pay for `events`, on disk before this returns; only then may they be released. premise: see `Charge`.

        Raises BudgetExceeded as `require` does, PrivacyError if this purpose of this round was paid for before.
        """
        charge = Charge(run, round_number, purpose, tuple(events), premise)
        with self._log.exclusive():
            self._update()
            if charge.key in self._charges:
                raise PrivacyError(f"{purpose} of round {round_number} of run {run} was charged before")
            self.require(charge.events)
            self._log.append(_charge_to_dict(charge))
            self._update()

    def settle(self, run: str, round_number: int, events: Sequence[DpEvent], purpose: str = "train") -> None:
        """Replace what was reserved for that purpose by `events`, which it came to; asked again, nothing happens.

        Raises PrivacyError when nothing was reserved, or when `events` cost more than that.
        """
        with self._log.exclusive():
            self._update()
            key = (run, round_number, purpose)
            if key in self._settled:
                return
            reserved = self._charges.get(key)
            if reserved is None:
                raise PrivacyError(f"{purpose} of round {round_number} of run {run} was never charged")
            charge = replace(reserved, events=tuple(events))
            if reserved == charge:
                return
            delta = self.budget.delta
            if not accounting.epsilon(charge.events, delta) <= accounting.epsilon(reserved.events, delta):
                raise PrivacyError(f"{purpose} of round {round_number} of run {run} cost more than was reserved for it")
            self._log.append({**_charge_to_dict(charge), "kind": "settle"})
            self._update()

    def sealed(self, run: str, round_number: int) -> str | None:
        """SHA-256, hexadecimal, of the one message that was made of that round's charges; None before there is one."""
        return self._sealed.get((run, round_number))

    def seal(self, run: str, round_number: int, sha256: str) -> None:
        """Note, on disk before this returns, what has been made and may now be sent; asked again, nothing happens.

        Raises PrivacyError when that round was not paid for, or when something else was made of it before.
        """
        with self._log.exclusive():
            self._update()
            if self._sealed.get((run, round_number)) == sha256:
                return
            if (run, round_number) in self._sealed:
                raise PrivacyError(f"another release of round {round_number} of run {run} has been made before")
            if not any(key[:2] == (run, round_number) for key in self._charges):
                raise PrivacyError(f"nothing of round {round_number} of run {run} was ever charged")
            self._log.append({"kind": "sealed", "run": run, "round": round_number, "sha256": sha256})
            self._update()

    def export(self) -> dict[str, object]:
        """What `veilfed site ledger export --json` prints: every line of the file, of which the hashes are a chain."""
        lines = [json.loads(line) for line in self._log.lines()]
        return {"site": self.site, "data_set": self.data_set, "head": self.head.hex(), "entries": lines}

    def to_report(self) -> dict[str, object]:
        """What `veilfed site ledger show --json` prints."""
        return {
            "site": self.site,
            "data_set": self.data_set,
            "entries": len(self._charges),
            "trials": self.trials,
            "epsilon": self.epsilon,
            "delta": self.budget.delta,
            "remaining_epsilon": self.remaining_epsilon,
            "budget_epsilon": self.budget.epsilon,
            "neighbouring": accounting.NEIGHBOURING,
            "unit": accounting.UNIT,
            "sampling": accounting.SAMPLING,
            "adversary": accounting.ADVERSARY,
            "accountant": accounting.ACCOUNTANT,
            "premises": sorted({charge.premise for charge in self._charges.values() if charge.premise}),
            "head": self.head.hex(),
            "verified": True,  # a ledger that does not verify cannot be opened
        }

    def _update(self) -> None:
        """Follow the log, whoever wrote to it."""
        for entry in self._log.entries()[self._seen :]:
            try:
                self._follow(entry.record)
            except (ConfigError, KeyError, TypeError, ValueError) as error:
                raise TrustError(f"{self._log.path}, line {entry.index + 1}: no entry of a ledger: {error}") from error
            self._seen += 1

    def _follow(self, record: Mapping[str, Any]) -> None:
        match record["kind"]:
            case "ledger" if self._seen == 0 and record["version"] == 1:
                self.site, self.data_set = str(record["site"]), str(record["data_set"])
                self.budget = PrivacyBudget(float(record["epsilon"]), float(record["delta"]))
            case "budget" if self._seen:
                self.budget = PrivacyBudget(float(record["epsilon"]), float(record["delta"]))
            case "charge" if self._seen:
                charge = _charge_from_dict(record)
                if charge.key in self._charges:
                    raise ValueError("charged before")
                self._charges[charge.key] = charge
            case "settle" if self._seen:
                charge = _charge_from_dict(record)
                if charge.key not in self._charges or charge.key in self._settled:
                    raise ValueError("settles what was not reserved, or was settled before")
                self._charges[charge.key] = charge
                self._settled.add(charge.key)
            case "sealed" if self._seen:
                place = (str(record["run"]), int(record["round"]))
                if place in self._sealed:
                    raise ValueError("sealed before")
                self._sealed[place] = str(record["sha256"])
            case kind:
                raise ValueError(f"{kind} does not belong here")


def _charge_to_dict(charge: Charge) -> dict[str, object]:
    return {
        "kind": "charge",
        "run": charge.run,
        "round": charge.round_number,
        "purpose": charge.purpose,
        "events": [event_to_dict(event) for event in charge.events],
        **({"premise": charge.premise} if charge.premise else {}),
    }


def _charge_from_dict(record: Mapping[str, Any]) -> Charge:
    events = tuple(event_from_dict(event) for event in record["events"])
    return Charge(record["run"], record["round"], record["purpose"], events, str(record.get("premise", "")))
