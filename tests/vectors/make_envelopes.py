"""Golden envelopes, good and bad, by other code than ours: PyCryptodome and plain Python.

Run it to write envelopes.json beside it. A change to that file breaks sites that run an older version.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

FILE = Path(__file__).with_name("envelopes.json")
KINDS = {
    "ORDER": 1,
    "ANSWER": 2,
    "REFUSAL": 3,
    "UPDATE": 4,
    "AGGREGATE": 5,
    "RELEASE": 6,
    "READABLE_ORDER": 7,
    "READABLE_UPDATE": 8,
    "OFFER": 9,
}
READABLE = (7, 8)
SENDERS = ("coordinator", "adler", "hôpital-é", "x" * 255)
CONTEXT = b"veilfed.envelope.v1"


def drawn(what: str, size: int = 32) -> bytes:
    """Fixed bytes that look random."""
    return hashlib.shake_256(what.encode()).digest(size)


RUN, PLAN = drawn("run", 16), drawn("plan")


def key_of(name: str) -> ECC.EccKey:
    return ECC.construct(curve="Ed25519", seed=drawn(f"identity {name}"))


def header(kind: int, number: int, sender: bytes, length: int, magic: bytes = b"VF", version: int = 1) -> bytes:
    fixed = magic + struct.pack(">BB", version, kind) + RUN + struct.pack(">I", number) + PLAN
    return fixed + struct.pack(">B", len(sender)) + sender + struct.pack(">Q", length)


def signature(signer: str, head: bytes, body: bytes, context: bytes = CONTEXT) -> bytes:
    message = struct.pack(">H", len(context)) + context + head + hashlib.sha256(body).digest()
    return eddsa.new(key_of(signer), "rfc8032").sign(message)


def envelope(kind: int, number: int, sender: str, body: bytes, signer: str = "", **changes: Any) -> bytes:
    head = header(kind, number, sender.encode(), len(body), **changes)
    return head + body + (bytes(64) if kind in READABLE else signature(signer or sender, head, body))


def good() -> list[dict[str, Any]]:
    examples = [
        ("ORDER", 0, "coordinator", b'{"cohort":["adler"],"plan":{}}'),
        ("ORDER", 2**32 - 1, "coordinator", b""),
        ("ANSWER", 3, "adler", b'{"list":"00"}'),
        ("REFUSAL", 3, "hôpital-é", '{"code":"TrustError","exit_code":4,"message":"né"}'.encode()),
        ("UPDATE", 3, "x" * 255, drawn("model hash") + drawn("ciphertext", 300)),
        ("AGGREGATE", 3, "coordinator", struct.pack(">I", 2) + b"{}" + drawn("sum", 100)),
        ("RELEASE", 20, "adler", struct.pack("<3f", 0.0, -1.5, 1e30)),
        ("OFFER", 4, "adler", b'{"commitment":"00","mask_key":"00"}'),
        ("READABLE_ORDER", 1, "coordinator", struct.pack("<2f", 1.0, 2.0)),
        ("READABLE_UPDATE", 1, "adler", struct.pack("<2f", -1.0, 0.5)),
    ]
    return [
        {
            "kind": kind,
            "round": number,
            "sender": sender,
            "body": body.hex(),
            "data": envelope(KINDS[kind], number, sender, body).hex(),
        }
        for kind, number, sender, body in examples
    ]


def bad() -> list[dict[str, str]]:
    body = b'{"received":["adler"]}'
    whole = envelope(1, 3, "coordinator", body)
    head, sealed = whole[: -64 - len(body)], whole[-64:]
    name_at, length_at = 57, len(head) - 8

    def put(place: int, value: bytes, data: bytes = whole) -> bytes:
        return data[:place] + value + data[place + len(value) :]

    other_context = head + body + signature("coordinator", head, body, b"veilfed.ledger.v1")
    promised = header(1, 3, b"coordinator", 2**60)
    unnamed = header(1, 3, b"", len(body))
    broken_name = header(1, 3, b"\xff\xfe", len(body))
    readable = envelope(8, 3, "adler", b"\0\0\0\0")
    cases = [
        ("WireError", "nothing at all", b""),
        ("WireError", "shorter than a header", whole[:50]),
        ("WireError", "ends within the sender's name", whole[: name_at + 4]),
        ("WireError", "ends within the body", whole[: len(head) + 3]),
        ("WireError", "ends within the signature", whole[:-1]),
        ("WireError", "one byte more", whole + b"\0"),
        ("WireError", "two messages in one", whole + whole),
        ("WireError", "another magic", put(0, b"FV")),
        ("WireError", "version 0", envelope(1, 3, "coordinator", body, version=0)),
        ("WireError", "version 2, well signed", envelope(1, 3, "coordinator", body, version=2)),
        ("WireError", "kind 0, well signed", envelope(0, 3, "coordinator", body)),
        ("WireError", "kind 255, well signed", envelope(255, 3, "coordinator", body)),
        ("WireError", "no sender, well signed", unnamed + body + signature("coordinator", unnamed, body)),
        ("WireError", "a sender that is not UTF-8", broken_name + body + signature("coordinator", broken_name, body)),
        ("WireError", "a name longer than the message", put(name_at - 1, b"\xff")),
        ("WireError", "promises 2^60 bytes", promised + body + signature("coordinator", promised, body)),
        ("WireError", "promises one byte less", put(length_at, struct.pack(">Q", len(body) - 1))),
        ("WireError", "promises 2^64 - 1 bytes", put(length_at, b"\xff" * 8)),
        ("WireError", "a readable message with a signature", readable[:-64] + sealed),
        ("TrustError", "a signed kind without a signature", head + body + bytes(64)),
        ("TrustError", "one bit of the signature", put(len(whole) - 1, bytes([whole[-1] ^ 1]))),
        ("TrustError", "one bit of the body", put(len(head), b"|")),
        ("TrustError", "another run", put(4, drawn("another run", 16))),
        ("TrustError", "another round", put(20, struct.pack(">I", 4))),
        ("TrustError", "another plan", put(24, drawn("another plan"))),
        ("TrustError", "an order relabelled as an answer", put(3, b"\2")),
        ("TrustError", "a readable update relabelled as a sealed one", put(3, b"\4", readable)),
        ("TrustError", "signed by another site", envelope(1, 3, "coordinator", body, signer="adler")),
        ("TrustError", "another sender put in", put(name_at, b"coordinatos")),
        ("TrustError", "a sender who is not on the roster, well signed", envelope(2, 3, "mallory", body)),
        ("TrustError", "signed for the ledger, not for an envelope", other_context),
    ]
    return [{"error": error, "why": why, "data": data.hex()} for error, why, data in cases]


def bad_bodies() -> list[dict[str, str]]:
    cases = [
        ("not JSON", b"{"),
        ("not an object", b"[1]"),
        ("not UTF-8", b'{"a":"\xff"}'),
        ("UTF-16", '{"a":1}'.encode("utf-16")),
        ("NaN", b'{"a":NaN}'),
        ("a number beyond all floats", b'{"a":1e999}'),
        ("an integer beyond 2^53", b'{"a":9007199254740993}'),
        ("white space", b'{"a": 1}'),
        ("a line end", b'{"a":1}\n'),
        ("keys out of order", b'{"b":1,"a":2}'),
        ("a key given twice", b'{"a":1,"a":1}'),
        ("a fraction that is none", b'{"a":1.0}'),
        ("minus zero", b'{"a":-0}'),
        ("an escape that is none", b'{"a":"\\u0061"}'),
        ("half a surrogate pair", b'{"a":"\\ud800"}'),
    ]
    return [{"why": why, "body": body.hex()} for why, body in cases]


def vectors() -> dict[str, Any]:
    return {
        "run": RUN.hex(),
        "plan": PLAN.hex(),
        "roster": {name: key_of(name).public_key().export_key(format="raw").hex() for name in SENDERS},
        "private": {name: drawn(f"identity {name}").hex() for name in SENDERS},
        "good": good(),
        "bad": bad(),
        "bad_bodies": bad_bodies(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
