"""Proves: an administrator sees what moved in the records and in the model's answers, and it stays there."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Message

from client.datasets import Records
from common.config import load_table, override
from common.telemetry import read
from scenarios.cli import main
from scenarios.simulate import simulate
from tests.by_hand import restart, workplace
from tests.client.test_dry_run import everything
from tests.common.test_audit import told

LOADER = "tests.client.test_drift:records"


def records(name: str, shift: float = 0.0) -> Records:
    random = np.random.default_rng([*name.encode(), int(100 * shift)])
    features = random.normal(size=(400, 3)).astype(np.float32)
    features[:, 1] += shift
    return Records(features, (features.sum(axis=1) > 0).astype(np.int64))


@pytest.fixture
def trained(tmp_path) -> Path:
    place = workplace(tmp_path / "run", ("adler", "birke"), f"data.loader={LOADER}", "training.lot_size=100.0")
    simulate(place)
    return place.sites[0]


def move(site: Path, shift: float) -> None:
    """From now on the loader gives other records."""
    path = site / "site.toml"
    path.write_text(tomli_w.dumps(override(load_table(path), [f"data.options.shift={shift}"])))
    restart()


def test_what_moved_is_named_and_what_did_not_is_not(trained, capsys):
    code, kept = told(capsys, "site", "drift", trained, "--keep")
    assert (code, kept["records"]) == (0, 400)
    assert len(kept["model"]) == 64
    code, same = told(capsys, "site", "drift", trained)
    assert (code, same["columns"], same["columns_moved"], same["largest_shift"]) == (0, 3, 0, 0)
    move(trained, 2.0)
    code, answer = told(capsys, "site", "drift", trained)
    assert [row["column"] for row in answer["moved"]] == [1]
    assert answer["moved"][0]["p"] < 1e-6
    assert answer["largest_shift"] > answer["large_from"]
    assert [row["class"] for row in answer["outputs"]] == [0, 1]
    assert all(row["p"] < 1e-6 for row in answer["outputs"])
    assert main(["site", "drift", str(trained)]) == 0
    assert "column 1: shift" in capsys.readouterr().out


def test_it_writes_its_numbers_for_the_sites_own_monitoring_and_nothing_else(trained, capsys):
    told(capsys, "site", "drift", trained, "--keep")
    move(trained, 2.0)
    before = everything(trained)
    told(capsys, "site", "drift", trained)
    changed = {path for path, found in everything(trained).items() if before.get(path) != found}
    assert {Path(path).name for path in changed} == {"worker.numbers", "worker.numbers.turn"}
    numbers = {number.name: number.value for number in read(trained / "run" / "worker.numbers")}
    assert numbers["veilfed_site_inputs_moved"] == 1
    assert numbers["veilfed_site_input_shift"] > 0.2 < numbers["veilfed_site_output_shift"]


def test_nothing_of_it_travels(tmp_path, capsys):
    """Of a run after a comparison: only what the plan declares leaves readable, and no byte of the profile."""
    place = workplace(tmp_path / "run", ("adler", "birke"), f"data.loader={LOADER}", "training.lot_size=100.0")
    told(capsys, "site", "drift", place.sites[0], "--keep")
    told(capsys, "site", "drift", place.sites[0])
    profile = json.loads((place.sites[0] / "profile.json").read_text())
    edge = json.dumps(profile["inputs"][0]["edges"][3]).encode()
    assert edge in (place.sites[0] / "profile.json").read_bytes()
    seen: set[str] = set()

    def network(reply: Message) -> Iterable[Message]:
        seen.update(name for part in reply.content.values() for name in part)
        assert edge not in reply.content["veilfed"]["envelope"]
        return (reply,)

    simulate(place, deliver=network)
    assert seen == {"envelope", "train_s", "encrypt_s", "open_s", "epsilon"}


def test_outputs_are_compared_while_it_is_the_same_model(tmp_path, capsys):
    place = workplace(tmp_path / "run", ("adler", "birke"), f"data.loader={LOADER}", "training.lot_size=100.0")
    told(capsys, "site", "drift", place.sites[0], "--keep")
    simulate(place)
    _, answer = told(capsys, "site", "drift", place.sites[0])
    assert answer["outputs"] == []


def test_without_a_profile_or_with_a_damaged_one_the_next_step_is_named(trained, capsys):
    code, refused = told(capsys, "site", "drift", trained)
    assert (code, refused["error"]["code"]) == (2, "ConfigError")
    assert "--keep" in refused["error"]["hint"]
    for damage in (b"{}", b"[]", b'{"inputs":[{"counts":[1],"edges":[1]}],"model":"","outputs":[],"run":"","when":""}'):
        (trained / "profile.json").write_bytes(damage)
        code, refused = told(capsys, "site", "drift", trained)
        assert (code, refused["error"]["code"]) == (2, "ConfigError")
        assert "damaged" in refused["error"]["message"]
