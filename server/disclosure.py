"""Who learns what under this very configuration, and what nobody promises: read from a finished run's report.

Every answer is the worst one that the configuration allows. A setting the report does not state counts as switched
off, and a switch this file does not know voids the privacy bound.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

READABLE_UPDATES = "updates travelled readable"
NO_DIFFERENTIAL_PRIVACY = "no differential privacy: nothing limits what the model says about a record"

Level = Literal["no", "limited", "yes"]


@dataclass(frozen=True)
class Answer:
    """Does the party learn it?"""

    level: Level
    why: str


@dataclass(frozen=True)
class Party:
    name: str
    update: Answer
    model: Answer
    records: Answer


@dataclass(frozen=True)
class Disclosure:
    """The facts that decide who learns what.

    private: every site's update is (epsilon, delta)-differentially private for each record. void: reasons why that
    does not hold in this run although it was asked for. smallest_sum: the fewest sites added up in one round.
    epsilon: the most that a record of any site has lost; infinity when the report does not say.
    """

    encrypted: bool
    masked: bool
    private: bool
    reveal: str
    min_cohort: int
    smallest_sum: int
    epsilon: float
    delta: float
    insecure: tuple[str, ...] = ()

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> "Disclosure":
        federation, encryption = report["config"]["federation"], report["config"]["encryption"]
        privacy = {**report["config"]["privacy"], **report["privacy"]}
        sites, rounds = report["sites"], report["rounds"]
        spent = [site["epsilon"] for site in sites if site["epsilon"] is not None]
        fewest = min((len(sites) - len(entry["left_out"]) for entry in rounds), default=len(sites))
        min_cohort = federation.get("min_cohort", 2)
        return cls(
            encrypted=encryption.get("preset", "none") != "none",
            masked=encryption.get("masks") is True,
            private=privacy.get("mode") == "local",
            reveal=federation.get("reveal", "every-round"),
            min_cohort=min_cohort,
            smallest_sum=max(fewest, min_cohort),
            epsilon=_or(max(spent, default=privacy.get("epsilon")), math.inf),
            delta=_or(privacy.get("delta"), 1.0),
            insecure=tuple(report["insecure"]),
        )

    @property
    def void(self) -> tuple[str, ...]:
        return tuple(reason for reason in self.insecure if reason != READABLE_UPDATES)

    @property
    def bounded(self) -> bool:
        return self.private and not self.void and self.epsilon < math.inf and self.delta < 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before anything else; empty when every protection was on."""
        readable = () if self.encrypted or READABLE_UPDATES in self.insecure else (READABLE_UPDATES,)
        return (*self.insecure, *readable, *(() if self.private else (NO_DIFFERENTIAL_PRIVACY,)))

    @property
    def bound(self) -> str:
        return f"ε = {round_up(self.epsilon)}, δ = {self.delta:g}"


def _or(number: float | None, otherwise: float) -> float:
    return otherwise if number is None else number


def round_up(epsilon: float) -> str:
    """Two decimals, never less than the truth."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}"


def detectable(epsilon: float, delta: float, false_alarm: float) -> float:
    """The most often that any test can detect a record that was used, given how often it suspects one that was not.

    Reference: Kairouz, Oh, Viswanath 2015, Theorem 2.1, arXiv:1311.0776.
    """
    odds = math.exp(min(epsilon, 700.0))
    return min(1.0, odds * false_alarm + delta, 1 - (1 - delta - false_alarm) / odds)


def who_learns_what(facts: Disclosure) -> tuple[Party, ...]:
    """The rows of DESIGN's table as this configuration makes them."""
    records, noisy = _records(facts), " It is noisy: the limit on records holds for it." if facts.bounded else ""
    every_round = Answer("yes", "After every round.")
    others = facts.smallest_sum - 1
    if others > 1:
        sums_only = Answer("no", f"It sees sums. Less its own part, that is the sum of {others} other sites.")
    else:
        sums_only = Answer("yes", f"In a round of two sites it can subtract its own part from the sum.{noisy}")

    if not facts.encrypted:
        coordinator = Party(
            "The coordinator",
            Answer("yes", f"Every update arrives readable.{noisy}"),
            every_round,
            records,
        )
        together = Answer("yes", f"The coordinator can read every update already.{noisy}")
    else:
        revealed = {
            "never": Answer("no", "It holds encrypted sums, and no key."),
            "final": Answer("limited", "The final model only. The sites release it (reveal = final)."),
        }.get(facts.reveal, Answer("yes", "After every round. The sites release it (reveal = every-round)."))
        coordinator = Party(
            "The coordinator",
            Answer("no", "It holds ciphertexts, and no key."),
            revealed,
            Answer("no", "It can read nothing that comes from them.") if facts.reveal == "never" else records,
        )
        together = Answer(
            "yes", f"The coordinator has the ciphertexts, the site has the key. Masks are not in place yet.{noisy}"
        )
        if facts.masked:
            hidden = Answer("no", f"Masks hide each one. What can be opened is the sum of {others} other sites.")
            together = hidden if others > 1 else sums_only

    return (
        coordinator,
        Party("One other site", sums_only, Answer("yes", "After every round. It trains on it."), records),
        Party("The coordinator together with one other site", together, every_round, records),
        Party(
            "A reader of the final model",
            Answer("no", "The model holds all updates added up."),
            Answer("limited", "The final model only."),
            records,
        ),
        Party("A thief of a site's disk", _stolen_update(facts), Answer("yes", "The latest model."), _STOLEN_RECORDS),
    )


_STOLEN_RECORDS = Answer(
    "yes", "All records of that site, unless the site encrypts its disks. This version does not encrypt them itself."
)


def _stolen_update(facts: Disclosure) -> Answer:
    own = "The last one of that site."
    if facts.encrypted and not facts.masked:
        return Answer("yes", f"{own} The key lies there too: with the coordinator's ciphertexts, those of others.")
    return Answer("yes", own)


def _records(facts: Disclosure) -> Answer:
    if facts.bounded:
        return Answer("limited", f"For each record at most {facts.bound}.")
    if facts.private:
        return Answer("yes", "No limit holds: a test-only switch was on.")
    return Answer("yes", "No limit. A model or update without noise can give records away.")


def not_protected(facts: Disclosure, simulated: bool) -> tuple[tuple[str, str], ...]:
    """What this run leaves open: a name and two or three sentences each."""
    gaps = [
        (
            "A limit is not zero",
            "ε and δ limit what a release can say about one record. They do not bring it to nothing.",
        )
        if facts.bounded
        else (
            "The model itself",
            "Nothing limits what the model says about one record. It may have learned some by heart.",
        ),
        (
            "People with several records",
            "The limit counts for one record. A person with several records, at one site or at many, can lose as many "
            "times more.",
        ),
        (
            "Facts about groups",
            "What is true of many patients, or of one site as a whole, can be learned. That is what the model is for.",
        ),
        (
            "Who took part, and when",
            "The names and the number of sites, the times and the sizes of messages are visible to the coordinator.",
        ),
        (
            "The scores in this report",
            "They were measured on held-out records, without noise, and no ε was paid for them. "
            + (
                "The simulator could see those records of all sites. A real coordinator could not."
                if simulated
                else "Whoever reads the scores learns a little about those records."
            ),
        ),
        (
            "Choices made beforehand",
            "Learning rate, rounds and other settings were chosen in advance. If they were tuned on these records, "
            "that cost is not counted here.",
        ),
        (
            "A site that lies",
            "A site can train on false data or send a false update. Nobody can check what it cannot read.",
        ),
        (
            "Disks",
            "Records at a site, its key and its copy of the model are as safe as its disks. This version does not "
            "encrypt them.",
        ),
    ]
    if facts.encrypted:
        gaps.insert(
            1,
            (
                "What the sites open",
                "Encryption hides updates from the coordinator. It does not hide the sum from the sites; there only "
                "noise protects records.",
            ),
        )
    if facts.encrypted and not facts.masked:
        gaps.insert(
            2,
            (
                "Collusion",
                "All sites hold the same key. A site that gets ciphertexts from the coordinator can open one site's "
                "update. Masks against this are not in place yet.",
            ),
        )
    if facts.min_cohort == 2:
        gaps.append(
            (
                "Very small rounds",
                "The plan lets a round close with two sites. Then each can work out the other's update.",
            )
        )
    if simulated:
        gaps.append(
            (
                "One machine",
                "This was a simulation. All parties ran on one machine, whose owner could see everything. The table of "
                "who learns what describes them as if apart.",
            )
        )
    return tuple(gaps)
