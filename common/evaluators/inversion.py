"""Inversion: records and labels rebuilt from what training gives away. Pure.

What is attacked is a vector in the shape of a model's gradient: one record's, one site's update, or a decrypted sum.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats, bootstrap, wilson

RECOVERED_DB = 25.0  # of PSNR: above it an image is taken as seen
_EXACT_DB = 100.0  # what is said of more
_QUIET = 1e-6  # of the largest: neurons that moved less say nothing of a record


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """psnr: (n,) for each record, in decibels, of its likest candidate."""

    psnr: Floats = field(repr=False)

    def __post_init__(self) -> None:
        if self.psnr.ndim != 1 or not len(self.psnr) or not np.isfinite(self.psnr).all():
            raise ConfigError(f"needs one finite PSNR for each record, got {self.psnr.shape}")


def from_first_layer(weights: Floats, biases: Floats) -> Floats:
    """(candidates, d): inputs behind the gradient of a linear layer, clipped to 0..1, mean estimate first.

    weights: (h, d), biases: (h,): its gradient. For one record the first is the second times the record, so every
    neuron shows it; for a sum, neurons that one record alone excites do. The first candidate is the least squares over
    all neurons, the rest the neurons' own. References: Phong et al. 2018, section III; Geiping et al. 2020,
    arXiv:2003.14053, proposition 3.1.
    """
    energy = float(biases @ biases)
    if not energy:
        return np.zeros((1, weights.shape[1]))
    loud = np.abs(biases) > _QUIET * np.abs(biases).max()
    together = biases @ weights / energy
    return np.asarray(np.clip(np.vstack([together[None], weights[loud] / biases[loud, None]]), 0.0, 1.0))


def by_optimising(mismatch: Callable[[Floats], tuple[float, Floats]], start: Floats, steps: int = 300) -> Floats:
    """The input, in the shape of `start` and within 0..1, whose gradient fits best what was seen.

    mismatch: from an input to its misfit and the misfit's gradient by the input. Descent: L-BFGS-B (Byrd et al. 1995).
    Reference: Zhu, Liu, Han 2019, arXiv:1906.08935, eq. 1.
    """

    def flat(x: Floats) -> tuple[float, Floats]:
        value, gradient = mismatch(x.reshape(start.shape))
        return value, np.asarray(gradient, np.float64).reshape(-1)

    found = minimize(
        flat, start.reshape(-1), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * start.size, options={"maxiter": steps}
    )
    return np.asarray(found.x).reshape(start.shape)


def label_counts(biases: Floats, records: float, mean_probabilities: Floats) -> Floats:
    """(classes,): how many records of each class are behind the gradient of the last layer's biases.

    biases: (classes,), the gradient of the records' summed loss; it is the sum of probabilities minus labels, so with
    what the model gives on average the labels are left. Without noise and for one record the answer is exact.
    References: Zhao, Mopuri, Bilen 2020, arXiv:2001.02610 (iDLG); Wainakh et al. 2022, arXiv:2105.09369 (LLG), eq. 4.
    """
    return np.asarray(records * mean_probabilities - biases)


def peak_signal_to_noise(candidates: Floats, truth: Floats) -> Floats:
    """(n,): in decibels, for each of truth (n, d), values 0 to 1, of its likest candidate (k, d).

    The attacker does not know which that is, so this flatters him. Reference: Huynh-Thu and Ghanbari 2008, eq. 1.
    """
    errors = ((truth[:, None, :] - candidates[None, :, :]) ** 2).mean(axis=2).min(axis=1)
    return np.asarray(np.minimum(_EXACT_DB, -10 * np.log10(np.maximum(errors, 1e-30))))


class Inversion:
    """How many records were seen. Reference: Geiping et al. 2020, arXiv:2003.14053, section 4, for PSNR as measure."""

    name = "inversion"
    needs = frozenset({"rebuilt"})

    def evaluate(self, material: Material) -> Findings:
        psnr = needed(material.rebuilt, "rebuilt", self.name).psnr

        def median(chosen: NDArray[np.int64]) -> float:
            return float(np.median(psnr[chosen]))

        figures: dict[str, Estimate] = {
            "recovered": wilson(int((psnr > RECOVERED_DB).sum()), len(psnr)),
            "median_psnr_db": bootstrap(median, len(psnr), material.rng),
        }
        return Findings(self.name, figures, (f"recovered means over {RECOVERED_DB:g} dB",))
