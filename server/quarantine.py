"""Which sites are not asked any more, because their buckets broke the norm bound too often for chance. Pure.

A bucket that breaks it holds a site that did not clip; which one, nobody can see. But buckets are shuffled anew in each
round: a site that always breaks it is in a broken bucket every time, and one that never does only when it is put
together with one that did. With f such sites among n and buckets of b, chance does that in a round with
p = f (b - 1) / (n - 1) at most, whatever happened before, so in k of m rounds no more often than in a binomial law.
A site is left out when that has odds under 1 in 1,000 for any honest site in any round of the run, which assumes what
the plan does: no more than `robustness.byzantine` sites break it. It is the coordinator that does not ask it any more,
as it may with any site. A bad site whose lie stays within the bound is never found so: that one is the rule's task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binom

from common.federation import Plan
from common.robust_update import BROKEN
from server.round import LeftOut

QUARANTINED = "Quarantined"
_FALSE_ALARM = 1e-3  # that any honest site is left out so in a run


def quarantined(rounds: Sequence[Mapping[str, Any]], plan: Plan, sites: Sequence[str]) -> tuple[LeftOut, ...]:
    """For the rest of the run. rounds: the records of all that are closed; one without buckets counts for the sites."""
    settings = plan.robustness
    if not settings.buckets:
        return ()
    n, largest = len(sites), -(-len(sites) // settings.buckets)
    chance = min(1.0, settings.byzantine * (largest - 1) / (n - 1))
    limit = _FALSE_ALARM / (n * plan.last_round)
    found = []
    for site in sites:
        times = 0
        for played, record in enumerate(rounds, 1):
            times += any(site in bucket["sites"] for bucket in record.get("buckets", []) if bucket["code"] == BROKEN)
            odds = float(binom.sf(times - 1, played, chance))
            if odds < limit:
                told = f"in {times} of {played} rounds its bucket broke the norm bound: by chance, odds of {odds:.0e}"
                found.append(LeftOut(site, QUARANTINED, told))
                break
    return tuple(found)
