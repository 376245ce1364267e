"""Proves: an order comes out of Flower's message as it went in, anything else is refused, and so for the way back."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.courier import QUERIES, order_of, reply_to
from common.errors import ProtocolError
from common.messages import SHORT
from server.links import packed


@pytest.fixture(autouse=True)
def at_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower has every message say whose task it is of."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)


def message(content: RecordDict, kind: str = "train") -> Message:
    made = Message(content, 7, kind, group_id="1")
    made.metadata.__dict__["_message_id"] = "m"
    return made


@pytest.mark.parametrize("size", [0, 1, SHORT, SHORT + 1, 3 * SHORT])
def test_an_order_of_any_size_arrives_as_the_coordinator_packed_it(size):
    order = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert order_of(message(packed(order))) == ("train", order)


@pytest.mark.parametrize(
    ("kind", "action"), [("train", "train"), ("evaluate", "apply"), *((f"query.{name}", name) for name in QUERIES)]
)
def test_each_type_of_message_is_one_action(kind, action):
    assert order_of(message(packed(b"order"), kind))[0] == action


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (RecordDict({}), "train"),
        (RecordDict({"veilfed": ConfigRecord({})}), "train"),
        (RecordDict({"veilfed": ConfigRecord({"envelope": "text"})}), "train"),
        (RecordDict({"veilfed": ConfigRecord({"envelope": [b"a", b"b"]})}), "train"),
        (RecordDict({"other": ConfigRecord({"envelope": b"order"})}), "train"),
        (RecordDict({"veilfed": MetricRecord({"envelope": 1.0})}), "train"),
        (packed(b"order"), "query"),
        (packed(b"order"), "query.delete_everything"),
        (packed(b"order"), "train.more"),
    ],
)
def test_a_message_without_an_order_that_is_known_is_refused(content, kind):
    with pytest.raises(ProtocolError, match="holds no order"):
        order_of(message(content, kind))


@pytest.mark.parametrize("size", [3, SHORT + 1])
def test_an_answer_carries_its_bytes_and_its_public_numbers(size):
    said = reply_to(message(packed(b"order")), bytes(size), {"epsilon": 0.5})
    envelope = said.content["veilfed"]["envelope"]
    assert (envelope if isinstance(envelope, bytes) else envelope.data) == bytes(size)
    assert said.content.get("public", said.content["veilfed"])["epsilon"] == 0.5
    assert said.metadata.reply_to_message_id == "m"


def test_an_array_that_is_no_envelope_is_read_as_bytes_and_nothing_else():
    """What is in it is for the worker to verify; the courier never unpacks it."""
    array = Array("float32", (1,), "numpy.ndarray", b"\x93NUMPY")
    assert order_of(message(RecordDict({"veilfed": ArrayRecord({"envelope": array})})))[1] == b"\x93NUMPY"
