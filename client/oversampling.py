"""Records made up between neighbours, so that no class is rarer than another while a site trains. They never leave.

Under differential privacy for records that is no harmless step. A record that is made up is made of two and chosen by
up to k + 1; and how many are made follows from all labels, so one record moves any number of those. The factor of
group privacy has no useful bound, and `common/soundness.py` refuses such a plan. A whole site as the unit is not
affected: its update is bounded whatever it was trained on. Reference: Rosenblatt et al. 2025, arXiv:2411.05733.
"""

import numpy as np
from numpy.typing import NDArray

from common.randomness import Randomness

NEIGHBOURS = 5  # as Chawla et al. have it


def smote(
    features: NDArray[np.float32], labels: NDArray[np.int64], randomness: Randomness
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The records (n, *inputs) and as many more of each rarer class as make it as frequent as the most frequent.

    Each lies at a random place on the line from a record of its class, drawn with equal chances, to one of its five
    nearest of that class. Columns of levels get values between levels. A class with one record stays as it is: it has
    no neighbour. Reference: Chawla et al. 2002, arXiv:1106.1813, section 4.2.
    """
    classes, counts = np.unique(labels, return_counts=True)
    made, named = [features], [labels]
    for label, count in zip(classes, counts, strict=True):
        missing = int(counts.max() - count)
        if missing and count > 1:
            made.append(_between(features[labels == label], missing, randomness))
            named.append(np.full(missing, label))
    return np.concatenate(made), np.concatenate(named)


def _between(records: NDArray[np.float32], missing: int, randomness: Randomness) -> NDArray[np.float32]:
    from sklearn.neighbors import NearestNeighbors  # slow to import, and few plans want it

    flat = records.reshape(len(records), -1)
    near = min(NEIGHBOURS, len(records) - 1)
    places = NearestNeighbors(n_neighbors=near).fit(flat).kneighbors(return_distance=False)
    first, which, along = randomness.uniform(3 * missing).reshape(3, missing)
    origin = (first * len(records)).astype(np.int64)
    target = places[origin, (which * near).astype(np.int64)]
    mixed = flat[origin] + along[:, None].astype(np.float32) * (flat[target] - flat[origin])
    return mixed.reshape(missing, *records.shape[1:])
