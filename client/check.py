"""Whether a site is ready, and what it would agree to: everything that is wrong at once, and nothing is written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from client.datasets import load_records, split
from client.device import described, devices_named
from client.policy import SitePolicy, require_open_window
from client.site import SiteSettings, load_identity, spent, witnesses_of
from common.audit import Audit
from common.config import fill, load_table
from common.dp.accounting import epsilon
from common.errors import ConfigError, FederationError, NotNow
from common.roster import Roster
from common.signing import Identity
from common.tracing import require_installed

_SOON = timedelta(days=30)
_MB = 10**6
_CLOCK_MAY_LAG = timedelta(minutes=5)


@dataclass
class Findings:
    """problems: what keeps this site from taking part. notes: what its administrator should know all the same."""

    facts: dict[str, Any] = field(default_factory=dict)
    agrees_to: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Whatever goes wrong within is one more problem."""
        try:
            yield
        except FederationError as error:
            self.problems.append(error.message + (f" ({error.hint})" if error.hint else ""))

    def to_report(self) -> dict[str, Any]:
        return {
            "ready": not self.problems,
            **self.facts,
            "agrees_to": self.agrees_to,
            "problems": self.problems,
            "notes": self.notes,
        }


def check(directory: Path, now: datetime) -> Findings:
    """Every file of the site is read and its records are loaded; what depends on a broken one is left out."""
    found = Findings()
    settings = policy = identity = None
    with found.looking():
        settings = fill(SiteSettings, load_table(directory / "site.toml"))
        found.facts["site"] = settings.name
    with found.looking():
        policy = fill(SitePolicy, load_table(directory / "policy.toml"))
        found.agrees_to = policy.to_words()
    if settings:
        with found.looking():
            found.facts["device"] = f"{described(devices_named(settings.devices))}, {settings.precision}"
        with found.looking():
            require_installed(settings.monitoring.traces)
        with found.looking():
            identity = load_identity(directory, settings)[0]
        with found.looking():
            _check_roster(directory, settings, identity, found)
        with found.looking():
            _check_records(settings, policy, found)
    if settings and policy and identity:
        with found.looking():
            _check_ledger(directory, settings, policy, identity, found)
    if settings and identity:
        with found.looking():
            _check_clock(directory, settings, identity, now, found)
    if policy:
        _check_now(directory, policy, now, found)
    with found.looking():
        _check_certificate(directory / "node.crt", now, found)
    return found


def _check_roster(directory: Path, settings: SiteSettings, identity: Identity | None, found: Findings) -> None:
    roster = Roster.read(directory / "roster.json")
    listed = roster.public_key_of(settings.name)
    if identity and listed != identity.public:
        raise ConfigError(f"{directory}: the roster lists another key for {settings.name}", "ask for a new roster")
    found.facts["sites_on_roster"] = len(roster.sites)


def _check_records(settings: SiteSettings, policy: SitePolicy | None, found: Findings) -> None:
    data = settings.data
    training, held_out = split(load_records(data.loader, settings.name, data.options), data.holdout, data.seed)
    found.facts |= {"data_set": data.name, "records": len(training), "held_out": len(held_out)}
    if policy and policy.delta * len(training) >= 1:
        raise ConfigError(
            f"policy.toml: delta = {policy.delta:g} is not below 1 / {len(training)}, the number of records",
            "such a delta would allow a whole record to be given away",
        )


def _check_ledger(
    directory: Path, settings: SiteSettings, policy: SitePolicy, identity: Identity, found: Findings
) -> None:
    charges = spent(directory, settings, identity.public)
    lost = epsilon([event for charge in charges for event in charge.events], policy.delta)
    left = max(0.0, policy.epsilon - lost)
    found.facts |= {"epsilon_spent": lost, "epsilon_left": left, "delta": policy.delta}
    if not left:
        raise ConfigError(f"data set {settings.data.name!r} has lost epsilon {lost:.4f} of {policy.epsilon:g}")


def _check_clock(directory: Path, settings: SiteSettings, identity: Identity, now: datetime, found: Findings) -> None:
    """A log that is older than its newest entry says was written under another clock."""
    if not (directory / "audit.jsonl").exists():
        return
    log = Audit.read(directory, identity.public, witnesses_of(directory, settings) / "audit").entries()
    found.facts["audit_events"] = len(log)
    newest = datetime.fromisoformat(log[-1].record["time"]) if log else now
    if newest > now + _CLOCK_MAY_LAG:
        raise ConfigError(f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC, its audit log goes on to {newest}")


def _check_now(directory: Path, policy: SitePolicy, now: datetime, found: Findings) -> None:
    free, kept = shutil.disk_usage(directory).free // _MB, policy.resources.free_disk_mb
    found.facts |= {"free_disk_mb": free, "clock": now.astimezone(policy.zone).isoformat(timespec="minutes")}
    if free < kept:
        found.problems.append(f"{free} MB are free on this site's disk, policy.toml keeps {kept} free")
    try:
        require_open_window(policy, now)
    except NotNow as closed:
        found.notes.append(closed.message)


def _check_certificate(path: Path, now: datetime, found: Findings) -> None:
    if not path.exists():
        found.notes.append("there is no node.crt: this site has not been admitted to a consortium yet")
        return
    from cryptography.x509 import load_pem_x509_certificate

    try:
        certificate = load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a certificate: {error}", "install the kit again: veilfed site join") from None
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    found.facts["certificate_ends"] = ends.isoformat(timespec="minutes")
    if not begins <= now <= ends:
        raise ConfigError(f"{path} holds from {begins} to {ends}, this machine's clock shows {now:%Y-%m-%d %H:%M} UTC")
    if ends - now < _SOON:
        found.notes.append(f"the certificate ends on {ends:%Y-%m-%d}: renew it with veilfed site renew")
