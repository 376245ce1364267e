"""Which encryption a federation uses: ring, modulus, slots and headroom, and what follows from them. Pure.

A value of `value_bits` bits becomes one slot of `value_bits + headroom_bits` bits, so that the sum over a cohort never
carries into the neighbouring slot; `slots` of them share one coefficient of a BFV plaintext modulo t, a power of two.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

from common.errors import ConfigError
from common.federation import require

SEED_BYTES = 64  # one seed per ciphertext stands for its whole second polynomial
LANE_WORDS = 64  # words are packed in multiples of this, so that any width fills whole 64-bit integers
GUARDS = 32  # coefficients of every ciphertext that stay zero: see packing.py
MAX_SITES = 1024
SAFE_FAILURE_LOG2 = -100.0
_NOISE_VARIANCE = 10.5  # SEAL's centred binomial of 21 coin pairs
_LARGEST_PRIME_BITS, _LARGEST_PLAIN_BITS = 60, 59  # SEAL's own limits
# Largest modulus in bits for (128, 192, 256) bits of security with ternary secrets: the table SEAL enforces, from
# the Homomorphic Encryption Security Standard (Albrecht et al. 2018, table 1).
_SECURE_MODULUS_BITS = {2048: (54, 37, 29), 4096: (109, 75, 58), 8192: (218, 152, 118)}


@dataclass(frozen=True)
class Scheme:
    """The public parameters of one federation's encryption; whatever exists is secure and fits SEAL.

    ring_degree: coefficients per polynomial.   modulus_bits: sizes of the ciphertext primes.
    dropped_bits: low bits of a ciphertext that are rounded away before it travels. That is public rounding: it costs
    failure margin, never secrecy. It needs a single prime.
    """

    name: str
    ring_degree: int
    modulus_bits: tuple[int, ...]
    value_bits: int
    headroom_bits: int
    slots: int
    dropped_bits: int = 0

    def __post_init__(self) -> None:
        ring = self.ring_degree
        require(ring in _SECURE_MODULUS_BITS, "ring_degree", ring, ", ".join(map(str, _SECURE_MODULUS_BITS)))
        largest = _SECURE_MODULUS_BITS[ring][0]
        require(bool(self.modulus_bits), "modulus_bits", self.modulus_bits, "one prime or more")
        require(sum(self.modulus_bits) <= largest, "modulus_bits", self.modulus_bits, f"{largest} in all at {ring}")
        require(
            all(20 <= bits <= _LARGEST_PRIME_BITS for bits in self.modulus_bits),
            "modulus_bits",
            self.modulus_bits,
            f"primes of 20 to {_LARGEST_PRIME_BITS} bits",
        )
        require(self.value_bits >= 2, "value_bits", self.value_bits, "2 or more")
        require(1 <= self.headroom_bits <= 10, "headroom_bits", self.headroom_bits, "1 to 10 (2 to 1024 sites)")
        require(self.slots >= 1, "slots", self.slots, "1 or more")
        plain = self.plain_modulus_bits
        require(
            plain <= min(_LARGEST_PLAIN_BITS, sum(self.modulus_bits) - 2), "plain modulus bits", plain, "59 or less"
        )
        most = ring.bit_length() if len(self.modulus_bits) == 1 else 0  # the prime is 1 modulo 2 * ring_degree
        require(0 <= self.dropped_bits <= most, "dropped_bits", self.dropped_bits, f"0 to {most}")
        spare = 64 - self.headroom_bits  # a cohort's words are summed in 64 bits without reduction
        require(max(self.word_bits) <= spare, "bits of one word", max(self.word_bits), f"{spare} or less")

    @property
    def slot_bits(self) -> int:
        return self.value_bits + self.headroom_bits

    @property
    def plain_modulus_bits(self) -> int:
        return self.slots * self.slot_bits

    @property
    def max_sites(self) -> int:
        return 1 << self.headroom_bits

    @property
    def word_bits(self) -> tuple[int, ...]:
        """Bits that travel per coefficient of the first polynomial, one entry per prime."""
        return tuple(bits - self.dropped_bits for bits in self.modulus_bits)

    @property
    def dropped_bits_down(self) -> int:
        """Low bits dropped from a summed second polynomial: as many as cost less margin than one more site does."""
        return max(0, self.dropped_bits - math.ceil(math.log2(self.ring_degree) / 2))

    @cached_property
    def primes(self) -> tuple[int, ...]:
        return largest_primes(self.ring_degree, self.modulus_bits)

    @property
    def values_per_ciphertext(self) -> int:
        return (self.ring_degree - GUARDS) * self.slots

    def ciphertexts(self, length: int) -> int:
        """How many ciphertexts hold `length` values."""
        return -(-length // self.values_per_ciphertext)

    def coefficients(self, length: int) -> int:
        """How many coefficients travel for `length` values: all of every ciphertext, of the last what is used."""
        return _coefficients(length, self.ring_degree, self.slots)

    def message_bytes(self, length: int) -> int:
        """Size of one site's encrypted vector of `length` values."""
        return self.coefficients(length) * sum(self.word_bits) // 8 + self.ciphertexts(length) * SEED_BYTES

    @property
    def bytes_per_parameter(self) -> float:
        """What a site sends per value of a long vector."""
        return self.message_bytes(self.values_per_ciphertext) / self.values_per_ciphertext

    @property
    def security_bits(self) -> int:
        """The highest of 128, 192, 256 whose modulus limit holds (classical attacks, ternary secret)."""
        limits = zip((128, 192, 256), _SECURE_MODULUS_BITS[self.ring_degree], strict=True)
        return max(level for level, limit in limits if sum(self.modulus_bits) <= limit)

    def failure_log2(self, sites: int, parameters: int) -> float:
        """log2 of a bound on the chance that any of `parameters` sums over `sites` opens to a wrong integer.

        Encryption noise and rounding are sub-Gaussian with their own variance as proxy, so 2 exp(-z^2 / 2) bounds one
        coefficient's tail; the key enters at its worst (no zero coefficient). Each site may add half for certain from
        scaling by q / t and, with dropped bits, 1.5 more: half from rounding upwards, 1 from summing rounded words
        modulo (q - 1) / 2^dropped.
        """
        rounding = 4.0**self.dropped_bits / 12 if self.dropped_bits else 0.0
        down = self.ring_degree * 4.0**self.dropped_bits_down / 12 if self.dropped_bits_down else 0.0
        variance = sites * (_NOISE_VARIANCE + rounding) + down
        room = math.prod(self.primes) / 2.0 ** (self.plain_modulus_bits + 1) - sites * (2 if self.dropped_bits else 0.5)
        z = max(0.0, room) / math.sqrt(variance)
        return min(0.0, 1 + math.log2(self.coefficients(parameters)) - z * z / 2 * math.log2(math.e))

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 over everything that two parties must share to understand each other's bytes (32 bytes)."""
        shape = (self.ring_degree, *self.primes, self.value_bits, self.headroom_bits, self.slots, self.dropped_bits)
        shape = (*shape, GUARDS)
        return hashlib.sha256(f"veilfed-bfv-1:{','.join(map(str, shape))}".encode()).digest()


PRESETS = {
    "compact": Scheme("compact", 4096, (60,), value_bits=16, headroom_bits=6, slots=2, dropped_bits=10),
    "precise": Scheme("precise", 4096, (34, 34), value_bits=23, headroom_bits=6, slots=2),
}


def choose_scheme(preset: str, sites: int, parameters: int, failure_log2: float = SAFE_FAILURE_LOG2) -> Scheme:
    """The preset where it holds; for a larger cohort or a stricter bound the cheapest scheme with its precision.

    Raises ConfigError, saying what would fit, when nothing does.
    """
    require(preset in PRESETS, "encryption.preset", preset, ", ".join(PRESETS))
    scheme = PRESETS[preset]
    if 1 <= sites <= scheme.max_sites and scheme.failure_log2(sites, parameters) <= failure_log2:
        return scheme
    return fit_scheme(sites, scheme.value_bits, parameters, failure_log2)


def fit_scheme(sites: int, value_bits: int, parameters: int, failure_log2: float = SAFE_FAILURE_LOG2) -> Scheme:
    """The scheme with the fewest bytes for `parameters` values of `value_bits` bits from up to `sites` sites.

    Raises ConfigError naming the most value bits that would fit.
    """
    require(1 <= sites <= MAX_SITES, "sites", sites, f"1 to {MAX_SITES}")
    require(parameters >= 1, "parameters", parameters, "1 or more")
    require(2 <= value_bits <= 64, "value_bits", value_bits, "2 to 64")
    for bits in range(value_bits, 1, -1):
        scheme = _cheapest(sites, bits, parameters, failure_log2)
        if scheme and bits == value_bits:
            return scheme
        if scheme:
            raise ConfigError(
                f"no scheme sums {value_bits}-bit values of {sites} sites with failure under 2^{failure_log2:g}",
                f"{bits} value bits would fit, at {scheme.bytes_per_parameter:.2f} bytes per parameter",
            )
    raise ConfigError(
        f"no scheme sums values of {sites} sites with failure under 2^{failure_log2:g}",
        f"allow a failure of 2^{SAFE_FAILURE_LOG2:g}",
    )


def _cheapest(sites: int, value_bits: int, parameters: int, failure_log2: float) -> Scheme | None:
    headroom = max(1, (sites - 1).bit_length())
    slot_bits = value_bits + headroom
    candidates = []
    for ring, slots in product(_SECURE_MODULUS_BITS, range(1, _LARGEST_PLAIN_BITS // slot_bits + 1)):
        one_prime = ((bits,) for bits in range(slots * slot_bits + 2, _LARGEST_PRIME_BITS + 1))
        two_primes = ((bits, bits) for bits in range(20, _LARGEST_PRIME_BITS + 1))
        shapes = [(bits, dropped) for bits in one_prime for dropped in range(ring.bit_length())]
        for bits, dropped in shapes + [(bits, 0) for bits in two_primes]:
            words = sum(bits) - dropped
            if not slots * slot_bits + 2 <= words or bits[0] - dropped + headroom > 64 or bits[0] < 20:
                continue
            if sum(bits) <= _SECURE_MODULUS_BITS[ring][0]:
                size = _coefficients(parameters, ring, slots) * words // 8
                size += -(-parameters // ((ring - GUARDS) * slots)) * SEED_BYTES
                candidates.append((size, ring, sum(bits), bits, slots, dropped))
    for _, ring, _, bits, slots, dropped in sorted(candidates):
        scheme = Scheme(f"{value_bits}-bit, {1 << headroom} sites", ring, bits, value_bits, headroom, slots, dropped)
        if scheme.failure_log2(sites, parameters) <= failure_log2:
            return scheme
    return None


def _coefficients(length: int, ring_degree: int, slots: int) -> int:
    full, rest = divmod(length, (ring_degree - GUARDS) * slots)
    used = -(-rest // slots) + GUARDS if rest else 0
    return full * ring_degree + -(-used // LANE_WORDS) * LANE_WORDS


@cache
def largest_primes(ring_degree: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """For each size in bits the largest unused prime that is 1 modulo 2 * ring_degree, as SEAL's transform needs."""
    found: list[int] = []
    for bits in sizes:
        candidate = (1 << bits) - 2 * ring_degree + 1
        while candidate in found or not _is_prime(candidate):
            candidate -= 2 * ring_degree
        require(candidate >> (bits - 1) == 1, "modulus_bits", sizes, "sizes that hold enough primes")
        found.append(candidate)
    return tuple(found)


def _is_prime(n: int) -> bool:
    """Miller-Rabin; with these bases it is exact below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in bases):
        return n in bases
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    for base in bases:
        x = pow(base, (n - 1) >> twos, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True
