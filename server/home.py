"""The coordinator's home on disk, and the one way in which its consortium's files are replaced.

consortium.toml   who and where (`ConsortiumSettings`)   roster.json, roots.pem   see `common/roster.py`
tls/              gateway and superlink, .crt and .key   crl.pem                  a revocation list of every root
identity.key      the coordinator's, Ed25519             bundle.key               signs bundles, Ed25519
root/             *.key of the roots, *.crt beside them; may lie elsewhere between ceremonies
issued/           every certificate of a client, by serial: what a revocation has to name
kits/NAME.json    each site's newest kit                 admins/, researchers/, auditors/   NAME.crt
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from common.addresses import Address, require_host
from common.certificates import Authority, Certificate, Role, Root, read_roots
from common.config import fill, load_table
from common.enrolment import Kit
from common.errors import ConfigError, ProtocolError
from common.federation import ModelSettings, require
from common.files import exclusive, write_atomically
from common.keystore import is_open, load_secret
from common.roster import COORDINATOR, Roster, install, require_consortium, require_name
from common.signing import Identity
from common.spans import Monitoring

PUBLIC = 0o644
SERVERS = {"gateway": None, "superlink": ("localhost", "127.0.0.1")}


@dataclass(frozen=True)
class ConsortiumSettings:
    """consortium.toml. address: HOST:PORT at which sites and people reach the gateway.

    further_names: other DNS names or IP addresses of it. admins, researchers, auditors: people, each in one list.
    model_factories: code (`package.module:function`) that a plan may have imported here to build its model.
    max_weights: of the largest model that is built here. Each site has its own limits in its policy.
    monitoring: where the coordinator's own traces go.
    """

    name: str
    address: str
    further_names: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    researchers: tuple[str, ...] = ()
    auditors: tuple[str, ...] = ()
    model_factories: tuple[str, ...] = ()
    max_weights: int = 500_000_000
    monitoring: Monitoring = field(default_factory=Monitoring)

    def __post_init__(self) -> None:
        require_consortium(self.name)
        Address.parse(self.address)
        for host in self.further_names:
            require_host(host)
        people = [*self.admins, *self.researchers, *self.auditors]
        for name in people:
            require_name(name)
        require(len(set(people)) == len(people), "admins, researchers, auditors", people, "each name once")
        require(COORDINATOR not in people, "admins, researchers, auditors", people, f"not {COORDINATOR!r}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the gateway's certificate names."""
        return tuple(dict.fromkeys((Address.parse(self.address).host, *self.further_names)))

    def require_model(self, model: ModelSettings) -> None:
        """Returns when the coordinator may build that model. Raises ProtocolError."""
        if ":" in model.factory and model.factory not in self.model_factories:
            raise ProtocolError(
                f"the coordinator imports no code {model.factory!r} to build a model from",
                "its administrator names it in consortium.toml: model_factories",
            )
        if model.dense_weights > self.max_weights:
            raise ProtocolError(
                f"a model of {model.dense_weights} weights; this coordinator builds {self.max_weights}",
                "its administrator raises max_weights in consortium.toml",
            )

    def role_of(self, name: str) -> Role | None:
        listed: dict[Role, tuple[str, ...]] = {
            "admin": self.admins,
            "researcher": self.researchers,
            "auditor": self.auditors,
        }
        return next((role for role, names in listed.items() if name in names), None)


@dataclass(frozen=True)
class Home:
    """roots: all in force, the newest first."""

    directory: Path
    settings: ConsortiumSettings
    roots: tuple[Root, ...]
    roster: Roster

    @classmethod
    def open(cls, directory: Path) -> "Home":
        """Raises ConfigError when there is no consortium in that directory, TrustError when its roster is not true."""
        if not (directory / "roster.json").exists():
            raise ConfigError(f"{directory} is no coordinator's home", "veilfed server init makes one")
        settings = fill(ConsortiumSettings, load_table(directory / "consortium.toml"))
        roots, roster = read_roots((directory / "roots.pem").read_bytes()), Roster.read(directory / "roster.json")
        require(settings.name == roster.consortium, "name", settings.name, f"{roster.consortium!r}, as on the roster")
        return cls(directory, settings, roots, roster)

    def issued(self) -> list[Certificate]:
        """Every client's certificate there ever was, the newest last; what a root not in force issued comes first."""

        def age(path: Path) -> tuple[int, datetime, int]:
            made = found[path]
            rank = next((-place for place, root in enumerate(self.roots) if made.is_issued_by(root)), -len(self.roots))
            return rank, made.certificate.not_valid_before_utc, path.stat().st_mtime_ns

        found = {path: Certificate.read(path.read_bytes()) for path in (self.directory / "issued").glob("*.crt")}
        return [found[path] for path in sorted(found, key=age)]

    def certificates(self) -> dict[str, Certificate]:
        """The newest certificate of everybody who was not revoked."""
        newest = {one.name: one for one in self.issued()}
        return {name: one for name, one in sorted(newest.items()) if name not in self.roster.revoked}

    def server_certificate(self, which: str) -> Path:
        return self.directory / "tls" / f"{which}.crt"


@contextmanager
def ceremony(directory: Path) -> Iterator[Home]:
    """The home, to be changed by one at a time."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no coordinator's home", "veilfed server init makes one")
    with exclusive(directory / ".ceremony"):
        yield Home.open(directory)


def unlock_roots(root: Path, roots: Sequence[Root], passphrase: str | None) -> tuple[Authority, ...]:
    """Every root in force with its private key, found by what it is among the *.key of `root`, in the order given.

    Raises ConfigError when one is missing or locked, TrustError when the passphrase is wrong.
    """
    found = {}
    for path in sorted(root.glob("*.key")):
        if passphrase is None and not is_open(path):
            raise ConfigError(f"{path} is locked with a passphrase", "give --passphrase-file FILE")
        identity = Identity.from_private_bytes(load_secret(path, passphrase))
        found[identity.public] = identity
    for one in roots:
        if one.key not in found:
            raise ConfigError(
                f"{root} has no key of the root {one.fingerprint}", "bring it, and name its directory with --root"
            )
    return tuple(Authority(found[one.key], one) for one in roots)


def issue(directory: Path, pem: bytes) -> Certificate:
    """Keep a client's certificate on record, before anybody gets it."""
    certificate = Certificate.read(pem)
    write_atomically(directory / "issued" / f"{certificate.serial:040x}.crt", pem, PUBLIC)
    return certificate


def publish(home: Home, roster: Roster, authorities: Sequence[Authority], now: datetime) -> Home:
    """Replace revocation list, roster, roots and every kit by new ones; each file is whole at any moment.

    What is revoked goes first, so that a crash in between leaves nobody in who should be out.
    """
    issued = home.issued()
    gone = [one for one in issued if one.name in roster.revoked]
    lists = [
        by.revoke([one.serial for one in gone if one.is_issued_by(by.root)], roster.version, now) for by in authorities
    ]
    write_atomically(home.directory / "crl.pem", b"".join(lists), PUBLIC)
    roots, signers = tuple(one.root for one in authorities), [one.identity for one in authorities]
    signed = roster.signed(signers)
    install(home.directory, signed, roots)
    changed = Home(home.directory, home.settings, roots, roster)
    for name in roster.revoked:
        (home.directory / "kits" / f"{name}.json").unlink(missing_ok=True)
    for name, certificate in changed.certificates().items():
        if certificate.role != "site":
            write_atomically(home.directory / f"{certificate.role}s" / f"{name}.crt", certificate.pem, PUBLIC)
        elif name in roster.sites:
            kit = Kit.make(Address.parse(home.settings.address), roots, certificate, signed, signers)
            write_atomically(home.directory / "kits" / f"{name}.json", kit, PUBLIC)
    return changed
