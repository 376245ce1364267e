"""Proves: a run has one conductor, and a damaged run keeps no other from going on."""

import os
import threading
from pathlib import Path

import pytest

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
    (broken / "plan.json").write_bytes(b'{"what": 1}')
    assert [store.run for store in RunStore.unfinished(home)] == [begun.run]
    begun.end("done")
    assert RunStore.unfinished(home) == []
