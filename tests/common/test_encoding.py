"""The plan alone decides how updates become integers: the same at every site, and back again in the sum."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.encoding import Encoding, public_scale
from common.errors import ConfigError
from common.federation import EncryptionSettings, Plan, PrivacySettings
from common.he.parameters import PRESETS
from common.he.quantize import largest_after_rotation, sensitivity_after_rounding, step
from common.randomness import Randomness
from common.updates import Clipped, clip

RUN = bytes(range(16))
LAYERS = (30, 3, 7)
CHOICES = [
    {},
    {"rounding": "conditional"},
    {"rotate": True},
    {"rotate": True, "rounding": "conditional", "largest": 2.0},
    {"layer_scales": (2.0, 2.0, 2.0)},
]


def encoding(number: int = 1, layers: tuple[int, ...] = LAYERS, preset: str = "compact", **choices) -> Encoding:
    plan = Plan(privacy=PrivacySettings(max_update_norm=2.0), encryption=EncryptionSettings(**choices))
    return Encoding.of(plan, RUN, number, PRESETS[preset].value_bits, layers, cohort=4)


def random_update(d: int, norm: float = 2.0) -> Clipped:
    return clip(np.random.default_rng().normal(0, 1, d), norm)


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("preset", ["compact", "precise"])
def test_a_sum_of_encoded_updates_decodes_to_the_sum_of_the_updates(choices, preset):
    updates, random = [random_update(40) for _ in range(5)], Randomness.from_os()
    total = sum(encoding(preset=preset, **choices).encode(update, random) for update in updates)
    decoded = encoding(preset=preset, **choices).decode(total)
    assert decoded.dtype == np.float64
    off = np.linalg.norm(decoded - sum(update.values for update in updates))
    assert off < 5 * math.sqrt(40) * step(2.0, PRESETS[preset].value_bits)


@settings(max_examples=50, deadline=None)
@given(d=st.integers(1, 200), choices=st.sampled_from(CHOICES[:4]), largest=st.sampled_from([1e-3, 0.0]))
def test_saturation_shortens_and_never_leaves_the_range(d, choices, largest):
    """What noise must cover is never exceeded, whatever public scale the plan names."""
    made = encoding(layers=(d,), **choices | ({"largest": largest} if largest else {}))
    values = made.encode(random_update(d), Randomness.from_os())
    assert values.dtype == np.int64
    assert np.abs(values).max() < 2**15
    assert np.linalg.norm(values) <= sensitivity_after_rounding(2.0, 16, d, made.largest)


def test_the_default_is_plain_rounding_at_the_norm_bound():
    made = encoding()
    assert (made.bits, made.largest, made.seed, made.conditional) == (16, 2.0, None, False)
    assert made.decode(np.full(40, 32767)).tolist() == [2.0] * 40


def test_every_layer_has_the_scale_that_the_plan_names():
    made = encoding(layer_scales=(1.0, 0.5, 0.01))
    assert made.decode(np.full(40, 32767)).tolist() == [1.0] * 30 + [0.5] * 3 + [0.01] * 7
    assert np.abs(made.encode(clip(np.full(40, 0.3), 2.0), Randomness.from_os())[33:]).tolist() == [32767] * 7


def test_rotation_has_another_basis_every_round_and_run_and_the_same_at_every_site():
    update, fixed = random_update(40), Randomness.insecure
    first = encoding(1, rotate=True).encode(update, fixed(1))
    assert (encoding(1, rotate=True).encode(update, fixed(1)) == first).all()
    assert (encoding(2, rotate=True).encode(update, fixed(1)) != first).any()
    seeds = {encoding(number, rotate=True).seed for number in range(1, 200)}
    assert len(seeds) == 199


def test_rotation_scales_by_its_own_bound():
    plan = Plan(privacy=PrivacySettings(max_update_norm=2.0), encryption=EncryptionSettings(rotate=True))
    assert public_scale(plan, (10_000,)) == pytest.approx(largest_after_rotation(2.0, 10_000), rel=1e-6)
    assert public_scale(plan, (10_000,)) < 0.16


@pytest.mark.parametrize(
    "choices",
    [
        {"largest": -1.0},
        {"largest": math.nan},
        {"largest": math.inf},
        {"layer_scales": (1.0, 0.0)},
        {"layer_scales": (1.0, math.nan)},
        {"layer_scales": (1.0,), "rotate": True},
        {"layer_scales": (1.0,), "largest": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(choices):
    with pytest.raises(ConfigError, match=f"encryption.{next(iter(choices))}"):
        EncryptionSettings(**choices)


def test_as_many_scales_as_layers():
    with pytest.raises(ConfigError, match=r"encryption\.layer_scales"):
        encoding(layer_scales=(1.0, 1.0))


def test_what_rotation_buys_at_16_bits_on_a_spiky_update():
    """One large coordinate among 100,000 small ones: rotated, 16 bits are off by 35 times less (seen: 35.4 to 35.7)."""
    d = 100_000
    values = np.random.default_rng().normal(0, 1e-3, d)
    values[7] = 2.0
    update, off = clip(values, 2.0), {}
    for rotate in (False, True):
        made = encoding(layers=(d,), rotate=rotate)
        decoded = made.decode(made.encode(update, Randomness.from_os()))
        off[rotate] = float(np.linalg.norm(decoded - update.values))
    print(off, off[False] / off[True])
    assert off[False] / off[True] > 30
