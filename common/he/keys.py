"""The cohort key on its way: made by one site, wrapped for each other one, relayed by whoever cannot open it.

The secret BFV key is encrypted once under a random data key; the data key is sealed to every site
(X25519, HKDF-SHA256, AES-256-GCM). So the relay carries one key, not one per site.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import ProtocolError, TrustError
from common.he.parameters import Scheme
from common.he.scheme import CohortKey
from common.he.sealing import ExchangeKey, open_sealed, seal

_NONCE = bytes(12)  # the data key encrypts one message in its life


@dataclass(frozen=True)
class WrappedKey:
    """wrapped: the cohort key under the data key. boxes: site -> the data key sealed to it."""

    wrapped: bytes
    boxes: Mapping[str, bytes]


def wrap(key: CohortKey, maker: ExchangeKey, recipients: Mapping[str, bytes], context: bytes) -> WrappedKey:
    """recipients: site -> X25519 public key. context: run, plan and maker, authenticated but not secret."""
    data_key = os.urandom(32)
    boxes = {site: seal(maker, public, data_key, context + b"|" + site.encode()) for site, public in recipients.items()}
    return WrappedKey(AESGCM(data_key).encrypt(_NONCE, key.export_for_wrapping(), context), boxes)


def unwrap(
    wrapped: bytes, box: bytes, site: str, mine: ExchangeKey, maker_public: bytes, context: bytes, scheme: Scheme
) -> CohortKey:
    """The cohort key. Raises TrustError, always with the same words, when anything does not fit."""
    data_key = open_sealed(mine, maker_public, box, context + b"|" + site.encode())
    try:
        return CohortKey.load(scheme, AESGCM(data_key).decrypt(_NONCE, wrapped, context))
    except (InvalidTag, ProtocolError):
        raise TrustError("the wrapped key could not be opened") from None
