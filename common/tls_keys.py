"""Private keys of TLS and of Flower's node authentication: EC P-384."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)

from common.errors import ConfigError, WireError
from common.keystore import read_private


@dataclass(frozen=True, eq=False)
class TlsKey:
    """It stays where it was made; `public` is what travels."""

    key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "TlsKey":
        return cls(generate_private_key(SECP384R1()))

    @classmethod
    def read(cls, path: Path) -> "TlsKey":
        """Raises ConfigError for a file that others may read, or that holds no such key."""
        data = read_private(path)
        try:
            loaded = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError):
            loaded = None
        if not isinstance(loaded, EllipticCurvePrivateKey) or not isinstance(loaded.curve, SECP384R1):
            raise ConfigError(f"{path} is no EC P-384 private key without a passphrase", "make it anew, or restore it")
        return cls(loaded)

    @property
    def public(self) -> str:
        return public_line(self.key.public_key())

    def pkcs8(self) -> bytes:
        """As OpenSSL, hence nginx and Python's `ssl`, reads it."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is never pickled")


def public_line(public: EllipticCurvePublicKey) -> str:
    """One line of OpenSSH: how Flower, and so the roster, names a node's key."""
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def public_key(line: object) -> EllipticCurvePublicKey:
    """Inverse of `public_line`. Raises WireError for anything but such a line of an EC P-384 key."""
    try:
        loaded = load_ssh_public_key(line.encode())  # type: ignore[attr-defined]
    except (ValueError, AttributeError, UnsupportedAlgorithm, NotImplementedError):
        loaded = None
    curve = getattr(loaded, "curve", None)
    if not isinstance(loaded, EllipticCurvePublicKey) or not isinstance(curve, SECP384R1):
        raise WireError("not the OpenSSH line of an EC P-384 key")
    if public_line(loaded) != line:
        raise WireError("a public key is one OpenSSH line without a comment")
    return loaded
