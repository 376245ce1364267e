"""Proves: a run that nobody conducts is taken up again, but not for ever, and never two at once."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common import bundle
from common.signing import Identity
from server.control import Submitted
from server.executor import _ATTEMPTS, Conductors, Unfinished
from server.store import RunStore
from tests.by_hand import workplace

KEY = Identity.generate()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Control:
    """The SuperLink's list of runs: what is started is pending, then running, until it is told to have ended."""

    def __init__(self) -> None:
        self.listed: list[Submitted] = []
        self.stopped: list[int] = []
        self.started: list[tuple[bytes, str, str]] = []

    def runs(self) -> list[Submitted]:
        return list(self.listed)

    def stop(self, number: int) -> bool:
        newest = [one.number for one in self.listed if one.run == self.listed[number].run][-1]
        assert number != newest, "whoever follows the run would read that a person stopped it"
        self.stopped.append(number)
        self._set(number, "finished", "stopped")
        return True

    def start(self, content: bytes, signature: str, run: str) -> int:
        self.started.append((content, signature, run))
        self.listed.append(Submitted(len(self.listed), run, "pending", "", "", str(len(self.listed))))
        return len(self.listed) - 1

    def all_are(self, state: str) -> None:
        for one in self.listed:
            if one.state != "finished":
                self._set(one.number, state, "")

    def _set(self, number: int, state: str, outcome: str) -> None:
        self.listed[number] = replace(self.listed[number], state=state, outcome=outcome)


class Readers(Conductors):
    """Conductors that only read their token and keep at it."""

    def _started(self) -> "subprocess.Popen[str]":
        code = "import time; print('ready', flush=True); open(input(), 'w').close(); time.sleep(60)"
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_tasks_in_one_moment_have_a_conductor_each(tmp_path):
    conductors = Readers(tmp_path)
    tokens = [tmp_path / name for name in ("first", "second", "third")]
    try:
        for token in tokens:
            conductors.conduct(str(token))
        until = time.monotonic() + 60
        while not all(token.exists() for token in tokens):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert conductors.busy
    finally:
        time.sleep(2.5)  # for the one that is being warmed up
        for process in (*conductors._working, conductors._spare):
            if process:
                process.kill()
                process.wait()


@pytest.fixture
def begun(tmp_path: Path) -> RunStore:
    """A run whose conductor is gone."""
    store = RunStore.open(workplace(tmp_path / "run").run)
    content = bundle.build(store.plan)
    store.keep_bundle(content, bundle.sign(content, KEY, store.run))
    return store


def home_of(store: RunStore) -> Path:
    return store.directory.parents[1]


def test_a_run_without_a_conductor_is_submitted_again_as_it_was(begun):
    control = Control()
    Unfinished(home_of(begun), control).resubmit()
    assert control.started == [(*begun.bundle(), begun.run.hex())]
    assert bundle.opened(*begun.bundle(), [KEY.public], begun.run)[0] == begun.plan


def test_one_that_waits_already_is_not_submitted_twice(begun):
    control = Control()
    unfinished = Unfinished(home_of(begun), control)
    for _ in range(5):
        unfinished.resubmit()
    assert len(control.started) == 1


def test_what_the_lost_conductor_left_running_is_stopped_once_the_next_waits(begun):
    control = Control()
    unfinished = Unfinished(home_of(begun), control)
    unfinished.resubmit()
    control.all_are("running")
    unfinished.resubmit()
    assert control.stopped == [0]
    assert [one.state for one in control.listed] == ["finished", "pending"]


def test_a_run_that_loses_every_conductor_is_given_up_and_stays_as_it_is(begun):
    control = Control()
    unfinished = Unfinished(home_of(begun), control)
    for _ in range(3 * _ATTEMPTS):
        unfinished.resubmit()
        control.all_are("running")
    assert len(control.started) == _ATTEMPTS
    assert RunStore.open(begun.directory).ended == "LostConductor"
    assert (begun.directory / "bundle").exists()


def test_every_closed_round_gives_it_all_attempts_again(begun):
    control = Control()
    unfinished = Unfinished(home_of(begun), control)
    for number in range(1, 4):
        for _ in range(_ATTEMPTS - 1):
            unfinished.resubmit()
            control.all_are("running")
        begun.record_round({"round": number})
    unfinished.resubmit()
    assert not RunStore.open(begun.directory).ended
    assert len(control.started) == 3 * (_ATTEMPTS - 1) + 1


@pytest.mark.parametrize("outcome", ["done", "stopped", "CohortTooSmall"])
def test_a_run_that_has_ended_is_left_alone_until_somebody_asks_for_it(begun, outcome):
    control = Control()
    unfinished = Unfinished(home_of(begun), control)
    begun.end(outcome)
    unfinished.resubmit()
    assert control.started == []
    begun.keep_bundle(*begun.bundle())  # as when it is submitted again
    unfinished.resubmit()
    assert len(control.started) == 1
