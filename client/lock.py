"""Locking a site's keys with a passphrase, and unlocking them: for its administrator, while no worker runs.

Both can be stopped anywhere and asked for again. The identity key is the hinge: the run's secrets are sealed under what
follows from it, so they are sealed before it is locked is written into site.toml, and opened before it is unlocked.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from client.site import SiteSettings, witnesses_of
from common.audit import AdminCommand, Audit
from common.config import fill, load_table
from common.errors import ConfigError
from common.files import write_atomically
from common.keystore import AtRest, is_open, load_secret, read_passphrase, save_secret
from common.signing import Identity

_LINE = re.compile(r"^[ \t]*passphrase_file[ \t]*=.*\n?", re.MULTILINE)


def lock(directory: Path, passphrase_file: Path) -> int:
    """Lock the identity key and seal every secret of its runs; how many files were changed.

    Raises ConfigError for a passphrase beside what it locks, TrustError when the site is locked with another one.
    """
    place = outside(directory, passphrase_file)
    passphrase, key = read_passphrase(place), directory / "identity.key"
    secret = load_secret(key, None if is_open(key) else passphrase)
    for leftover in [*directory.glob(".*.part"), *directory.glob("runs/*/.*.part")]:
        leftover.unlink()  # of a write that a crash cut short: it may hold a secret as it was
    changed = _rewrite(directory, True, AtRest().load, AtRest.behind(secret).save)
    if is_open(key):
        save_secret(key, secret, passphrase)
        changed += 1
    _name_passphrase_file(directory, str(place))
    _note(directory, secret, "lock")
    return changed


def unlock(directory: Path) -> int:
    """Leave the site's keys to their files' permissions alone; how many files were changed."""
    named = fill(SiteSettings, load_table(directory / "site.toml")).passphrase_file
    if not named:
        raise ConfigError(f"{directory} is not locked", "only a site whose site.toml has a passphrase_file is")
    key = directory / "identity.key"
    secret = load_secret(key, None if is_open(key) else read_passphrase(Path(named)))
    changed = _rewrite(directory, False, AtRest.behind(secret).load, AtRest().save)
    if not is_open(key):
        save_secret(key, secret, None)
        changed += 1
    _name_passphrase_file(directory, "")
    _note(directory, secret, "unlock")
    return changed


def outside(directory: Path, passphrase_file: Path) -> Path:
    """The passphrase file's absolute path. Raises ConfigError where it lies beside what it locks."""
    place = passphrase_file.resolve()
    if place.is_relative_to(directory.resolve()):
        raise ConfigError(f"{place} lies in the site's own directory", "keep the passphrase on another disk")
    return place


def _note(directory: Path, secret: bytes, command: str) -> None:
    settings = fill(SiteSettings, load_table(directory / "site.toml"))
    log = Audit.open(directory, Identity.from_private_bytes(secret), witnesses_of(directory, settings))
    log.note(AdminCommand.now(command, settings.name))


def _secrets(directory: Path) -> Iterator[Path]:
    for pattern in ("runs/*/*.key", "runs/*/masks-*"):
        yield from sorted(directory.glob(pattern))


def _rewrite(directory: Path, opened: bool, load: Callable[[Path], bytes], save: Callable[[Path, bytes], None]) -> int:
    """Every secret that is `opened` (or is not) from one way of keeping it to the other."""
    paths = [path for path in _secrets(directory) if is_open(path) == opened]
    for path in paths:
        save(path, load(path))
    return len(paths)


def _name_passphrase_file(directory: Path, path: str) -> None:
    """One line of site.toml, set or taken out; the administrator's other lines stay as they are."""
    file = directory / "site.toml"
    table, text = load_table(file), _LINE.sub("", file.read_text(encoding="utf-8"))
    wanted = {name: value for name, value in table.items() if name != "passphrase_file"}
    if path:
        wanted["passphrase_file"] = path
        text = f"passphrase_file = {json.dumps(path, ensure_ascii=False)}\n" + text
    if wanted == table:
        return
    written = file.with_name(".site.toml.part")
    write_atomically(written, text.encode())
    try:
        if load_table(written) != wanted:
            raise ConfigError(f"{file} could not be changed", f"set passphrase_file = {path!r} in it by hand")
        write_atomically(file, text.encode())
    finally:
        written.unlink(missing_ok=True)
