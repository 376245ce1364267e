"""Golden bytes of the mask protocol and of keys at rest, by other code than ours: PyCryptodome and plain Python.

Run it to write mask_vectors.json beside it. A change to that file breaks sites that run an older version.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
from Crypto.Protocol.KDF import HKDF, scrypt
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

FILE = Path(__file__).with_name("mask_vectors.json")
NAMES = ["adler", "birke", "Zeder", "édel", "site-10"]
CONTEXT = b"run 7 | nonce 0011"
MIDDLE = 131_071  # odd: the second half of a cipher block


def label(text: str) -> bytes:
    return b"veilfed." + text.encode() + b".v1\0"


def drawn(what: str, size: int = 32) -> bytes:
    """Fixed bytes that look random."""
    return hashlib.shake_256(what.encode()).digest(size)


def hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(secret, 32, b"", SHA256, context=info)


def exchange_key(name: str) -> tuple[bytes, bytes]:
    private = drawn(f"exchange {name}")
    return private, import_x25519_private_key(private).public_key().export_key(format="raw")


def shared(private: bytes, public: bytes) -> bytes:
    return key_agreement(
        static_priv=import_x25519_private_key(private), static_pub=import_x25519_public_key(public), kdf=lambda z: z
    )


def words(seed: bytes, count: int, bits: int, start: int = 0) -> list[int]:
    cipher = AES.new(hkdf(seed, label("mask.expand")), AES.MODE_CTR, nonce=b"", initial_value=0)
    stream = cipher.encrypt(bytes(8 * (start + count)))
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") % 2**bits for i in range(start, start + count)]


def expansions() -> list[dict[str, Any]]:
    seed = drawn("seed")
    return [
        {"seed": seed.hex(), "bits": bits, "start": start, "values": words(seed, 5, bits, start)}
        for bits in (1, 22, 44, 58, 64)
        for start in (0, MIDDLE)
    ]


def pair_seed(one: str, other: str) -> bytes:
    (first, key), (second, _) = ((name, exchange_key(name)) for name in sorted([one, other]))
    named = b""
    for name in (first, second):
        named += len(name.encode()).to_bytes(2, "big") + name.encode() + exchange_key(name)[1]
    return hkdf(shared(key[0], exchange_key(second)[1]), label("mask.pair") + named + CONTEXT)


def site_masks(count: int, bits: int) -> list[dict[str, Any]]:
    masks = []
    for me in NAMES:
        total = words(drawn(f"self {me}"), count, bits)
        for them in NAMES:
            if them != me:
                sign = 1 if them > me else -1
                pair = words(pair_seed(me, them), count, bits)
                total = [(a + sign * b) % 2**bits for a, b in zip(total, pair, strict=True)]
        masks.append({"site": me, "self_seed": drawn(f"self {me}").hex(), "values": total})
    return masks


def seals() -> dict[str, str]:
    sender, recipient = exchange_key("adler"), exchange_key("birke")
    key = hkdf(shared(sender[0], recipient[1]), label("seal") + sender[1] + recipient[1] + CONTEXT)
    nonce, plaintext = drawn("nonce", 12), b"the cohort's key"
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce).update(CONTEXT)
    body, tag = cipher.encrypt_and_digest(plaintext)
    return {"from": "adler", "to": "birke", "plaintext": plaintext.hex(), "box": (nonce + body + tag).hex()}


def times(a: int, b: int) -> int:
    """Product in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a >> 128:
            a ^= (1 << 128) | 0b10000111
    return product


def share_set() -> dict[str, Any]:
    secret, threshold = drawn("secret"), 3
    shares = {}
    for index, name in enumerate(sorted(NAMES), start=1):
        share = index.to_bytes(2, "big")
        for half in (0, 1):
            value = 0
            for power in reversed(range(threshold)):
                coefficient = secret[16 * half : 16 * half + 16] if power == 0 else drawn(f"{half} {power}", 16)
                value = times(value, index) ^ int.from_bytes(coefficient, "big")
            share += value.to_bytes(16, "big")
        shares[name] = share.hex()
    commitment = hashlib.sha256(label("share.commitment") + secret).hexdigest()
    return {"threshold": threshold, "shares": shares, "secret": secret.hex(), "commitment": commitment}


def signature() -> dict[str, str]:
    key = ECC.construct(curve="Ed25519", seed=drawn("identity"))
    context, data = "veilfed.update.v1", b"data"
    message = len(context).to_bytes(2, "big") + context.encode() + data
    return {
        "private": drawn("identity").hex(),
        "public": key.public_key().export_key(format="raw").hex(),
        "context": context,
        "data": data.hex(),
        "signature": eddsa.new(key, "rfc8032").sign(message).hex(),
    }


def key_files() -> dict[str, str]:
    secret, passphrase = drawn("at rest"), "pâssphrase"
    salt, nonce = drawn("salt", 16), drawn("file nonce", 12)
    header = label("secret") + b"\1" + salt
    key = scrypt(passphrase.encode(), salt, 32, N=2**15, r=8, p=1)
    body, tag = AES.new(key, AES.MODE_GCM, nonce=nonce).update(header).encrypt_and_digest(secret)
    sealed_head, place = label("secret") + b"\2", "0011/cohort-000003.key"
    cipher = AES.new(hkdf(drawn("identity"), label("at-rest")), AES.MODE_GCM, nonce=nonce)
    sealed, sealed_tag = cipher.update(sealed_head + place.encode()).encrypt_and_digest(secret)
    return {
        "secret": secret.hex(),
        "passphrase": passphrase,
        "locked": (header + nonce + body + tag).hex(),
        "plain": (label("secret") + b"\0" + secret).hex(),
        "identity": drawn("identity").hex(),
        "place": place,
        "sealed": (sealed_head + nonce + sealed + sealed_tag).hex(),
    }


def vectors() -> dict[str, Any]:
    return {
        "context": CONTEXT.hex(),
        "exchange": {name: [part.hex() for part in exchange_key(name)] for name in NAMES},
        "expand": expansions(),
        "pairs": [[a, b, pair_seed(a, b).hex()] for a in NAMES for b in NAMES if a < b],
        "masks": {"bits": 44, "sites": site_masks(4, 44)},
        "seal": seals(),
        "shares": share_set(),
        "signature": signature(),
        "key_file": key_files(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
