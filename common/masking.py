"""The words that both sides of the mask protocol share: offers, packages, the agreed list, what lifts the masks.

Per round every site offers a fresh mask key and commits to a self seed; shares of both secrets travel in sealed
packages to each peer. Of one site either the self seed is ever revealed (its update is in the sum) or pair seeds
with it (it is not): never both. Reference: Bonawitz et al., CCS 2017, ePrint 2017/281.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ProtocolError, TrustError, WireError
from common.he.shares import SHARE_BYTES
from common.wire import Envelope, Kind, digest, from_hex, from_json, to_json


@dataclass(frozen=True)
class Offer:
    """What one site brings to one round: its X25519 mask key and the commitment to its self seed."""

    mask_key: bytes
    commitment: bytes

    @classmethod
    def of(cls, envelope: Envelope, run: bytes, plan: bytes, round_number: int) -> "Offer":
        """From a verified envelope. Raises TrustError when it is not an offer for this very round."""
        found = (envelope.kind, envelope.run, envelope.plan, envelope.round_number)
        if found != (Kind.OFFER, run, plan, round_number):
            raise TrustError(f"{envelope.sender}'s offer belongs to another round")
        body = from_json(envelope.body)
        offer = cls(from_hex(body.get("mask_key")), from_hex(body.get("commitment")))
        if len(offer.mask_key) != 32 or len(offer.commitment) != 32:
            raise WireError(f"{envelope.sender}'s offer is malformed")
        return offer

    def encode(self) -> bytes:
        return to_json({"mask_key": self.mask_key.hex(), "commitment": self.commitment.hex()})


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
        if not all(isinstance(pair, list) and len(pair) == 3 for pair in pairs):
            raise WireError("a broken pair has two sites and a seed")
        return cls(
            {str(site): from_hex(seed) for site, seed in seeds.items()},
            {(str(mine), str(gone)): from_hex(seed) for mine, gone, seed in pairs},
        )


def mask_context(run: bytes, round_number: int) -> bytes:
    """What binds a pair seed to one round of one run."""
    return b"veilfed.mask.v1|" + run + round_number.to_bytes(4, "big")


def package_context(run: bytes, round_number: int, sender: str, recipient: str) -> bytes:
    names = b"".join(len(name.encode()).to_bytes(1, "big") + name.encode() for name in (sender, recipient))
    return b"veilfed.mask-shares.v1|" + run + round_number.to_bytes(4, "big") + names


def split_package(package: bytes) -> tuple[bytes, bytes]:
    """The share of the sender's self seed and the share of its mask key."""
    if len(package) != 2 * SHARE_BYTES:
        raise ProtocolError("a package of shares has the wrong length")
    return package[:SHARE_BYTES], package[SHARE_BYTES:]


def list_digest(run: bytes, round_number: int, sites: Sequence[str]) -> str:
    """What a site signs when it agrees that exactly these sites are summed in this round."""
    return digest(to_json({"run": run.hex(), "round": round_number, "sites": sorted(sites)})).hex()


def require_agreement(agreed: Sequence[Envelope], received: Sequence[str], required: int, wanted: Envelope) -> None:
    """Raises TrustError unless `required` different sites of the list have signed it, for this round of this run.

    wanted: the order that shows the agreement; run, plan and round must be its own.
    """
    expected = list_digest(wanted.run, wanted.round_number, received)
    signers = {
        answer.sender
        for answer in agreed
        if answer.kind is Kind.ANSWER
        and (answer.run, answer.plan, answer.round_number) == (wanted.run, wanted.plan, wanted.round_number)
        and from_json(answer.body).get("list") == expected
        and answer.sender in received
    }
    if len(signers) < required:
        raise TrustError(f"{len(signers)} sites have agreed on this list, {required} are required")
