"""The model between rounds: the same everywhere, and nothing that is not finite gets in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidUpdate, TrustError
from common.federation import TrainingSettings
from common.model_state import ModelState, ModelVersion, _power, advance


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


def test_the_moving_average_forgets_at_its_rate_and_never_the_first_model_more():
    """Weights 1, d, d^2 over the models, newest first, over their sum: known by hand."""
    training = TrainingSettings(ema_decay=0.5)
    state = ModelState.initial(np.zeros(1))
    released = []
    for _ in range(3):
        state = advance(state, np.ones(1), training, rounds=9)
        released.append(float(state.released[0]))
    assert released == pytest.approx([1.0, (2 + 0.5) / 1.5, (3 + 0.5 * 2 + 0.25) / 1.75], rel=1e-6)


def test_fedadam_is_adam_on_the_mean_update():
    """Against torch.optim.Adam in float64; the state is rounded to float32 every round."""
    import torch

    training = TrainingSettings(
        server_optimizer="adam",
        server_learning_rate=0.1,
        server_momentum=0.8,
        server_second_momentum=0.95,
        server_adaptivity=1e-2,
    )
    start, rng = np.array([0.5, -2.0, 0.0, 3.0]), np.random.default_rng(0)
    state, weights = ModelState.initial(start), torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.1, betas=(0.8, 0.95), eps=1e-2, maximize=True)
    for _ in range(12):
        update = rng.normal(size=4) * [1, 0.01, 0, 100]
        state = advance(state, update, training, rounds=12)
        weights.grad = torch.tensor(update)
        adam.step()
        np.testing.assert_allclose(state.model, weights.detach().numpy(), atol=1e-5)
    again = ModelState.from_bytes(state.to_bytes())
    assert again.second_moment.tolist() == state.second_moment.tolist()


def test_powers_are_products_that_every_machine_rounds_alike():
    """The C library's pow may differ in its last bit from machine to machine; then the sites' models would."""
    base, product = 0.9, 1.0
    for times in range(1, 200):
        product *= base
        assert _power(base, times) == product
    assert any(_power(base, times) != base**times for times in range(200))


@given(st.integers(1, 50), st.floats(0, 1), st.sampled_from(["momentum", "adam"]))
def test_bytes_round_trip(size, tail, optimizer):
    state = ModelState.initial(np.linspace(-1, 1, size))
    training = TrainingSettings(tail_average=tail, server_momentum=0.9, server_optimizer=optimizer)
    state = advance(state, np.ones(size), training, rounds=1)
    again = ModelState.from_bytes(state.to_bytes())
    assert again.model_hash == state.model_hash
    assert (again.round_number, again.averaged) == (state.round_number, state.averaged)
    assert again.released.tolist() == state.released.tolist()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("tail", [0.0, 1.0])
def test_the_head_of_a_file_says_which_model_it_holds_and_what_is_zero_takes_no_room(tmp_path, momentum, tail):
    training, path = TrainingSettings(tail_average=tail, server_momentum=momentum), tmp_path / "state"
    state = ModelState.initial(np.zeros(1000))
    for number in range(3):
        path.write_bytes(state.to_bytes())
        assert ModelVersion.read(path) == ModelVersion(number, state.model_hash, 1000)
        vectors = 1 + (number > 0 and momentum > 0) + (number > 0 and tail > 0)
        assert 4000 * vectors < path.stat().st_size < 4000 * vectors + 500
        state = advance(ModelState.from_bytes(path.read_bytes()), np.full(1000, 0.5), training, rounds=3)


def test_a_stored_model_that_was_changed_is_refused():
    data = bytearray(ModelState.initial(np.ones(100)).to_bytes())
    data[-1] ^= 1
    with pytest.raises(TrustError, match="damaged"):
        ModelState.from_bytes(bytes(data))


@pytest.mark.parametrize("update", [np.array([np.nan, 0]), np.array([np.inf, 0]), np.zeros(3)])
def test_updates_that_are_not_finite_or_not_of_this_model_are_refused(update):
    with pytest.raises(InvalidUpdate):
        advance(ModelState.initial(np.zeros(2)), update, TrainingSettings(), rounds=1)


def test_a_damaged_file_is_named_not_loaded():
    data = ModelState.initial(np.zeros(4)).to_bytes()
    for broken in (b"", data[:20], data[:-1], b"\xff" * len(data)):
        with pytest.raises(TrustError):
            ModelState.from_bytes(broken)
