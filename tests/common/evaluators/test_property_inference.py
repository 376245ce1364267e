"""Proves: a property that moves updates is told, as well as can be, and one that does not is not."""

import numpy as np
import pytest
from scipy.stats import norm

from common.errors import ConfigError
from common.evaluators.property_inference import property_scores
from common.evaluators.utility import auroc


def drawn(random: np.random.Generator, n: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Updates of 20 numbers on very different scales, one of which the property moves."""
    holds = random.random(n) < 0.5
    updates = random.normal(size=(n, 20))
    updates[:, 3] += gap * holds
    return updates * np.logspace(-6, 6, 20) + 5, holds


def test_it_is_told_nearly_as_well_as_whoever_knows_where_to_look() -> None:
    """The best there is has AUC Phi(gap / sqrt 2) = 0.983; 0.03 are for 400 shadows and 1,000 targets."""
    random = np.random.default_rng()
    shadows, holds = drawn(random, 400, 3.0)
    targets, truth = drawn(random, 1000, 3.0)
    assert auroc(property_scores(shadows, holds, targets), truth.astype(int)).value > norm.cdf(3 / 2**0.5) - 0.03


def test_nothing_is_told_where_nothing_is() -> None:
    """False alarm 1e-6: the standard error of an AUC of 500 and 500 is 0.0183."""
    random = np.random.default_rng()
    (shadows, holds), (targets, truth) = drawn(random, 200, 0.0), drawn(random, 1000, 0.0)
    found = auroc(property_scores(shadows, holds, targets), truth.astype(int)).value
    assert found == pytest.approx(0.5, abs=5 * 0.0183)


def test_updates_that_are_all_the_same_tell_nothing() -> None:
    assert (property_scores(np.ones((4, 3)), np.array([True, False, True, False]), np.ones((2, 3))) == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    both = np.array([True, False])
    for shadows, holds, targets in [
        (np.ones((2, 3)), both, np.ones((2, 4))),
        (np.ones((2, 3)), ~both | both, np.ones((2, 3))),
        (np.ones((3, 3)), both, np.ones((2, 3))),
    ]:
        with pytest.raises(ConfigError, match="shadows"):
            property_scores(shadows, holds, targets)
