"""What thresholds by group make of a model on held-out records, as only a simulation can see it. Pure."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.datasets import Records
from common.evaluators.fairness import demographic_parity_difference
from common.evaluators.groups import GroupCells, GroupCounts
from common.evaluators.mitigation import Thresholds
from common.evaluators.utility import accuracy

Judged = dict[str, dict[str, float]]


def before_and_after(
    probabilities: NDArray[np.float64], records: Records, attribute: str, thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """{thresholds, before, after}: accuracy and gap in selection rates at 0.5 for all, and at each group's threshold.

    Of these records themselves, without noise. probabilities: (n, 2). Raises ConfigError for groups without records.
    """
    cells = GroupCells({attribute: tuple(thresholds)})

    def judged(decision: NDArray[np.bool_]) -> Judged:
        named = np.column_stack([~decision, decision]).astype(np.float64)
        counts = GroupCounts(cells, cells.tally(named, records.labels, records.groups), 0.0)
        gap = demographic_parity_difference(counts.by(attribute))
        return {"accuracy": asdict(accuracy(named, records.labels)), "demographic_parity_difference": asdict(gap)}

    return {
        "thresholds": dict(thresholds),
        "before": judged(probabilities[:, 1] > 0.5),
        "after": judged(Thresholds(thresholds).decide(probabilities, records.groups[attribute])),
    }
