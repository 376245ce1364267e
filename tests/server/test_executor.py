"""Proves: a run that nobody conducts is taken up again, but not for ever, and never two at once."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common import bundle
from common.errors import FederationError
from common.signing import Identity
from server import executor, processes
from server.control import Submitted
from server.executor import _ATTEMPTS, Conductors, Unfinished
from server.loopback import READY
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
        _until(lambda: all(token.exists() for token in tokens))
        assert conductors.busy
    finally:
        time.sleep(2.5)  # for the one that is being warmed up
        _kill(conductors)


def _until(true) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def _kill(conductors: Conductors) -> None:
    for process in (*conductors._working, conductors._spare):
        if process:
            process.kill()
            process.wait()


class Hanging(Readers):
    """The first few never become ready: they say nothing, or something else, or end."""

    def __init__(self, home: Path, *wrong: str) -> None:
        self.wrong, self.failed = list(wrong), []
        super().__init__(home)

    def _started(self) -> "subprocess.Popen[str]":
        if not self.wrong:
            return super()._started()
        command = [sys.executable, "-c", self.wrong.pop(0)]
        self.failed.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return self.failed[-1]


@pytest.mark.parametrize(
    "wrong",
    ["import time; time.sleep(600)", "print('nonsense', flush=True); input()", "raise SystemExit(1)"],
    ids=["hangs", "nonsense", "ends"],
)
def test_a_conductor_that_does_not_start_is_replaced_and_holds_up_nothing(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(executor, "_READY_SECONDS", 5.0)
    monkeypatch.setattr(executor, "_PAUSE_SECONDS", 600.0)  # nothing is warmed up for the next
    conductors, token = Hanging(tmp_path, wrong), tmp_path / "token"
    try:
        conductors.conduct(str(token))
        _until(token.exists)
        assert conductors.failed[0].poll() is not None
    finally:
        _kill(conductors)


def test_when_no_conductor_starts_the_executor_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "_READY_SECONDS", 0.3)
    conductors = Hanging(tmp_path, *["import time; time.sleep(600)"] * executor._STARTS)
    with pytest.raises(FederationError, match="no conductor starts"):
        conductors.conduct("token")
    assert all(process.poll() is not None for process in conductors.failed)
    assert not conductors.busy


def test_a_coordinator_is_ready_once_a_conductor_is(tmp_path):
    (tmp_path / "run").mkdir()
    child = processes.executor(tmp_path)
    assert not child.ready()
    with subprocess.Popen(
        [sys.executable, "-m", "server.conductor", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as conductor:
        assert conductor.stdout.readline().strip() == READY
        assert child.ready()
        conductor.stdin.close()  # no task: it ends


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


@pytest.mark.parametrize("module", ["server.executor", "server.nodes", "client.node"])
def test_processes_that_compute_nothing_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
