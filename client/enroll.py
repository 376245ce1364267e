"""How a site becomes a member, and stays one: its keys and the request that it makes, the kit that it installs.

DIR/identity.key  Ed25519, perhaps locked   DIR/request.json     for the coordinator: `veilfed server admit`
DIR/node.key      EC P-384, open            DIR/node.crt         the certificate for it
DIR/site.toml, DIR/policy.toml to be filled in
                                            DIR/connection.json  the consortium and where its gateway is
DIR/roots.pem, DIR/roster.json              see `common/roster.py`
Files are replaced while a federation runs. Each is whole at any moment, and the pairs that must fit do.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.lock import outside
from client.policy import EXAMPLE
from client.site import SiteSettings
from common.addresses import Address
from common.certificates import Certificate, Root, read_roots
from common.config import fill, load_table
from common.enrolment import Kit, Request
from common.errors import ConfigError, TrustError, WireError
from common.files import exclusive, write_atomically
from common.fingerprints import require_same
from common.keystore import is_open, load_secret, read_passphrase, save_secret
from common.roster import COORDINATOR, Roster, install, require_name
from common.signing import Identity
from common.tls_keys import TlsKey
from common.wire import digest, from_json, to_json

NEWEST_KIT = "run/kit.json"  # below the site's directory, in the place that worker and node share
_PUBLIC = 0o644
_followed: dict[Path, bytes] = {}  # digest of the last kit that was looked at
_SITE = """{passphrase}name = "{name}"
# device = "cuda"                        # trains on the GPU, ["cuda:0", "cuda:1"] on two; left out, on the processor
# precision = "bfloat16"                 # faster on a GPU; what is clipped and noised stays float32

[data]
name = "records"                         # the data set's name in the ledger; choose it once
loader = "my_package.records:load"       # a function of yours: client/README.md says what it returns
holdout = 0.2                            # share of the records kept out of training

[data.options]                           # handed to the loader
# path = "/srv/data/records.csv"
"""


@dataclass(frozen=True)
class Connection:
    """DIR/connection.json: whom this site works with, and where."""

    consortium: str
    server: Address

    @classmethod
    def read(cls, directory: Path) -> "Connection":
        """Raises ConfigError when the site has not joined yet."""
        path = directory / "connection.json"
        try:
            said = from_json(path.read_bytes())
            return cls(str(said["consortium"]), Address.parse(said["server"]))
        except OSError:
            raise ConfigError(f"{directory} has not joined a consortium", "see veilfed site join --help") from None
        except (WireError, KeyError, AttributeError, TypeError):
            raise ConfigError(f"{path} is not what a kit installs", "join again with the newest kit") from None


def initialise(directory: Path, name: str, server: Address, passphrase_file: Path | None) -> Request:
    """This site's keys, made here and to stay here, two examples of settings, and the request to be granted.

    Keys that are there already, of a first try that was cut short, are kept; so are the two files.
    Raises ConfigError when a request was made already.
    """
    require_name(name)
    if name == COORDINATOR:
        raise ConfigError(f"{COORDINATOR!r} is no name for a site", "choose another")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (directory / "request.json").exists():
        raise ConfigError(f"{directory} has keys and a request already", "see veilfed site renew --help")
    place = outside(directory, passphrase_file) if passphrase_file else None
    passphrase, key = read_passphrase(place) if place else None, directory / "identity.key"
    if not key.exists():
        save_secret(key, Identity.generate().private_bytes(), passphrase)
    if not (directory / "node.key").exists():
        write_atomically(directory / "node.key", TlsKey.generate().pkcs8())
    if not (directory / "site.toml").exists():
        named = f"passphrase_file = {json.dumps(str(place), ensure_ascii=False)}\n" if place else ""
        write_atomically(directory / "site.toml", _SITE.format(name=name, passphrase=named).encode())
    if not (directory / "policy.toml").exists():
        write_atomically(directory / "policy.toml", EXAMPLE.read_bytes())
    return _request(directory, name, server, passphrase)


def renew(directory: Path, server: Address | None) -> Request:
    """A new request for the same keys. server: where the gateway is, unless it is where it was."""
    asked = Request.read(_asked(directory))
    settings = fill(SiteSettings, load_table(directory / "site.toml"))
    passphrase = read_passphrase(Path(settings.passphrase_file)) if settings.passphrase_file else None
    return _request(directory, asked.name, server or asked.server, passphrase)


def _request(directory: Path, name: str, server: Address, passphrase: str | None) -> Request:
    key = directory / "identity.key"
    if passphrase is None and not is_open(key):
        raise ConfigError(f"{key} is locked with a passphrase", "name its file: --passphrase-file, or in site.toml")
    identity = Identity.from_private_bytes(load_secret(key, passphrase))
    data = Request.make(name, server, identity, TlsKey.read(directory / "node.key"))
    request = Request.read(data)
    write_atomically(directory / "request.json", data, _PUBLIC)
    return request


def join(directory: Path, data: bytes, told: str | None, confirm: Callable[[Root], None], now: datetime) -> Kit:
    """Verify a kit as a whole, then install it: certificate, connection, roster and roots.

    told: the root's fingerprint as the coordinator's people told it; where it is given it decides, else the roots that
    this site pins already, else `confirm`, which raises unless a person agrees. Nothing is written unless all holds.
    """
    asked = Request.read(_asked(directory))
    with exclusive(directory / ".joining"):
        kit = Kit.read(data, _pinned(directory, Kit.claimed_roots(data), told, confirm))
        _require_ours(kit, asked, TlsKey.read(directory / "node.key"), now)
        if (directory / "roster.json").exists():
            kit.roster.require_follows(Roster.read(directory / "roster.json"))
        write_atomically(directory / "node.crt", kit.certificate.pem, _PUBLIC)
        said = {"consortium": kit.consortium, "server": str(kit.server)}
        write_atomically(directory / "connection.json", to_json(said), _PUBLIC)
        install(directory, kit.signed_roster, kit.roots)
    return kit


def follow(directory: Path, now: datetime) -> Kit | None:
    """Install the kit that the node has brought, when it says anything new: the roots that are pinned vouch for it.

    So a new site, a revocation or a renewed certificate arrives without anybody carrying files. Returns what was
    installed. Raises TrustError or WireError for a kit that is not to be trusted; nothing is changed then.
    """
    path = directory / NEWEST_KIT
    if not path.exists():
        return None
    data = path.read_bytes()
    brought = digest(data)
    if brought == _followed.get(directory):
        return None
    held = Roster.read(directory / "roster.json"), certificate_of(directory).pem
    try:
        kit = join(directory, data, None, _nobody_to_ask, now)
    except WireError:
        _followed[directory] = brought  # it will never be a kit; what is not yet valid may be one later
        raise
    _followed[directory] = brought
    return kit if (kit.roster, kit.certificate.pem) != held else None


def _nobody_to_ask(root: Root) -> None:
    raise TrustError("this site pins no root", "join with the coordinator's kit: see veilfed site join --help")


def needs_renewal(directory: Path, now: datetime) -> bool:
    """Whether this site's certificate is near its end. Raises ConfigError when it has none."""
    return certificate_of(directory).is_near_end(now)


def certificate_of(directory: Path) -> Certificate:
    try:
        return Certificate.read((directory / "node.crt").read_bytes())
    except OSError:
        raise ConfigError(f"{directory} has not joined a consortium", "see veilfed site join --help") from None


def _asked(directory: Path) -> bytes:
    try:
        return (directory / "request.json").read_bytes()
    except OSError:
        raise ConfigError(f"{directory} has made no request", "see veilfed site init --help") from None


def _pinned(directory: Path, shown: tuple[Root, ...], told: str | None, confirm: Callable[[Root], None]) -> Root:
    """The root that has to have signed the kit: of several the newest."""
    if told is not None:
        for root in shown[:-1]:
            if _is_told(told, root):
                return root
        require_same(told, shown[-1].fingerprint, "the root in this kit")
        return shown[-1]
    if (directory / "roots.pem").exists():
        return read_roots((directory / "roots.pem").read_bytes())[0]
    confirm(shown[0])
    return shown[0]


def _is_told(told: str, root: Root) -> bool:
    try:
        require_same(told, root.fingerprint, "the root in this kit")
    except TrustError:
        return False
    return True


def _require_ours(kit: Kit, asked: Request, node: TlsKey, now: datetime) -> None:
    """Returns for a kit that is for this very site and its keys. Raises TrustError."""
    kit.certificate.require_client(kit.roots, now)
    if (kit.name, kit.certificate.role) != (asked.name, "site"):
        raise TrustError(f"the kit is for {kit.certificate.role} {kit.name!r}, this is the site {asked.name!r}")
    if not node.public == kit.certificate.public == kit.roster.node_key_of(asked.name):
        raise TrustError("the kit is for another node.key than this site's", "send the newest request.json")
    if kit.roster.public_key_of(asked.name) != asked.identity:
        raise TrustError("the kit's roster has another identity for this site", "send the newest request.json")
