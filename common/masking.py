"""The words that both sides of the mask protocol share: offers, packages, what is agreed on, what lifts the masks.

Per round every site offers a fresh mask key and commits to a self seed; shares of both secrets travel in sealed
packages to each peer. Of one site either the self seed is ever revealed (its update is in the sum) or pair seeds
with it (it is not): never both.

Guarantee: with n sites, threshold t and c of them colluding with the coordinator, nothing finer than the sum over
t - c honest sites is ever opened, as long as c < 2t - n (two lists cannot both be agreed on) and c is below the share
threshold (colluders alone cannot rebuild a secret; it is 11 in a cohort of more than 16). Where the cohort is summed in
buckets (`buckets.py`), sites are masked among their bucket alone, and what is opened is the sum over m - c honest sites
of one or more, m the fewest of a bucket, as if all that collude sat in it. Masks are bound to the model
that a site trained on, so the updates of sites that were shown different models never cancel (model inconsistency:
Pasquini et al., CCS 2022, ePrint 2021/1655).
Reference: Bonawitz et al., CCS 2017, ePrint 2017/281.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from common.errors import ProtocolError, TrustError, WireError
from common.federation import MOST_HOLDERS
from common.he.shares import SHARE_BYTES
from common.wire import Envelope, Kind, digest, from_hex, from_json, names, to_json


def cohort_hash(cohort: Sequence[str]) -> bytes:
    """SHA-256 of the canonical JSON list of a run's sites, sorted."""
    return digest(to_json(sorted(cohort)))


@dataclass(frozen=True)
class Offer:
    """What one site brings to one round: its X25519 mask key, the commitment to its self seed, whom it was told of.

    cohort: see `cohort_hash`. By it all sites of a round know that they split noise, threshold and shares alike.
    """

    mask_key: bytes
    commitment: bytes
    cohort: bytes

    @classmethod
    def of(cls, envelope: Envelope, run: bytes, plan: bytes, round_number: int) -> "Offer":
        """From a verified envelope. Raises TrustError when it is not an offer for this very round."""
        found = (envelope.kind, envelope.run, envelope.plan, envelope.round_number)
        if found != (Kind.OFFER, run, plan, round_number):
            raise TrustError(f"{envelope.sender}'s offer belongs to another round")
        body = from_json(envelope.body)
        offer = cls(*(from_hex(body.get(name)) for name in ("mask_key", "commitment", "cohort")))
        if any(len(part) != 32 for part in (offer.mask_key, offer.commitment, offer.cohort)):
            raise WireError(f"{envelope.sender}'s offer is malformed")
        return offer

    def encode(self) -> bytes:
        told = {"mask_key": self.mask_key, "commitment": self.commitment, "cohort": self.cohort}
        return to_json({name: part.hex() for name, part in told.items()})


@dataclass(frozen=True)
class Lifting:
    """What removes the masks of exactly one set: self seeds of the summed, pair seeds of (summed, vanished)."""

    self_seeds: Mapping[str, bytes]
    broken_pairs: Mapping[tuple[str, str], bytes]

    def to_json(self) -> dict[str, Any]:
        pairs = [[mine, gone, seed.hex()] for (mine, gone), seed in sorted(self.broken_pairs.items())]
        return {"self": {site: seed.hex() for site, seed in self.self_seeds.items()}, "pairs": pairs}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Lifting":
        seeds, pairs = body.get("self"), body.get("pairs")
        if not isinstance(seeds, Mapping) or not isinstance(pairs, list):
            raise WireError("an aggregate carries what lifts its masks")
        if not all(isinstance(pair, list) and list(map(type, pair)) == [str] * 3 for pair in pairs):
            raise WireError("a broken pair has two sites and a seed")
        lifting = cls(
            {site: from_hex(seed) for site, seed in seeds.items()},
            {(mine, gone): from_hex(seed) for mine, gone, seed in pairs},
        )
        if len(lifting.broken_pairs) != len(pairs):
            raise WireError("a broken pair is listed twice")
        return lifting


@dataclass(frozen=True)
class Opening:
    """What the sites of a round agree to open: one encrypted sum, of these sites, all trained on one model.

    sites: sorted. sum_hash, model_hash: SHA-256, hexadecimal; of the sum as it travels, and of the model before it.
    """

    sites: tuple[str, ...]
    sum_hash: str
    model_hash: str

    def to_json(self) -> dict[str, Any]:
        return {"sites": list(self.sites), "sum": self.sum_hash, "model": self.model_hash}

    def digest(self, run: bytes, round_number: int) -> str:
        """What a site signs, once a round: `sum` without it would let a coordinator have anything opened."""
        return digest(to_json({"run": run.hex(), "round": round_number, **self.to_json()})).hex()


@dataclass(frozen=True)
class Published:
    """The body of an AGGREGATE. agreed: the signed agreements, hexadecimal. total: the encrypted sum.

    length u32, big-endian | canonical JSON head of that length | total
    """

    sites: tuple[str, ...]
    agreed: tuple[str, ...]
    lifting: Lifting
    total: bytes | memoryview = field(repr=False)

    @cached_property
    def sum_hash(self) -> str:
        """SHA-256 of the sum, as in `Opening`."""
        return digest(self.total).hex()

    def parts(self) -> tuple[bytes, bytes | memoryview]:
        """`encode` without a copy of the sum."""
        head = to_json({"sites": list(self.sites), "agreed": list(self.agreed), **self.lifting.to_json()})
        return len(head).to_bytes(4, "big") + head, self.total

    def encode(self) -> bytes:
        return b"".join(self.parts())

    @classmethod
    def decode(cls, body: bytes | memoryview) -> "Published":
        """Inverse of `encode`. Raises WireError on a head that it cannot explain."""
        end = 4 + int.from_bytes(body[:4], "big")
        head = from_json(body[4:end])
        return cls(tuple(names(head, "sites")), tuple(names(head, "agreed")), Lifting.from_json(head), body[end:])


def holders(cohort: Sequence[str], owner: str) -> tuple[str, ...]:
    """Who keep shares of one site's secrets: a small cohort as a whole, else the site and those after it, in a ring.

    Shares cost their number squared, at every site and round. Reference: Bell et al., CCS 2020, ePrint 2020/704.
    """
    if len(cohort) <= MOST_HOLDERS:
        return tuple(sorted(cohort))
    ring = sorted(cohort)
    place = ring.index(owner)
    return tuple(sorted((ring + ring)[place : place + MOST_HOLDERS]))


def mask_context(run: bytes, round_number: int, model_hash: str) -> bytes:
    """What binds a pair seed to one round of one run, and to the model that both sites trained on."""
    return b"veilfed.mask.v1|" + run + round_number.to_bytes(4, "big") + from_hex(model_hash)


def package_context(run: bytes, round_number: int, sender: str, recipient: str) -> bytes:
    names = b"".join(len(name.encode()).to_bytes(1, "big") + name.encode() for name in (sender, recipient))
    return b"veilfed.mask-shares.v1|" + run + round_number.to_bytes(4, "big") + names


def split_package(package: bytes) -> tuple[bytes, bytes]:
    """The share of the sender's self seed and the share of its mask key."""
    if len(package) != 2 * SHARE_BYTES:
        raise ProtocolError("a package of shares has the wrong length")
    return package[:SHARE_BYTES], package[SHARE_BYTES:]


def agrees(answer: Envelope, opening: Opening, wanted: Envelope) -> bool:
    """Whether a verified envelope is the agreement of a site on the list, for the run, plan and round of `wanted`."""
    about = (answer.kind, answer.run, answer.plan, answer.round_number)
    if about != (Kind.ANSWER, wanted.run, wanted.plan, wanted.round_number) or answer.sender not in opening.sites:
        return False
    try:
        return from_json(answer.body).get("list") == opening.digest(wanted.run, wanted.round_number)
    except WireError:
        return False


def require_agreement(agreed: Iterable[Envelope], opening: Opening, required: int, wanted: Envelope) -> None:
    """Raises TrustError unless `required` different sites of the list have signed this very opening.

    wanted: the message that shows the agreement; run, plan and round must be its own.
    """
    signers = {answer.sender for answer in agreed if agrees(answer, opening, wanted)}
    if len(signers) < required:
        raise TrustError(f"{len(signers)} sites have agreed on this sum and list, {required} are required")
