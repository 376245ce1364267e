"""What runs at a site: a worker that is told no way out, a node that is told nothing else, and both come back."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import local_socket
from client.start import processes
from common.supervisor import status
from tests.common.test_supervisor import eventually

_ROOT = Path(__file__).parents[2]
# Stand-ins at the places of worker and node: each says what it was told; the worker listens as the true one does.
_STAND_INS = """
import client.local_socket, client.start, sys
from dataclasses import replace
true = client.start.processes
def stand_in(directory):
    worker, node = true(directory)
    hears = "import os, socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
    says = "print(sorted(os.environ), flush=True); time.sleep(1000)"
    return (replace(worker, argv=(sys.executable, "-c", hears + says, client.local_socket.address(directory))),
            replace(node, argv=(sys.executable, "-c", "import os, time; " + says), ready=lambda: True))
client.start.processes = stand_in
from scenarios.cli import main
"""


class Site:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("site.toml", "node.crt", "roots.pem"):
            (directory / name).write_text("")

    def start(self) -> subprocess.Popen[str]:
        told = {
            "HTTPS_PROXY": "http://proxy.example:3128",
            "CUDA_VISIBLE_DEVICES": "0",
            "VEILFED_METRICS": "127.0.0.1:1",
            "DATABASE_PASSWORD": "s3cret",
        }
        return subprocess.Popen(
            [sys.executable, "-c", f"{_STAND_INS}sys.exit(main(['site', 'start', {str(self.directory)!r}]))"],
            cwd=_ROOT,
            env={**os.environ, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in status(self.directory)["rows"] if one["state"] == "ready"}

    def status(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scenarios.cli", "site", "status", str(self.directory)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def running(place: Path) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    site = Site(place)
    process = site.start()
    try:
        eventually(lambda: set(site.pids()) == {"worker", "node"} or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield site, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_each_is_told_what_its_work_needs_and_no_more(running):
    site, _ = running
    logs = [site.directory / "logs" / f"{name}.log" for name in ("worker", "node")]
    eventually(lambda: all("PATH" in log.read_text() for log in logs))
    worker, node = (log.read_text() for log in logs)
    assert "CUDA_VISIBLE_DEVICES" in worker
    assert "HTTPS_PROXY" not in worker
    assert "HTTPS_PROXY" in node
    assert ("VEILFED_METRICS" in worker, "VEILFED_METRICS" in node) == (False, True)
    assert "CUDA_VISIBLE_DEVICES" not in node
    assert "DATABASE_PASSWORD" not in worker + node


@pytest.mark.slow
def test_whoever_is_killed_is_back_and_at_the_end_nobody_is(running):
    site, process = running
    before = site.pids()
    os.kill(before["worker"], signal.SIGKILL)  # its socket stays behind
    Path(local_socket.address(site.directory)).unlink()  # which the true worker does when it starts
    eventually(lambda: site.pids().get("worker") not in (before["worker"], None))
    assert site.pids()["node"] == before["node"]
    assert site.status().returncode == 0
    worker = site.pids()["worker"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not Path(f"/proc/{worker}").exists()
    stopped = site.status()
    assert (stopped.returncode, "it is not running" in stopped.stderr) == (2, True)


@pytest.mark.parametrize(("missing", "hint"), [("site.toml", "veilfed site init"), ("node.crt", "veilfed site join")])
def test_a_site_that_is_not_set_up_is_told_what_comes_first(place: Path, missing: str, hint: str):
    site = Site(place)
    (place / missing).unlink()
    process = site.start()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert missing in said
    assert hint in said


def test_a_socket_that_a_killed_worker_left_is_not_taken_for_a_worker(place: Path):
    left = Path(local_socket.address(place))
    left.parent.mkdir(exist_ok=True)
    left.touch()
    worker, node = processes(place)
    assert not worker.ready()
    assert worker.argv[1:] == ("-P", "-m", "client.worker", str(place))
    assert node.argv[1:] == ("-P", "-m", "client.node", str(place))
