"""One secret among many sites: any `threshold` of them give it back, fewer learn nothing (Shamir 1979).

A share is   index (2 bytes, big-endian, from 1) | point of the first half (16 bytes) | point of the second half,
each half on its own random polynomial over GF(2^128). Indices follow the sorted names.
Another layout will have another length.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from Crypto.Protocol.SecretSharing import Shamir

from common.errors import CohortTooSmall, ProtocolError
from common.federation import require

SECRET_BYTES = 32
SHARE_BYTES = 2 + SECRET_BYTES
_HALF = SECRET_BYTES // 2
_COMMITMENT = b"veilfed.share.commitment.v1\0"

_Points = list[tuple[int, bytes, bytes]]


def split_secret(secret: bytes, threshold: int, names: Sequence[str]) -> dict[str, bytes]:
    """One share of SHARE_BYTES for each name. Guarantee: threshold - 1 shares are independent of the secret."""
    require(len(secret) == SECRET_BYTES, "length of a shared secret", len(secret), f"{SECRET_BYTES} bytes")
    require(len(set(names)) == len(names) < 2**16, "names", names, "distinct, at most 65,535")
    require(2 <= threshold <= len(names), "threshold", threshold, f"2 to the number of names, {len(names)}")
    first = Shamir.split(threshold, len(names), secret[:_HALF], ssss=False)
    second = Shamir.split(threshold, len(names), secret[_HALF:], ssss=False)
    return {
        name: index.to_bytes(2, "big") + left + right
        for name, (index, left), (_, right) in zip(sorted(names), first, second, strict=True)
    }


def combine_shares(shares: Mapping[str, bytes], threshold: int) -> bytes:
    """The secret, from at least `threshold` shares by name of their holder; else CohortTooSmall.

    Given more, threshold + 1 of them are used and a wrong one among these is always noticed (ProtocolError): two
    polynomials of degree below the threshold that meet in zero and in threshold - 1 other points are the same.
    Given exactly `threshold`, a wrong share gives a wrong secret: compare `commit` of it with its owner's commitment.
    """
    require(threshold >= 2, "threshold", threshold, "2 or more")
    if len(shares) < threshold:
        raise CohortTooSmall(f"{len(shares)} shares of the {threshold} it takes")
    points = _read(shares)
    secret = _interpolate(points[:threshold])
    if len(points) > threshold and not hmac.compare_digest(secret, _interpolate(points[1 : threshold + 1])):
        raise ProtocolError("the shares contradict each other: at least one is wrong")
    return secret


def commit(secret: bytes) -> bytes:
    """(32,) bytes that bind to `secret` and, for a secret drawn at random, hide it."""
    return hashlib.sha256(_COMMITMENT + secret).digest()


def _read(shares: Mapping[str, bytes]) -> _Points:
    points: _Points = []
    for name in sorted(shares):
        share = shares[name]
        if len(share) != SHARE_BYTES:
            raise ProtocolError(f"{name}: a share has {SHARE_BYTES} bytes, got {len(share)}")
        index = int.from_bytes(share[:2], "big")
        if index <= (points[-1][0] if points else 0):  # sorted names carry rising indices; index 0 is the secret itself
            raise ProtocolError(f"{name}: share {index} is another site's, or from another split")
        points.append((index, share[2 : 2 + _HALF], share[2 + _HALF :]))
    return points


def _interpolate(points: _Points) -> bytes:
    first = Shamir.combine([(index, left) for index, left, _ in points], ssss=False)
    second = Shamir.combine([(index, right) for index, _, right in points], ssss=False)
    return bytes(first + second)
