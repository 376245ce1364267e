"""Between Flower's messages and a site's orders: what a message asks, and the message that answers it."""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.messages import SHORT

QUERIES = ("join", "make_key", "install_key", "offer", "agree", "unmask", "stand_in", "release")
_ACTIONS = {"train": "train", "evaluate": "apply"} | {f"query.{name}": name for name in QUERIES}


def order_of(message: Message) -> tuple[str, bytes]:
    """The action that a message asks for, and the order's bytes. Raises ProtocolError when it holds no order."""
    try:
        envelope = message.content["veilfed"]["envelope"]
        return _ACTIONS[message.metadata.message_type], envelope if isinstance(envelope, bytes) else envelope.data
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ProtocolError(f"a message of type {message.metadata.message_type!r} holds no order") from None


def reply_to(message: Message, data: bytes, metrics: Mapping[str, float]) -> Message:
    """data: the answer's envelope. metrics: its public numbers. Flower sends a long one in chunks of 5 MiB."""
    if len(data) <= SHORT:
        content = RecordDict({"veilfed": ConfigRecord({"envelope": bytes(data), **metrics})})
    else:
        array = Array("uint8", (len(data),), "veilfed.envelope", bytes(data))
        content = RecordDict({"veilfed": ArrayRecord({"envelope": array}), "public": MetricRecord(dict(metrics))})
    return Message(content, reply_to=message)
