"""Proves: a run has one conductor, a damaged one keeps no other from going on, a release is a file for everybody."""

import hashlib
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common import bundle
from common.errors import ProtocolError
from common.signing import Identity
from server import store as stores
from server.store import RunStore
from tests.by_hand import workplace

RUN = bytes(range(16))


def test_a_run_that_is_conducted_is_refused_to_a_second_and_free_again_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_ENDING_SECONDS", 0.5)
    with RunStore.held(tmp_path, RUN):
        with pytest.raises(ProtocolError, match="conducted already"), RunStore.held(tmp_path, RUN):
            pass
        with RunStore.held(tmp_path, bytes(16)):
            pass
    with RunStore.held(tmp_path, RUN):
        pass


def test_whoever_comes_next_waits_for_one_that_is_ending(tmp_path):
    free, ended = threading.Event(), []

    def old() -> None:
        with RunStore.held(tmp_path, RUN):
            free.set()
            threading.Event().wait(0.7)
            ended.append("old")

    thread = threading.Thread(target=old)
    thread.start()
    assert free.wait(30)
    with RunStore.held(tmp_path, RUN):
        assert ended == ["old"]
    thread.join()


def test_a_damaged_run_keeps_no_other_from_going_on(tmp_path):
    begun = RunStore.open(workplace(tmp_path / "run").run)
    content = bundle.build(begun.plan)
    begun.keep_bundle(content, bundle.sign(content, Identity.generate(), begun.run))
    home: Path = begun.directory.parents[1]
    broken = home / "runs" / os.urandom(16).hex()
    broken.mkdir()
    (broken / "bundle").write_bytes(content)
    (broken / "agreement.json").write_bytes(b'{"what": 1}')
    assert [store.run for store in RunStore.unfinished(home)] == [begun.run]
    begun.end("done")
    assert RunStore.unfinished(home) == []


def test_looking_at_a_run_takes_nothing_away_of_what_its_conductor_is_writing(tmp_path):
    store = RunStore.open(workplace(tmp_path / "run").run)
    (store.directory / "offers").mkdir()
    being_written = [store.directory / ".ended.0f.part", store.directory / "offers" / ".000002.0f.part"]
    for path in being_written:
        path.touch()
    store.keep_bundle(b"content", "signature")
    assert [each.run for each in RunStore.unfinished(store.directory.parents[1])] == [store.run]
    assert all(path.exists() for path in being_written)
    store.sweep()
    assert not any(path.exists() for path in being_written)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_released_model_is_a_file_that_safetensors_reads(tmp_path, size):
    store = RunStore.open(workplace(tmp_path / "run").run)
    model = np.random.default_rng(size).normal(size=size).astype(np.float32)
    store.keep_release(model, 3)
    assert list(found := load_file(store.directory / "released.safetensors")) == ["model"]
    assert found["model"].dtype == np.float32
    assert np.array_equal(found["model"], model)
    released = store.audit.entries()[-1].record
    assert (released["event"], released["sha256"]) == ("Released", hashlib.sha256(model.tobytes()).hexdigest())


def test_keeping_a_released_model_takes_no_copy_of_it(tmp_path):
    store, model = RunStore.open(workplace(tmp_path / "run").run), np.ones(4_000_000, np.float32)
    tracemalloc.start()
    try:
        store.keep_release(model, 3)
        assert tracemalloc.get_traced_memory()[1] < model.nbytes / 4
    finally:
        tracemalloc.stop()
