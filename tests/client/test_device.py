"""Proves: a site trains on the device that it names or not at all, and what it trains in bfloat16 is clipped exactly.

No GPU is needed: one that is not there is refused in the same words on a machine with others.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.check import check
from client.clipped_sum import ClippedSum
from client.clipping_modes import BookKeeping, OneByOne, Vectorised
from client.device import described, devices_named
from client.site import SiteData, SiteSettings
from client.train import train
from common.config import fill
from common.errors import ConfigError
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.models import build
from common.randomness import Randomness
from scenarios.simulate import simulate
from tests.by_hand import NAMES, Coordinator, restart, workplace
from tests.client.test_check import NOW, change
from tests.client.test_clipping import make
from tests.client.test_consent import ADLER, refusal

ABSENT = "cuda:99"
SITE = {"name": "adler", "data": {"name": "d", "loader": "package:load"}}


def test_a_device_that_is_not_there_is_refused_and_says_how_to_see_for_oneself() -> None:
    with pytest.raises(ConfigError, match="device = 'cuda:99' is not on this machine") as refused:
        devices_named(["cpu", ABSENT])
    assert "veilfed site check" in refused.value.hint
    assert described(devices_named(["cpu"])).startswith("cpu, ")


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:00", "cuda:0,cuda:1", "meta", "mps"])
def test_only_known_devices_can_be_named(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        SiteSettings("adler", SiteData("d", "package:load"), device=name)


@pytest.mark.parametrize(
    "names",
    [[], ["cpu"], ["cuda"], ["cpu", "cuda:0"], ["cuda", "cuda:1"], ["cuda:0", "cuda:0"], ["cuda:0", 1], [["cuda:0"]]],
    ids=str,
)
def test_a_list_names_different_gpus_by_their_numbers_and_nothing_else(names: list[object]) -> None:
    with pytest.raises(ConfigError, match="device"):
        fill(SiteSettings, SITE | {"device": names})


def test_one_device_or_several_are_read_from_the_sites_settings() -> None:
    for device, devices in (("cpu", ("cpu",)), ("cuda:1", ("cuda:1",)), (["cuda:1", "cuda:0"], ("cuda:1", "cuda:0"))):
        assert fill(SiteSettings, SITE | {"device": device}).devices == devices
    with pytest.raises(ConfigError) as refused:
        fill(SiteSettings, SITE | {"device": 0})
    assert refused.value.hint == "allowed: a text or a list"


def test_site_check_says_what_trains_here(tmp_path) -> None:
    site = workplace(tmp_path / "run", NAMES).sites[0]
    assert check(site, NOW).facts["device"] == f"cpu, {torch.get_num_threads()} threads, float32"
    change(site, "site.toml", device=ABSENT)
    assert any(ABSENT in problem for problem in check(site, NOW).problems)
    change(site, "site.toml", device=["cuda:98", ABSENT])
    assert any("cuda:98" in problem for problem in check(site, NOW).problems)
    both = torch.device("cpu"), torch.device("cpu")
    assert described(both) == "; ".join([f"cpu, {torch.get_num_threads()} threads"] * 2)


def test_a_site_without_its_device_joins_nothing(tmp_path) -> None:
    played = Coordinator(workplace(tmp_path / "run"))
    change(played.directories[ADLER], "site.toml", device=ABSENT)
    restart()
    code, message, again = refusal(played, "join", 0, played.join_order())
    assert (code, again) == ("ConfigError", False)
    assert ABSENT in message
    assert not list((played.directories[ADLER] / "runs").glob("*"))


def test_sites_of_either_precision_train_one_model(tmp_path) -> None:
    place = workplace(tmp_path / "run", NAMES)
    change(place.sites[0], "site.toml", precision="bfloat16")
    assert simulate(place)["final"]


def in_float32(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, features, labels = make(name)
    return model.float(), features.float() if features.is_floating_point() else features, labels


@pytest.mark.parametrize("way", [BookKeeping, Vectorised, OneByOne])
@pytest.mark.parametrize(
    "name", ["mlp, changed in place", "linear over many rows", "conv2d", "group norm", "prelu", "transformer"]
)
def test_gradients_in_bfloat16_are_clipped_to_the_last_digits_of_float32(name: str, way: type[ClippedSum]) -> None:
    """A norm taken in bfloat16 would be off by up to 0.4 %, and the record above its bound by as much."""
    model, features, labels = in_float32(name)
    with way(model, 1e-3) as clipped_sum:
        exact = clipped_sum.of(features, labels).clone()
        clipped_sum.bfloat16 = True
        for record, label in zip(features.split(1), labels.split(1), strict=True):
            norm = float(clipped_sum.of(record, label).double().norm())
            assert norm == pytest.approx(1e-3, rel=2e-6)
        together = clipped_sum.of(features, labels)
    assert together.dtype == torch.float32
    assert not torch.equal(together, exact)  # else nothing was computed in bfloat16
    assert float((together - exact).norm()) < 0.1 * float(exact.norm())


@pytest.mark.parametrize(
    ("mode", "sampling"), [("local", "poisson"), ("distributed", "poisson"), ("none", "poisson"), ("none", "shuffle")]
)
def test_training_in_bfloat16_moves_the_weights_nearly_alike(mode: str, sampling: str) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 3, 40)
    training = TrainingSettings(sampling=sampling, local_steps=1, sample_rate=0.5, lot_size=20.0, learning_rate=0.5)
    updates = [
        train(
            build(ModelSettings("mlp", (6,), 3, hidden=(8,))),
            features,
            labels,
            training,
            PrivacySettings(mode=mode),
            1.0,
            Randomness.insecure(3),
            bfloat16=bfloat16,
        ).update
        for bfloat16 in (False, True)
    ]
    assert 0 < np.linalg.norm(updates[1] - updates[0]) < 0.05 * np.linalg.norm(updates[0])


def test_a_model_that_bfloat16_breaks_is_refused_in_words():
    class Shifted(nn.Module):
        """A parameter of its own is trained one way alone, which mixes its type with bfloat16."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(20))
            self.layers = nn.Sequential(nn.Linear(20, 16), nn.LayerNorm(16), nn.Linear(16, 2))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.layers(features + self.shift)

    features = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    labels = (features.sum(axis=1) > 0).astype(np.int64)
    training, privacy = TrainingSettings(local_steps=1), PrivacySettings(noise_multiplier=1.0)
    train(Shifted(), features, labels, training, privacy, 1.0, Randomness.insecure(1))
    with pytest.raises(ConfigError, match="bfloat16"):
        train(Shifted(), features, labels, training, privacy, 1.0, Randomness.insecure(1), bfloat16=True)
