"""Masks that make one site's numbers uniform noise and vanish in the sum of all: Bonawitz et al., CCS 2017.

Site u adds to its vector, modulo 2^bits,   self(u) + sum of pair(u, v) over v > u - sum of pair(u, v) over v < u.
In the sum of all sites the pairs cancel. Lifting the rest takes the survivors' self seeds, and the pair seeds of
(survivor, vanished); never both the self seed and the pair seeds of one site, or its vector lies bare.
A pair seed may have to be revealed, so it serves one round only: its context names the run and the round's nonce.
Reference: ePrint 2017/281, section 6.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.federation import require
from common.he.sealing import ExchangeKey, derive_key

SEED_BYTES = 32
_EXPAND = b"veilfed.mask.expand.v1\0"
_PAIR = b"veilfed.mask.pair.v1\0"
_BLOCK = 1 << 16  # values at a time: the working set stays in the processor's cache
_ZEROS = memoryview(bytes(8 * _BLOCK))


class MaskStream:
    """A mask that is grown when it is read, slice by slice: it takes no memory, however long it is.

    grow: (count, start) -> values `start` onward, as `site_mask` and `masks_left_in_sum` give them.
    """

    def __init__(self, count: int, grow: Callable[[int, int], NDArray[np.uint64]]) -> None:
        self._count, self._grow = count, grow

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> NDArray[np.uint64]:
        start, stop, stride = part.indices(self._count)
        require(stride == 1, "stride of a slice of a mask", stride, "1")
        return self._grow(max(0, stop - start), start)


def expand(seed: bytes, count: int, bits: int, start: int = 0) -> NDArray[np.uint64]:
    """(count,) values, each uniform in [0, 2^bits), bits <= 64: values `start` onward of the seed's one endless stream.

    Whoever does not hold `seed` cannot tell them from true randomness: the low bits of little-endian 64-bit words of
    AES-256-CTR, counter from zero, under the key HKDF(seed).
    """
    return _signed_sum([seed], [], count, bits, start)


def pairwise_seed(mine: ExchangeKey, their_public: bytes, me: str, them: str, context: bytes) -> bytes:
    """(32,) bytes, the same at both sites and known to nobody else. context: run id and the round's nonce."""
    if me == them:
        raise ProtocolError(f"{me} cannot share a mask with itself")
    pair = sorted([(me.encode(), mine.public), (them.encode(), their_public)])
    named = b"".join(len(name).to_bytes(2, "big") + name + public for name, public in pair)
    return mine.agree(their_public, _PAIR + named + context)


def site_mask(
    me: str, self_seed: bytes, pairwise: Mapping[str, bytes], count: int, bits: int, start: int = 0
) -> NDArray[np.uint64]:
    """(count,) values modulo 2^bits that `me` adds to values `start` onward of its vector.

    pairwise: the seed shared with each other site, by name.
    """
    if me in pairwise:
        raise ProtocolError(f"{me} cannot share a mask with itself")
    added = [seed for them, seed in pairwise.items() if them > me]
    subtracted = [seed for them, seed in pairwise.items() if them < me]
    return _signed_sum([self_seed, *added], subtracted, count, bits, start)


def masks_left_in_sum(
    survivor_self_seeds: Mapping[str, bytes],
    broken_pairs: Mapping[tuple[str, str], bytes],
    count: int,
    bits: int,
    start: int = 0,
) -> NDArray[np.uint64]:
    """(count,) values modulo 2^bits to subtract from the sum of the survivors' masked vectors.

    survivor_self_seeds: by name, of every site whose vector is in the sum, and of no other.
    broken_pairs: by (survivor, vanished), the seed of every pair of which only one half is in the sum.
    """
    for survivor, vanished in broken_pairs:
        if survivor not in survivor_self_seeds or vanished in survivor_self_seeds:
            raise ProtocolError(f"({survivor}, {vanished}) is not a pair of one survivor and one vanished site")
    added = [seed for (survivor, vanished), seed in broken_pairs.items() if vanished > survivor]
    subtracted = [seed for (survivor, vanished), seed in broken_pairs.items() if vanished < survivor]
    return _signed_sum([*survivor_self_seeds.values(), *added], subtracted, count, bits, start)


def _signed_sum(
    added: Iterable[bytes], subtracted: Iterable[bytes], count: int, bits: int, start: int
) -> NDArray[np.uint64]:
    require(1 <= bits <= 64, "bits of a mask", bits, "1 to 64")
    require(min(count, start) >= 0, "count and start of a mask", (count, start), "0 or more")
    streams: list[tuple[CipherContext, np.ufunc]] = [(_keystream(seed, start), np.add) for seed in added]
    streams += [(_keystream(seed, start), np.subtract) for seed in subtracted]
    total = np.zeros(count, np.uint64)
    window = bytearray(8 * min(count, _BLOCK))
    words = np.frombuffer(window, "<u8")
    for begin in range(0, count, _BLOCK):
        block = total[begin : begin + _BLOCK]
        for keystream, accumulate in streams:
            keystream.update_into(_ZEROS[: block.nbytes], window)
            accumulate(block, words[: block.size], out=block)  # wraps modulo 2^64, which 2^bits divides
        block &= np.uint64((1 << bits) - 1)
    return total


def _keystream(seed: bytes, start: int) -> CipherContext:
    if len(seed) != SEED_BYTES:
        raise ProtocolError(f"a mask seed has {SEED_BYTES} bytes, got {len(seed)}")
    block, half = divmod(start, 2)  # two 8-byte values to a block of the cipher
    key = derive_key(seed, _EXPAND)
    keystream = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    keystream.update(bytes(8 * half))
    return keystream
