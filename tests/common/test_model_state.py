"""The model between rounds: the same everywhere, and nothing that is not finite gets in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidUpdate, TrustError
from common.federation import TrainingSettings
from common.model_state import ModelState, advance


def test_one_round_is_the_mean_and_momentum_adds_up():
    training = TrainingSettings(server_momentum=0.5, server_learning_rate=2.0)
    state = ModelState.initial(np.zeros(2))
    state = advance(state, np.array([1.0, -1.0]), training, rounds=3)
    state = advance(state, np.array([1.0, 0.0]), training, rounds=3)
    assert state.round_number == 2
    assert state.model.tolist() == [2.0 + 3.0, -2.0 - 1.0]


def test_the_tail_average_is_of_the_last_models_only():
    training = TrainingSettings(tail_average=0.5)
    state = ModelState.initial(np.zeros(1))
    for _ in range(4):
        state = advance(state, np.ones(1), training, rounds=4)
    assert state.released.tolist() == [3.5]
    assert state.model.tolist() == [4.0]


@given(st.integers(1, 50), st.floats(0, 1))
def test_bytes_round_trip(size, tail):
    state = ModelState.initial(np.linspace(-1, 1, size))
    state = advance(state, np.ones(size), TrainingSettings(tail_average=tail, server_momentum=0.9), rounds=1)
    again = ModelState.from_bytes(state.to_bytes())
    assert again.model_hash == state.model_hash
    assert (again.round_number, again.averaged) == (state.round_number, state.averaged)
    assert again.released.tolist() == state.released.tolist()


@pytest.mark.parametrize("update", [np.array([np.nan, 0]), np.array([np.inf, 0]), np.zeros(3)])
def test_updates_that_are_not_finite_or_not_of_this_model_are_refused(update):
    with pytest.raises(InvalidUpdate):
        advance(ModelState.initial(np.zeros(2)), update, TrainingSettings(), rounds=1)


def test_a_damaged_file_is_named_not_loaded():
    data = ModelState.initial(np.zeros(4)).to_bytes()
    for broken in (b"", data[:20], data[:-1], b"\xff" * len(data)):
        with pytest.raises(TrustError):
            ModelState.from_bytes(broken)
