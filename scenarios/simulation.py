"""A simulation: its settings, and the directories of every party set up on one machine.

OUT/simulation.json    the settings          OUT/coordinator/runs/RUN/   what the coordinator keeps
OUT/sites/NAME/        one site's own disk   OUT/consortium/        the root of this simulation alone
OUT/report.html, OUT/report.json
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from client.datasets import Records, load_records, split
from client.policy import SitePolicy
from client.site import SiteData, SiteSettings
from common.certificates import Authority, Root, now_utc
from common.config import fill, to_table
from common.encoding import public_scale
from common.errors import ConfigError
from common.federation import Plan, require
from common.files import write_atomically
from common.keystore import load_secret, save_secret
from common.roster import COORDINATOR, Roster, install
from common.signing import Identity
from common.wire import from_json, to_json
from scenarios.data import DataSettings, public_shape, site_loader, site_names
from server.store import RunStore
from server.submit import complete


@dataclass(frozen=True)
class SimulationSettings:
    """baselines: also train each site alone and a trusted centre under the same budget, and all without privacy.

    contribution: also play the run once more in the open, to tell what each site adds to the model (Shapley values);
    it takes an evaluation a round for each of the 2^sites coalitions, or of a sample of them for more than ten sites.
    site_epsilon: cap of every simulated site's ledger, over all runs in the same directory (0: the epsilon of
    this run). insecure_randomness above 0 fixes sampling and noise; tests only, the report says so.
    """

    baselines: bool = True
    contribution: bool = False
    site_epsilon: float = 0.0
    insecure_randomness: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.site_epsilon < float("inf"), "simulation.site_epsilon", self.site_epsilon, "0 or more")
        require(self.insecure_randomness >= 0, "simulation.insecure_randomness", self.insecure_randomness, "0 or more")


@dataclass(frozen=True)
class Simulation(Plan):
    """A federation file as `veilfed simulate` reads it: the plan, the data and how to simulate."""

    data: DataSettings = field(default_factory=DataSettings)
    simulation: SimulationSettings = field(default_factory=SimulationSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        sites = len(site_names(self.data))
        require(sites >= 2, "data.sites", sites, "2 or more: one site alone is not a federation")
        require(
            self.federation.min_cohort <= sites, "federation.min_cohort", self.federation.min_cohort, f"2 to {sites}"
        )

    @property
    def plan(self) -> Plan:
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})


@dataclass(frozen=True)
class Workplace:
    """A simulation that has been set up: the coordinator's run and the sites' directories."""

    out: Path
    simulation: Simulation
    run: Path
    sites: tuple[Path, ...]


def set_up(simulation: Simulation, out: Path) -> Workplace:
    """Every party's directory, then a new run. Sites that are there already keep identity and ledger.

    Raises ConfigError when the settings do not fit the data, before anything is written.
    """
    plan, policy = planned(simulation), _site_policy(simulation)
    sites = tuple(out / "sites" / name for name in site_names(simulation.data))
    identities = {place.name: identity_at(place) for place in sites}
    coordinator = identity_at(out / "coordinator")
    keys = {name: identity.public for name, identity in identities.items()} | {COORDINATOR: coordinator.public}
    hand_out_roster(out / "consortium", keys, (*sites, out / "coordinator"))
    for place in sites:
        write_atomically(place / "site.toml", tomli_w.dumps(to_table(_site_settings(simulation, place.name))).encode())
        write_atomically(place / "policy.toml", tomli_w.dumps(to_table(policy)).encode())
    store = RunStore.create(out / "coordinator", plan, "simulate")
    settings = to_table(replace(simulation, model=store.plan.model, privacy=store.plan.privacy))
    write_atomically(out / "simulation.json", to_json({"run": store.run.hex(), "simulation": settings}))
    return Workplace(out, fill(Simulation, settings), store.directory, sites)


def reopen(out: Path) -> Workplace:
    """The workplace of an earlier simulation. Raises ConfigError when there is none."""
    try:
        stored: Mapping[str, Any] = from_json((out / "simulation.json").read_bytes())
    except OSError:
        raise ConfigError(f"{out} holds no simulation", "give the --out directory of an earlier one") from None
    simulation = fill(Simulation, stored["simulation"])
    sites = tuple(out / "sites" / name for name in site_names(simulation.data))
    return Workplace(out, simulation, out / "coordinator" / "runs" / stored["run"], sites)


def hand_out_roster(consortium: Path, keys: Mapping[str, bytes], parties: Sequence[Path]) -> None:
    """Into every party's directory, signed by the root in `consortium`, which is made where there is none.

    The version grows where the keys changed, so that parties which are there already follow.
    """
    identity, certificate, kept = (
        identity_at(consortium, "root.key"),
        consortium / "root.crt",
        consortium / "roster.json",
    )
    if not certificate.exists():
        write_atomically(certificate, Authority.make(identity, "simulation", now_utc()).root.pem)
    root = Root.read(certificate.read_bytes())
    roster = Roster(keys, root.consortium)
    if kept.exists():
        held = Roster.read(kept)
        roster = held if held.keys == keys else replace(held, keys=keys, version=held.version + 1)
    for place in (consortium, *parties):
        install(place, roster.signed([identity]), [root])


def identity_at(place: Path, name: str = "identity.key") -> Identity:
    """The key of a played party, made where there is none."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = place / name
    if not path.exists():
        save_secret(path, Identity.generate().private_bytes(), None)
    return Identity.from_private_bytes(load_secret(path, None))


def _site_settings(simulation: Simulation, name: str) -> SiteSettings:
    loader, options = site_loader(simulation.data, name)
    data = simulation.data
    return SiteSettings(
        name,
        SiteData(data.loader.replace(":", "."), loader, data.holdout, data.seed, options),
        simulation.simulation.insecure_randomness,
    )


def _site_policy(simulation: Simulation) -> SitePolicy:
    privacy = simulation.privacy
    return SitePolicy(
        simulation.simulation.site_epsilon or privacy.epsilon,
        privacy.delta,
        require_encryption=simulation.encryption.preset != "none",
        require_privacy=privacy.mode != "none",
        model_factories=(simulation.model.factory,) if ":" in simulation.model.factory else (),
        protected_attributes=simulation.metrics.asked,
        max_weights=2**31,
    )


def planned(simulation: Simulation) -> Plan:
    """The plan as `fitted` fills it in, for what each site will load. Raises ConfigError when it does not fit."""
    each = [_site_settings(simulation, name) for name in site_names(simulation.data)]
    parts = [split(load_records(s.data.loader, s.name, s.data.options), s.data.holdout, s.data.seed) for s in each]
    asked = simulation.simulation.contribution
    held_out = any(len(held_out) for _, held_out in parts)
    require(not asked or held_out, "simulation.contribution", asked, "false with no records held out")
    every = simulation.metrics.every
    require(not every or held_out, "metrics.every", every, "0 with no records held out: there is nothing to count")
    return fitted(simulation, [training for training, _ in parts])


def fitted(simulation: Simulation, records: list[Records]) -> Plan:
    """The plan with the data's shape and the calibrated noise filled in. records: each site's, to train on."""
    from common.models import build, layer_sizes  # torch: who only submits a plan need not wait for it

    inputs, classes = public_shape(simulation.data)
    model = replace(
        simulation.model,
        inputs=simulation.model.inputs or inputs or tuple(records[0].features.shape[1:]),
        classes=simulation.model.classes or classes or 1 + max(int(part.labels.max(initial=1)) for part in records),
    )
    if simulation.privacy.mode != "none":
        smallest, delta = min(len(part) for part in records), simulation.privacy.delta
        require(delta * smallest < 1, "privacy.delta", delta, f"below 1/{smallest}, the smallest site")
    for name, levels in simulation.metrics.groups.items():
        found = {str(level) for part in records for level in part.groups.get(name, ())}
        told = f"of {sorted(found)[:12]}" if found else f"records have {sorted(records[0].groups) or 'no attributes'}"
        require(bool(found & set(levels)), f"metrics.groups.{name}", list(levels), told)
    known = [name for name in records[0].columns if all(name in part.columns for part in records)]
    told = f"of {', '.join(known)}" if known else "none: the loader gives Records without `columns`, names of features"
    asked = simulation.metrics.importance
    require(set(asked) <= set(known), "metrics.importance", list(asked), told)
    plan = complete(replace(simulation.plan, model=model), len(records))
    public_scale(plan, layer_sizes(build(plan.model)))
    return plan
