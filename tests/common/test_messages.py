"""Proves: a short message comes out of the SuperLink's hands as it went in, and a long one is left to Flower."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from common.messages import SHORT, is_whole, whole
from server.links import packed


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower has every message say whose task it is of."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize("size", [0, 1, SHORT])
def test_a_short_message_has_its_content_with_it(size):
    sent = Message(packed(b"x" * size), 7, "train", group_id="3")
    head, tree = whole(sent)
    assert is_whole(head)
    assert tree.object_id == head.metadata.message_id == sent.object_id
    assert not tree.children
    got = message_from_proto(ProtoMessage.FromString(head.SerializeToString()))
    assert got.content == sent.content
    assert (got.metadata.dst_node_id, got.metadata.message_type, got.metadata.group_id) == (7, "train", "3")


def test_two_messages_with_one_content_have_two_numbers():
    content = packed(b"the same")
    first, second = (whole(Message(content, node, "train"))[0] for node in (7, 8))
    assert first.metadata.message_id != second.metadata.message_id


def test_public_numbers_travel_beside_the_envelope():
    content = RecordDict({"veilfed": ConfigRecord({"envelope": b"x", "train_s": 0.5})})
    assert is_whole(whole(Message(content, 7, "train"))[0])


def test_an_error_is_whole_but_nobody_finds_content_in_it():
    order = Message(packed(b"x"), 7, "train")
    order.metadata.__dict__["_message_id"] = "an order"
    head, _ = whole(Message(Error(0, "no"), reply_to=order))
    assert head.error.reason == "no"
    assert not is_whole(head)


@pytest.mark.parametrize("size", [SHORT + 1, 6_000_000])
def test_a_long_message_is_left_to_flower(size):
    assert whole(Message(packed(b"x" * size), 7, "train")) is None


def test_a_long_value_in_a_record_of_its_own_making_is_long():
    assert whole(Message(RecordDict({"veilfed": ConfigRecord({"envelope": b"x" * (SHORT + 1)})}), 7, "train")) is None
    assert whole(Message(RecordDict({"veilfed": ConfigRecord({"words": "not ours"})}), 7, "train")) is None
