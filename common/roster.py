"""Who belongs to the consortium: names and their public keys, signed by its root. There is no unsigned roster.

DIR/roster.json is one object (`common/signed_json.py`, context `veilfed.roster.v1`); DIR/roots.pem beside it holds the
roots that this party pins, the newest first, and each of them must have signed the roster. `install` replaces both
while others read them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.certificates import Root, read_roots, write_roots
from common.errors import ConfigError, TrustError, WireError
from common.files import write_atomically
from common.signed_json import SignedJson, signed_table
from common.signing import Identity
from common.tls_keys import public_key
from common.wire import from_hex, from_json, to_json

COORDINATOR = "coordinator"
CONTEXT = "veilfed.roster.v1"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_CONSORTIUM = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._-]{0,62}[A-Za-z0-9.])?")
_PUBLIC_BYTES = 32


@dataclass(frozen=True)
class Roster:
    """keys: name -> 32 public bytes of every party's Ed25519 identity, the coordinator's under its own name.

    version: of two rosters of a consortium the greater counts; what has a smaller one than is held is refused.
    nodes: site -> OpenSSH line of the EC P-384 key of its node.   bundles: Ed25519 keys that may sign bundles.
    revoked: names, of sites and of people, that count no longer; they never come back.
    """

    keys: Mapping[str, bytes]
    consortium: str = "consortium"
    version: int = 1
    nodes: Mapping[str, str] = field(default_factory=dict)
    bundles: tuple[bytes, ...] = ()
    revoked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        require_consortium(self.consortium)
        for name in (*self.keys, *self.revoked):
            require_name(name)
        if COORDINATOR not in self.keys or COORDINATOR in {*self.revoked, *self.nodes}:
            raise ConfigError("a roster needs the coordinator, who is no site and cannot be revoked")
        if any(len(key) != _PUBLIC_BYTES for key in (*self.keys.values(), *self.bundles)):
            raise ConfigError(f"keys of identities and bundles have {_PUBLIC_BYTES} bytes")
        if len(set(self.keys.values())) != len(self.keys) or len(set(self.nodes.values())) != len(self.nodes):
            raise ConfigError("two names on the roster have the same key")
        if not set(self.nodes) <= set(self.keys) or not 1 <= self.version < 2**53:
            raise ConfigError("a roster has versions from 1 on, and nodes of sites alone")

    def public_key_of(self, name: str) -> bytes:
        """Raises TrustError for who is not on the roster, or not any more."""
        if name in self.revoked:
            raise TrustError(f"{name!r} was revoked")
        return self.key_of_member(name)

    def key_of_member(self, name: str) -> bytes:
        """The same, but also of who was revoked since: for words that were acted on before."""
        try:
            return self.keys[name]
        except KeyError:
            raise TrustError(f"{name!r} is not on the roster") from None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.keys if name != COORDINATOR and name not in self.revoked))

    def node_key_of(self, site: str) -> str:
        """The OpenSSH line of a site's node. Raises TrustError as `public_key_of` does."""
        self.public_key_of(site)
        if site not in self.nodes:
            raise TrustError(f"{site!r} has no node on the roster")
        return self.nodes[site]

    def signed(self, roots: Sequence[Identity]) -> dict[str, Any]:
        """The object that `opened` reads, signed by every root in force."""
        said = {
            "version": self.version,
            "consortium": self.consortium,
            "keys": {name: key.hex() for name, key in self.keys.items()},
            "nodes": dict(self.nodes),
            "bundles": [key.hex() for key in self.bundles],
            "revoked": sorted(self.revoked),
        }
        return signed_table(CONTEXT, said, roots)

    @classmethod
    def opened(cls, table: object, roots: Sequence[Root]) -> "Roster":
        """Inverse of `signed`. Raises TrustError unless all these roots signed it, WireError when it is no roster."""
        said = SignedJson.of(table).said_by(CONTEXT, [root.key for root in roots])
        try:
            keys = {name: from_hex(key) for name, key in said["keys"].items()}
            nodes = {name: str(line) for name, line in said["nodes"].items() if public_key(line)}
            bundles, revoked = tuple(from_hex(key) for key in said["bundles"]), frozenset(said["revoked"])
            if len(said) != 6 or type(said["version"]) is not int:
                raise WireError("this is not a roster")
            roster = cls(keys, said["consortium"], said["version"], nodes, bundles, revoked)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WireError(f"this is not a roster: {error}") from None
        if any(root.consortium != roster.consortium for root in roots):
            raise TrustError(f"the roster is of {roster.consortium!r}, the root of another consortium")
        return roster

    @classmethod
    def read(cls, path: Path) -> "Roster":
        """The roster at `path`, signed by every root in roots.pem beside it.

        Raises ConfigError naming the file when one is missing, TrustError or WireError when it is not to be trusted.
        """
        while True:
            pinned, data = _bytes_of(path.with_name("roots.pem")), _bytes_of(path)
            if pinned == _bytes_of(path.with_name("roots.pem")):  # else `install` was at work between the two
                try:
                    return cls.opened(from_json(data), read_roots(pinned))
                except (TrustError, WireError) as error:
                    raise type(error)(f"{path}: {error.message}", "ask the coordinator for a new copy") from None

    def require_follows(self, held: "Roster") -> None:
        """Returns if this one may take the place of the one that is held. Raises TrustError."""
        if self.consortium != held.consortium:
            raise TrustError(f"this roster is of {self.consortium!r}, the one held is of {held.consortium!r}")
        if self.version < held.version:
            raise TrustError(f"this roster has version {self.version}, version {held.version} is held already")
        if self.version == held.version and self != held:
            raise TrustError(f"there are two rosters of version {self.version}", "ask the coordinator how that can be")


def install(directory: Path, roster: Mapping[str, Any], roots: Sequence[Root]) -> None:
    """Put a signed roster and its roots into a party's directory: whoever reads meanwhile finds a pair that holds.

    roster: as `Roster.signed` gives it, signed by all these roots. It goes between roots that both rosters are signed
    by and the new ones, so a crash leaves a pair that holds as well.
    """
    pinned = directory / "roots.pem"
    before = read_roots(pinned.read_bytes()) if pinned.exists() else ()
    if common := [root for root in before if root in roots]:
        _replace(pinned, write_roots(common))
    else:
        _replace(pinned, write_roots(roots))
    _replace(directory / "roster.json", to_json(dict(roster)))
    _replace(pinned, write_roots(roots))


def require_name(name: object) -> str:
    """A party's name, which is also that of files. Raises ConfigError for any other spelling."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{str(name)[:80]!r} is no name for a party",
            "use up to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit at both ends",
        )
    return name


def require_consortium(name: object) -> str:
    """A consortium's name, as it stands in certificates. Raises ConfigError for any other spelling."""
    if not isinstance(name, str) or not _CONSORTIUM.fullmatch(name):
        raise ConfigError(
            f"{str(name)[:80]!r} is no name for a consortium",
            "use up to 64 of A-Z, a-z, 0-9, space, dot, dash and underscore",
        )
    return name


def _replace(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data, 0o644)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "join with the kit of the coordinator") from None
