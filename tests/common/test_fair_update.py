"""Proves: q-FedAvg is the plain mean at q = 0, its paper's step else, and nears the best worst site as q grows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.fair_update import step, weighted

CENTRES = np.array([[0.0], [0.2], [3.0]])  # two sites alike, one apart; each one's loss is lowest at its own


def losses(w: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * ((w - CENTRES) ** 2).sum(axis=1)


def trained(q: float, rate: float = 0.1) -> np.ndarray:
    w = np.zeros(1)
    for _ in range(3000):
        sent = [weighted(rate * (c - w), loss, q, rate) for c, loss in zip(CENTRES, losses(w), strict=True)]
        w = w + step(np.mean(sent, axis=0))
    return w


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0, 10), st.floats(0, 10))
def test_q_of_zero_is_the_mean(values: list[float], one: float, other: float) -> None:
    updates = np.array(values).reshape(2, 3)
    sent = [weighted(update, loss, 0.0, 0.1) for update, loss in zip(updates, (one, other), strict=True)]
    np.testing.assert_allclose(step(np.mean(sent, axis=0)), updates.mean(axis=0), atol=1e-12)


def test_one_step_by_hand() -> None:
    """q 2, L 1/0.5 = 2. Losses 1 and 2: numerators 1 x 3, 4 x -1; h / L: 1 + 2 x 1 x 2 x 9 and 4 + 2 x 2 x 2 x 1."""
    sent = [weighted(np.array([3.0]), 1.0, 2.0, 0.5), weighted(np.array([-1.0]), 2.0, 2.0, 0.5)]
    assert step(np.mean(sent, axis=0)) == pytest.approx([(3 - 4) / (37 + 12)])


def test_the_worst_site_fares_better_the_larger_q_and_nearly_as_well_as_any_model_allows() -> None:
    worst = [float(losses(trained(q)).max()) for q in (0.0, 1.0, 3.0, 10.0)]
    assert worst == sorted(worst, reverse=True)
    best = min(float(losses(np.array([w])).max()) for w in np.linspace(0, 3, 301))
    assert worst[0] > best + 0.4
    assert worst[-1] < best + 0.1
    assert trained(0.0) == pytest.approx(CENTRES.mean())


def test_a_site_without_a_loss_does_not_stop_the_others() -> None:
    for q in (0.5, 3.0):
        moved = step(np.mean([weighted(np.zeros(1), 0.0, q, 0.1), weighted(np.ones(1), 1.0, q, 0.1)], axis=0))
        assert np.isfinite(moved).all()
        assert moved[0] > 0
