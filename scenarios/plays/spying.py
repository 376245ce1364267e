"""What the one who carries all messages can make of them: nothing is done to them, everything is looked at."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from client import masking
from client.runs import SiteRun
from client.site import Site
from common.he.ciphertexts import Aggregate, Ciphertext
from common.he.masks import masks_left_in_sum
from common.he.packing import GUARDS
from common.he.scheme import CohortKey, _opened, coefficients, expand_seeds, open_sum
from common.masking import Published
from common.wire import Envelope, Kind, decode
from scenarios import pictures
from scenarios.grid import Reply, envelope_of
from scenarios.simulation import Workplace
from scenarios.stage import Picture
from server.store import RunStore

Numbers = NDArray[np.float64]
Words = NDArray[np.uint64]
_HASH = 32  # bytes before a ciphertext: of the model it was made from


class Overheard:
    """A `Delivery` that hands on everything as it is, and remembers the updates of every round."""

    def __init__(self, place: Workplace) -> None:
        self.place, self.store = place, RunStore.open(place.run)
        self.updates: dict[tuple[int, str], Envelope] = {}

    def __call__(self, reply: Reply) -> Iterable[Reply]:
        if reply.metadata.message_type == "train" and not reply.has_error():
            envelope = decode(envelope_of(reply), self.store.roster.public_key_of)
            if envelope.kind in (Kind.UPDATE, Kind.READABLE_UPDATE):
                self.updates[envelope.round_number, envelope.sender] = envelope
        return (reply,)

    @property
    def sealed(self) -> bool:
        return self.store.plan.encryption.preset != "none"

    def payload(self, number: int, site: str) -> bytes:
        """What tells of a site's training in its message."""
        envelope = self.updates[number, site]
        return bytes(envelope.body)[_HASH if envelope.kind is Kind.UPDATE else 0 :]

    def bytes_seen(self) -> NDArray[np.uint8]:
        return np.concatenate([np.frombuffer(self.payload(*key), np.uint8) for key in sorted(self.updates)])

    def byte_surprise(self) -> float:
        """How unlike fair dice the bytes are: -log10 of the odds of their frequencies; 6 or less once in 10^6 runs.

        Pearson's test over the 256 values of a byte.
        """
        seen = self.bytes_seen()
        expected = len(seen) / 256
        statistic = float((((np.bincount(seen, minlength=256) - expected) ** 2) / expected).sum())
        return -float(chi2.logsf(statistic, 255)) / math.log(10)

    def histogram(self) -> Picture:
        seen = self.bytes_seen()
        even = np.random.default_rng(0).integers(0, 256, len(seen))
        samples = {"bytes of the updates": seen.astype(np.float64), "fair dice": even.astype(np.float64)}
        bins = np.linspace(0, 256, 33)
        alt = f"How often each byte value occurs in {len(seen)} bytes that the coordinator saw, beside fair dice"
        return Picture("What the coordinator sees", pictures.histograms(samples, "value of a byte", alt, bins))

    def guessed(self, number: int, site: str, size: int) -> Numbers:
        """The payload taken for numbers, as one must who has no key: of a readable update these are the numbers."""
        data = self.payload(number, site)
        if self.updates[number, site].kind is Kind.READABLE_UPDATE:
            return np.frombuffer(data, "<f4").astype(np.float64)
        return np.resize(np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.float64), size)


def with_the_key(run: SiteRun, number: int, body: bytes) -> Numbers:
    """What a holder of the cohort's key decrypts of the one ciphertext in an update, whatever it is: masks and all."""
    size, scheme = run.layout(number).length, run.scheme
    sent = Ciphertext.decode(scheme, size, body[_HASH:])
    c1 = b"".join(expand_seeds(scheme, [bytes(sent.seeds)]))
    alone = Aggregate.decode(scheme, size, Aggregate(scheme, size, 1, sent.c0, c1=c1).encode())
    key = run.cohort_key(run.plan.encryption.epoch_of(number))
    return _decrypted(alone, key, np.zeros(coefficients(scheme, size), np.uint64))


@dataclass(frozen=True)
class PublishedSum:
    """The sum of one round as the coordinator sent it to all sites, with the masks that they lifted together."""

    aggregate: Aggregate
    masks: Words = field(repr=False)

    @classmethod
    def of(cls, store: RunStore, run: SiteRun, number: int) -> "PublishedSum":
        published = Published.decode(decode(store.aggregate(number), store.roster.public_key_of).body)
        length, lifting = run.layout(number).length, published.lifting
        count, bits = coefficients(run.scheme, length), run.scheme.plain_modulus_bits
        masks = masks_left_in_sum(lifting.self_seeds, lifting.broken_pairs, count, bits)
        return cls(Aggregate.decode(run.scheme, length, published.total), masks)

    def opened(self, key: CohortKey) -> Numbers:
        """As the sites open it. Raises ProtocolError when it was not encrypted with that key."""
        return np.asarray(open_sum(self.aggregate, key, self.masks), np.float64)

    def tried(self, key: CohortKey) -> Numbers:
        """What a thief reads with that key, true or not, taking its digits for one of this cohort's keys."""
        scheme = self.aggregate.scheme
        return _decrypted(self.aggregate, CohortKey.load(scheme, key.export_for_wrapping()), self.masks)


def _decrypted(aggregate: Aggregate, key: CohortKey, masks: Words) -> Numbers:
    """Our own opener stops where no sum could have given these words; an attacker does not."""
    scheme, values = aggregate.scheme, []
    for block, words in _opened(aggregate, key):
        words = words - masks[block.coefficients].reshape(block.shape) & np.uint64((1 << scheme.plain_modulus_bits) - 1)
        slots = [words >> np.uint64(slot * scheme.slot_bits) for slot in range(scheme.slots)]
        rows = np.stack(slots, axis=1)[..., : block.used - GUARDS] & np.uint64((1 << scheme.slot_bits) - 1)
        values.append(rows.reshape(-1).astype(np.float64))
    return np.concatenate(values)[: aggregate.length]


def with_key_and_mask(site: Site, run: SiteRun, number: int, body: bytes) -> Numbers:
    """What the site truly sent, opened with the mask that lies on its own disk and nowhere else."""
    size, scheme = run.layout(number).length, run.scheme
    sent = Ciphertext.decode(scheme, size, body[_HASH:])
    c1 = b"".join(expand_seeds(scheme, [bytes(sent.seeds)]))
    alone = Aggregate.decode(scheme, size, Aggregate(scheme, size, 1, sent.c0, c1=c1).encode())
    key = run.cohort_key(run.plan.encryption.epoch_of(number))
    return np.asarray(open_sum(alone, key, masking.mask(site, run, number, size)), np.float64)


def likeness(guess: Numbers, truth: Numbers) -> float:
    """The size of the correlation of the two, 0 to 1."""
    if not guess.std() or not truth.std():
        return 0.0
    return float(abs(np.corrcoef(guess, truth)[0, 1]))
