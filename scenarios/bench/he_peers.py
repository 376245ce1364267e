"""How others encrypt updates, each through its library's public calls."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CKKS = "tenseal-ckks-8192"
Update = NDArray[np.float32]
_SIZE = struct.Struct(">I")


class TensealCkks:
    """The field's usual way: CKKS vectors, ring 8192, moduli [60, 40, 40], scale 2^40, symmetric keys."""

    name = CKKS

    def __init__(self) -> None:
        import tenseal

        self._library = tenseal
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        self._context.global_scale = 2**40

    def encrypt(self, site: int, update: Update) -> bytes:
        return self._library.ckks_vector(self._context, update).serialize()

    def sum(self, messages: Sequence[bytes]) -> bytes:
        total = self._library.ckks_vector_from(self._context, messages[0])
        for message in messages[1:]:
            total += self._library.ckks_vector_from(self._context, message)
        return total.serialize()

    def open(self, total: bytes) -> NDArray[np.floating]:
        return np.array(self._library.ckks_vector_from(self._context, total).decrypt())


class PlainFloat32:
    """No protection: the coordinator reads everything."""

    name = "plain-float32"

    def encrypt(self, site: int, update: Update) -> bytes:
        return update.tobytes()

    def sum(self, messages: Sequence[bytes]) -> bytes:
        total = np.frombuffer(messages[0], np.float32).copy()
        for message in messages[1:]:
            total += np.frombuffer(message, np.float32)
        return total.tobytes()

    def open(self, total: bytes) -> NDArray[np.floating]:
        return np.frombuffer(total, np.float32)


class SealPython:
    """Exact integers by the textbook: BFV batching at SEAL's default modulus for ring 4096, symmetric keys, 16 bits."""

    name = "seal-python"

    def __init__(self, params: int, sites: int, largest: float) -> None:
        import seal

        self._library, self._params = seal, params
        self._step = largest / 32767
        parameters = seal.EncryptionParameters(seal.scheme_type.bfv)
        parameters.set_poly_modulus_degree(4096)
        parameters.set_coeff_modulus(seal.CoeffModulus.BFVDefault(4096))
        parameters.set_plain_modulus(seal.PlainModulus.Batching(4096, 17 + sites.bit_length()))
        self._context = seal.SEALContext(parameters)
        secret = seal.KeyGenerator(self._context).secret_key()
        self._encryptor = seal.Encryptor(self._context, secret)
        self._decryptor = seal.Decryptor(self._context, secret)
        self._encoder, self._evaluator = seal.BatchEncoder(self._context), seal.Evaluator(self._context)

    def encrypt(self, site: int, update: Update) -> bytes:
        values = np.rint(update.astype(np.float64) / self._step).astype(np.int64)
        blocks = np.pad(values, (0, -values.size % 4096)).reshape(-1, 4096)
        return _joined(self._encryptor.encrypt_symmetric(self._encoder.encode(block)) for block in blocks)

    def sum(self, messages: Sequence[bytes]) -> bytes:
        totals = list(self._loaded(messages[0]))
        for message in messages[1:]:
            for total, ciphertext in zip(totals, self._loaded(message), strict=True):
                self._evaluator.add_inplace(total, ciphertext)
        return _joined(totals)

    def open(self, total: bytes) -> NDArray[np.floating]:
        blocks = [self._encoder.decode(self._decryptor.decrypt(ciphertext)) for ciphertext in self._loaded(total)]
        return np.concatenate(blocks)[: self._params] * self._step

    def _loaded(self, message: bytes) -> Iterator[Any]:
        start = 0
        while start < len(message):
            (size,) = _SIZE.unpack_from(message, start)
            ciphertext = self._library.Ciphertext()
            ciphertext.load_bytes(self._context, message[start + _SIZE.size : start + _SIZE.size + size])
            yield ciphertext
            start += _SIZE.size + size


def _joined(ciphertexts: Iterable[Any]) -> bytes:
    frames = [ciphertext.to_string() for ciphertext in ciphertexts]
    return b"".join(_SIZE.pack(len(frame)) + frame for frame in frames)
