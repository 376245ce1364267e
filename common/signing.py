"""Who said it, and as what: Ed25519 signatures that hold for one purpose only.

What is signed is   length of context (2 bytes, big-endian) | context (UTF-8) | data,
so that a signature given for one purpose ("veilfed.update.v1") never passes for another.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigError, TrustError

PRIVATE_KEY_BYTES = 32


@dataclass(frozen=True, eq=False)
class Identity:
    """A party's lasting Ed25519 key. `public` is what the consortium's root certifies."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "Identity":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, data: bytes) -> "Identity":
        if len(data) != PRIVATE_KEY_BYTES:
            raise ConfigError(f"an identity key has {PRIVATE_KEY_BYTES} bytes, got {len(data)}")
        return cls(Ed25519PrivateKey.from_private_bytes(data))

    def private_bytes(self) -> bytes:
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """(32,) bytes, RFC 8032."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, context: str, data: bytes) -> bytes:
        """(64,) bytes that `verify` accepts for this context and data alone. Equal input, equal signature."""
        return self._key.sign(_bound(context, data))

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity is never pickled")


@lru_cache(maxsize=16384)
def verify(public: bytes, context: str, data: bytes, signature: bytes) -> None:
    """Return if the holder of `public` signed `data` as `context`; else raise TrustError, the same for every reason.

    What held once is remembered, as a cohort shows the same signatures many times a round; a refusal is not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _bound(context, data))
    except (InvalidSignature, ValueError):
        raise TrustError("a signature does not hold") from None


def _bound(context: str, data: bytes) -> bytes:
    label = context.encode()
    return len(label).to_bytes(2, "big") + label + data
