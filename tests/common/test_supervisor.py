"""Real processes: whoever is killed is back, and whoever ends the supervisor leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.supervisor import Child, environment, status

_ROOT = Path(__file__).parents[2]
_MARK = "VEILFED_TEST_MARK"
# Children: one that forks a grandchild that ignores SIGTERM, and one that writes what it is asked to.
_PARENT = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write("up\\n")
while True:
    time.sleep(0.1)
"""
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True)\n" + (
    "while True: time.sleep(0.1)"
)
_RELOADS = """
import signal, sys, time
signal.signal(signal.SIGHUP, lambda *_: print("again", flush=True))
print("first", flush=True)
while True:
    time.sleep(0.05)
"""
# The supervisor under test, in a process of its own: argv[1] is its directory, argv[2] the children as JSON.
_RUN = """
import json, sys
from pathlib import Path
from common.errors import FederationError
from common.supervisor import Child, environment, supervise
place, said = Path(sys.argv[1]), json.loads(sys.argv[2])
children = [
    Child(one["name"], tuple(one["argv"]), environment(**one["environment"]),
          reload_on=tuple(map(Path, one.get("reload_on", ()))), restart_on=tuple(map(Path, one.get("restart_on", ()))),
          **({"ready": Path(one["ready"]).exists} if "ready" in one else {}))
    for one in said
]
try:
    supervise(place, lambda: children, lambda line: print(line, file=sys.stderr, flush=True), grace_seconds=1.0)
except FederationError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
"""


class Supervised:
    """A supervisor in a process of its own, and everything that carries its mark in the environment."""

    def __init__(self, place: Path, **scripts: str) -> None:
        self.place, self.mark = place, f"{os.getpid()}-{time.monotonic_ns()}"
        self.files = {"reload_on": [], "restart_on": []}
        self.children = [
            {
                "name": name,
                "argv": [sys.executable, "-c", script, str(place / f"{name}.ups")],
                "environment": {_MARK: self.mark},
            }
            for name, script in scripts.items()
        ]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN, str(self.place), json.dumps(self.children)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def marked(self) -> set[int]:
        """Processes alive now that carry the mark: children and whatever they forked."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except (OSError, ValueError):
                continue
        return found

    def ups(self, name: str) -> int:
        file = self.place / f"{name}.ups"
        return file.read_text().count("up") if file.exists() else 0

    def pid_of(self, name: str) -> int | None:
        return next((one["pid"] for one in status(self.place)["rows"] if one["name"] == name), None)

    def state_of(self, name: str) -> str:
        return next((one["state"] for one in status(self.place)["rows"] if one["name"] == name), "")

    def log(self, name: str) -> list[dict[str, str]]:
        file = self.place / "logs" / f"{name}.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def two(place: Path) -> Iterator[tuple[Supervised, subprocess.Popen[str]]]:
    supervised = Supervised(place, one=_PARENT, two=_PARENT)
    process = supervised.start()
    try:
        eventually(lambda: len(supervised.marked()) == 4 and supervised.state_of("two") == "ready")
        yield supervised, process
    finally:
        process.kill()
        process.wait()
        for pid in supervised.marked():
            os.kill(pid, signal.SIGKILL)


def test_a_killed_child_is_back_and_what_it_forked_is_gone(two):
    supervised, _ = two
    before, first = supervised.marked(), supervised.pid_of("one")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: supervised.ups("one") == 2 * 2 and len(supervised.marked()) == 4)
    after = supervised.marked()
    assert len(before & after) == 2  # the other child and its fork were left alone
    assert supervised.pid_of("one") != first
    assert next(one for one in status(supervised.place)["rows"] if one["name"] == "one")["restarts"] == 1


def test_sigterm_leaves_nothing_not_even_what_ignores_it(two):
    supervised, process = two
    process.terminate()
    assert process.wait(60) == 0
    eventually(lambda: supervised.marked() == set())  # killed, and gone once the kernel comes to it
    assert status(supervised.place)["running"] is False


def test_a_supervisor_that_is_killed_leaves_nothing(two):
    supervised, process = two
    process.kill()
    process.wait()
    eventually(lambda: supervised.marked() == set())


def test_whoever_kills_the_undertaker_first_changes_nothing(two):
    supervised, process = two
    (undertaker,) = children_of(process.pid) - supervised.marked()
    os.kill(undertaker, signal.SIGKILL)
    eventually(lambda: len(children_of(process.pid) - supervised.marked() - {undertaker}) == 1)
    process.kill()
    process.wait()
    eventually(lambda: supervised.marked() == set())


def test_it_starts_only_once_and_again_after_it_was_killed(two):
    supervised, process = two
    second = supervised.start()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is running already, as process {process.pid}" in said
    process.kill()
    process.wait()
    third = supervised.start()  # while the leftovers of the first may still be there
    try:
        eventually(lambda: status(supervised.place).get("pid") == third.pid and supervised.state_of("two") == "ready")
        eventually(lambda: len(supervised.marked()) == 4)
    finally:
        third.terminate()
        assert third.wait(60) == 0


def test_what_cannot_start_is_said_and_the_others_are_stopped(place: Path):
    supervised = Supervised(place, good=_PARENT, bad="import sys; sys.exit('no such port')")
    supervised.children[1]["ready"] = str(place / "never")
    process = supervised.start()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "bad ended with exit code 1, 3 times before it was ready: " in said
    assert "no such port" in said
    eventually(lambda: supervised.marked() == set())


def test_a_program_that_is_not_there_is_said(place: Path):
    supervised = Supervised(place, missing="")
    supervised.children[0]["argv"] = ["/nonexistent/nginx"]
    process = supervised.start()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "missing could not be started" in said
    assert "/nonexistent/nginx" in said


def test_the_second_waits_until_the_first_is_ready(place: Path):
    supervised = Supervised(place, one=_PARENT, two=_PARENT)
    supervised.children[0]["ready"] = str(place / "go")
    process = supervised.start()
    try:
        eventually(lambda: supervised.state_of("one") == "starting")
        time.sleep(0.6)
        assert supervised.state_of("two") == "waiting"
        (place / "go").touch()
        eventually(lambda: supervised.state_of("two") == "ready")
    finally:
        process.terminate()
        process.wait(60)


def test_changed_files_mean_read_again_or_start_again(place: Path):
    supervised = Supervised(place, reader=_RELOADS, other=_PARENT)
    for name in ("list", "key"):
        (place / name).write_text("1")
    supervised.children[0]["reload_on"] = [str(place / "list")]
    supervised.children[1]["restart_on"] = [str(place / "key")]
    process = supervised.start()
    try:
        eventually(lambda: supervised.state_of("other") == "ready")
        eventually(lambda: [line["line"] for line in supervised.log("reader")] == ["first"])  # it hears signals now
        reader, other = supervised.pid_of("reader"), supervised.pid_of("other")
        (place / "list").write_text("22")
        eventually(lambda: [line["line"] for line in supervised.log("reader")] == ["first", "again"])
        assert (supervised.pid_of("reader"), supervised.pid_of("other")) == (reader, other)
        (place / "key").write_text("22")
        eventually(lambda: supervised.state_of("other") == "ready" and supervised.pid_of("other") != other)
        assert supervised.pid_of("reader") == reader
    finally:
        process.terminate()
        process.wait(60)


def test_delays_double_up_to_a_cap():
    from common.supervisor import delay_seconds

    assert [delay_seconds(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert delay_seconds(10**6) == 30


def test_a_child_is_told_nothing_that_was_not_said(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("PYTHONSTARTUP", "/tmp/evil.py")  # noqa: S108 - never opened
    told = environment(FLWR_HOME="/x")
    assert "s3cret" not in told.values()
    assert set(told) <= {"PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_DIR", "SSL_CERT_FILE"} | {
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "FLWR_HOME",
    }
    assert "/x" not in repr(Child("one", ("true",), told))


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
