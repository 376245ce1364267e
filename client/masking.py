"""A site's part in the mask protocol: offer, mask, agree on one list, reveal what lifts exactly that list's masks.

On disk before it is said: the secrets before the offer, the list before the agreement. So a restart repeats itself
word for word, and a second list for the same round is refused for ever.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.runs import SiteRun
from client.site import Site
from common.errors import CohortTooSmall, ProtocolError, TrustError, WrongRound
from common.files import write_atomically
from common.he.masks import masks_left_in_sum, pairwise_seed, site_mask
from common.he.scheme import coefficients
from common.he.sealing import ExchangeKey, open_sealed, seal
from common.he.shares import commit, split_secret
from common.keystore import load_secret, save_secret
from common.masking import (
    Lifting,
    Offer,
    list_digest,
    mask_context,
    package_context,
    require_agreement,
    split_package,
)
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, to_json


def offer(site: Site, run: SiteRun, number: int) -> dict[str, Any]:
    """The signed offer for a round and a sealed package of shares for every peer. Asked again, the same again."""
    path = run.directory / f"offer-{number:06d}"
    if path.exists():
        return from_json(path.read_bytes())
    self_seed, mask_key = os.urandom(32), ExchangeKey.generate()
    save_secret(run.directory / f"masks-{number:06d}", self_seed + mask_key.private_bytes(), None)
    peers = run.peers()
    threshold = run.plan.encryption.threshold_of(len(run.cohort))
    seed_shares = split_secret(self_seed, threshold, run.cohort)
    key_shares = split_secret(mask_key.private_bytes(), threshold, run.cohort)
    packages = {
        peer: seal(
            run.exchange_key,
            public,
            seed_shares[peer] + key_shares[peer],
            package_context(run.run, number, site.name, peer),
        ).hex()
        for peer, public in peers.items()
        if peer != site.name
    }
    body = Offer(mask_key.public, commit(self_seed)).encode()
    signed = encode(Envelope(Kind.OFFER, run.run, number, run.plan_hash, site.name, body), site.identity)
    made = {"offer": signed.hex(), "packages": packages}
    write_atomically(path, to_json(made))
    return made


def mask(site: Site, run: SiteRun, order: Envelope, length: int) -> NDArray[np.uint64]:
    """The mask of this site's update among the sites whose offers the order shows.

    Raises TrustError when an offer is not signed by its site, or ours is not among them.
    """
    number, body = order.round_number, from_json(order.body)
    _check_plot(site, run, number, body)
    write_atomically(_round_path(run, number), to_json({key: body[key] for key in ("offers", "packages")}))
    self_seed, _ = _secrets(run, number)
    count, bits = coefficients(run.scheme, length), run.scheme.plain_modulus_bits
    return site_mask(site.name, self_seed, _pair_seeds(site, run, number), count, bits)


def agree(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received} -> this site's signature under the list: given once a round, and only if it is on it."""
    number, received = order.round_number, _received(order)
    if number != run.state().round_number + 1:
        raise WrongRound(f"round {number} is not open at this site")
    _check_list(site, run, number, received)
    path = run.directory / f"list-{number:06d}"
    agreed = to_json({"sites": received})
    if path.exists() and path.read_bytes() != agreed:
        raise TrustError(f"this site has agreed on another list for round {number}")
    write_atomically(path, agreed)
    body = to_json({"list": list_digest(run.run, number, received)})
    return encode(Envelope(Kind.ANSWER, run.run, number, run.plan_hash, site.name, body), site.identity)


def unmask(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received, agreed} -> our self seed, and the pair seeds with sites that are not on the list."""
    number, received = order.round_number, _received(order)
    _require_agreed(site, run, order, received)
    self_seed, _ = _secrets(run, number)
    pairs = {name: seed.hex() for name, seed in _pair_seeds(site, run, number).items() if name not in received}
    body = {"self": self_seed.hex(), "pairs": pairs}
    if number < run.plan.federation.rounds:
        body["next"] = offer(site, run, number + 1)
    return encode(Envelope(Kind.ANSWER, run.run, number, run.plan_hash, site.name, to_json(body)), site.identity)


def stand_in(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received, agreed, silent} -> our shares for summed sites that fell silent while masks were lifted.

    Shares of a self seed for sites on the list, of a mask key for sites that are not: never the other way round.
    """
    number, received = order.round_number, _received(order)
    _require_agreed(site, run, order, received)
    shown = from_json(_round_path(run, number).read_bytes())
    silent = from_json(order.body).get("silent")
    if not isinstance(silent, list) or not set(silent) <= set(received):
        raise ProtocolError("only sites on the list can have fallen silent")
    vanished = set(shown["offers"]) - set(received)
    answer: dict[str, dict[str, str]] = {"self": {}, "keys": {}}
    for peer in sorted({*silent, *vanished} - {site.name}):
        seed_share, key_share = split_package(_open_package(site, run, number, peer, shown["packages"]))
        part, share = ("self", seed_share) if peer in received else ("keys", key_share)
        answer[part][peer] = share.hex()
    return encode(Envelope(Kind.ANSWER, run.run, number, run.plan_hash, site.name, to_json(answer)), site.identity)


def masks_in(run: SiteRun, number: int, sites: list[str], lifting: Lifting, length: int) -> NDArray[np.uint64]:
    """What must be subtracted from the opened sum. Raises TrustError when it is not the sum of the agreed list."""
    path = run.directory / f"list-{number:06d}"
    if path.exists() and path.read_bytes() != to_json({"sites": sites}):
        raise TrustError(f"the sum of round {number} is not the sum of the list that this site agreed on")
    if set(lifting.self_seeds) != set(sites):
        raise ProtocolError("the sum and what lifts its masks do not agree")
    count, bits = coefficients(run.scheme, length), run.scheme.plain_modulus_bits
    return masks_left_in_sum(lifting.self_seeds, lifting.broken_pairs, count, bits)


def forget(run: SiteRun, number: int) -> None:
    """Destroy the secrets of a round that is over. Its list stays: it is what this site agreed to."""
    for name in ("masks", "offer", "shown"):
        (run.directory / f"{name}-{number:06d}").unlink(missing_ok=True)


def _check_plot(site: Site, run: SiteRun, number: int, body: Mapping[str, Any]) -> None:
    offers, packages = body.get("offers"), body.get("packages")
    if not isinstance(offers, Mapping) or not isinstance(packages, Mapping):
        raise ProtocolError("the order shows no offers")
    if offers.get(site.name) != offer(site, run, number)["offer"]:
        raise TrustError("this site's own offer is missing or was changed")
    for name, data in offers.items():
        envelope = decode(from_hex(data), site.roster.public_key_of)
        if envelope.sender != name or name not in run.cohort:
            raise TrustError(f"the offer of {name} is not its own")
        Offer.of(envelope, run.run, run.plan_hash, number)
    required = run.plan.encryption.threshold_of(len(run.cohort))
    if len(offers) < required:
        raise CohortTooSmall(f"{len(offers)} sites offer masks, {required} are required")


def _check_list(site: Site, run: SiteRun, number: int, received: list[str]) -> None:
    if run.sealed_update(number) is None or not _round_path(run, number).exists():
        raise WrongRound(f"this site sent nothing in round {number}")
    shown = from_json(_round_path(run, number).read_bytes())
    if received != sorted(set(received)) or not set(received) <= set(shown["offers"]):
        raise TrustError("the list names sites that did not offer masks in this round")
    if site.name not in received:
        raise TrustError(f"this site sent its update for round {number} and is not on the list")
    required = max(
        run.plan.federation.min_cohort,
        site.settings.policy.min_cohort,
        run.plan.encryption.threshold_of(len(run.cohort)),
    )
    if len(received) < required:
        raise CohortTooSmall(f"a sum of {len(received)} sites is not opened, {required} are required")


def _require_agreed(site: Site, run: SiteRun, order: Envelope, received: list[str]) -> None:
    number = order.round_number
    path = run.directory / f"list-{number:06d}"
    if not path.exists() or path.read_bytes() != to_json({"sites": received}):
        raise TrustError(f"this site has not agreed on that list for round {number}")
    agreed = from_json(order.body).get("agreed")
    if not isinstance(agreed, list):
        raise ProtocolError("the order shows no agreement")
    signed = [decode(from_hex(data), site.roster.public_key_of) for data in agreed]
    require_agreement(signed, received, run.plan.encryption.threshold_of(len(run.cohort)), order)


def _pair_seeds(site: Site, run: SiteRun, number: int) -> dict[str, bytes]:
    _, mask_key = _secrets(run, number)
    shown = from_json(_round_path(run, number).read_bytes())
    seeds = {}
    for name, data in shown["offers"].items():
        if name != site.name:
            envelope = decode(from_hex(data), site.roster.public_key_of)
            theirs = Offer.of(envelope, run.run, run.plan_hash, number)
            context = mask_context(run.run, number)
            seeds[name] = pairwise_seed(mask_key, theirs.mask_key, site.name, name, context)
    return seeds


def _secrets(run: SiteRun, number: int) -> tuple[bytes, ExchangeKey]:
    path = run.directory / f"masks-{number:06d}"
    if not path.exists():
        raise WrongRound(f"this site has no masks for round {number}")
    data = load_secret(path, None)
    return data[:32], ExchangeKey.from_private_bytes(data[32:])


def _open_package(site: Site, run: SiteRun, number: int, peer: str, packages: Mapping[str, Any]) -> bytes:
    context = package_context(run.run, number, peer, site.name)
    return open_sealed(run.exchange_key, run.peers()[peer], from_hex(packages.get(peer)), context)


def _received(order: Envelope) -> list[str]:
    received = from_json(order.body).get("received")
    if not isinstance(received, list) or not all(isinstance(name, str) for name in received):
        raise ProtocolError("the order names no list of sites")
    return received


def _round_path(run: SiteRun, number: int) -> Path:
    return run.directory / f"shown-{number:06d}"
