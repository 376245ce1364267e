"""What opened counts by protected group say of a model, as the record of a round keeps it. Pure."""

from dataclasses import asdict
from typing import Any

from common.evaluators.fairness import Fairness, rates_by_group, selection_rates
from common.evaluators.groups import GroupCounts
from common.evaluators.mitigation import parity_thresholds
from common.evaluators.report import Material

_FEWEST_BINS = 4  # with two, a threshold can only be where it was


def by_group(counts: GroupCounts) -> dict[str, Any]:
    """{figures, remarks, groups, thresholds}, ready for JSON; intervals are 95 %, for records and noise together.

    figures: gaps between groups, `attribute: name`.   groups: attribute -> group -> rate.
    thresholds: attribute -> group -> the probability of class 1 above which a record of that group is to be named so,
    for equal shares of each group; only where the plan counts by four bins or more and no group is lost in the noise.
    They follow from what was released, so they cost nothing more.
    """
    found = Fairness().evaluate(Material(groups=counts))
    tables = {name: counts.by(name) for name in counts.cells.attributes}
    clear = [name for name, by in tables.items() if selection_rates(by).keys() == by.keys()]
    chosen = clear if counts.cells.bins >= _FEWEST_BINS else []
    return {
        "figures": {name: asdict(figure) for name, figure in found.figures.items()},
        "remarks": list(found.remarks),
        "groups": {
            name: {group: {rate: asdict(told) for rate, told in rates.items()} for group, rates in found_by.items()}
            for name, found_by in ((name, rates_by_group(by)) for name, by in tables.items())
        },
        "thresholds": {name: dict(parity_thresholds(tables[name]).by_group) for name in chosen},
    }
