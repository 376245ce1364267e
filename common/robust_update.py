"""From the means of buckets, or from readable updates, to the one update that all apply. Pure.

A site promises to clip what it sends. A bucket whose mean is longer than any mean of clipped updates holds a site that
broke its word: it is left out, whoever of it that was, and the rule has one bad vector less to bear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.breakdown import tolerated
from common.errors import InvalidUpdate
from common.federation import RobustnessSettings
from common.robust_rules import RULES, length
from common.updates import Vector

BROKEN = "BucketNormExceeded"


@dataclass(frozen=True)
class RobustUpdate:
    """broken: places of the vectors that were left out."""

    values: Vector
    broken: tuple[int, ...]


def robust_update(means: Sequence[Vector], longest: Sequence[float], settings: RobustnessSettings) -> RobustUpdate:
    """The plan's rule over all vectors that keep the bound.

    means: (d,) each. longest: the L2 norm that each one has at most where all its senders clip; infinity without bound.
    Raises InvalidUpdate when more vectors break their bound than the plan has bad sites, or the rest is too few.
    """
    broken = tuple(place for place, mean in enumerate(means) if length(mean) > longest[place])
    good = [mean for place, mean in enumerate(means) if place not in broken]
    bad = settings.byzantine - len(broken)
    if bad < 0 or not good or tolerated(settings.rule, len(good)) < bad:
        raise InvalidUpdate(
            f"{len(broken)} of {len(means)} buckets are longer than their sites agreed to, and rule {settings.rule!r} "
            f"was to bear {settings.byzantine} bad sites",
            "more sites send poison than the plan counts on: find them, or raise robustness.byzantine",
        )
    return RobustUpdate(RULES[settings.rule](good, bad), broken)
