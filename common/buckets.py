"""Which sites are summed together: a public shuffle of the cohort into buckets, anew in every round. Pure.

The shuffle follows from the run, the round and the model before it. So everybody can work it out, it names nobody in a
message, and it is fixed before the round's first update: who would choose it later must choose the model before, which
nobody can who does not know what all sites added to it. Before the first round it can, as a coordinator draws the run's
number and that model is public; one that also holds the key could later try out which late sites to leave out. So
neither privacy nor a rule's breakdown point counts on luck: every bad site is taken to spoil a bucket of its own, and
all that collude to sit in one.
Reference: bucketing, Karimireddy, He, Jaggi 2022, arXiv:2006.09365, section 4.
"""

from collections.abc import Collection, Sequence

from common.errors import CohortTooSmall
from common.federation import Plan, require
from common.wire import digest

_SHUFFLE = b"veilfed.buckets.v1|"
Buckets = tuple[tuple[str, ...], ...]


def shuffled(cohort: Sequence[str], buckets: int, run: bytes, round_number: int, model_hash: bytes) -> Buckets:
    """The cohort in so many buckets whose sizes differ by one at most; 0: all in one. Sites are sorted within each.

    model_hash: SHA-256 of the model before the round.
    """
    if not buckets:
        return (tuple(sorted(cohort)),)
    seed = digest(_SHUFFLE, run, round_number.to_bytes(4, "big"), model_hash)
    order = sorted(cohort, key=lambda site: digest(seed, site.encode()))
    return tuple(tuple(sorted(order[place::buckets])) for place in range(buckets))


def filled(buckets: Buckets, sites: Collection[str]) -> Buckets:
    """Those of `sites` in each bucket, without buckets that none of them is in."""
    parts = (tuple(site for site in bucket if site in sites) for bucket in buckets)
    return tuple(part for part in parts if part)


def require_room(plan: Plan, cohort: int) -> None:
    """Raise ConfigError unless every bucket of such a cohort has room for the fewest sites that are ever summed."""
    most, asked = cohort // plan.federation.min_cohort, plan.robustness.buckets
    allowed = f"at most {most} for {cohort} sites with federation.min_cohort = {plan.federation.min_cohort}"
    require(asked <= most, "robustness.buckets", asked, allowed)


def require_full_enough(plan: Plan, summed: Buckets, fewest: int) -> None:
    """Raise CohortTooSmall for a bucket of fewer than `fewest` sites, or too few buckets for the plan's rule."""
    smallest = min(map(len, summed), default=0)
    if smallest < fewest:
        raise CohortTooSmall(f"a sum of {smallest} sites is not opened, {fewest} are required")
    if len(summed) < plan.fewest_vectors:
        bears = f"rule {plan.robustness.rule!r} bears {plan.robustness.byzantine} bad ones of {plan.fewest_vectors}"
        raise CohortTooSmall(f"{len(summed)} sums or updates are left: {bears}, not of fewer")
