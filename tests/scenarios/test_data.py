"""Every record goes to exactly one simulated site, the same one every time; a site sees its own records only."""

import gzip
import subprocess
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.datasets import load_records, split
from client.tables import HEART_SITES
from common.errors import ConfigError
from scenarios.data import DataSettings, partition, public_shape, simulated_site, site_loader, site_names
from scenarios.public_sets import _mnist, pool


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"loader": "hart"}, "data.loader"),
        ({"partition": "random"}, "data.partition"),
        ({"loader": "digits"}, "data.partition"),  # has no natural sites
        ({"sites": 1}, "data.sites"),
        ({"sites": 3}, "data.sites"),  # there are four hospitals
        ({"partition": "iid", "sites": 1}, "data.sites"),
        ({"partition": "iid", "sites": 0}, "data.sites"),
        ({"partition": "iid", "sites": 921}, "data.sites"),
        ({"alpha": 0.0}, "data.alpha"),
        ({"alpha": float("nan")}, "data.alpha"),
        ({"holdout": 1.0}, "data.holdout"),
        ({"holdout": float("nan")}, "data.holdout"),
        ({"seed": -1}, "data.seed"),
        ({"features": "hog"}, "data.features"),
        ({"features": "sift"}, "data.features"),
        ({"site_names": ("a", "b")}, "data.site_names"),
        ({"options": {"a": 1}}, "data.options"),
        ({"loader": "a.b:c"}, "data.site_names"),
        ({"loader": "a.b:c", "site_names": ("a",)}, "data.site_names"),
        ({"loader": "a.b:c", "site_names": ("a", "a")}, "data.site_names"),
        ({"loader": "a.b:c", "site_names": ("a", "coordinator")}, "data.site_names"),
        ({"loader": "a.b:c", "site_names": ("a", "b"), "partition": "iid"}, "data.partition"),
        ({"loader": "a.b:c", "site_names": ("a", "b"), "sites": 3}, "data.sites"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_key(values, key):
    with pytest.raises(ConfigError, match=f"^{key} = ") as caught:
        DataSettings(**values)
    assert caught.value.hint.startswith("allowed: ")


@pytest.mark.parametrize("name", ["../../b", "b/c", ".b", "B", "b c", "b" * 65])
def test_a_site_that_cannot_be_a_directory_is_refused(name):
    with pytest.raises(ConfigError, match="no name for a party"):
        DataSettings("a.b:c", site_names=("a", name))


def test_names_of_sites():
    assert site_names(DataSettings()) == tuple(HEART_SITES)
    assert site_names(DataSettings("digits", "iid", 3)) == ("site-01", "site-02", "site-03")
    assert site_names(DataSettings("digits", "iid", 100))[-1] == "site-100"
    assert site_names(DataSettings("a.b:c", site_names=("north", "south"))) == ("north", "south")


def test_a_loader_of_ones_own_is_called_as_it_is():
    settings = DataSettings("a.b:c", site_names=("north", "south"), options={"path": "x"})
    assert site_loader(settings, "north") == ("a.b:c", {"path": "x"})
    assert public_shape(settings) == ((), 0)


SMALL = [
    DataSettings(),
    DataSettings(partition="iid", sites=5),
    DataSettings("digits", "dirichlet", 10, alpha=0.3),
    DataSettings("digits", "iid", 100),
    DataSettings("breast-cancer", "quantity", 6),
]


@pytest.mark.parametrize("data", SMALL, ids=lambda data: f"{data.loader}-{data.partition}")
def test_the_sites_together_hold_every_record_once(data):
    sites = [load_records(*swapped(site_loader(data, site), site)) for site in site_names(data)]
    whole = pool(data.loader)
    everything = np.concatenate([site.features for site in sites])
    expected = whole.records(np.arange(len(whole.labels))).features
    assert everything.shape == expected.shape
    assert (everything[np.lexsort(everything.T)] == expected[np.lexsort(expected.T)]).all()
    inputs, classes = public_shape(data)
    assert all(site.features.shape[1:] == inputs and site.labels.max() < classes for site in sites)


def swapped(loader_and_options, site):
    loader, options = loader_and_options
    return loader, site, options


@pytest.mark.parametrize("data", SMALL, ids=lambda data: f"{data.loader}-{data.partition}")
def test_loader_options_are_plain_toml(data):
    _, options = site_loader(data, site_names(data)[0])
    text = "\n".join(f"{key} = {value!r}" for key, value in options.items())
    assert tomllib.loads(text) == options


def test_a_site_outside_the_federation_gets_nothing():
    with pytest.raises(ConfigError, match="berlin"):
        site_loader(DataSettings(), "berlin")
    with pytest.raises(ConfigError, match="berlin"):
        simulated_site("berlin", loader="heart")
    with pytest.raises(ConfigError, match="colour"):
        simulated_site("cleveland", colour=1)


@settings(deadline=None)
@given(
    law=st.sampled_from(["iid", "dirichlet", "quantity"]),
    sites=st.integers(2, 12),
    alpha=st.floats(0.3, 100),
    seed=st.integers(0, 2**40),
)
def test_a_partition_is_disjoint_complete_and_repeatable(law, sites, alpha, seed):
    labels, reserved = np.arange(600) % 7, np.arange(600) >= 500
    places = partition(labels, reserved, sites, law, alpha, seed)
    assert np.sort(np.concatenate(places)).tolist() == list(range(600))
    again = partition(labels, reserved, sites, law, alpha, seed)
    assert all((a == b).all() for a, b in zip(places, again, strict=True))
    if law == "iid":
        sizes = [((place < 500).sum(), (place >= 500).sum()) for place in places]
        assert np.ptp(sizes, axis=0).max() <= 1


def test_dirichlet_skews_labels_and_quantity_skews_sizes():
    labels, nothing = np.arange(5000) % 10, np.zeros(5000, bool)
    rates = [np.bincount(labels[p], minlength=10) / len(p) for p in partition(labels, nothing, 5, "dirichlet", 0.5, 0)]
    assert np.max(rates) > 0.25
    by_size = partition(labels, nothing, 5, "quantity", 0.5, 0)
    assert max(map(len, by_size)) > 3 * min(map(len, by_size))
    big = max(by_size, key=len)
    assert np.abs(np.bincount(labels[big], minlength=10) / len(big) - 0.1).max() < 0.03


def test_a_partition_nobody_can_train_on_is_refused():
    labels = np.zeros(20, np.int64)
    with pytest.raises(ConfigError, match="alpha"):
        partition(labels, labels.astype(bool), 10, "quantity", 1e-3, 0)


def test_sites_are_the_same_in_another_process():
    data = DataSettings("digits", "dirichlet", 3, seed=7)
    here = [int(simulated_site(site, **site_loader(data, site)[1]).labels.sum()) for site in site_names(data)]
    code = (
        "from scenarios.data import *; d = DataSettings('digits', 'dirichlet', 3, seed=7);"
        "print([int(simulated_site(s, **site_loader(d, s)[1]).labels.sum()) for s in site_names(d)])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_scikit_learns_files_are_read_without_importing_it():
    code = "import sys; from scenarios.public_sets import _mnist, pool; pool('digits'); pool('breast-cancer'); "
    code += "print('sklearn' in sys.modules)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_scikit_learns_files_hold_what_it_loads(name):
    from sklearn.datasets import load_breast_cancer, load_digits

    features, labels = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    ours = pool(name)
    assert (ours.labels == labels).all()
    if name == "digits":
        assert (ours.features == features).all()
    else:  # the declared ranges hold every measurement, so nothing was clamped: order is kept in every column
        assert (np.argsort(ours.features, axis=0, kind="stable") == np.argsort(features, axis=0, kind="stable")).all()
        assert np.linalg.norm(ours.features, axis=1).max() <= 1


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """60 training and 20 test images of 28 x 28, in a folder of their own; and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + idx_sizes(images) + images.tobytes())
        packed = gzip.compress(b"\0\0\x08\x01" + idx_sizes(labels) + labels.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(packed)
    return DataSettings("mnist", "iid", 4, directory=str(tmp_path))


def idx_sizes(values):
    return np.array(values.shape, ">u4").tobytes()


def site_of(data, site="site-01"):
    return load_records(*swapped(site_loader(data, site), site))


def test_mnist_keeps_its_publishers_test_images_for_testing(tiny_mnist):
    train, held = split(site_of(tiny_mnist), tiny_mnist.holdout, 0)
    assert (len(train), len(held)) == (15, 5)
    assert train.features.shape[1:] == public_shape(tiny_mnist)[0]
    assert 0 <= train.features.min() <= train.features.max() <= 1


def test_features_are_extracted_once_and_then_read_from_the_cache(tiny_mnist, tmp_path):
    data = replace(tiny_mnist, features="hog")
    first = site_of(data)
    assert first.features.shape[1:] == public_shape(data)[0]
    (cached,) = (tmp_path / "cache" / "veilfed" / "features").iterdir()
    _mnist.cache_clear()
    assert (site_of(data).features == first.features).all()
    np.save(cached, np.zeros((80, 680), np.float16))
    _mnist.cache_clear()
    assert not site_of(data).features.any()  # it is the cache that is read


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_cache_is_written_anew(tiny_mnist, tmp_path, damage):
    data = replace(tiny_mnist, features="hog")
    first = site_of(data).features
    (cached,) = (tmp_path / "cache" / "veilfed" / "features").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage)
    _mnist.cache_clear()
    assert (site_of(data).features == first).all()
    assert [cached.read_bytes()] == [whole]


def test_a_cache_that_cannot_be_written_costs_time_only(tiny_mnist, tmp_path, monkeypatch):
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    assert len(site_of(replace(tiny_mnist, features="hog"))) == 20


def test_a_missing_data_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match="mnist") as caught:
        site_of(DataSettings("mnist", "iid", 4, directory=str(tmp_path / "nowhere")))
    assert "nowhere" in caught.value.message
    assert "veilfed data fetch mnist" in caught.value.hint
