"""Secrets from one site to another past a coordinator that relays them: X25519, HKDF-SHA256, AES-256-GCM.

A box is   nonce (12 random bytes) | AES-256-GCM ciphertext | tag (16 bytes).
Its key is   HKDF(X25519(sender, recipient), "veilfed.seal.v1\\0" | sender's key | recipient's key | context),
so a box opens for one recipient, from one sender, in one direction, for one context. Another layout is another label.
Boxes stay closed to whoever learns neither exchange key: make new exchange keys for each run.
"""

import secrets
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ConfigError, TrustError

KEY_BYTES = 32
_NONCE_BYTES = 12
_LABEL = b"veilfed.seal.v1\0"


def derive_key(secret: bytes, info: bytes) -> bytes:
    """32 bytes that say nothing about `secret` or about the keys of any other `info`. RFC 5869, SHA-256, no salt."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


@dataclass(frozen=True, eq=False)
class ExchangeKey:
    """One site's X25519 key for one run. `public` goes into the signed roster; the rest never leaves the site."""

    _key: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "ExchangeKey":
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, data: bytes) -> "ExchangeKey":
        if len(data) != KEY_BYTES:
            raise ConfigError(f"an exchange key has {KEY_BYTES} bytes, got {len(data)}")
        return cls(X25519PrivateKey.from_private_bytes(data))

    def private_bytes(self) -> bytes:
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """(32,) bytes, RFC 7748."""
        return self._key.public_key().public_bytes_raw()

    def agree(self, their_public: bytes, info: bytes) -> bytes:
        """32 bytes which only the two key holders can compute, for the one use that `info` names.

        Raises TrustError if `their_public` is no key, or one of those which force the shared secret to zero.
        """
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(their_public))
        except ValueError as error:
            raise TrustError("the other site's exchange key is not usable") from error
        return derive_key(shared, info)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an exchange key is never pickled")


def seal(sender: ExchangeKey, recipient_public: bytes, plaintext: bytes, context: bytes) -> bytes:
    """A box of len(plaintext) + 28 bytes that only the recipient opens, and only for the same `context`.

    context: what the box is for (run, round, names, purpose), known to both sites and not secret.
    """
    key = sender.agree(recipient_public, _LABEL + sender.public + recipient_public + context)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, context)


def open_sealed(recipient: ExchangeKey, sender_public: bytes, data: bytes, context: bytes) -> bytes:
    """Inverse of seal. Every failure is the same TrustError: whoever forges boxes learns nothing from the answer."""
    try:
        key = recipient.agree(sender_public, _LABEL + sender_public + recipient.public + context)
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context)
    except (TrustError, InvalidTag, ValueError):
        raise TrustError("a sealed message does not open") from None
