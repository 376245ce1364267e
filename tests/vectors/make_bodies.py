"""Golden bodies, good and bad: ciphertexts, sums, what is published, wrapped keys; by plain Python and PyCryptodome.

Run it to write bodies.json beside it; long bodies are there as SHA-256. A change to that file breaks sites that run an
older version. Every number here is written out, not asked of our code: it is the second reading of common/README.md.
"""

import hashlib
import json
import struct
from math import gcd
from pathlib import Path
from typing import Any

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
from Crypto.Protocol.KDF import HKDF
from Crypto.Util.number import isPrime

FILE = Path(__file__).with_name("bodies.json")
RING, GUARDS, SLOTS = 4096, 32, 2
PRESETS = {"compact": ((60,), 10, 4), "precise": ((34, 34), 0, 0)}  # bits of primes, dropped in c0 and in c1
LENGTHS = (1, 10, 8128, 8130)  # one value; a few; a full ciphertext; one and a bit
RUN, PLAN, MODEL = (hashlib.shake_256(name).digest(size) for name, size in ((b"run", 16), (b"plan", 32), (b"m", 32)))


def drawn(what: str, size: int) -> bytes:
    """Fixed bytes that look random."""
    return hashlib.shake_256(what.encode()).digest(size)


def primes(sizes: tuple[int, ...]) -> list[int]:
    """The largest that are 1 modulo 2 * RING, each once."""
    found: list[int] = []
    for bits in sizes:
        candidate = (1 << bits) - 2 * RING + 1
        while candidate in found or not isPrime(candidate):
            candidate -= 2 * RING
        found.append(candidate)
    return found


def shape(length: int, whole: bool = False) -> list[int]:
    """Coefficients that travel, ciphertext by ciphertext."""
    full, rest = divmod(length, (RING - GUARDS) * SLOTS)
    last = -(-(-(-rest // SLOTS) + GUARDS) // 64) * 64
    return [RING] * full + ([RING if whole else last] if rest else [])


def dense(words: list[int], width: int) -> bytes:
    """Lanes of consecutive words; column by column their bits, lowest first; integer k of every column together."""
    lanes = 64 // gcd(64, width)
    columns = len(words) // lanes
    integers = width * lanes // 64
    out = [[0] * columns for _ in range(integers)]
    for column in range(columns):
        bits = sum(words[lane * columns + column] << (lane * width) for lane in range(lanes))
        for k in range(integers):
            out[k][column] = bits >> (64 * k) & (2**64 - 1)
    return b"".join(value.to_bytes(8, "little") for row in out for value in row)


def polynomials(what: str, preset: str, length: int, whole: bool = False) -> tuple[bytes, list[int]]:
    """Dense words and the words themselves: ciphertext after ciphertext, prime after prime."""
    sizes, dropped, dropped_down = PRESETS[preset]
    dropped = dropped_down if whole else dropped
    data, all_words = b"", []
    for row, used in enumerate(shape(length, whole)):
        for prime in primes(sizes):
            stream = drawn(f"{what} {preset} {length} {row} {prime}", 8 * used)
            most = (prime - 1) >> dropped
            words = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") % (most + 1) for i in range(used)]
            words[0], words[-1] = most, 0
            data += dense(words, prime.bit_length() - dropped)
            all_words += words
    return data, all_words


def ciphertext(preset: str, length: int) -> bytes:
    return polynomials("c0", preset, length)[0] + drawn(f"seeds {preset}", 64 * len(shape(length)))


def aggregate(preset: str, length: int, form: int, sites: int) -> bytes:
    head = struct.pack(">BH", form, sites) + polynomials("sum", preset, length)[0]
    if form == 1:
        return head + polynomials("c1", preset, length, whole=True)[0]
    return head + drawn(f"all seeds {preset}", 64 * len(shape(length)) * sites)


def canonical(value: Any) -> bytes:
    """Enough of RFC 8785 for texts and whole numbers in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def published(total: bytes) -> bytes:
    seeds = {name: drawn(f"self {name}", 32).hex() for name in ("adler", "birke", "cedar")}
    pairs = [["adler", "dorn", drawn("pair 1", 32).hex()], ["birke", "dorn", drawn("pair 2", 32).hex()]]
    agreed = [drawn(f"agreed {name}", 200).hex() for name in ("adler", "birke", "cedar")]
    head = canonical({"sites": ["adler", "birke", "cedar"], "agreed": agreed, "self": seeds, "pairs": pairs})
    return struct.pack(">I", len(head)) + head + total


def opening(total: bytes, number: int) -> str:
    """What a site agrees to with its signature."""
    said = {
        "run": RUN.hex(),
        "round": number,
        "sites": ["adler", "birke", "cedar"],
        "sum": hashlib.sha256(total).hexdigest(),
        "model": MODEL.hex(),
    }
    return hashlib.sha256(canonical(said)).hexdigest()


def wrapped_key() -> dict[str, Any]:
    """The cohort's key of epoch 3, made by adler, for birke. Ternary digits 0, 1, 2 stand for -1, 0, 1."""
    digits = [byte % 3 for byte in drawn("ternary", RING)]
    raw = bytes(sum(digits[4 * i + k] << (2 * k) for k in range(4)) for i in range(RING // 4))
    maker, mine = drawn("maker", 32), drawn("mine", 32)
    public = {name: import_x25519_private_key(key).public_key().export_key(format="raw") for name, key in
              (("maker", maker), ("mine", mine))}  # fmt: skip
    context = b"veilfed.cohort-key.v1|" + RUN + PLAN + struct.pack(">I", 3) + b"adler"
    data_key, nonce = drawn("data key", 32), drawn("box nonce", 12)
    body, tag = AES.new(data_key, AES.MODE_GCM, nonce=bytes(12)).update(context).encrypt_and_digest(raw)
    shared = key_agreement(
        static_priv=import_x25519_private_key(maker),
        static_pub=import_x25519_public_key(public["mine"]),
        kdf=lambda z: z,
    )
    info = b"veilfed.seal.v1\0" + public["maker"] + public["mine"] + context + b"|birke"
    cipher = AES.new(HKDF(shared, 32, b"", SHA256, context=info), AES.MODE_GCM, nonce=nonce).update(context + b"|birke")
    box, box_tag = cipher.encrypt_and_digest(data_key)
    return {
        "maker_public": public["maker"].hex(),
        "private": mine.hex(),
        "context": context.hex(),
        "wrapped": (body + tag).hex(),
        "box": (nonce + box + box_tag).hex(),
        "raw_sha256": hashlib.sha256(raw).hexdigest(),
    }


def contexts() -> dict[str, str]:
    names = b"\5adler" + bytes([len("édel".encode())]) + "édel".encode()
    return {
        "mask": (b"veilfed.mask.v1|" + RUN + struct.pack(">I", 7) + MODEL).hex(),
        "package": (b"veilfed.mask-shares.v1|" + RUN + struct.pack(">I", 7) + names).hex(),
    }


def kept(data: bytes) -> dict[str, Any]:
    return {"data": data.hex()} if len(data) <= 2000 else {"sha256": hashlib.sha256(data).hexdigest()}


def bad() -> list[dict[str, str]]:
    """Of ten values; what is wrong with each, and what it was meant to be."""
    good, summed = ciphertext("compact", 10), aggregate("compact", 10, 0, 2)
    too_large = dense([(primes((60,))[0] >> 10) + 1] * 64, 50)
    out = [
        ("ciphertext", "nothing at all", b""),
        ("ciphertext", "one byte less", good[:-1]),
        ("ciphertext", "one byte more", good + b"\0"),
        ("ciphertext", "without its seeds", good[:-64]),
        ("ciphertext", "of a hundred values", ciphertext("compact", 100)),
        ("ciphertext", "of the other preset", ciphertext("precise", 10)),
        ("ciphertext", "words that no ciphertext holds", too_large + good[400:]),
        ("aggregate", "nothing at all", b""),
        ("aggregate", "a header alone", summed[:3]),
        ("aggregate", "one byte less", summed[:-1]),
        ("aggregate", "one byte more", summed + b"\0"),
        ("aggregate", "form 2", b"\2" + summed[1:]),
        ("aggregate", "form 1 with nothing behind", aggregate("compact", 10, 1, 2)[:403]),
        ("aggregate", "form 1 of the coefficients that are used only", b"\1" + summed[1:403] + bytes(64 * 56 // 8)),
        ("aggregate", "of no site", struct.pack(">BH", 0, 0) + summed[3:403]),
        ("aggregate", "of more sites than fit", aggregate("compact", 10, 0, 65)),
        ("aggregate", "seeds of one site for two", summed[: 403 + 64]),
        ("aggregate", "words that no sum holds", summed[:3] + too_large + summed[403:]),
        ("published", "nothing at all", b""),
        ("published", "a head longer than the body", struct.pack(">I", 2**32 - 1) + b"{}"),
        ("published", "a head that is not canonical", struct.pack(">I", 3) + b"{ }" + summed),
        ("published", "a head without lists", struct.pack(">I", 2) + b"{}" + summed),
    ]
    pairs = [["adler", "dorn", "00"]] * 2
    for why, head in [
        ("a pair twice", {"sites": ["adler"], "agreed": [], "self": {}, "pairs": pairs}),
        ("a pair of three sites", {"sites": ["adler"], "agreed": [], "self": {}, "pairs": [["a", "b", "c", "00"]]}),
        ("a site that is a number", {"sites": [1], "agreed": [], "self": {}, "pairs": []}),
        ("a seed that is not hexadecimal", {"sites": ["adler"], "agreed": [], "self": {"adler": "xy"}, "pairs": []}),
    ]:
        data = canonical(head)
        out.append(("published", why, struct.pack(">I", len(data)) + data + summed))
    return [{"of": of, "why": why, "data": data.hex()} for of, why, data in out]


def vectors() -> dict[str, Any]:
    good = [(preset, length) for preset in PRESETS for length in LENGTHS]
    total = aggregate("compact", 10, 0, 3)
    return {
        "run": RUN.hex(),
        "plan": PLAN.hex(),
        "model": MODEL.hex(),
        "ciphertexts": [{"preset": p, "length": n, **kept(ciphertext(p, n))} for p, n in good],
        "aggregates": [
            {"preset": p, "length": n, "form": form, "sites": sites, **kept(aggregate(p, n, form, sites))}
            for p, n in good
            for form, sites in ((0, 1), (0, 3), (1, 64))
        ],
        "published": {"data": published(total).hex(), "total": total.hex(), "list": opening(total, 7), "round": 7},
        "wrapped_key": wrapped_key(),
        "contexts": contexts(),
        "bad": bad(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
