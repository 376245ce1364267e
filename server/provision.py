"""The consortium's key ceremonies: founding it, letting in, renewing, putting out, and changing its root.

Each is a change of the coordinator's home (`server/home.py`) that needs the root's private key, and is whole or not
at all: what is on the roster decides, and asking again finishes what a crash cut short. No private key travels.
"""

import os
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from common.certificates import Authority, Certificate, Role, SigningRequest
from common.config import fill, load_table
from common.enrolment import Request
from common.errors import ConfigError, TrustError
from common.files import sync_directory, write_atomically
from common.keystore import save_secret
from common.roster import COORDINATOR, Roster, require_name
from common.signing import Identity
from common.tls_keys import TlsKey
from server.home import PUBLIC, SERVERS, ConsortiumSettings, Home, issue, publish

_SECRET_BYTES = 32


def found(settings_file: Path, out: Path, passphrase: str | None, now: datetime) -> Home:
    """A new consortium: the coordinator's home, whole or not at all. passphrase: of the root's key.

    The first of the admins gets a key here, at the coordinator; everybody else makes their own.
    Raises ConfigError when the settings do not hold, or there is something in that directory already.
    """
    settings = fill(ConsortiumSettings, load_table(settings_file))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty", "name a directory that is not there yet")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{secrets.token_hex(8)}.part")
    try:
        beside.mkdir(mode=0o700)
        _fill(beside, settings, settings_file.read_bytes(), passphrase, now)
        os.rename(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_directory(out.parent)
    return Home.open(out)


def _fill(home: Path, settings: ConsortiumSettings, text: bytes, passphrase: str | None, now: datetime) -> None:
    for name in ("root", "tls", "issued", "kits", "admins", "researchers", "auditors", "runs", "logs"):
        (home / name).mkdir(mode=0o700)
    write_atomically(home / "consortium.toml", text, PUBLIC)
    authority = _new_root(home / "root", "root", settings.name, passphrase, now)
    identity, bundle = Identity.generate(), Identity.generate()
    save_secret(home / "identity.key", identity.private_bytes(), None)
    save_secret(home / "bundle.key", bundle.private_bytes(), None)
    write_atomically(home / "superexec.secret", secrets.token_hex(_SECRET_BYTES).encode())
    roster = Roster({COORDINATOR: identity.public}, settings.name, bundles=(bundle.public,))
    empty = Home(home, settings, (authority.root,), roster)
    certify_servers(empty, [authority], SERVERS, now)
    if settings.admins:
        key, name = TlsKey.generate(), settings.admins[0]
        write_atomically(home / "admins" / f"{name}.key", key.pkcs8())
        issue(home, authority.certify_client(key.public, name, "admin", now))
    publish(empty, roster, [authority], now)


def _new_root(root: Path, name: str, consortium: str, passphrase: str | None, now: datetime) -> Authority:
    authority = Authority.make(Identity.generate(), consortium, now)
    save_secret(root / f"{name}.key", authority.identity.private_bytes(), passphrase)
    write_atomically(root / f"{name}.crt", authority.root.pem, PUBLIC)
    return authority


def certify_servers(home: Home, authorities: Sequence[Authority], which: Collection[str], now: datetime) -> None:
    """New certificates for servers of the home, for the keys they have; a key where there is none.

    The oldest root in force issues them: sites that have not heard of a newer one yet must still know it.
    """
    for name in which:
        path = home.server_certificate(name).with_suffix(".key")
        if not path.exists():
            write_atomically(path, TlsKey.generate().pkcs8())
        hosts = SERVERS[name] or home.settings.hosts
        pem = authorities[-1].certify_server(TlsKey.read(path).public, hosts, now)
        write_atomically(home.server_certificate(name), pem, PUBLIC)


def require_admissible(home: Home, request: Request) -> None:
    """Returns for a request that may be granted once people have compared its fingerprint. Raises TrustError."""
    roster, name = home.roster, request.name
    if request.server.host not in home.settings.hosts:
        hosts = ", ".join(home.settings.hosts)
        raise TrustError(f"the request is for a coordinator at {request.server}, this one is at {hosts}")
    _require_not_revoked(roster, name)
    if home.settings.role_of(name) or (name in home.certificates() and home.certificates()[name].role != "site"):
        raise TrustError(f"{name!r} is the name of a person already", "ask the site for another name")
    keys = (roster.keys.get(name, request.identity), roster.nodes.get(name, request.node))
    if keys != (request.identity, request.node):
        raise TrustError(f"the name {name!r} is taken, with other keys", "ask who it is; new keys need a new name")
    others = [other for other, key in roster.keys.items() if key == request.identity]
    others += [one.name for one in home.issued() if one.public == request.node]
    for other in others:
        if other != name:
            raise TrustError(f"{other!r} has these keys already", "every site makes keys of its own")


def admit(home: Home, request: Request, authorities: Sequence[Authority], now: datetime) -> Home:
    """A site's certificate, a roster with it, and a kit for everybody. The same keys again: a renewal."""
    require_admissible(home, request)
    issue(home.directory, authorities[0].certify_client(request.node, request.name, "site", now))
    if request.name in home.roster.keys:
        return publish(home, home.roster, authorities, now)
    roster = replace(
        home.roster,
        keys={**home.roster.keys, request.name: request.identity},
        nodes={**home.roster.nodes, request.name: request.node},
        version=home.roster.version + 1,
    )
    return publish(home, roster, authorities, now)


def require_person(home: Home, name: str, role: Role, request: SigningRequest) -> None:
    """Returns where that person may get a certificate for that role. Raises ConfigError or TrustError."""
    require_name(name)
    _require_not_revoked(home.roster, name)
    if (listed := home.settings.role_of(name)) not in (None, role):
        raise ConfigError(f"consortium.toml lists {name!r} as {listed}, not as {role}", "change the one or the other")
    if request.name != name:
        raise TrustError(f"the certificate request is of {request.name!r}, not of {name!r}")
    if name in home.roster.keys:
        raise TrustError(f"{name!r} is the name of a site or of the coordinator", "choose another")
    known = home.certificates().get(name)
    if known and (known.role, known.public) != (role, request.public):
        raise TrustError(f"the name {name!r} is taken, as {known.role} or with another key", "choose another name")
    if any(one.public == request.public and one.name != name for one in home.issued()):
        raise TrustError("somebody else has a certificate for this key", "everybody makes a key of their own")


def admit_person(
    home: Home, name: str, role: Role, request: SigningRequest, authorities: Sequence[Authority], now: datetime
) -> Home:
    """A certificate for an administrator, researcher or auditor, in `admins/`, `researchers/` or `auditors/`."""
    require_person(home, name, role, request)
    issue(home.directory, authorities[0].certify_client(request.public, name, role, now))
    return publish(home, home.roster, authorities, now)


@dataclass(frozen=True)
class Renewed:
    """Whose certificates are new."""

    clients: tuple[str, ...]
    servers: tuple[str, ...]


def renew(
    home: Home, names: Collection[str], everything: bool, authorities: Sequence[Authority], now: datetime
) -> Renewed:
    """New certificates for the same keys: of those named, of all, or else of those near their end."""
    held = home.certificates()
    for name in names:
        _require_not_revoked(home.roster, name)
        if name not in (*held, *SERVERS):
            raise ConfigError(f"{name!r} has no certificate here", f"known: {', '.join((*held, *SERVERS))}")

    def due(name: str, certificate: Certificate) -> bool:
        return name in names if names else everything or certificate.is_near_end(now)

    clients = tuple(name for name, certificate in held.items() if due(name, certificate))
    servers = tuple(name for name in SERVERS if due(name, Certificate.read(home.server_certificate(name).read_bytes())))
    _certify_again(home, clients, authorities[0], now)
    certify_servers(home, authorities, servers, now)
    publish(home, home.roster, authorities, now)
    return Renewed(clients, servers)


def _certify_again(home: Home, names: Collection[str], authority: Authority, now: datetime) -> None:
    held = home.certificates()
    for name in names:
        role: Role = held[name].role  # type: ignore[assignment]
        issue(home.directory, authority.certify_client(held[name].public, name, role, now))


def revoke(home: Home, name: str, authorities: Sequence[Authority], now: datetime) -> Home:
    """Put a site or a person out for good: off the roster's living, and all their certificates on the list."""
    if name == COORDINATOR or name not in {*home.roster.keys, *home.certificates(), *home.roster.revoked}:
        raise ConfigError(f"there is nobody called {name!r} to revoke", f"known: {', '.join(home.certificates())}")
    if name in home.roster.revoked:
        return publish(home, home.roster, authorities, now)
    revoked = home.roster.revoked | {name}
    return publish(home, replace(home.roster, revoked=revoked, version=home.roster.version + 1), authorities, now)


def rotate_root(
    home: Home, root: Path, passphrase: str | None, authorities: Sequence[Authority], now: datetime
) -> Home:
    """A new root beside the old one: both in force, every client certified by the new, kits signed by both."""
    if len(authorities) > 1:
        raise ConfigError(
            "two roots are in force already",
            "send the kits (veilfed server renew writes them anew), then rotate-root --finish",
        )
    taken = {path.stem for path in root.glob("*.key")}
    name = next(f"root-{number}" for number in range(2, len(taken) + 3) if f"root-{number}" not in taken)
    newer = _new_root(root, name, home.settings.name, passphrase, now)
    _certify_again(home, home.certificates(), newer, now)
    roster = replace(home.roster, version=home.roster.version + 1)
    return publish(home, roster, [newer, *authorities], now)


def finish_rotation(home: Home, root: Path, authorities: Sequence[Authority], now: datetime) -> Home:
    """The old root out of force, its private key destroyed: who did not install a kit since the rotation is out."""
    newest, in_force = authorities[:1], authorities[0].root.pem
    retired = [path for path in root.glob("*.crt") if path.read_bytes() != in_force]
    if len(authorities) < 2 and not retired:
        raise ConfigError("there is one root in force", "veilfed server rotate-root makes the next one")
    behind = [name for name, one in home.certificates().items() if not one.is_issued_by(newest[0].root)]
    _certify_again(home, behind, newest[0], now)
    certify_servers(home, newest, SERVERS, now)
    changed = publish(home, replace(home.roster, version=home.roster.version + 1), newest, now)
    for path in retired:
        path.with_suffix(".key").unlink(missing_ok=True)
        path.unlink()
    return changed


def _require_not_revoked(roster: Roster, name: str) -> None:
    if name in roster.revoked:
        raise TrustError(f"{name!r} was revoked, for good", "come back with new keys under another name")
