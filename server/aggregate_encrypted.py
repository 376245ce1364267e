"""The sum of ciphertexts that nobody here can read: numpy while updates arrive, SEAL at most once at the end. Pure.

Words of first polynomials are added in 64 bits without reduction and reduced once. Dropped low bits keep this simple:
the prime is 1 modulo 2^dropped_bits, so rounded words add up modulo (q - 1) / 2^dropped_bits, off by at most one unit
of q per site, which `Scheme.failure_log2` counts.

Second polynomials are seeds, and somebody must grow them. Two ways; CPU time and bytes per million values, 8 sites:

                   compact: sum   a site opens   download     precise: sum   a site opens   download
    seeds along           36 ms         283 ms     3.2 MB            57 ms         470 ms     4.3 MB
    expanded             274 ms          87 ms     6.7 MB           545 ms         117 ms     8.5 MB

With seeds along every site grows every site's seeds; expanded, the coordinator grows each once and a site opens at
the same price whatever the cohort. So the sum is expanded from three sites on, except where that would exceed 7 bytes
per parameter and the seeds are shorter (`precise`, or vectors that hardly fill a ciphertext). One polynomial common to
all sites would need no seeds and would reveal differences between updates: never.
"""

from collections.abc import Iterator

import numpy as np

from common.errors import ProtocolError
from common.he.ciphertexts import Aggregate, Ciphertext, dense_block, dense_bytes, joined_aggregate, to_dense, whole
from common.he.packing import add_packed, blocks
from common.he.parameters import SEED_BYTES, Scheme
from common.he.scheme import expand_seeds

_FEW_SITES = 2  # growing two seeds costs a site half of what decrypting does
_MAX_BYTES_DOWN = 7.0  # per parameter


class BlindSum:
    """Adds one cohort's ciphertexts of `length` values, and forgets each but for its seeds.

    Memory: 8 bytes per coefficient and prime (4 bytes per parameter in `compact`), every seed (64 bytes per
    ciphertext), and, when it is asked for, the sum as it travels: nothing that grows with the cohort but seeds.
    """

    def __init__(self, scheme: Scheme, length: int) -> None:
        self._scheme, self._length = scheme, length
        self._totals = [np.zeros(scheme.coefficients(length), np.uint64) for _ in scheme.primes]
        self._seeds: list[bytes] = []
        self._seen: set[bytes] = set()

    def add(self, ciphertext: Ciphertext) -> None:
        """Raises ProtocolError, and adds nothing, on another scheme or length, a seed seen before, or a full cohort."""
        if ciphertext.scheme.fingerprint != self._scheme.fingerprint or ciphertext.length != self._length:
            raise ProtocolError("a ciphertext of another scheme or length")
        if len(self._seeds) == self._scheme.max_sites:
            raise ProtocolError(f"this scheme sums {self._scheme.max_sites} sites, no more")
        seeds = {ciphertext.seeds[start : start + SEED_BYTES] for start in range(0, len(ciphertext.seeds), SEED_BYTES)}
        if len(seeds) * SEED_BYTES != len(ciphertext.seeds) or not seeds.isdisjoint(self._seen):
            raise ProtocolError("a seed that was used before")
        for block in blocks(self._scheme, self._length):
            dense = dense_block(ciphertext.c0, block, self._scheme, self._scheme.dropped_bits)
            for totals, packed, width in zip(self._totals, dense, self._scheme.word_bits, strict=True):
                add_packed(totals[block.coefficients].reshape(block.shape), packed, width)
        self._seen |= seeds
        self._seeds.append(ciphertext.seeds)

    def result(self) -> Aggregate:
        """The sum so far; it opens to the sum of the added vectors, under the sites' key alone."""
        return Aggregate.decode(self._scheme, self._length, self.message())

    def message(self) -> memoryview:
        """`result().encode()`, in the only memory that it takes."""
        if not self._seeds:
            raise ProtocolError("no ciphertext to sum")
        scheme, sites = self._scheme, len(self._seeds)
        if _seeds_go_along(scheme, self._length, sites):
            return joined_aggregate(scheme, self._length, sites, self._first_polynomials(), seeds=self._seeds)
        grown = expand_seeds(scheme, self._seeds)
        return joined_aggregate(scheme, self._length, sites, self._first_polynomials(), c1=grown)

    def _first_polynomials(self) -> Iterator[memoryview]:
        dropped = self._scheme.dropped_bits
        moduli = [(prime - 1) >> dropped if dropped else prime for prime in self._scheme.primes]
        for block in blocks(self._scheme, self._length):
            words = [
                totals[block.coefficients].reshape(block.shape) % np.uint64(modulus)
                for totals, modulus in zip(self._totals, moduli, strict=True)
            ]
            yield to_dense(np.stack(words, axis=1), self._scheme, dropped).reshape(-1).view(np.uint8).data


def _seeds_go_along(scheme: Scheme, length: int, sites: int) -> bool:
    """Whether the sites grow the seeds: few sites, or the expanded sum would be too long a download."""
    along = sites * SEED_BYTES * scheme.ciphertexts(length)
    expanded = dense_bytes(scheme, whole(scheme, length), scheme.dropped_bits_down)
    room = _MAX_BYTES_DOWN * length - dense_bytes(scheme, length, scheme.dropped_bits)
    return along < expanded if expanded > room else sites <= _FEW_SITES
