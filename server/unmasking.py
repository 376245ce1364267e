"""From the sites' revelations to what lifts the masks of the agreed list. Pure; every secret is checked."""

from collections.abc import Mapping
from typing import Any

from common.buckets import Buckets, filled
from common.errors import CohortTooSmall, FederationError, ProtocolError
from common.he.masks import pairwise_seed
from common.he.sealing import ExchangeKey
from common.he.shares import combine_shares, commit
from common.masking import Lifting, Offer
from common.wire import from_hex


def silent_sites(
    offers: Mapping[str, Offer], received: list[str], revealed: Mapping[str, Any], buckets: Buckets = ()
) -> list[str]:
    """Sites on the list that have not revealed all that they owe: a self seed that fits, a seed per vanished peer.

    buckets: a site's peers are those of its bucket; without any, all are.
    """
    vanished = set(offers) - set(received)
    beside = {site: vanished & set(bucket) for bucket in buckets for site in bucket}
    return [s for s in received if not _is_whole(offers[s], beside.get(s, vanished), revealed.get(s))]


def lift_all(
    buckets: Buckets,
    context: bytes,
    threshold: int,
    offers: Mapping[str, Offer],
    received: list[str],
    revealed: Mapping[str, Any],
    shares: Mapping[str, Any],
) -> Lifting:
    """As `lift`, of each bucket by itself: sites are masked among their own bucket only."""
    seeds: dict[str, bytes] = {}
    pairs: dict[tuple[str, str], bytes] = {}
    for bucket in filled(buckets, received):
        beside = next(whole for whole in buckets if bucket[0] in whole)
        mine = {site: offer for site, offer in offers.items() if site in beside}
        lifting = lift(context, threshold, mine, list(bucket), revealed, shares)
        seeds |= lifting.self_seeds
        pairs |= lifting.broken_pairs
    return Lifting(seeds, pairs)


def lift(
    context: bytes,
    threshold: int,
    offers: Mapping[str, Offer],
    received: list[str],
    revealed: Mapping[str, Any],
    shares: Mapping[str, Any],
) -> Lifting:
    """What removes the masks of `received`, from live sites' own words and, for silent ones, from their peers' shares.

    context: see `mask_context`. revealed: site -> {self, pairs}.
    shares: site -> {self: {silent: share}, keys: {vanished: share}}.
    Raises CohortTooSmall when too few stand in, ProtocolError when shares do not give what was offered.
    """
    silent = silent_sites(offers, received, revealed)
    vanished = sorted(set(offers) - set(received))
    seeds = {site: from_hex(revealed[site]["self"]) for site in received if site not in silent}
    pairs = {
        (site, gone): from_hex(revealed[site]["pairs"][gone])
        for site in received
        if site not in silent
        for gone in vanished
    }
    for site in silent:
        seeds[site] = _combined(site, "self", shares, threshold)
        if commit(seeds[site]) != offers[site].commitment:
            raise ProtocolError(f"the shares of {site}'s self seed do not give what it committed to")
    if silent:
        for gone in vanished:
            mask_key = ExchangeKey.from_private_bytes(_combined(gone, "keys", shares, threshold))
            if mask_key.public != offers[gone].mask_key:
                raise ProtocolError(f"the shares of {gone}'s mask key do not give what it offered")
            for site in silent:
                pairs[site, gone] = pairwise_seed(mask_key, offers[site].mask_key, gone, site, context)
    return Lifting(seeds, pairs)


def _is_whole(offer: Offer, vanished: set[str], said: Any) -> bool:
    try:
        return commit(from_hex(said["self"])) == offer.commitment and all(
            len(from_hex(said["pairs"][gone])) == 32 for gone in vanished
        )
    except (FederationError, KeyError, TypeError):
        return False


def _combined(owner: str, part: str, shares: Mapping[str, Any], threshold: int) -> bytes:
    given = {}
    for holder, said in shares.items():
        try:
            given[holder] = from_hex(said[part][owner])
        except (FederationError, KeyError, TypeError):
            continue
    if len(given) < threshold:
        raise CohortTooSmall(f"{owner} vanished while masks were lifted, and {len(given)} of {threshold} stood in")
    return combine_shares(given, threshold)
