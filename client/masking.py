"""A site's part in the mask protocol: offer, mask, agree on one sum, reveal what lifts exactly that sum's masks.

On disk before it is said: the secrets before the offer, the sum and its list before the agreement. So a restart
repeats itself word for word, and a second sum or list for the same round is refused for ever.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.runs import SiteRun, signed_answer
from client.site import Site
from common.buckets import Buckets, filled, require_full_enough
from common.errors import CohortTooSmall, ProtocolError, TrustError, WrongRound
from common.files import write_atomically
from common.he.masks import MaskStream, masks_left_in_sum, pairwise_seed, site_mask
from common.he.scheme import coefficients
from common.he.sealing import ExchangeKey, open_sealed, seal
from common.he.shares import commit, split_secret
from common.masking import (
    Offer,
    Opening,
    Published,
    cohort_hash,
    holders,
    mask_context,
    package_context,
    require_agreement,
    split_package,
)
from common.spans import span
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, names, to_json


def offer(site: Site, run: SiteRun, number: int) -> dict[str, Any]:
    """The signed offer for a round and a sealed package of shares for every peer. Asked again, the same again."""
    path = run.directory / f"offer-{number:06d}"
    if path.exists():
        return from_json(path.read_bytes())
    self_seed, mask_key = os.urandom(32), ExchangeKey.generate()
    run.at_rest.save(run.directory / f"masks-{number:06d}", self_seed + mask_key.private_bytes())
    epoch, keepers = run.plan.encryption.epoch_of(number), holders(run.cohort, site.name)
    peers, exchange_key = run.peers(epoch), run.exchange_key(epoch)
    threshold = run.plan.encryption.share_threshold_of(len(run.cohort))
    seed_shares = split_secret(self_seed, threshold, keepers)
    key_shares = split_secret(mask_key.private_bytes(), threshold, keepers)
    packages = {
        peer: seal(
            exchange_key,
            public,
            seed_shares[peer] + key_shares[peer],
            package_context(run.run, number, site.name, peer),
        ).hex()
        for peer, public in peers.items()
        if peer != site.name and peer in keepers
    }
    body = Offer(mask_key.public, commit(self_seed), cohort_hash(run.cohort)).encode()
    signed = encode(Envelope(Kind.OFFER, run.run, number, run.plan_hash, site.name, body), site.identity)
    made = {"offer": signed.hex(), "packages": packages}
    write_atomically(path, to_json(made))
    return made


def accept_offers(site: Site, run: SiteRun, order: Envelope) -> None:
    """Keep the offers and packages that a training order shows: this round is masked among these sites.

    One that was revoked since it offered may be among them, and counts for nothing: it is like one that colludes.
    Raises TrustError when an offer is not signed by its site, or ours is not among them.
    """
    body = from_json(order.body)
    _check_offers(site, run, order.round_number, body)
    write_atomically(_shown_path(run, order.round_number), order.body)


@span("mask")
def mask(site: Site, run: SiteRun, number: int, length: int) -> MaskStream:
    """The mask, grown as it is read, of this site's update among the sites whose offers it accepted."""
    self_seed, mask_key = _secrets(run, number)
    count, bits = coefficients(run.scheme, length), run.scheme.plain_modulus_bits
    seeds = _pair_seeds(site, run, number, mask_key)
    return MaskStream(count, lambda count, start: site_mask(site.name, self_seed, seeds, count, bits, start))


def agree(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received, sum} -> this site's signature under both: given once a round, and only if it is on the list."""
    number, opening = order.round_number, _asked(run, order)
    _check_list(site, run, number, opening.sites)
    path, agreed = _list_path(run, number), to_json(opening.to_json())
    if path.exists() and path.read_bytes() != agreed:
        raise TrustError(f"this site has agreed on another sum or list for round {number}")
    write_atomically(path, agreed)
    return signed_answer(site, run, number, {"list": opening.digest(run.run, number)})


def unmask(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received, sum, agreed} -> our self seed, and the pair seeds with sites that are not on the list."""
    number, opening = order.round_number, _asked(run, order)
    _require_agreed(site, run, order, opening)
    self_seed, mask_key = _secrets(run, number)
    seeds = _pair_seeds(site, run, number, mask_key)
    pairs = {name: seed.hex() for name, seed in seeds.items() if name not in opening.sites}
    body: dict[str, Any] = {"self": self_seed.hex(), "pairs": pairs}
    if number < run.plan.last_round and run.has_cohort_key(run.plan.encryption.epoch_of(number + 1)):
        body["next"] = offer(site, run, number + 1)
    return signed_answer(site, run, number, body)


def stand_in(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {received, sum, agreed, silent} -> our shares for summed sites that fell silent while masks were lifted.

    Shares of a self seed for sites on the list, of a mask key for those of their buckets that are not: never the other
    way round.
    A peer whose package does not open is left out: it must not keep us from standing in for others.
    """
    number, opening = order.round_number, _asked(run, order)
    _require_agreed(site, run, order, opening)
    shown, silent = _shown(run, number), names(from_json(order.body), "silent")
    if not set(silent) <= set(opening.sites):
        raise ProtocolError("only sites on the list can have fallen silent")
    beside = {site for bucket in run.buckets(number) if set(bucket) & set(silent) for site in bucket}
    vanished = set(shown["offers"]) & beside - set(opening.sites)
    answer: dict[str, dict[str, str]] = {"self": {}, "keys": {}}
    for peer in sorted({*silent, *vanished} - {site.name}):
        try:
            seed_share, key_share = split_package(_open_package(site, run, number, peer, shown["packages"]))
        except (ProtocolError, TrustError):
            continue
        part, share = ("self", seed_share) if peer in opening.sites else ("keys", key_share)
        answer[part][peer] = share.hex()
    return signed_answer(site, run, number, answer)


def masks_in(site: Site, run: SiteRun, order: Envelope, published: Published, summed: Buckets) -> list[MaskStream]:
    """What must be subtracted from each opened sum, grown as it is read. summed: the sites of each.

    Raises TrustError unless enough sites have agreed to open these very sums, of this list, on top of the model that
    this site holds; and when this site itself has agreed to others.
    """
    number, version = order.round_number, run.version()
    opening = Opening(published.sites, published.sum_hash, version.model_hash.hex())
    path = _list_path(run, number)
    if path.exists() and path.read_bytes() != to_json(opening.to_json()):
        raise TrustError(f"round {number}: not the sum and list that this site agreed on")
    _require_signed(site, run, order, published.agreed, opening)
    buckets = {name: place for place, bucket in enumerate(run.buckets(number)) for name in bucket}
    seeds, pairs = published.lifting.self_seeds, published.lifting.broken_pairs
    if set(seeds) != set(opening.sites) or any(
        mine not in seeds or buckets.get(mine, -1) != buckets.get(gone) for mine, gone in pairs
    ):
        raise ProtocolError("the sum and what lifts its masks do not agree")
    return [
        _masks_of(run, number, {name: seeds[name] for name in bucket}, {p: pairs[p] for p in pairs if p[0] in bucket})
        for bucket in summed
    ]


def _masks_of(
    run: SiteRun, number: int, seeds: Mapping[str, bytes], pairs: Mapping[tuple[str, str], bytes]
) -> MaskStream:
    count, bits = coefficients(run.scheme, run.layout(number).length), run.scheme.plain_modulus_bits
    return MaskStream(count, lambda count, start: masks_left_in_sum(seeds, pairs, count, bits, start))


def require_list(site: Site, run: SiteRun, number: int, sites: Sequence[str], gone: Collection[str] = ()) -> None:
    """Raises TrustError for a list that is not in order or not of this cohort, CohortTooSmall for a short one, for one
    that leaves a bucket short, or leaves fewer buckets than the plan's rule needs. gone: may be on it and do not count.
    """
    if list(sites) != sorted(set(sites)) or not set(sites) <= set(run.cohort):
        raise TrustError("the list of summed sites is out of order, doubled, or not part of the cohort")
    counted = [name for name in sites if name not in gone]
    require_full_enough(run.plan, filled(run.buckets(number), counted), _smallest(site, run))
    required = run.plan.fewest_sites(len(run.cohort))
    if len(counted) < required:
        raise CohortTooSmall(f"a sum of {len(counted)} sites is not opened, {required} are required")


def forget(run: SiteRun, number: int) -> None:
    """Destroy the secrets of a round that is over. Its list stays: it is what this site agreed to."""
    for name in ("masks", "offer", "shown"):
        (run.directory / f"{name}-{number:06d}").unlink(missing_ok=True)


def _check_offers(site: Site, run: SiteRun, number: int, body: Mapping[str, Any]) -> None:
    offers, packages = body.get("offers"), body.get("packages")
    if not isinstance(offers, Mapping) or not isinstance(packages, Mapping):
        raise ProtocolError("the order shows no offers")
    if offers.get(site.name) != offer(site, run, number)["offer"]:
        raise TrustError("this site's own offer is missing or was changed")
    for name, data in offers.items():
        envelope = decode(from_hex(data), site.roster.key_of_member)
        if envelope.sender != name or name not in run.cohort:
            raise TrustError(f"the offer of {name} is not its own")
        if Offer.of(envelope, run.run, run.plan_hash, number).cohort != cohort_hash(run.cohort):
            raise TrustError(f"{name} was told of another cohort than this site")
    living = set(offers) - site.roster.revoked
    if len(living) < _threshold(run):
        raise CohortTooSmall(f"{len(living)} sites offer masks, {_threshold(run)} are required")
    beside = set(_bucket(site, run, number)) & living
    if len(beside) < _smallest(site, run):
        raise CohortTooSmall(f"{len(beside)} sites of its bucket offer masks, {_smallest(site, run)} are required")


def _asked(run: SiteRun, order: Envelope) -> Opening:
    """What the order wants opened, on top of the model that this site holds."""
    body, version = from_json(order.body), run.version()
    if order.round_number != version.round_number + 1:
        raise WrongRound(f"round {order.round_number} is not open at this site")
    return Opening(tuple(names(body, "received")), from_hex(body.get("sum")).hex(), version.model_hash.hex())


def _check_list(site: Site, run: SiteRun, number: int, received: Sequence[str]) -> None:
    if not run.has_sealed_update(number):
        raise WrongRound(f"this site sent nothing in round {number}")
    if not set(received) <= set(_shown(run, number)["offers"]):
        raise TrustError("the list names sites that did not offer masks in this round")
    if site.name not in received:
        raise TrustError(f"this site sent its update for round {number} and is not on the list")
    require_list(site, run, number, received, site.roster.revoked)


def _require_agreed(site: Site, run: SiteRun, order: Envelope, opening: Opening) -> None:
    path = _list_path(run, order.round_number)
    if not path.exists() or path.read_bytes() != to_json(opening.to_json()):
        raise TrustError(f"this site has not agreed on that sum and list for round {order.round_number}")
    _require_signed(site, run, order, names(from_json(order.body), "agreed"), opening)


def _require_signed(site: Site, run: SiteRun, order: Envelope, agreed: Sequence[str], opening: Opening) -> None:
    signed = [decode(from_hex(data), site.roster.key_of_member) for data in agreed]
    require_agreement(
        [said for said in signed if said.sender not in site.roster.revoked], opening, _threshold(run), order
    )


def _threshold(run: SiteRun) -> int:
    return run.plan.encryption.threshold_of(len(run.cohort))


def _smallest(site: Site, run: SiteRun) -> int:
    """The fewest sites whose sum this site has opened."""
    return max(run.plan.smallest_sum(len(run.cohort)), site.policy.min_cohort)


def _bucket(site: Site, run: SiteRun, number: int) -> tuple[str, ...]:
    """The sites that are summed with this one in that round, were all there: itself among them."""
    return next(bucket for bucket in run.buckets(number) if site.name in bucket)


def _pair_seeds(site: Site, run: SiteRun, number: int, mask_key: ExchangeKey) -> dict[str, bytes]:
    """Of this site with each other of its bucket that offered masks: elsewhere they would not cancel."""
    context = mask_context(run.run, number, run.version().model_hash.hex())
    seeds, bucket = {}, _bucket(site, run, number)
    for name, data in _shown(run, number)["offers"].items():
        if name != site.name and name in bucket:
            envelope = decode(from_hex(data), site.roster.key_of_member)
            theirs = Offer.of(envelope, run.run, run.plan_hash, number)
            seeds[name] = pairwise_seed(mask_key, theirs.mask_key, site.name, name, context)
    return seeds


def _secrets(run: SiteRun, number: int) -> tuple[bytes, ExchangeKey]:
    path = run.directory / f"masks-{number:06d}"
    if not path.exists():
        raise WrongRound(f"this site has no masks for round {number}")
    data = run.at_rest.load(path)
    return data[:32], ExchangeKey.from_private_bytes(data[32:])


def _open_package(site: Site, run: SiteRun, number: int, peer: str, packages: Mapping[str, Any]) -> bytes:
    epoch = run.plan.encryption.epoch_of(number)
    peers = run.peers(epoch)
    if peer not in peers:
        raise ProtocolError(f"{peer} has no exchange key in this epoch")
    context = package_context(run.run, number, peer, site.name)
    return open_sealed(run.exchange_key(epoch), peers[peer], from_hex(packages.get(peer)), context)


def _shown(run: SiteRun, number: int) -> dict[str, Any]:
    """The offers and packages that this round's masks are made of."""
    path = _shown_path(run, number)
    if not path.exists():
        raise WrongRound(f"this site has no masks for round {number}")
    return from_json(path.read_bytes())


def _shown_path(run: SiteRun, number: int) -> Path:
    return run.directory / f"shown-{number:06d}"


def _list_path(run: SiteRun, number: int) -> Path:
    return run.directory / f"list-{number:06d}"
