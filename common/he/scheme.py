"""Encrypt one site's integers, open the sum of a cohort's: seeded symmetric BFV by Microsoft SEAL (home of tenseal).

A ciphertext is c0 = -a s + e + round(q m / t) with `a` grown from a fresh 64-byte seed, so half of it need not travel.
Under one key a common `a` would reveal differences of updates; SEAL draws every seed from the system's randomness.
BFV is malleable and must not be asked twice: callers open an aggregate only after its signed list was checked, and
answer every failure here by the same abort.
"""

import json
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, InvalidUpdate, ProtocolError
from common.he.ciphertexts import Aggregate, Ciphertext, dense_part, from_dense, round_words, to_dense
from common.he.frames import CIPHERTEXT_START, PLAINTEXT_START, Frame, Frames, Scratch, seed_in, version_of
from common.he.packing import Block, Integers, Words, blocks, pack_slots, unpack_slots
from common.he.parallel import Piece, Work, spread
from common.he.parameters import PRESETS, SEED_BYTES, Scheme, choose_scheme, fit_scheme
from common.he.series import Series

__all__ = [
    "PRESETS",
    "Aggregate",
    "Ciphertext",
    "CohortKey",
    "Scheme",
    "check_library",
    "choose_scheme",
    "coefficients",
    "encrypt",
    "expand_seeds",
    "fit_scheme",
    "open_sum",
    "work_on",
]

_CANNOT_OPEN = "the aggregate does not open"  # one message for every cause
_NOT_A_KEY = "not a cohort key of this scheme"
_INSTALL = "install tenseal>=0.3.18"
_DIGIT_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)  # four ternary digits to a byte


class CohortKey:
    """The secret BFV key that the sites of one cohort share. The coordinator never holds one."""

    def __init__(self, scheme: Scheme, words: Words) -> None:
        """words: the transformed key as SEAL keeps it; use `generate` or `load`."""
        seal = _seal(scheme)
        secret = seal.api.SecretKey()
        with Scratch() as scratch:
            secret.load(seal.context, scratch.write(seal.frames.secret_key(words)))
        self.scheme = scheme
        self._words = words
        self._encryptor = seal.api.Encryptor(seal.context, secret)
        self._decryptor = seal.api.Decryptor(seal.context, secret)

    @classmethod
    def generate(cls, scheme: Scheme) -> "CohortKey":
        seal = _seal(scheme)
        with Scratch() as scratch:
            seal.api.KeyGenerator(seal.context).secret_key().save(scratch.path)
            return cls(scheme, np.frombuffer(scratch.read(), "<u8", offset=PLAINTEXT_START))

    @classmethod
    def load(cls, scheme: Scheme, data: bytes) -> "CohortKey":
        """Inverse of `export_for_wrapping`. Raises ProtocolError, always the same, on anything else."""
        digits = (np.frombuffer(data, np.uint8)[:, None] >> _DIGIT_SHIFTS & np.uint8(3)).reshape(-1)
        if digits.size != scheme.ring_degree or digits.max() > 2:
            raise ProtocolError(_NOT_A_KEY)
        residues = [(digits.astype(np.int64) - 1) % prime for prime in scheme.primes]
        return cls(scheme, _seal(scheme).transform(np.array(residues, np.uint64), forwards=True))

    def export_for_wrapping(self) -> bytes:
        """The raw secret: one digit per coefficient, 0 to 2 for -1 to 1, four to a byte, lowest bits first.

        For the key ceremony, which encrypts it to another site before it goes anywhere, and for helper processes.
        """
        residues = _seal(self.scheme).transform(self._words, forwards=False)
        digits = (residues[0] + np.uint64(1)) % np.uint64(self.scheme.primes[0])
        return np.sum(digits.reshape(-1, 4).astype(np.uint8) << _DIGIT_SHIFTS, axis=1, dtype=np.uint8).tobytes()

    def __repr__(self) -> str:
        return f"CohortKey({self.scheme.name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cohort key is never pickled or copied")


def coefficients(scheme: Scheme, length: int) -> int:
    """How many plaintext coefficients, each below t, a mask for `length` values must cover."""
    return scheme.coefficients(length)


def encrypt(values: Series, key: CohortKey, mask: Series | None = None) -> Ciphertext:
    """One site's vector, under fresh randomness at every call.

    values: int64 of `value_bits` bits, sign included.
    mask: coefficients(scheme, length) uint64 below t = 2^plain_modulus_bits, added modulo t to the packed values.
    Both may be arrays, or series that are computed as they are read: once, in order.
    Memory: the result and a few MiB, whatever the length; a few MiB more per process (parallel.py).
    """
    scheme, seal, length = key.scheme, _seal(key.scheme), len(values)
    if not length or (isinstance(values, np.ndarray) and (values.dtype != np.int64 or values.ndim != 1)):
        raise InvalidUpdate(f"expected a vector of int64, got {getattr(values, 'dtype', '')} of length {length}")
    _check_mask(mask, scheme, length)
    sent, at = bytearray(scheme.message_bytes(length)), 0
    seeds_at = len(sent) - scheme.ciphertexts(length) * SEED_BYTES
    pieces = (_masked(values, mask, block, scheme) for block in blocks(scheme, length))
    work, task = partial(_encrypt, seal, key), partial(_task, _encrypt, key)
    for block, result in zip(
        blocks(scheme, length), spread(work, task, pieces, scheme.ciphertexts(length)), strict=True
    ):
        seeds = block.shape[0] * SEED_BYTES
        dense = len(result) - seeds
        sent[at : at + dense], sent[seeds_at : seeds_at + seeds] = result[:dense], result[dense:]
        at, seeds_at = at + dense, seeds_at + seeds
    return Ciphertext.decode(scheme, length, memoryview(sent))


def open_sum(aggregate: Aggregate, key: CohortKey, mask_total: Series | None = None) -> Integers:
    """The exact integer sum of the cohort's vectors, (length,) int64.

    mask_total: like `encrypt`'s mask; subtracted modulo t before unpacking.
    Raises ProtocolError, always the same, when what opens is no sum of that many vectors: wrong key or mask, tampering.
    """
    scheme = aggregate.scheme
    if scheme.fingerprint != key.scheme.fingerprint:
        raise ProtocolError(_CANNOT_OPEN)
    _check_mask(mask_total, scheme, aggregate.length)
    totals = np.empty(aggregate.length, np.int64)
    with closing(_opened(aggregate, key)) as opened:
        for block, plain in opened:
            if mask_total is not None:
                plain = plain - mask_total[block.coefficients].reshape(block.shape)
                plain &= np.uint64((1 << scheme.plain_modulus_bits) - 1)
            if not unpack_slots(plain, aggregate.sites, scheme, totals[block.values]):
                raise ProtocolError(_CANNOT_OPEN)
    return totals


def expand_seeds(scheme: Scheme, seeds: Sequence[bytes]) -> Iterator[bytes]:
    """The sum of the second polynomials behind every site's seeds, dense, as `Aggregate.c1`, block after block.

    seeds: one entry per site, 64 bytes per ciphertext. Needs no key.
    """
    columns = _by_ciphertext(b"".join(seeds), len(seeds))
    pieces = (
        Piece(*block.shape, columns[block.rows].tobytes())
        for block in blocks(scheme, len(columns) * scheme.values_per_ciphertext)
    )
    return spread(partial(_grow, _seal(scheme)), partial(_task, _grow, scheme), pieces, len(columns))


def work_on(task: bytes) -> Work:
    """What a helper process does, from what `_task` made."""
    head, secret = task.split(b"\n", 1)
    told = json.loads(head)
    scheme = Scheme(**{**told["scheme"], "modulus_bits": tuple(told["scheme"]["modulus_bits"])})
    (work,) = (kind for kind in _KINDS if kind.__name__ == told["work"])
    return partial(work, _seal(scheme), CohortKey.load(scheme, secret)) if secret else partial(work, _seal(scheme))


def check_library() -> None:
    """Raises ConfigError unless the installed tenseal encrypts symmetrically with a seed: nothing else is used."""
    encrypt(np.zeros(1, np.int64), CohortKey.generate(PRESETS["compact"]))


def _task(work: Callable[..., bytes], of: CohortKey | Scheme) -> bytes:
    """Canonical head, then the key's raw secret where the work needs one: for helpers of this very process alone."""
    scheme, secret = (of, b"") if isinstance(of, Scheme) else (of.scheme, of.export_for_wrapping())
    return json.dumps({"work": work.__name__, "scheme": asdict(scheme)}).encode() + b"\n" + secret


def _masked(values: Series, mask: Series | None, block: Block, scheme: Scheme) -> Piece:
    plain = pack_slots(values[block.values], block, scheme)
    if mask is not None:
        plain += mask[block.coefficients].reshape(block.shape)
        plain &= np.uint64((1 << scheme.plain_modulus_bits) - 1)
    return Piece(*block.shape, plain.reshape(-1).view(np.uint8).data)


def _opened(aggregate: Aggregate, key: CohortKey) -> Generator[tuple[Block, Words], None, None]:
    """Block by block, the coefficients below t, masks still on."""
    scheme, decrypt = aggregate.scheme, _grow_and_decrypt if aggregate.seeds else _decrypt
    work, task = partial(decrypt, _seal(scheme), key), partial(_task, decrypt, key)
    results = spread(work, task, _pieces(aggregate), scheme.ciphertexts(aggregate.length))
    for block, result in zip(blocks(scheme, aggregate.length), results, strict=True):
        yield block, np.frombuffer(result, np.uint64).reshape(block.shape)


def _pieces(aggregate: Aggregate) -> Iterator[Piece]:
    """Dense first polynomials, then the seeds, ciphertext after ciphertext, or dense second polynomials."""
    scheme = aggregate.scheme
    columns = _by_ciphertext(aggregate.seeds, aggregate.sites) if aggregate.seeds else None
    for block in blocks(scheme, aggregate.length):
        c0 = dense_part(aggregate.c0, block, scheme, scheme.dropped_bits)
        if columns is not None:
            rest: bytes | memoryview = columns[block.rows].tobytes()
        else:
            rest = dense_part(aggregate.c1, block.whole(scheme), scheme, scheme.dropped_bits_down)
        yield Piece(*block.shape, b"".join((c0, rest)))


def _encrypt(seal: "_Seal", key: CohortKey, piece: Piece) -> bytes:
    """Coefficients below t -> dense first polynomials, then seeds."""
    scheme, seeds = key.scheme, []
    words = np.empty((piece.rows, len(scheme.primes), piece.used), np.uint64)
    with Scratch() as scratch:
        for row, message in enumerate(np.frombuffer(piece.data, np.uint64).reshape(piece.rows, piece.used)):
            polynomial, seed = seal.encrypt(key._encryptor, message, scratch)
            words[row] = polynomial[:, : piece.used]
            seeds.append(seed)
    round_words(words, scheme.dropped_bits)
    return b"".join((to_dense(words, scheme, scheme.dropped_bits).data, *seeds))


def _decrypt(seal: "_Seal", key: CohortKey, piece: Piece) -> bytes:
    """What `_pieces` says -> coefficients below t."""
    c0, rest, block = _halves(seal.scheme, piece)
    c1 = from_dense(rest, block.whole(seal.scheme), seal.scheme, seal.scheme.dropped_bits_down)
    with Scratch() as scratch:
        both = (seal.load(seal.frames.ciphertext(*both), scratch) for both in zip(c0, c1, strict=True))
        return _coefficients(seal, key, piece, both, scratch)


def _grow_and_decrypt(seal: "_Seal", key: CohortKey, piece: Piece) -> bytes:
    """The same, where the second polynomials are seeds."""
    c0, rest, _ = _halves(seal.scheme, piece)
    columns = np.frombuffer(rest, f"V{SEED_BYTES}").reshape(piece.rows, -1)
    with Scratch() as scratch:
        grown = (seal.grow(seeds, scratch, first) for seeds, first in zip(columns, c0, strict=True))
        return _coefficients(seal, key, piece, grown, scratch)


def _coefficients(
    seal: "_Seal", key: CohortKey, piece: Piece, ciphertexts: Iterator[object], scratch: Scratch
) -> bytes:
    plain = np.zeros((piece.rows, piece.used), np.uint64)
    for row, ciphertext in zip(plain, ciphertexts, strict=True):
        found = seal.decrypt(key._decryptor, ciphertext, scratch)[: piece.used]
        row[: found.size] = found
    return plain.tobytes()


def _halves(scheme: Scheme, piece: Piece) -> tuple[Words, bytes | memoryview, Block]:
    """First polynomials, and what follows them in a piece of an aggregate."""
    block = Block(slice(0, piece.rows), piece.used, slice(0, 0), slice(0, piece.rows * piece.used))
    end = len(dense_part(piece.data, block, scheme, scheme.dropped_bits))
    return from_dense(piece.data, block, scheme, scheme.dropped_bits), piece.data[end:], block


def _grow(seal: "_Seal", piece: Piece) -> bytes:
    """Seeds of every site, ciphertext after ciphertext -> the sum of what grows from them, dense."""
    scheme = seal.scheme
    columns = np.frombuffer(piece.data, f"V{SEED_BYTES}").reshape(piece.rows, -1)
    with Scratch() as scratch:
        words = np.stack([seal.second_polynomial(seal.grow(column, scratch), scratch) for column in columns])
    round_words(words, scheme.dropped_bits_down)
    return to_dense(words, scheme, scheme.dropped_bits_down).tobytes()


_KINDS: tuple[Callable[..., bytes], ...] = (_encrypt, _decrypt, _grow_and_decrypt, _grow)


def _by_ciphertext(seeds: bytes, sites: int) -> NDArray[np.void]:
    """Seeds that lie site after site as (ciphertexts, sites)."""
    return np.frombuffer(seeds, f"V{SEED_BYTES}").reshape(sites, -1).T


def _check_mask(mask: Series | None, scheme: Scheme, length: int) -> None:
    expected = scheme.coefficients(length)
    if mask is None or (not isinstance(mask, np.ndarray) and len(mask) == expected):
        return
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint64 or mask.shape != (expected,):
        raise InvalidUpdate(f"a mask for {length} values has {expected} coefficients, uint64")


class _Seal:
    """SEAL for one scheme: parameters, evaluator, framing. Holds no key. Its objects have no types of their own."""

    def __init__(self, scheme: Scheme) -> None:
        try:
            from tenseal import sealapi  # a second of import that plain runs never pay
        except ImportError as error:
            raise ConfigError("tenseal is not installed", _INSTALL) from error
        self.api: Any = sealapi
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(scheme.ring_degree)
        parameters.set_coeff_modulus([sealapi.Modulus(prime) for prime in scheme.primes])
        parameters.set_plain_modulus(1 << scheme.plain_modulus_bits)
        # No chain of moduli: nothing is ever multiplied, so no prime is set aside for that.
        self.context = sealapi.SEALContext(parameters, False, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ConfigError(f"SEAL refuses scheme {scheme.name!r}: {self.context.parameters_error_message()}")
        self._evaluator = sealapi.Evaluator(self.context)
        self._zero = np.zeros((len(scheme.primes), scheme.ring_degree), np.uint64)
        with Scratch() as scratch:
            sealapi.Plaintext("1").save(scratch.path)
            version = version_of(scratch.frame())
        parms_id = struct.pack("<4Q", *self.context.first_parms_id())
        self.scheme, self.frames = scheme, Frames(version, parms_id, scheme.ring_degree, len(scheme.primes))

    def encrypt(self, encryptor: Any, message: Words, scratch: Scratch) -> tuple[Words, bytes]:
        """The first polynomial, (primes, ring_degree), and the seed of the second. message: coefficients below t."""
        plain = self.api.Plaintext()
        plain.load(self.context, scratch.write(self.frames.plaintext(message)))
        try:
            encryptor.encrypt_symmetric(plain).save(scratch.path)
        except TypeError as error:
            raise ConfigError("this tenseal has no seeded symmetric encryption", _INSTALL) from error
        saved = scratch.read()
        seed = seed_in(saved[CIPHERTEXT_START + self._zero.nbytes :])
        if seed is None:
            raise ConfigError("this tenseal saves a symmetric ciphertext without its seed", _INSTALL)
        return np.frombuffer(saved, "<u8", self._zero.size, CIPHERTEXT_START).reshape(self._zero.shape), seed

    def load(self, frame: Frame, scratch: Scratch) -> Any:
        ciphertext = self.api.Ciphertext()
        ciphertext.load(self.context, scratch.write(frame))
        return ciphertext

    def grow(self, seeds: NDArray[np.void], scratch: Scratch, first: Words | None = None) -> Any:
        """The ciphertext whose second polynomial is the sum of what grows from `seeds`, around the first (or 0)."""
        total = self.load(self.frames.seeded(self._zero if first is None else first, seeds[0].tobytes()), scratch)
        grown = self.api.Ciphertext()
        for seed in seeds[1:]:
            grown.load(self.context, scratch.write(self.frames.seeded(self._zero, seed.tobytes())))
            self._evaluator.add_inplace(total, grown)
        return total

    def second_polynomial(self, ciphertext: Any, scratch: Scratch) -> Words:
        ciphertext.save(scratch.path)
        second = np.frombuffer(scratch.read(), "<u8", offset=CIPHERTEXT_START + self._zero.nbytes)
        return second.reshape(self._zero.shape)

    def decrypt(self, decryptor: Any, ciphertext: Any, scratch: Scratch) -> Words:
        """Coefficients up to the last one that is not zero."""
        plain = self.api.Plaintext()
        decryptor.decrypt(ciphertext, plain)
        plain.save(scratch.path)
        return np.frombuffer(scratch.read(), "<u8", offset=PLAINTEXT_START)

    def transform(self, polynomial: Words, forwards: bool) -> Words:
        """A polynomial's residues into or out of the transformed form in which SEAL keeps a key."""
        with Scratch() as scratch:
            # Twice the same: SEAL takes a ciphertext whose second polynomial is zero for a mistake.
            ciphertext = self.load(self.frames.ciphertext(polynomial, polynomial, ntt_form=not forwards), scratch)
            if forwards:
                self._evaluator.transform_to_ntt_inplace(ciphertext)
            else:
                self._evaluator.transform_from_ntt_inplace(ciphertext)
            return self.second_polynomial(ciphertext, scratch)


_seal = cache(_Seal)
