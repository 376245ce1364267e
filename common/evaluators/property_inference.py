"""Property inference: whether something holds of a site's records as a whole, told from the updates they lead to. Pure.

What is guessed is no record: noise that hides one record hides it only by accident. Noise for whole sites, or few
rounds with few others to hide among, is what bounds it.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Floats, auroc, wilson

_FLAT = 1e-12  # of the largest: coordinates that vary less say nothing


def property_scores(shadows: Floats, holds: NDArray[np.bool_], targets: Floats) -> Floats:
    """(t,): log-odds that the property holds of the records behind each target.

    shadows: (k, d) updates, or sums of them, of sites that the attacker made up, with the property or without: holds
    (k,). targets: (t, d). A logistic regression tells them apart, on coordinates of unit variance.
    References: Ateniese et al. 2015, arXiv:1306.4447; on federated updates, Melis et al. 2019, arXiv:1805.04049.
    For deep networks Ganju et al. 2018, doi 10.1145/3243734.3243834, sort neurons first, which would find
    more.
    """
    fits = (
        shadows.ndim == targets.ndim == 2
        and shadows.shape[1:] == targets.shape[1:]
        and holds.shape == shadows.shape[:1]
    )
    if not fits or holds.all() or not holds.any():
        raise ConfigError(f"shadows {shadows.shape} of both kinds do not fit {holds.shape} answers, {targets.shape}")
    centre, spread = shadows.mean(axis=0), shadows.std(axis=0)
    told = spread > _FLAT * max(float(spread.max()), np.finfo(np.float64).tiny)
    if not told.any():
        return np.zeros(len(targets))
    known, asked = ((part[:, told] - centre[told]) / spread[told] for part in (shadows, targets))
    return np.asarray(
        LogisticRegression(C=1 / known.shape[1], max_iter=1000).fit(known, holds).decision_function(asked)
    )


class PropertyInference:
    """How well a property is told. References: those of `property_scores`; for AUROC, of `auroc`."""

    name = "property_inference"
    needs = frozenset({"guessed"})

    def evaluate(self, material: Material) -> Findings:
        guessed = needed(material.guessed, "guessed", self.name)
        right = int(((guessed.scores > 0) == guessed.members).sum())
        figures = {
            "auc": auroc(guessed.scores, guessed.members.astype(np.int64)),
            "accuracy": wilson(right, len(guessed.scores)),
        }
        return Findings(self.name, figures, ("0.5 is what guessing finds; a better attack may find more",))
