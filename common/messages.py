"""A short Flower message, whole: its content travels beside its head.

Flower would cut it into three objects, each of which costs the SuperLink a call at either end, and a last call to say
that it came: fifteen calls for an order and its answer, where three do.
"""

from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree

SHORT = 1_000_000  # bytes of an envelope; together with its head it is what the gateway lets through


def whole(message: Message) -> tuple[ProtoMessage, ObjectTree] | None:
    """The message and a tree without branches, as PushMessages takes them; None when it is long."""
    if not _is_short(message):
        return None
    message.metadata.__dict__["_message_id"] = message.object_id
    return message_to_proto(message), ObjectTree(object_id=message.object_id)


def is_whole(head: ProtoMessage) -> bool:
    """Whether a message that was pulled has its content with it."""
    return bool(head.content.items)


def _is_short(message: Message) -> bool:
    if message.has_error():
        return True
    values: list[Any] = [value for record in message.content.values() for value in record.values()]
    return all(len(value) <= SHORT if isinstance(value, bytes) else isinstance(value, (int, float)) for value in values)
