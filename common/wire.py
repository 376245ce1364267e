"""Every message that crosses a site's border: one envelope, one version byte, one reader.

Byte by byte (integers big-endian), see `common/README.md`:

    magic "VF" | version u8 | kind u8 | run 16 | round u32 | plan hash 32 | sender length u8 | sender UTF-8
    | body length u64 | body | signature 64

The signature is Ed25519 over the header and the SHA-256 of the body, so a body can be hashed as it streams.
Kinds named READABLE_* carry 64 zero bytes instead: they belong to baselines without encryption.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import rfc8785

from common.config import to_table
from common.errors import ProtocolError, WireError
from common.federation import Plan
from common.signing import Identity, verify

VERSION = 1
Bytes = bytes | memoryview
_MAGIC = b"VF"
_FIXED = struct.Struct(">2sBB16sI32sB")
_LENGTH = struct.Struct(">Q")
_SIGNATURE_BYTES = 64
_UNSIGNED = bytes(_SIGNATURE_BYTES)
_CONTEXT = "veilfed.envelope.v1"


class Kind(IntEnum):
    """What the body is."""

    ORDER = 1  # JSON from the coordinator
    ANSWER = 2  # JSON from a site
    REFUSAL = 3  # JSON from a site: a reason code and a sentence
    UPDATE = 4  # model hash 32 | ciphertext
    AGGREGATE = 5  # JSON head with the signed list of sites, then the summed ciphertext
    RELEASE = 6  # model vector, float32 little-endian
    OFFER = 9  # JSON: a site's mask key and commitment for one round
    READABLE_ORDER = 7  # model vector, float32 little-endian
    READABLE_UPDATE = 8  # update vector, float32 little-endian

    @property
    def bulk(self) -> bool:
        """Whether the body is numbers, many megabytes of them: a decoded one is looked at where it lies."""
        return self in (Kind.UPDATE, Kind.AGGREGATE, Kind.RELEASE, Kind.READABLE_ORDER, Kind.READABLE_UPDATE)

    @property
    def signed(self) -> bool:
        return self not in (Kind.READABLE_ORDER, Kind.READABLE_UPDATE)


@dataclass(frozen=True)
class Envelope:
    """One message. `plan` is the SHA-256 of the plan that both sides agreed on."""

    kind: Kind
    run: bytes
    round_number: int
    plan: bytes
    sender: str
    body: Bytes

    def __post_init__(self) -> None:
        if len(self.run) != 16 or len(self.plan) != 32 or not 0 <= self.round_number < 2**32:
            raise WireError("an envelope needs a 16-byte run, a 32-byte plan hash and a round below 2^32")
        if not 1 <= len(self.sender.encode()) <= 255:
            raise WireError("a sender's name has 1 to 255 bytes")


def encode(envelope: Envelope, identity: Identity | None = None) -> bytes:
    """The bytes to send. Signed kinds need the sender's identity, READABLE_* kinds take none."""
    return b"".join(encode_parts(envelope, (envelope.body,), identity))


def encode_parts(envelope: Envelope, body: Sequence[Bytes], identity: Identity | None = None) -> tuple[Bytes, ...]:
    """`encode` of the envelope with all of `body` in place of its own, without a copy: to be written one by one."""
    if envelope.kind.signed == (identity is None):
        raise WireError(f"{envelope.kind.name} is {'' if envelope.kind.signed else 'never '}signed")
    header = _header(envelope, sum(len(part) for part in body))
    signature = identity.sign(_CONTEXT, _signed_part(header, *body)) if identity else _UNSIGNED
    return header, *body, signature


def decode(data: Bytes | bytearray, public_key_of: Callable[[str], bytes]) -> Envelope:
    """Inverse of `encode`. Raises WireError on bytes it cannot explain, TrustError on a wrong signature.

    public_key_of: the roster; raises for a name that is not on it.
    """
    if len(data) < _FIXED.size:
        raise WireError("shorter than a header")
    magic, version, kind, run, round_number, plan, name_length = _FIXED.unpack_from(data)
    if magic != _MAGIC:
        raise WireError("not a Veilfed message")
    if version != VERSION:
        raise WireError(f"message version {version}; this build reads {VERSION}")
    start = _FIXED.size + name_length + _LENGTH.size
    if len(data) < start + _SIGNATURE_BYTES:
        raise WireError("shorter than its header promises")
    (body_length,) = _LENGTH.unpack_from(data, start - _LENGTH.size)
    if len(data) != start + body_length + _SIGNATURE_BYTES:
        raise WireError(f"{len(data)} bytes, the header promises {start + body_length + _SIGNATURE_BYTES}")
    try:
        sender = bytes(data[_FIXED.size : _FIXED.size + name_length]).decode()
        body = memoryview(data)[start : start + body_length]
        kept = body if Kind(kind).bulk else bytes(body)
        envelope = Envelope(Kind(kind), run, round_number, plan, sender, kept)
    except ValueError as error:
        raise WireError(f"unknown kind or sender: {error}") from None
    signature = bytes(data[-_SIGNATURE_BYTES:])
    if envelope.kind.signed:
        verify(public_key_of(sender), _CONTEXT, _signed_part(bytes(data[:start]), envelope.body), signature)
    elif signature != _UNSIGNED:
        raise WireError("a readable message carries no signature")
    return envelope


def label(data: Bytes) -> tuple[Kind, bytes, int]:
    """Kind, run and round that a message says it has. Nothing is verified: for logs and counters alone.

    Raises WireError when there is no header.
    """
    try:
        magic, version, kind, run, round_number, *_ = _FIXED.unpack_from(data)
        if (magic, version) == (_MAGIC, VERSION):
            return Kind(kind), run, round_number
    except (struct.error, ValueError):
        pass
    raise WireError("not a Veilfed message of this version")


def header_bytes(sender: str) -> int:
    """What an envelope adds to its body."""
    return _FIXED.size + len(sender.encode()) + _LENGTH.size + _SIGNATURE_BYTES


def to_json(value: Any) -> bytes:
    """Canonical JSON (RFC 8785): the same value is always the same bytes, so it can be hashed and signed."""
    return rfc8785.dumps(value)


def from_json(data: Bytes) -> dict[str, Any]:
    """Inverse of `to_json` for an object. Raises WireError on any other spelling of the same value, and on what
    canonical JSON cannot hold: NaN, infinities, integers beyond 2^53, half a surrogate pair, a key given twice.
    """
    try:
        value = json.loads(bytes(data), parse_constant=_no_constant)
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError):
        raise WireError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise WireError("the body is not a JSON object")
    if canonical != data:
        raise WireError("the body is not canonical JSON")
    return value


def plan_hash(plan: Plan) -> bytes:
    """SHA-256 of the plan's canonical JSON: what every envelope of the run carries."""
    return digest(to_json(to_table(plan)))


def from_hex(value: object) -> bytes:
    """The bytes of a hexadecimal field of a JSON body. Raises WireError when it is not one."""
    try:
        return bytes.fromhex(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise WireError("a field that should be hexadecimal is not") from None


def table(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A field of a JSON body that must be an object."""
    value = body.get(key)
    if not isinstance(value, Mapping):
        raise ProtocolError(f"the order has no {key}")
    return value


def names(body: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts in a JSON body. Raises WireError when it is anything else."""
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WireError(f"{key} is not a list of texts")
    return value


def digest(*parts: Bytes) -> bytes:
    """SHA-256 of all parts together."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def _header(envelope: Envelope, body_length: int) -> bytes:
    name = envelope.sender.encode()
    fixed = _FIXED.pack(_MAGIC, VERSION, envelope.kind, envelope.run, envelope.round_number, envelope.plan, len(name))
    return fixed + name + _LENGTH.pack(body_length)


def _signed_part(header: bytes, *body: Bytes) -> bytes:
    return header + digest(*body)


def _no_constant(name: str) -> Any:
    raise ValueError(name)
