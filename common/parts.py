"""The parts in which Flower sends a message, taken apart and put together in little more memory than the message takes.

Flower's own ways hold a copy of every part while they send them, and three copies of an array while they join it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, push_objects

_AT_ONCE = 4


def send_parts(parts: dict[str, InflatableObject], wanted: Iterable[str], push: Callable[[str, bytes], None]) -> None:
    """Push those of the parts that are wanted, a few at a time. `parts` is used up. Raises what `push` does."""
    asked_for = set(wanted)
    names = [name for name in parts if name in asked_for]
    for start in range(0, len(names), _AT_ONCE):
        push_objects({name: parts.pop(name) for name in names[start : start + _AT_ONCE]}, push)


def put_together(name: str, parts: dict[str, bytes], longest: int) -> Message:
    """The message of that name, from the contents of all its parts. `parts` is used up.

    longest: bytes that one array may have; it may name a part many times, and so be longer than all that was sent.
    Raises ValueError, KeyError or TypeError, among others, for what is no message, or is longer.
    """
    found = [part for part, content in parts.items() if _kind(content) == Array.__qualname__]
    empty: dict[str, InflatableObject] = {}
    joined: dict[bytes, bytearray] = {}
    for part in found:
        empty[part], joined[part.encode()] = _array(part, parts, longest)
    message = cast(Message, inflate_object_from_contents(name, parts, objects=empty))
    for record in message.content.array_records.values() if message.has_content() else ():
        for array in record.values():
            array.data = cast(bytes, joined[array.data])  # it is read, and never changed
    return message


def _kind(content: bytes) -> str:
    return str(get_object_head_values_from_object_content(content)[0])


def _array(name: str, parts: dict[str, bytes], longest: int) -> tuple[Array, bytearray]:
    """One array with its name for its data, and the data: chunks joined where they shall lie, forgotten once there."""
    _, chunks, _ = get_object_head_values_from_object_content(parts[name])
    about = json.loads(get_object_body(parts[name], Array))
    order = [chunks[index] for index in about["arraychunk_ids"]]
    if set(order) != set(chunks) or any(_kind(parts[chunk]) != ArrayChunk.__qualname__ for chunk in chunks):
        raise ValueError("an array that is not made of its chunks")
    sizes = {chunk: len(_body(parts[chunk])) for chunk in chunks}
    if (length := sum(sizes[chunk] for chunk in order)) > longest:
        raise ValueError(f"an array of {length} bytes, where the longest has {longest}")
    left, data = (
        Counter(order),
        bytearray(),
    )  # it grows as parts go: room made at once would be zeroed, so taken, at once
    for chunk in order:
        data += _body(parts[chunk])
        left[chunk] -= 1
        if not left[chunk]:
            del parts[chunk]
    return Array(about["dtype"], tuple(about["shape"]), about["stype"], name.encode()), data


def _body(content: bytes) -> memoryview:
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]
