"""One site on its own disk: settings, identity, roster, records and ledgers. Nothing here is ever sent.

DIR/site.toml      the administrator's settings       DIR/identity.key   Ed25519 private key
DIR/policy.toml    what this site agrees to           DIR/ledgers/       one ledger per data set
DIR/roster.json    who belongs to the consortium      DIR/runs/ID/       keys, model state, sealed updates of a run
DIR/audit.jsonl    what it did and refused            DIR/pending/ID     a run that is put before the administrator
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

from client.datasets import Records, load_records, split
from client.policy import SitePolicy
from common.audit import Audit
from common.config import fill, load_table
from common.dp.ledger import Charge, Ledger, PrivacyBudget
from common.errors import ConfigError
from common.federation import require
from common.keystore import AtRest, load_secret, read_passphrase
from common.randomness import Randomness
from common.roster import Roster
from common.signing import Identity, verify
from common.spans import Monitoring

LEDGER_CONTEXT = "veilfed.ledger.v1"
Precision = Literal["float32", "bfloat16"]
_GPU = re.compile("cuda:(0|[1-9][0-9]{0,2})")
_DEVICES = 'cpu, cuda, cuda:N or a list of different cuda:N such as ["cuda:0", "cuda:1"]'


@dataclass(frozen=True)
class SiteData:
    """Where the records come from. `name` is the data set's name in the ledger.

    loader: `package.module:function`, called as function(site, **options). holdout: share of records kept out
    of training, chosen by `seed`.
    """

    name: str
    loader: str
    holdout: float = 0.0
    seed: int = 0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(0 <= self.holdout < 1, "data.holdout", self.holdout, "0 up to, not including, 1")


@dataclass(frozen=True)
class SiteSettings:
    """site.toml. `insecure_randomness` above 0 fixes sampling and noise: tests only, and every report says so.

    passphrase_file: absolute path of what opens this site's keys; `veilfed site lock` writes it here.
    witnesses: absolute path of the folder that holds the newest heads of ledgers and audit log, best on another disk;
    "": DIR/witnesses.
    device: what trains here: `cpu`, `cuda`, `cuda:N`, or several GPUs that share each lot; where one is missing,
    nothing is trained. precision: of the products in a model's forward and backward pass; what is clipped, summed and
    noised is float32 either way.
    monitoring: where this site's own traces go.
    """

    name: str
    data: SiteData
    insecure_randomness: int = 0
    passphrase_file: str = ""
    witnesses: str = ""
    device: str | tuple[str, ...] = "cpu"
    precision: Precision = "float32"
    monitoring: Monitoring = field(default_factory=Monitoring)

    def __post_init__(self) -> None:
        gpus = set(filter(_GPU.fullmatch, self.devices))
        require(self.device in ("cpu", "cuda") or 0 < len(gpus) == len(self.devices), "device", self.device, _DEVICES)
        for key in ("passphrase_file", "witnesses"):
            path = getattr(self, key)
            require(not path or Path(path).is_absolute(), key, path, "an absolute path")

    @property
    def devices(self) -> tuple[str, ...]:
        """The first keeps the model; the others take their part of each lot."""
        return (self.device,) if isinstance(self.device, str) else self.device


@dataclass(frozen=True)
class Site:
    directory: Path
    settings: SiteSettings
    policy: SitePolicy
    identity: Identity
    roster: Roster
    at_rest: AtRest

    @classmethod
    def open(cls, directory: Path) -> "Site":
        """Raises ConfigError naming the file that is missing or wrong, TrustError when the passphrase is."""
        settings = fill(SiteSettings, load_table(directory / "site.toml"))
        policy = fill(SitePolicy, load_table(directory / "policy.toml"))
        identity, at_rest = load_identity(directory, settings)
        roster = Roster.read(directory / "roster.json")
        if roster.public_key_of(settings.name) != identity.public:
            raise ConfigError(f"{directory}: the roster lists another key for {settings.name}")
        return cls(directory, settings, policy, identity, roster, at_rest)

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def training_records(self) -> Records:
        return _records(self.directory, self.name, _changed(self.directory / "site.toml"))[0]

    @cached_property
    def held_out_records(self) -> Records:
        return _records(self.directory, self.name, _changed(self.directory / "site.toml"))[1]

    @cached_property
    def ledger(self) -> Ledger:
        """The data set's ledger, signed by this site; its newest head is also kept beside it, see `witnesses`."""
        name = self.settings.data.name
        self._witness(name).parent.mkdir(parents=True, exist_ok=True)
        return Ledger.open(
            self.directory / "ledgers" / f"{name}.jsonl",
            self.name,
            name,
            PrivacyBudget(self.policy.epsilon, self.policy.delta),
            witness=self._witness(name),
            sign=partial(self.identity.sign, LEDGER_CONTEXT),
            verify=partial(verify_entry, self.identity.public),
        )

    @cached_property
    def audit(self) -> Audit:
        """What this site agreed to, did and refused."""
        return Audit.open(self.directory, self.identity, witnesses_of(self.directory, self.settings))

    def spent(self) -> tuple[Charge, ...]:
        """What the data set's ledger holds now; it is not written, and need not be there yet."""
        return spent(self.directory, self.settings, self.identity.public)

    def read_ledgers(self) -> list[Ledger]:
        """Every ledger of this site, each line verified; they can be asked but not charged."""
        return [
            Ledger.read(path, self._witness(path.stem), partial(verify_entry, self.identity.public))
            for path in sorted((self.directory / "ledgers").glob("*.jsonl"))
        ]

    def _witness(self, name: str) -> Path:
        return witnesses_of(self.directory, self.settings) / f"{name}.json"

    def randomness(self, *context: str | int) -> Randomness:
        """This process's stream keyed by the operating system, unless the site's own settings fix it for a test.

        The stream never repeats; context only tells fixed streams apart.
        """
        seed = self.settings.insecure_randomness
        return Randomness.insecure(seed, self.name, *context) if seed else self._from_os

    @cached_property
    def _from_os(self) -> Randomness:
        return Randomness.from_os()


def load_identity(directory: Path, settings: SiteSettings) -> tuple[Identity, AtRest]:
    """The site's key, and how its other secrets are kept."""
    locked = Path(settings.passphrase_file) if settings.passphrase_file else None
    secret = load_secret(directory / "identity.key", read_passphrase(locked) if locked else None)
    return Identity.from_private_bytes(secret), AtRest.behind(secret) if locked else AtRest()


def spent(directory: Path, settings: SiteSettings, public: bytes) -> tuple[Charge, ...]:
    """What the ledger of the site's data set holds, every line verified; nothing when there is none."""
    name = settings.data.name
    path, witness = directory / "ledgers" / f"{name}.jsonl", witnesses_of(directory, settings) / f"{name}.json"
    return Ledger.read(path, witness, partial(verify_entry, public)).entries if path.exists() else ()


def witnesses_of(directory: Path, settings: SiteSettings) -> Path:
    return Path(settings.witnesses) if settings.witnesses else directory / "witnesses"


def verify_entry(public: bytes, signature: bytes, data: bytes) -> None:
    """Raises TrustError unless the entry of a ledger was signed by the site with that public key."""
    verify(public, LEDGER_CONTEXT, data, signature)


@lru_cache(maxsize=256)
def open_site(directory: Path, changed: int) -> Site:
    """The site, opened once per process until its settings change. changed: see `settings_stamp`."""
    return Site.open(directory)


def settings_stamp(directory: Path) -> int:
    """Another number once the site's settings, its policy or its roster were written again."""
    return hash(tuple(_changed(directory / name) for name in ("site.toml", "policy.toml", "roster.json", "roots.pem")))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        raise ConfigError(f"{path} is missing", "every site has a site.toml and a policy.toml") from None


@lru_cache(maxsize=256)
def _records(directory: Path, name: str, changed: int) -> tuple[Records, Records]:
    data = fill(SiteSettings, load_table(directory / "site.toml")).data
    return split(load_records(data.loader, name, data.options), data.holdout, data.seed)
