"""Private key bytes at rest: a file that only its owner may read, locked with a passphrase where there is one.

A file is   "veilfed.secret.v1\\0" | kind (1 byte) | payload, where the payload is
  kind 0    the secret itself;
  kind 1    salt (16) | nonce (12) | AES-256-GCM ciphertext | tag (16), all before the nonce authenticated,
            key = scrypt(passphrase in Unicode NFC, salt, n = 2^15, r = 8, p = 1): about 0.1 s and 32 MiB a guess;
  kind 2    nonce (12) | AES-256-GCM ciphertext | tag (16), all before the nonce and then folder/name of the file
            authenticated, key = HKDF-SHA256(an unlocked secret, info "veilfed.at-rest.v1\0"): one guess pays for all.
"""

import os
import secrets
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.errors import ConfigError, TrustError
from common.files import write_atomically
from common.he.sealing import derive_key

_MAGIC = b"veilfed.secret.v1\0"
_PLAIN, _LOCKED, _SEALED = _MAGIC + b"\0", _MAGIC + b"\1", _MAGIC + b"\2"
_AT_REST = b"veilfed.at-rest.v1\0"
_SALT_BYTES, _NONCE_BYTES = 16, 12
_OWNER_ONLY = 0o600


def save_secret(path: Path, data: bytes, passphrase: str | None) -> None:
    """Put `data` at `path`, whole or not at all, with mode 0600. None leaves it to the file's permissions alone."""
    if passphrase is None:
        write_atomically(path, _PLAIN + data, _OWNER_ONLY)
        return
    if not passphrase:
        raise ConfigError("an empty passphrase protects nothing", "choose one, or none at all")
    header = _LOCKED + secrets.token_bytes(_SALT_BYTES)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    write_atomically(path, header + nonce + _lock(passphrase, header).encrypt(nonce, data, header), _OWNER_ONLY)


def load_secret(path: Path, passphrase: str | None) -> bytes:
    """What save_secret put there.

    Raises ConfigError if the file is missing, readable by others, or locked and no passphrase is given; TrustError,
    the same for every reason, if it does not open. With a passphrase only a locked file opens: nobody can slip in
    a key of their own by dropping the lock.
    """
    content = read_private(path)
    if passphrase is None and content.startswith(_PLAIN):
        return content[len(_PLAIN) :]
    if passphrase is None and content.startswith(_LOCKED):
        raise ConfigError(f"{path} is locked with a passphrase", "name its passphrase_file in site.toml")
    if passphrase is not None and content.startswith(_LOCKED):
        header, sealed = content[: len(_LOCKED) + _SALT_BYTES], content[len(_LOCKED) + _SALT_BYTES :]
        try:
            return _lock(passphrase, header).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], header)
        except (InvalidTag, ValueError):
            pass
    raise _does_not_open(path)


def read_private(path: Path) -> bytes:
    """A file that only its owner may read. Raises ConfigError naming it, and the next step."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & ~_OWNER_ONLY:
                raise ConfigError(f"{path} has mode {mode:04o}: others may use this secret", f"chmod 600 {path}")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "name a key file that this account may read") from error


def read_passphrase(path: Path) -> str:
    """The first line of a file that only its owner may read. Raises ConfigError when it is not there or empty."""
    try:
        lines = read_private(path).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8", "put the passphrase on its first line") from None
    if not lines or not lines[0]:
        raise ConfigError(f"{path} holds no passphrase", "put one on its first line, e.g. of openssl rand -base64 32")
    return lines[0]


@dataclass(frozen=True)
class AtRest:
    """How one party keeps its other secrets: sealed under a key, or, with None, by their files' permissions alone."""

    _key: bytes | None = field(default=None, repr=False)

    @classmethod
    def behind(cls, secret: bytes) -> "AtRest":
        """Sealed by what only its unlocked owner knows, so that a passphrase is paid for once a process."""
        return cls(derive_key(secret, _AT_REST))

    def save(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, whole or not at all, with mode 0600."""
        if self._key is None:
            save_secret(path, data, None)
            return
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._key).encrypt(nonce, data, _sealed_for(path))
        write_atomically(path, _SEALED + nonce + sealed, _OWNER_ONLY)

    def load(self, path: Path) -> bytes:
        """What `save` put there. Raises as `load_secret` does; a sealed file opens only under its own name."""
        content = read_private(path)
        if self._key is None and content.startswith(_SEALED):
            raise ConfigError(f"{path} is sealed, this site is not locked", "lock it again: veilfed site lock --help")
        if self._key is None:
            return load_secret(path, None)
        if content.startswith(_SEALED):
            sealed = content[len(_SEALED) :]
            try:
                return AESGCM(self._key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _sealed_for(path))
            except (InvalidTag, ValueError):
                pass
        raise _does_not_open(path)


def is_open(path: Path) -> bool:
    """Whether the secret in that file is kept by the file's permissions alone."""
    return read_private(path).startswith(_PLAIN)


def _does_not_open(path: Path) -> TrustError:
    return TrustError(f"{path} does not open: the passphrase is wrong or the file was changed")


def _sealed_for(path: Path) -> bytes:
    return _SEALED + f"{path.parent.name}/{path.name}".encode()


def _lock(passphrase: str, header: bytes) -> AESGCM:
    salt = header[len(_LOCKED) :]
    text = unicodedata.normalize("NFC", passphrase).encode()  # keyboards differ in how they spell an accent
    return AESGCM(Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(text))
