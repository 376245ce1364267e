"""What opened counts by protected group say: gaps, rates and thresholds, as a round's record keeps it. Pure."""

from dataclasses import asdict
from typing import Any

from common.evaluators.fairness import Fairness, groupings, rates_by_group, selection_rates
from common.evaluators.groups import GroupCounts
from common.evaluators.mitigation import parity_thresholds
from common.evaluators.report import Material

_FEWEST_BINS = 4  # with two, a threshold can only be where it was
_SLACK = 0.025  # by which shares may still differ: the last of a gap costs the most accuracy


def by_group(counts: GroupCounts) -> dict[str, Any]:
    """{figures, remarks, groups, thresholds}, ready for JSON; intervals are 95 %, for records and noise together.

    figures: gaps between groups, `attribute: name`.   groups: attribute (or two) -> group -> rate.
    thresholds: attribute -> group -> the probability of class 1 above which a record of that group is to be named so,
    so that shares of groups differ by 0.025 at most; only where the plan counts by four bins or more and no group is
    lost in the noise. They follow from what was released, so they cost nothing more.
    """
    found = Fairness().evaluate(Material(groups=counts))
    tables = {chosen: counts.by(*chosen) for chosen in groupings(counts.cells.attributes)}
    enough = counts.cells.bins >= _FEWEST_BINS
    return {
        "figures": {name: asdict(figure) for name, figure in found.figures.items()},
        "remarks": list(found.remarks),
        "groups": {
            " and ".join(chosen): {
                group: {name: asdict(rate) for name, rate in rates.items()}
                for group, rates in rates_by_group(by).items()
            }
            for chosen, by in tables.items()
        },
        "thresholds": {
            chosen[0]: dict(parity_thresholds(by, _SLACK).by_group)
            for chosen, by in tables.items()
            if enough and len(chosen) == 1 and selection_rates(by).keys() == by.keys()
        },
    }
