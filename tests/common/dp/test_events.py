"""Proves: what is written about a mechanism comes back the same, and what nobody knows is refused."""

import json
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from common.dp.events import DiscreteLaplace, DpEvent, Gaussian, PoissonGaussian, event_from_dict, event_to_dict
from common.errors import ConfigError, UnknownEvent

noise = st.floats(1e-3, 1e6)
times = st.integers(1, 2**53 - 1)
events = st.one_of(
    st.builds(PoissonGaussian, noise, st.floats(0, 1, exclude_min=True), times),
    st.builds(Gaussian, noise, times),
    st.builds(DiscreteLaplace, st.floats(1e-6, 1e3), times),
)


@given(events)
def test_an_event_survives_the_ledgers_canonical_json(event: DpEvent) -> None:
    assert event_from_dict(json.loads(rfc8785.dumps(event_to_dict(event)))) == event  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, 1e-9, -1.0, math.nan, math.inf])
def test_noise_that_protects_nothing_or_is_no_number_is_refused(noise: float) -> None:
    for make in (lambda: PoissonGaussian(noise, 0.1, 1), lambda: Gaussian(noise), lambda: DiscreteLaplace(noise)):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize("sample_rate", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_sample_rate_is_refused(sample_rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        PoissonGaussian(1.0, sample_rate, 1)


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2**53, True])
def test_a_number_of_steps_is_a_whole_number_from_one_on(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps"):
        PoissonGaussian(1.0, 0.1, steps)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "subsampled-laplace", "parameter": 1.0},
        {"kind": ["gaussian"], "noise_multiplier": 1.0, "count": 1},
        {"kind": "gaussian", "noise_multiplier": 1.0},
        {"kind": "gaussian", "noise_multiplier": 1.0, "count": 1, "amplified_by": "hope"},
    ],
)
def test_what_this_build_does_not_know_costs_infinity(data: dict[str, object]) -> None:
    with pytest.raises(UnknownEvent):
        event_from_dict(data)


@pytest.mark.parametrize("noise", ["1.0", None, True, [1.0], -1.0])
def test_a_value_that_no_mechanism_has_is_refused(noise: object) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        event_from_dict({"kind": "gaussian", "noise_multiplier": noise, "count": 1})


def test_a_stranger_is_not_written_down() -> None:
    with pytest.raises(UnknownEvent):
        event_to_dict("gaussian")  # type: ignore[arg-type]
