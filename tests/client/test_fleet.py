"""Proves: a reply that nobody waits for is dropped, and one that the coordinator does not take now is kept."""

import json

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.fleet import Fleet, Unreachable


@pytest.fixture
def reply(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return Message(RecordDict({"veilfed": ConfigRecord({"envelope": b"words"})}), 2, "query.join", group_id="0")


def fleet(status: int, body: str) -> Fleet:
    """Connected to a coordinator that says the same to all."""
    client = FleetHttpClient("https://nowhere:1")
    client._client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(status, text=body)))
    return Fleet(client, Node(node_id=2))


def said(code: int) -> str:
    return json.dumps({"code": code, "detail": "words for people"})


@pytest.mark.parametrize(
    ("status", "body"),
    [(403, said(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED)), (404, ""), (409, ""), (410, "")],
)
def test_a_reply_to_a_run_that_has_ended_is_dropped(reply, status, body):
    """Else a node would bring it again for ever, and nothing else."""
    fleet(status, body).reply(reply, 0.0)


@pytest.mark.parametrize(
    ("status", "body"),
    [(403, "<html>forbidden</html>"), (403, ""), (403, said(ApiErrorCode.FLEET_GET_RUN_FAILED)), (500, ""), (502, "")],
)
def test_one_that_is_not_taken_for_another_reason_is_kept(reply, status, body):
    with pytest.raises(Unreachable):
        fleet(status, body).reply(reply, 0.0)
