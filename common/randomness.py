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
_PAIRS_AT_ONCE = 1 << 16  # fewer and every call costs more than its work, more and temporaries leave the cache
_NOTHING = memoryview(bytes(8 * _PAIRS_AT_ONCE))  # encrypted, it is the stream itself
_FEW, _MANY = np.int32(2**21), np.uint32(2**31 - 2**24 - 2**21)  # of 2^31: the lowest 1/1024; from there to 127/128
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
        return self._stream.update(_NOTHING[:n] if n <= len(_NOTHING) else bytes(n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """n independent multiples of 2^-53, uniform in [0, 1)."""
        words = np.frombuffer(self.bytes(8 * n), np.uint64) >> np.uint64(11)
        # As signed words they convert in vector instructions; 53 bits never reach the sign.
        return words.view(np.int64).astype(np.float64) * 2.0**-53

    def gaussian(self, n: int, std: float = 1.0, dtype: DTypeLike = np.float32) -> NDArray[np.floating]:
        """n independent draws from the normal distribution with mean 0 and standard deviation `std`.

        dtype: float32 or float64. Box-Muller over a radius whose chance has 53 bits or more, so the tail ends at 8.57
        std (float64) or 10.7 std (float32): a pair differs from the ideal one, up to its own rounding, with chance
        2^-53. A chance of 32 bits would end it at 6.66 std, which a million-parameter model would show every few
        thousand steps.
        Reference: Box and Muller 1958; for the tail, Holohan and Braghin 2021, arXiv:2107.10138.
        """
        noise = np.empty(n + n % 2, dtype)
        for start in range(0, len(noise), 2 * _PAIRS_AT_ONCE):
            self._fill_gaussian(noise[start : start + 2 * _PAIRS_AT_ONCE], std)
        return noise[:n]

    def _fill_gaussian(self, noise: NDArray[np.floating], std: float) -> None:
        import torch  # whose logarithms, sines and cosines are four times as fast as numpy's where there is no AVX-512

        pairs, word_type = len(noise) // 2, np.dtype(f"i{noise.itemsize}")
        drawn = np.frombuffer(self.bytes(noise.nbytes), word_type)
        radius = torch.from_numpy(self._log_chances(drawn[:pairs])).mul_(-2).sqrt_().mul_(std)
        angle = torch.from_numpy(drawn[pairs:].astype(noise.dtype)).mul_(math.pi / 2.0 ** (8 * noise.itemsize - 1))
        torch.cos(angle, out=torch.from_numpy(noise[:pairs])).mul_(radius)
        torch.sin(angle, out=torch.from_numpy(noise[pairs:])).mul_(radius)

    def _log_chances(self, drawn: NDArray[np.signedinteger]) -> NDArray[np.floating]:
        """Logarithms of uniform draws from (0, 1), one for each random word, in a float of the word's size."""
        import torch

        if drawn.dtype == np.int64:
            # 52 random bits become the mantissa of a double in [1, 2); what is left after the subtraction is an odd
            # multiple of 2^-53 in (0, 1): never 0, so its logarithm is finite, and never 1.
            chance = ((drawn.view(np.uint64) >> np.uint64(12)) | _ONE_TO_TWO).view(np.float64)
            chance -= 1 - 2.0**-53
            torch.from_numpy(chance).log_()
            return chance
        # Odd multiples of 2^-31 stand for the draws around them. Near 0, where they are few, and near 1, where float32
        # has no digits for them, the draw itself is taken, in double.
        words = drawn & np.int32(2**31 - 1)
        words |= np.int32(1)
        short = words.astype(np.float32)
        short *= np.float32(2.0**-31)
        torch.from_numpy(short).log_()
        near_ends = np.flatnonzero((words - _FEW).view(np.uint32) > _MANY)
        short[near_ends] = np.log((1 - 2 * self.uniform(len(near_ends)) + words[near_ends]) * 2.0**-31)
        return short

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
