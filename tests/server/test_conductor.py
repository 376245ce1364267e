"""Proves: a conductor whose SuperLink fails leaves its run to the next one, and tells nobody that it has ended."""

import io
from typing import Any

import httpx
import pytest

from common.errors import ProtocolError
from server import conductor
from server.conductor import Task, main

RUN = bytes(range(16)).hex()


class Runtime:
    """Flower's Runtime API: hears what is said of the run, and how its task ends."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def PushLogs(self, request: Any) -> None:  # noqa: N802 - Flower's name
        self.heard += request.logs

    def PushTaskOutput(self, request: Any) -> None:  # noqa: N802
        self.heard.append(f"ended: {request.sub_status}")

    def SendTaskHeartbeat(self, request: Any) -> Any:  # noqa: N802
        raise httpx.ConnectError("nobody is there")


class Grid:
    def __init__(self) -> None:
        self._runtime_client = Runtime()

    def close(self) -> None:
        pass


def conducted(tmp_path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[int, list[str]]:
    """Exit code, and what the SuperLink heard, of a conductor whose run meets that error."""
    task = Task(Grid(), 1, b"", {"run": RUN})

    def meets(home: Any, task: Task) -> None:
        raise error

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(Task, "taken", lambda loopback, token: task)
    monkeypatch.setattr(conductor, "conduct", meets)
    monkeypatch.setattr("sys.stdin", io.StringIO("a token\n"))
    return main([str(tmp_path)]), task.grid._runtime_client.heard


@pytest.mark.parametrize(
    "error",
    [
        httpx.HTTPStatusError("500", request=httpx.Request("POST", "https://x"), response=httpx.Response(500)),
        httpx.ReadTimeout("too long"),
    ],
    ids=["500", "timeout"],
)
def test_a_superlink_that_fails_ends_no_run(tmp_path, monkeypatch, error):
    assert conducted(tmp_path, monkeypatch, error) == (1, [])


def test_what_ends_a_run_is_told(tmp_path, monkeypatch):
    code, heard = conducted(tmp_path, monkeypatch, ProtocolError("too few"))
    assert code == 4
    assert "too few" in heard[0]
    assert heard[1].startswith("ended: ")
