"""Who learns what under this very configuration, and what nobody promises: read from a finished run's report.

Every answer is the worst one that the configuration allows. A setting the report does not state counts as switched
off, and a switch this file does not know voids the privacy bound.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

READABLE = "updates travelled readable"  # how a report's reasons begin that are told by the settings as well
NO_PRIVACY = "no differential privacy"
UNCOUNTED = "the settings were chosen by trials on these records that no ledger counts"
_NO_TRIAL = "the plan says that ledgers count the trials of its settings, but none holds any"

_IN_SHARES = ("distributed", "site")

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

    private: what the mode protects, a record or (`site`) a whole site, is (epsilon, delta)-differentially private in
    all that is opened. void: reasons why that does not hold in this run although it was asked for. colluding: how many
    sites may pool their noise before it stops holding; None where no site's protection rests on the others' noise.
    smallest_sum: the fewest sites added up in one opened sum. buckets: sums opened in a round, 0 for one of all.
    rule, byzantine: what bears how many lying sites. counted: of what all sites' sums are told to everybody.
    epsilon: the most that a record of any site has lost by now, at `delta`; infinity when the report does not say.
    tuning: as in the plan. trials: most runs of that kind in any site's ledger; None when the report does not say.
    """

    encrypted: bool
    private: bool
    reveal: str
    min_cohort: int
    smallest_sum: int
    epsilon: float
    delta: float
    insecure: tuple[str, ...] = ()
    colluding: int | None = None
    unit: str = "record"
    tuning: str = "unstated"
    trials: int | None = None
    buckets: int = 0
    rule: str = "mean"
    byzantine: int = 0
    counted: tuple[str, ...] = ()

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> "Disclosure":
        federation, encryption = report["config"]["federation"], report["config"]["encryption"]
        robustness = report["config"].get("robustness", {})
        privacy = {**report["config"]["privacy"], **report["privacy"]}
        sites, rounds = report["sites"], report["rounds"]
        charged = [site for site in sites if site["epsilon"] is not None]
        fewest = min((_added_up(entry, len(sites)) for entry in rounds), default=len(sites))
        min_cohort = federation.get("min_cohort", 2)
        return cls(
            encrypted=encryption.get("preset", "none") != "none",
            private=privacy.get("mode") in ("local", *_IN_SHARES),
            reveal=federation.get("reveal", "every-round"),
            min_cohort=min_cohort,
            smallest_sum=max(fewest, min_cohort),
            epsilon=_most((site["epsilon"] for site in charged), privacy.get("epsilon"), math.inf),
            delta=_most((site["delta"] for site in charged), privacy.get("delta"), 1.0),
            insecure=tuple(report["insecure"]),
            colluding=privacy.get("colluding", 1) if privacy.get("mode") in _IN_SHARES else None,
            unit="site" if privacy.get("mode") == "site" else "record",
            tuning=federation.get("tuning", "unstated"),
            trials=max((site["trials"] for site in sites if site["trials"] is not None), default=None),
            buckets=robustness.get("buckets", 0),
            rule=robustness.get("rule", "mean"),
            byzantine=robustness.get("byzantine", 0),
            counted=_counted(report["config"].get("metrics", {})),
        )

    @property
    def void(self) -> tuple[str, ...]:
        return tuple(reason for reason in self.insecure if not reason.startswith((READABLE, NO_PRIVACY)))

    @property
    def bounded(self) -> bool:
        return self.private and not self.void and self.epsilon < math.inf and self.delta < 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before anything else; empty when every protection was on."""
        facts = {
            READABLE: not self.encrypted,
            NO_PRIVACY: not self.private,
            UNCOUNTED: self.private and self.tuning == "not counted",
            _NO_TRIAL: self.private and self.tuning == "counted" and not self.counts_trials,
        }
        told = {start for start in facts if any(reason.startswith(start) for reason in self.insecure)}
        return (*self.insecure, *(start for start, holds in facts.items() if holds and start not in told))

    @property
    def bound(self) -> str:
        rest = "" if self.counts_trials else ", not counting the trials that chose its settings"
        return f"ε = {round_up(self.epsilon)}, δ = {self.delta:g}{rest}"

    @property
    def counts_trials(self) -> bool:
        return self.tuning != "not counted" and not (self.tuning == "counted" and self.trials == 0)


def _counted(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    if not metrics.get("every"):
        return ()
    groups, features = " and ".join(sorted(metrics.get("groups", {}))), len(metrics.get("importance", ()))
    return (
        "right and wrong predictions and their scores",
        *([f"the same by {groups}"] if groups else []),
        *([f"right predictions with each of {features} features replaced"] if features else []),
    )


def _added_up(entry: Mapping[str, Any], sites: int) -> int:
    if opened := entry.get("buckets"):
        return min(len(bucket["sites"]) for bucket in opened)
    return len(entry["sites"]) if entry["sites"] is not None else sites - len(entry["left_out"])


def _most(charged: Iterable[float | None], agreed: float | None, unknown: float) -> float:
    known = [value for value in charged if value is not None] or [value for value in [agreed] if value is not None]
    return max(known, default=unknown)


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
    """Five parties, each as curious as it can be."""
    records = _records(facts)
    blind = facts.encrypted and facts.reveal == "never" and not facts.counted
    return (
        Party(
            "The coordinator",
            Answer("no", "It holds ciphertexts, and no key.") if facts.encrypted else _readable(facts),
            _revealed(facts),
            Answer("no", "It can read nothing that comes from them.") if blind else records,
        ),
        Party("One other site", _summed(facts), Answer("yes", "After every round. It trains on it."), records),
        Party(
            "The coordinator together with one other site",
            _together(facts),
            Answer("yes", "After every round."),
            records,
        ),
        Party(
            "A reader of the final model",
            Answer("no", "The model holds all updates added up."),
            Answer("limited", "The final model only."),
            records,
        ),
        Party(
            "A thief of a site's disk",
            _stolen(facts),
            Answer("yes", "The latest model."),
            Answer("yes", "All records of that site, unless the site encrypts its disks. This version does not."),
        ),
    )


def _records(facts: Disclosure) -> Answer:
    if facts.bounded:
        whose = "For each record" if facts.unit == "record" else "For all records of a site together"
        return Answer("limited", f"{whose} at most {facts.bound}{_provided(facts)}.")
    if facts.private:
        return Answer("yes", "No limit holds. See the red box.")
    return Answer("yes", "No limit. A model or update without noise can give records away.")


def _provided(facts: Disclosure) -> str:
    """On what a limit rests that noise in shares gives."""
    if facts.colluding is None:
        return ""
    return (
        f", while no more than {facts.colluding} of the sites pool their noise"
        if facts.colluding > 1
        else (", while no two sites pool their noise")
    )


def _revealed(facts: Disclosure) -> Answer:
    if facts.encrypted and facts.reveal == "never":
        return Answer("no", "It holds encrypted sums, and no key.")
    if facts.encrypted and facts.reveal == "final":
        return Answer("limited", "The final model only. The sites release it (reveal = final).")
    return Answer("yes", "After every round.")


def _readable(facts: Disclosure) -> Answer:
    return Answer("yes", f"Every update arrives readable.{_noise(facts)}")


def _summed(facts: Disclosure) -> Answer:
    others = facts.smallest_sum - 1
    if others == 1:
        return Answer("yes", f"In a round of two sites it can subtract its own part from the sum.{_noise(facts)}")
    seen = f"the sums of {facts.buckets} buckets" if facts.buckets else "sums"
    return Answer("no", f"It sees {seen}. Less its own part, that is the sum of {others} other sites or more.")


def _together(facts: Disclosure) -> Answer:
    if not facts.encrypted:
        return _readable(facts)
    summed = _summed(facts)
    return Answer(summed.level, f"Masks hide each update. {summed.why}") if summed.level == "no" else summed


def _stolen(facts: Disclosure) -> Answer:
    return Answer("yes", "That site's last one.")


def _noise(facts: Disclosure) -> str:
    return " It is noisy: the limit on records holds for it." if facts.bounded else ""


def _choices(facts: Disclosure) -> str:
    """What is known of how the settings came about: the plan's word, and the trials in the ledgers."""
    chosen = "Learning rate, rounds and other settings were chosen in advance."
    match facts.tuning:
        case "none":
            return f"{chosen} The plan says that no site's records had a part in it, which nobody can check."
        case "trial":
            return "This run tries settings out. It stays in the ledgers, and counts for every later run."
        case "counted" if facts.counts_trials:
            number = (
                "the trials" if facts.trials is None else f"{facts.trials} trials" if facts.trials > 1 else "1 trial"
            )
            return (
                f"{chosen} The ledgers hold {number} of them, and ε counts all that they hold. Others are not counted."
            )
        case "counted" | "not counted":
            return f"{chosen} Trials on these records chose them, and what those cost is not counted here."
        case _:
            return (
                f"{chosen} If they were tuned on these records, that cost is not counted here. The plan does not say."
            )


def _lies(facts: Disclosure) -> str:
    told = "A site can train on false data or send a false update."
    if not facts.byzantine:
        return f"{told} This version does not detect it."
    named = "A bucket longer than clipped updates is left out whole, as nobody sees which of its sites it was. "
    return (
        f"{told} The rule {facts.rule} keeps up to {facts.byzantine} such sites from moving the model far. "
        f"{named if facts.encrypted else ''}Lies that stay within bounds, and false counts, are not detected."
    )


def not_protected(facts: Disclosure, simulated: bool) -> tuple[tuple[str, str], ...]:
    """What this run leaves open: a name and two or three sentences each."""
    gaps = (
        (
            facts.bounded,
            "A limit is not zero",
            "ε and δ limit what a release can say about one record. They do not bring it to nothing.",
        ),
        (
            not facts.bounded,
            "The model itself",
            "Nothing limits what the model says about one record. It may have learned some by heart.",
        ),
        (
            facts.encrypted,
            "What the sites open",
            "Encryption hides updates from the coordinator. It does not hide the sum from the sites. There, only "
            "noise protects records.",
        ),
        (
            facts.encrypted and facts.buckets > 0,
            "Buckets",
            f"So that a rule can pick among them, the sites open {facts.buckets} sums a round, not one. Each says "
            f"more of fewer sites, {facts.smallest_sum} at the fewest: the others of a bucket can take their own parts "
            "off, if all of them collude, and are left with one site's update and what noise it had.",
        ),
        (
            facts.encrypted and bool(facts.counted),
            "What the sites count",
            f"On held-out records they count {', '.join(facts.counted)}. All sites open the sums, and may tell the "
            "coordinator. No site's own counts are opened. "
            f"{'The sums hold noise, and ε counts them.' if facts.bounded else 'No limit holds for the sums.'}",
        ),
        (
            facts.encrypted,
            "Collusion of many",
            "Masks keep one site's update from the coordinator and a few colluding sites. If as many sites collude as "
            "the threshold of the plan says, they can lift the masks of the others.",
        ),
        (
            facts.bounded and facts.colluding is not None,
            "Noise that sites share",
            "Each site adds a part of the noise, and only the sum protects records. A site that adds none, or tells "
            f"others its own, counts as colluding. The limit holds up to {facts.colluding} such.",
        ),
        (
            facts.min_cohort == 2,
            "Very small rounds",
            f"The plan lets a {'bucket' if facts.buckets else 'round'} close with two sites. Then each can work out "
            "the other's update.",
        ),
        (
            facts.bounded and facts.unit == "record",
            "People with several records",
            "The limit counts for one record. A person with several records, at one site or at many, can lose as many "
            "times more.",
        ),
        (
            True,
            "Facts about groups",
            "What is true of many patients, or of one site as a whole, can be learned. That is what the model is for.",
        ),
        (
            True,
            "Who took part, and when",
            "The names and the number of sites, the times and the sizes of messages are visible to the coordinator.",
        ),
        (
            simulated,
            "The scores in this report",
            "They were measured on held-out records, without noise, and no ε was paid for them. Whoever reads them "
            "learns a little about those records.",
        ),
        (
            True,
            "Choices made beforehand",
            _choices(facts),
        ),
        (
            True,
            "A site that lies",
            _lies(facts),
        ),
        (
            True,
            "Disks",
            "Records at a site and its copy of the model are as safe as its disks. This version does not encrypt "
            "them. It encrypts a site's keys only where its administrator has locked them.",
        ),
        (
            simulated,
            "One machine",
            "This was a simulation. Its owner could see everything, and the scores and comparisons use held-out "
            "records of all sites, which a real coordinator never sees. Who learns what is told as if the parties were "
            "apart.",
        ),
    )
    return tuple((name, why) for applies, name, why in gaps if applies)
