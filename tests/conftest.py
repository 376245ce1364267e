"""No test may reach beyond this machine: a socket to anything but the loopback is an error, in children too."""

import ipaddress
import os
import socket
from pathlib import Path

import pytest
from hypothesis import settings

from common import ports
from tests.consortium import People

settings.register_profile("busy", deadline=None)  # how long an example takes says more of the machine than of us
settings.load_profile("busy")
# A port that is chosen now and taken by a process later: no process beside this one has the same in mind.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ports._PRIVATE = range(10_000 + 1_000 * (_worker % 10), 11_000 + 1_000 * (_worker % 10))
_connect = socket.socket.connect
os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
)


def _loopback_only(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])  # type: ignore[index]
        try:
            near = ipaddress.ip_address(host).is_loopback
        except ValueError:
            near = host == "localhost"
        if not near:
            raise PermissionError(f"a test tried to reach {host}")
    _connect(self, address)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def no_network():
    socket.socket.connect = _loopback_only  # type: ignore[method-assign]
    yield
    socket.socket.connect = _connect  # type: ignore[method-assign]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of one's own, its name free of surprises."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> People:
    """Nobody knows anybody yet."""
    return People(tmp_path, monkeypatch, capsys)
