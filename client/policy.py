"""What this site agrees to, as its administrator wrote it into policy.toml. Pure: no clock, disk or ledger is asked.

What is asked of them, and in which order, is in `consent.py`.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from client.datasets import Records
from client.windows import Window, is_open, next_opening
from common.errors import CohortTooSmall, FederationError, NotNow, PrivacyError, ProtocolError, TrustError
from common.federation import Plan, require
from common.wire import digest

EXAMPLE = Path(__file__).with_name("policy.toml")  # every key, with what holds where it is left out
Mode = Literal["local", "distributed", "site"]
Report = Literal["seconds", "epsilon", "metrics"]


@dataclass(frozen=True)
class Resources:
    """What acting on orders may take of this machine; 0 where there is no cap.

    cpu_cores: that torch and encryption may use. cpu_seconds_per_round: of local training, looked at between steps.
    memory_mb: writable memory of the worker (RLIMIT_DATA), and of each of its helpers. gpu_memory_fraction: of what
    torch may allocate on each GPU. free_disk_mb: with less left on the site's disk nothing is joined or trained.
    """

    cpu_cores: int = 0
    cpu_seconds_per_round: float = 0.0
    memory_mb: int = 0
    gpu_memory_fraction: float = 1.0
    free_disk_mb: int = 100

    def __post_init__(self) -> None:
        for name in ("cpu_cores", "memory_mb", "free_disk_mb"):
            value = getattr(self, name)
            require(0 <= value < 2**40, f"resources.{name}", value, "0 or more")
        seconds, fraction = self.cpu_seconds_per_round, self.gpu_memory_fraction
        require(0 <= seconds < math.inf, "resources.cpu_seconds_per_round", seconds, "0 or more")
        require(0 < fraction <= 1, "resources.gpu_memory_fraction", fraction, "above 0, at most 1")


@dataclass(frozen=True)
class SitePolicy:
    """policy.toml: the site administrator's own limits; EXAMPLE shows every key.

    epsilon, delta: what one record of this data set may lose over all runs together. epsilon_per_run: over one run, at
    the same delta (0: nothing beyond epsilon). approval: `manual` holds each run until `veilfed site approve`.
    min_cohort: fewest sites whose sum may be opened here. require_encryption, require_privacy: refuse plans that do
    without. privacy_modes: the kinds of differential privacy that will do.
    model_families: built-in architectures that may be trained here. model_factories: code (`package.module:function`)
    that a plan may have imported to build its model. max_weights: the largest model that is built here.
    bundle_keys: SHA-256 of the keys that may sign a bundle, hexadecimal; none: those on the roster.
    reports: the numbers that may leave readable where a plan asks for them (`federation.public`).
    protected_attributes: those by which a plan may have records counted (`metrics.groups`), and of which it may ask
    what they do for the model (`metrics.importance`), in sums with noise.
    windows: when rounds may train, on the clock of time_zone; none: always.
    """

    epsilon: float
    delta: float
    epsilon_per_run: float = 0.0
    approval: Literal["automatic", "manual"] = "automatic"
    min_cohort: int = 2
    require_encryption: bool = True
    require_privacy: bool = True
    privacy_modes: tuple[Mode, ...] = ("local", "distributed", "site")
    model_families: tuple[str, ...] = ("logistic", "mlp", "cnn")
    model_factories: tuple[str, ...] = ()
    max_weights: int = 50_000_000
    bundle_keys: tuple[str, ...] = ()
    reports: tuple[Report, ...] = ("seconds", "epsilon", "metrics")
    protected_attributes: tuple[str, ...] = ()
    time_zone: str = "UTC"
    windows: tuple[Window, ...] = ()
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        per_run = self.epsilon_per_run
        require(0 < self.epsilon < math.inf, "epsilon", self.epsilon, "positive and finite")
        require(0 < self.delta < 0.1, "delta", self.delta, "above 0, below 1 / number of records")
        require(0 <= per_run <= self.epsilon, "epsilon_per_run", per_run, f"0 up to epsilon, {self.epsilon:g}")
        require(self.min_cohort >= 2, "min_cohort", self.min_cohort, "2 or more")
        require(self.max_weights >= 1, "max_weights", self.max_weights, "1 or more")
        for key in self.bundle_keys:
            require(bool(re.fullmatch("[0-9a-f]{64}", key)), "bundle_keys", key, "64 hexadecimal digits, lower case")
        for name in self.model_factories:
            require(":" in name, "model_factories", name, "package.module:function")
        require(_zone_is_known(self.time_zone), "time_zone", self.time_zone, "a name such as Europe/Vienna, or UTC")

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    def to_words(self) -> list[str]:
        """What this site would agree to, a sentence a line."""
        cap = f"at most epsilon {self.epsilon:g} at delta {self.delta:g} over all runs"
        modes, allowed = " or ".join(self.privacy_modes), ", ".join((*self.model_families, *self.model_factories))
        windows = "; ".join(f"{w.start} to {w.end} from {', '.join(w.days)}" for w in self.windows)
        capped, named = self.resources, len(self.bundle_keys)
        caps = [
            (capped.cpu_cores, f"{capped.cpu_cores} CPU cores"),
            (capped.cpu_seconds_per_round, f"{capped.cpu_seconds_per_round:g} CPU seconds of training a round"),
            (capped.memory_mb, f"{capped.memory_mb} MB of memory"),
            (capped.gpu_memory_fraction < 1, f"{capped.gpu_memory_fraction:.0%} of each GPU's memory"),
        ]
        return [
            f"a record may lose {cap}" + (f", {self.epsilon_per_run:g} in one" if self.epsilon_per_run else ""),
            f"no sum of fewer than {self.min_cohort} sites is opened",
            "updates must be encrypted" if self.require_encryption else "UPDATES MAY TRAVEL READABLE",
            f"differential privacy must be {modes}"
            if self.require_privacy
            else "RUNS WITHOUT DIFFERENTIAL PRIVACY ARE ACCEPTED",
            f"models: {allowed or 'none'}, of at most {self.max_weights:,} weights",
            f"may leave readable: {', '.join(self.reports) or 'nothing'}",
            f"records may be counted by {', '.join(self.protected_attributes) or 'no protected attribute'}",
            f"bundles signed by {f'one of {named} keys named here' if named else 'a key on the roster'}",
            f"rounds train {windows} ({self.time_zone})" if windows else "rounds train at any time",
            f"at most {', '.join(words for cap, words in caps if cap) or 'the whole machine'}; "
            f"{capped.free_disk_mb} MB of disk stay free",
            "each run waits for `veilfed site approve`" if self.approval == "manual" else "runs begin without asking",
        ]


def objections(policy: SitePolicy, plan: Plan, cohort: int, records: int) -> Iterator[FederationError]:
    """Every rule that the plan breaks, for a cohort of so many sites and this site's number of records.

    Says nothing about what is left of the budget: the ledger answers that. Each names its key in policy.toml.
    """
    factory, mode = plan.model.factory, plan.privacy.mode
    if ":" in factory and factory not in policy.model_factories:
        yield _no("model_factories", f"this site's policy names no code {factory!r} to build a model from")
    if ":" not in factory and factory not in policy.model_families:
        yield _no("model_families", f"this site's policy does not train {factory!r}")
    if too_large := size_objection(policy, plan.model.dense_weights):
        yield too_large
    if policy.require_encryption and plan.encryption.preset == "none":
        yield _no("require_encryption", "this site's policy requires encrypted updates, the plan sends readable ones")
    if policy.require_privacy and mode == "none":
        yield _no("require_privacy", "this site's policy requires differential privacy, the plan has none")
    if mode != "none" and mode not in policy.privacy_modes:
        yield _no("privacy_modes", f"this site's policy accepts {', '.join(policy.privacy_modes)}, not {mode!r}")
    if mode != "none" and policy.delta * records >= 1:  # not the plan's: whoever could try deltas would count records
        yield _no(
            "delta", "this site's own delta is 1 / number of its records or more: its administrator must lower it"
        )
    smallest = min(plan.federation.min_cohort, cohort)
    if smallest < policy.min_cohort:
        what = f"a sum of {smallest} sites could be opened, this site's policy asks for {policy.min_cohort}"
        yield CohortTooSmall(f"policy.min_cohort: {what}")
    if kept := [name for name in plan.federation.public if name not in policy.reports]:
        yield _no("reports", f"the plan wants {', '.join(kept)} readable, this site's policy does not report that")
    if closed := [name for name in sorted(plan.metrics.groups) if name not in policy.protected_attributes]:
        yield _no(
            "protected_attributes", f"the plan counts records by {', '.join(closed)}, this site's policy does not"
        )


def require_names(policy: SitePolicy, plan: Plan, records: Records) -> None:
    """Raises ProtocolError when the records have no such attribute or feature, PrivacyError for a feature that is a
    protected attribute which the policy does not open.

    Which levels they have is nobody's to ask.
    """
    for name in sorted(plan.metrics.groups):
        if name not in records.groups:
            raise ProtocolError(f"the plan counts by {name}, which this site's records do not have")
    for name in plan.metrics.importance:
        if name in records.groups and name not in policy.protected_attributes:
            raise _no("protected_attributes", f"the plan asks what {name} does for the model, this site's does not")
        if name not in records.columns:
            raise ProtocolError(
                f"the plan asks what {name} does for the model; this site's records name no such feature"
            )


def size_objection(policy: SitePolicy, weights: int) -> FederationError | None:
    """Why a model of so many weights is not built or trained here, if it is not."""
    if weights <= policy.max_weights:
        return None
    return ProtocolError(f"policy.max_weights: a model of {weights} weights; this site builds {policy.max_weights}")


def require_open_window(policy: SitePolicy, now: datetime) -> None:
    """Raises NotNow outside of the policy's windows. now: with its time zone, whichever that is."""
    local = now.astimezone(policy.zone)
    if not is_open(policy.windows, local):
        opens = next_opening(policy.windows, local).isoformat(timespec="minutes")
        raise NotNow(f"policy.windows: this site trains from {opens} on", "ask again then")


def require_bundle_key(policy: SitePolicy, public: bytes, on_roster: Collection[bytes]) -> None:
    """Raises TrustError unless bundles signed by that Ed25519 key are accepted here. on_roster: its bundle keys."""
    if public not in on_roster:
        raise TrustError("the key that signed this run's bundle is not on the roster any more")
    if policy.bundle_keys and digest(public).hex() not in policy.bundle_keys:
        raise TrustError(f"policy.bundle_keys: this site's policy does not name the key {digest(public).hex()}")


def consent(policy: SitePolicy, plan: Plan, cohort: Sequence[str], records: int) -> None:
    """Returns when the plan keeps within the policy; raises the first of its `objections`."""
    for objection in objections(policy, plan, len(cohort), records):
        raise objection


def _no(key: str, why: str) -> PrivacyError:
    return PrivacyError(f"policy.{key}: {why}")


def _zone_is_known(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
