"""The commands of the coordinator's administrator, `veilfed server ...`, and for people's keys, `veilfed user ...`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.certificates import ROLES, now_utc
from common.commands import command, confirm, group, show_fields, show_rows
from common.errors import ConfigError

if TYPE_CHECKING:
    from common.certificates import Authority
    from server.home import Home

_INIT = """examples:
  veilfed server init consortium.toml --out /srv/veilfed
  veilfed server init consortium.toml --out /srv/veilfed --passphrase-file /media/keys/root.pass

consortium.toml:
  name = "Heart study"
  address = "fl.example.org:8443"      # where sites and people reach the gateway
  further_names = ["10.0.0.5"]         # other names of it
  admins = ["ada"]                     # the first one's key is made here
  researchers = ["rosa"]
  auditors = []

Tell the root's fingerprint to every site by phone. /srv/veilfed/root may be moved off-line: the commands that need it
take --root.
"""
_ADMIT = """examples:
  veilfed server admit request.json --home /srv/veilfed
  veilfed server admit request.json --home /srv/veilfed --root /media/root --passphrase-file /media/keys/root.pass
Compare the fingerprint with the one that `veilfed site init` showed at the site: by phone, not by mail. Then send
kits/NAME.json; the other sites need their own new kits to work with it.
"""
_ADMIT_USER = """examples:
  veilfed user init . --name rosa                                         (on rosa's own machine)
  veilfed server admit-user rosa --role researcher --csr rosa.csr --home /srv/veilfed
a request of openssl is as good:
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout rosa.key -out rosa.csr -subj /CN=rosa
"""
_RENEW = """examples:
  veilfed server renew --home /srv/veilfed                what is near its end: the last fifth of its life
  veilfed server renew --home /srv/veilfed --all
  veilfed server renew cleveland gateway --home /srv/veilfed
The keys stay; nothing has to stop. Send the new kits, and have the gateway read its files again.
"""
_REVOKE = """example: veilfed server revoke cleveland --home /srv/veilfed
For good: it may come back with new keys under another name. The gateway must read crl.pem again, the other sites need
their new kits.
"""
_ROTATE = """examples:
  veilfed server rotate-root --home /srv/veilfed              a new root beside the old one; send all kits
  veilfed server rotate-root --home /srv/veilfed --finish     once every site has installed its kit
"""
_START = """example: veilfed server start /srv/veilfed
Runs until it gets SIGTERM: nginx (apt install nginx), Flower's SuperLink behind it and what runs the jobs. Their words
are in /srv/veilfed/logs. Renewed certificates, a new roster and new revocations are taken up without a restart.
"""
_STATUS = """example: veilfed server status /srv/veilfed --json
exit code 0 if all is ready, 2 if not
"""


def add_commands(commands: Any) -> None:
    """Put `server` and `user`, and what is under them, among the commands of `veilfed`."""
    server = group(commands, "server", "the coordinator: found a consortium, let in, renew, put out")
    about = "run the coordinator: gateway, SuperLink and executor, restarted when they fail"
    _at_directory(command(server, "start", _start, show_fields, about, _START))
    _at_directory(command(server, "status", _status, _show_status, "whether all of it runs", _STATUS))

    about = "found a consortium: its root, the coordinator's keys and certificates, the first administrator"
    init = command(server, "init", _init, show_fields, about, _INIT)
    init.add_argument("consortium", type=Path, metavar="CONSORTIUM.toml", help="its name, address and people")
    init.add_argument("--out", type=Path, required=True, metavar="DIR", help="the coordinator's home, to be made")
    _passphrase(init)

    about = "let a site in, once people have compared a fingerprint; also to renew its certificate"
    admit = command(server, "admit", _admit, show_fields, about, _ADMIT)
    admit.add_argument("request", type=Path, metavar="REQUEST", help="request.json of the site")
    _at_home(admit)
    _yes(admit)

    about = "a certificate for an administrator, a researcher or an auditor"
    user = command(server, "admit-user", _admit_user, show_fields, about, _ADMIT_USER)
    user.add_argument("name", metavar="NAME")
    user.add_argument("--role", required=True, choices=[role for role in ROLES if role != "site"])
    user.add_argument("--csr", type=Path, required=True, metavar="FILE", help="the certificate signing request")
    _at_home(user)
    _yes(user)

    renew = command(server, "renew", _renew, show_fields, "new certificates for the keys there are", _RENEW)
    renew.add_argument("names", nargs="*", metavar="NAME", help="sites, people, gateway, superlink")
    renew.add_argument("--all", action="store_true", dest="everything", help="whether or not they are near their end")
    _at_home(renew)

    revoke = command(server, "revoke", _revoke, show_fields, "put a site or a person out, for good", _REVOKE)
    revoke.add_argument("name", metavar="NAME")
    _at_home(revoke)

    about = "replace the consortium's root, with both in force until it is finished"
    rotate = command(server, "rotate-root", _rotate, show_fields, about, _ROTATE)
    rotate.add_argument("--finish", action="store_true", help="take the old root out of force and destroy its key")
    _at_home(rotate)

    people = group(commands, "user", "a person who works with the coordinator")
    about = "a key of one's own, and the request for its certificate"
    person = command(people, "init", _user_init, show_fields, about, "example: veilfed user init . --name rosa")
    person.add_argument("directory", type=Path, metavar="DIR", help="where the key stays")
    person.add_argument("--name", required=True, metavar="NAME")


def _at_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the coordinator's home")


def _at_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the coordinator's home")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the root's key is (default: HOME/root)")
    _passphrase(parser)


def _passphrase(parser: argparse.ArgumentParser) -> None:
    about = "its first line opens the root's key; mode 0600"
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help=about)


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="the fingerprint was compared: do not ask")


def _start(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.start import start

    start(chosen.directory, lambda line: print(f"veilfed: {line}", file=sys.stderr, flush=True))
    return {"stopped": str(chosen.directory)}


def _status(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.start import known

    return known(chosen.directory)


def _show_status(result: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in result.items() if name != "rows"}
    return f"{show_fields(facts)}\n{show_rows(result)}"


def _init(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.provision import found

    home = found(chosen.consortium, chosen.out, _secret_of(chosen), now_utc())
    settings, made = home.settings, home.certificates()
    people = [*settings.admins, *settings.researchers, *settings.auditors]
    return {
        "consortium": settings.name,
        "home": str(home.directory),
        "address": settings.address,
        "root_fingerprint": home.roots[0].fingerprint,
        "keys_made_for": ", ".join(made),
        "to_be_admitted": ", ".join(name for name in people if name not in made),
    }


def _admit(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from common.enrolment import Request
    from server.home import ceremony
    from server.provision import admit, require_admissible

    request = Request.read(_read(chosen.request))
    with ceremony(chosen.home) as home:
        require_admissible(home, request)
        if not chosen.yes:
            facts = {"site": request.name, "server": str(request.server), "fingerprint": request.fingerprint}
            confirm(facts, "Does the site, by phone, read out the same fingerprint?")
        changed = admit(home, request, _authorities(home, chosen), now_utc())
        _note(changed.directory, "admit", f"{request.name} {request.fingerprint}")
    return {
        "admitted": request.name,
        "fingerprint": request.fingerprint,
        "kit": str(changed.directory / "kits" / f"{request.name}.json"),
        **_told(changed),
    }


def _admit_user(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from common.certificates import SigningRequest
    from common.fingerprints import fingerprint
    from server.home import ceremony
    from server.provision import admit_person, require_person

    request = SigningRequest.read(_read(chosen.csr))
    seen = fingerprint(request.name.encode(), request.public.encode())
    with ceremony(chosen.home) as home:
        require_person(home, chosen.name, chosen.role, request)
        if not chosen.yes:
            facts = {"person": chosen.name, "role": chosen.role, "fingerprint": seen}
            confirm(facts, "Does this person, by phone, read out the same fingerprint?")
        changed = admit_person(home, chosen.name, chosen.role, request, _authorities(home, chosen), now_utc())
        _note(changed.directory, "admit-user", f"{chosen.role} {chosen.name} {seen}")
    path = changed.directory / f"{chosen.role}s" / f"{chosen.name}.crt"
    return {
        "admitted": chosen.name,
        "role": chosen.role,
        "fingerprint": seen,
        "certificate": str(path),
        **_told(changed),
    }


def _renew(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.home import ceremony
    from server.provision import renew

    with ceremony(chosen.home) as home:
        done = renew(home, chosen.names, chosen.everything, _authorities(home, chosen), now_utc())
        _note(home.directory, "renew", " ".join((*done.clients, *done.servers)))
        return {"renewed": ", ".join((*done.clients, *done.servers)), **_told(home)}


def _revoke(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.home import ceremony
    from server.provision import revoke

    with ceremony(chosen.home) as home:
        changed = revoke(home, chosen.name, _authorities(home, chosen), now_utc())
        _note(changed.directory, "revoke", chosen.name)
    return {"revoked": chosen.name, "revocation_list": str(changed.directory / "crl.pem"), **_told(changed)}


def _rotate(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.home import ceremony
    from server.provision import finish_rotation, rotate_root

    with ceremony(chosen.home) as home:
        authorities, root = _authorities(home, chosen), _root(home, chosen)
        if chosen.finish:
            changed = finish_rotation(home, root, authorities, now_utc())
        else:
            changed = rotate_root(home, root, _secret_of(chosen), authorities, now_utc())
        _note(changed.directory, "rotate-root", "finished" if chosen.finish else "begun")
    return {"roots_in_force": len(changed.roots), **_told(changed)}


def _note(home: Path, what: str, subject: str) -> None:
    """Into the coordinator's audit log, once it is done."""
    from common.audit import AdminCommand, Audit
    from common.keystore import load_secret
    from common.signing import Identity

    identity = Identity.from_private_bytes(load_secret(home / "identity.key", None))
    Audit.open(home, identity).note(AdminCommand.now(what, subject))


def _user_init(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from common.certificates import SigningRequest
    from common.fingerprints import fingerprint
    from server.people import make_key

    path = make_key(chosen.directory, chosen.name)
    request = SigningRequest.read(path.read_bytes())
    return {
        "name": request.name,
        "key": str(path.with_suffix(".key")),
        "request": str(path),
        "fingerprint": fingerprint(request.name.encode(), request.public.encode()),
    }


def _authorities(home: "Home", chosen: argparse.Namespace) -> "tuple[Authority, ...]":
    from server.home import unlock_roots

    return unlock_roots(_root(home, chosen), home.roots, _secret_of(chosen))


def _root(home: "Home", chosen: argparse.Namespace) -> Path:
    return chosen.root or home.directory / "root"


def _secret_of(chosen: argparse.Namespace) -> str | None:
    from common.keystore import read_passphrase

    return read_passphrase(chosen.passphrase_file) if chosen.passphrase_file else None


def _told(home: "Home") -> Mapping[str, Any]:
    return {
        "roster_version": home.roster.version,
        "root_fingerprint": home.roots[0].fingerprint,
        "kits": str(home.directory / "kits"),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "give the path of the file that was sent") from None
