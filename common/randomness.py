"""Randomness that cannot be searched: AES-256-CTR streams, keyed by the operating system or, for tests, by a seed.

PyTorch's CPU generator gives one stream for the seeds s and s + 2^32, so its noise can be found by trying all seeds
and subtracted. Noise that must protect somebody is drawn here instead.
"""

import hashlib
import math
import os
from collections import Counter
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import DTypeLike, NDArray

from common.errors import PrivacyError

_SECRET_BYTES = 32
_PAIRS_AT_ONCE = 1 << 15  # temporaries of one piece stay in the processor's cache
_ONE_TO_TWO = np.uint64(0x3FF0000000000000)  # exponent bits of the doubles in [1, 2)


class Randomness:
    """One cryptographic stream. It never repeats: each call draws on, each child is a stream of its own.

    `secure` is False for a stream that began with `insecure`, and for all its children, so that a report can say so.
    The secret is never shown, copied or pickled, and a process forked from this one may not use it.
    """

    def __init__(self, secret: bytes, secure: bool) -> None:
        """secret: 32 bytes from which everything follows; prefer `from_os`."""
        self._secret = secret
        self.secure = secure
        self._children: Counter[bytes] = Counter()
        self._process = os.getpid()
        # A key of its own makes one stream, so a fixed counter start repeats nothing.
        key = HKDFExpand(SHA256(), 32, b"veilfed randomness stream").derive(secret)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def from_os(cls) -> "Randomness":
        """A stream keyed by 256 bits of the operating system's generator."""
        return cls(os.urandom(_SECRET_BYTES), secure=True)

    @classmethod
    def insecure(cls, seed: int, *context: str | int) -> "Randomness":
        """A reproducible stream for tests and baselines: whoever knows `seed` knows every draw.

        All digits of the seed count: s and s + 2^32 give unrelated streams.
        """
        return cls(hashlib.sha256(b"veilfed insecure randomness" + _encoded((seed, *context))).digest(), secure=False)

    def child(self, *context: str | int) -> "Randomness":
        """An independent stream named by `context`; asked again for the same context, another independent one."""
        self._refuse_after_fork()
        name = _encoded(context)
        self._children[name] += 1
        info = b"veilfed randomness child" + _encoded((self._children[name],)) + name
        return Randomness(HKDFExpand(SHA256(), _SECRET_BYTES, info).derive(self._secret), self.secure)

    def bytes(self, n: int) -> bytes:
        """The next n bytes, uniform and independent."""
        self._refuse_after_fork()
        return self._stream.update(bytes(n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """n independent multiples of 2^-53, uniform in [0, 1)."""
        words = np.frombuffer(self.bytes(8 * n), np.uint64) >> np.uint64(11)
        # As signed words they convert in vector instructions; 53 bits never reach the sign.
        return words.view(np.int64).astype(np.float64) * 2.0**-53

    def gaussian(self, n: int, std: float = 1.0, dtype: DTypeLike = np.float32) -> NDArray[np.floating]:
        """n independent draws from the normal distribution with mean 0 and standard deviation `std`.

        dtype: float32 or float64. Box-Muller over a radius from 53-bit uniforms in double precision, so the tail ends
        at 8.57 std: a pair differs from the ideal one with chance 2^-53. A 32-bit uniform would end it at 6.66 std,
        which a million-parameter model would show every few thousand steps.
        Reference: Box and Muller 1958; for the tail, Holohan and Braghin 2021, arXiv:2107.10138.
        """
        noise = np.empty(n + n % 2, dtype)
        for start in range(0, len(noise), 2 * _PAIRS_AT_ONCE):
            self._fill_gaussian(noise[start : start + 2 * _PAIRS_AT_ONCE], std)
        return noise[:n]

    def _fill_gaussian(self, noise: NDArray[np.floating], std: float) -> None:
        pairs, angle_type = len(noise) // 2, np.dtype(f"i{noise.itemsize}")
        drawn = np.frombuffer(self.bytes((8 + noise.itemsize) * pairs), np.uint8)
        # 52 random bits become the mantissa of a double in [1, 2); what is left after the subtraction is an odd
        # multiple of 2^-53 in (0, 1): never 0, so its logarithm is finite, and never 1.
        radius = ((drawn[: 8 * pairs].view(np.uint64) >> np.uint64(12)) | _ONE_TO_TWO).view(np.float64)
        radius -= 1 - 2.0**-53
        np.log(radius, out=radius)
        radius *= -2 * std * std
        np.sqrt(radius, out=radius)
        angle = drawn[8 * pairs :].view(angle_type).astype(noise.dtype)
        angle *= noise.dtype.type(math.pi / 2.0 ** (8 * noise.itemsize - 1))
        np.cos(angle, out=noise[:pairs])
        np.sin(angle, out=noise[pairs:])
        narrow = radius.astype(noise.dtype, copy=False)
        noise[:pairs] *= narrow
        noise[pairs:] *= narrow

    def _refuse_after_fork(self) -> None:
        if os.getpid() != self._process:
            raise PrivacyError(
                "a random stream does not survive a fork: two processes would draw the same noise",
                "create the randomness in the process that uses it",
            )

    def __repr__(self) -> str:
        return f"Randomness(secure={self.secure})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("randomness is never pickled or copied")


def _encoded(context: tuple[str | int, ...]) -> bytes:
    """Different contexts give different bytes: each part with its type and its length."""
    parts = [(b"i" if isinstance(part, int) else b"s", str(part).encode()) for part in context]
    return b"".join(kind + len(text).to_bytes(4, "big") + text for kind, text in parts)
