"""Steps that favour the sites which the model serves worst: q-FedAvg, for runs that promise no privacy. Pure.

It minimises sum over sites of F^(q + 1) / (q + 1), F a site's loss, instead of the sum of F. Every site adds one number
to its update, and all sites' vectors are averaged as ever: the step is the mean of the updates, each times F^q, over
the mean of those numbers, which keep it short where the objective is steep.
Reference: Li et al. 2020, arXiv:1905.10497, algorithm 2, with L = 1 / learning rate. A large q is nearly for the worst
site alone: Mohri et al. 2019, arXiv:1902.00146.
"""

import math

import numpy as np

from common.updates import Vector

_LEAST_LOSS = 1e-10


def weighted(update: Vector, loss: float, q: float, learning_rate: float) -> Vector:
    """(d + 1,): what a site sends. update: (d,), new minus old. loss: of its records by the model as it came, nats."""
    loss = max(loss, _LEAST_LOSS)
    scale = math.pow(loss, q)
    reach = scale * (1 + q / loss / learning_rate * float(update @ update))
    return np.append(scale * update, reach)


def step(mean: Vector) -> Vector:
    """(d,): what all of them move by. mean: (d + 1,) of what the sites sent."""
    return np.asarray(mean[:-1] / mean[-1])
