"""Proves: a message put together from its parts is Flower's own, and takes little more memory than it has bytes."""

import os
import tracemalloc

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from common.parts import put_together, send_parts

MIB = 1 << 20
LONG = 1 << 40


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower has every message say whose task it is of."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(data: bytes) -> Message:
    array = Array("uint8", (len(data),), "veilfed.envelope", data)
    return Message(RecordDict({"veilfed": ArrayRecord({"envelope": array})}), 2, "train", group_id="1")


def contents(made: Message) -> dict[str, bytes]:
    return {name: part.deflate() for name, part in get_all_nested_objects(made).items()}


def data_of(made: Message) -> bytes:
    return bytes(made.content["veilfed"]["envelope"].data)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", os.urandom(5 * MIB), os.urandom(12 * MIB + 3), bytes(16 * MIB), bytes(11 * MIB) + b"\0 ArrayChunk \0"],
    ids=["nothing", "a byte", "one chunk", "three chunks", "one chunk thrice", "what looks like a head"],
)
def test_what_is_put_together_is_what_was_taken_apart(data):
    made = message(data)
    name, parts = made.object_id, contents(made)
    ours, flowers = put_together(name, dict(parts), LONG), inflate_object_from_contents(name, dict(parts))
    assert data_of(ours) == data_of(flowers) == data
    assert ours.object_id == flowers.object_id == name


def peak_of(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("put", "fewest", "most"),
    [(lambda name, parts: put_together(name, parts, LONG), 1.0, 1.3), (inflate_object_from_contents, 1.9, 9.0)],
    ids=["ours", "Flower's"],
)
def test_putting_together_takes_no_second_copy(put, fewest, most):
    """When Flower's own does not either, this file is not needed any more."""
    made = message(os.urandom(64 * MIB))
    tracemalloc.start()
    try:
        name, parts = made.object_id, contents(made)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        put(name, parts)
        assert fewest <= tracemalloc.get_traced_memory()[1] / before < most
    finally:
        tracemalloc.stop()


def test_sending_takes_a_few_parts_at_a_time_and_sends_those_that_are_wanted():
    made, sent = message(os.urandom(64 * MIB)), []
    parts = get_all_nested_objects(made)
    wanted = [name for name in parts if name != made.object_id]
    peak = peak_of(lambda: send_parts(parts, wanted, lambda name, content: sent.append((name, len(content)))))
    assert sorted(name for name, _ in sent) == sorted(wanted)
    assert sum(size for _, size in sent) > 64 * MIB
    assert peak < 40 * MIB


def other_chunk(parts: dict[str, bytes]) -> None:
    array = next(name for name in parts if parts[name].startswith(b"Array "))
    parts[array] = parts[array].replace(b'"arraychunk_ids": [0, 1', b'"arraychunk_ids": [0, 0')


def missing(parts: dict[str, bytes]) -> None:
    del parts[next(name for name in parts if parts[name].startswith(b"ArrayChunk"))]


def no_chunk(parts: dict[str, bytes]) -> None:
    name = next(name for name in parts if parts[name].startswith(b"ArrayChunk"))
    parts[name] = parts[name].replace(b"ArrayChunk", b"MetricRecord", 1)


def no_head(parts: dict[str, bytes]) -> None:
    parts[next(iter(parts))] = b"nonsense"


@pytest.mark.parametrize("spoil", [other_chunk, missing, no_chunk, no_head])
def test_what_is_no_message_is_refused(spoil):
    made = message(os.urandom(11 * MIB))
    name, parts = made.object_id, contents(made)
    spoil(parts)
    with pytest.raises((ValueError, KeyError)):
        put_together(name, parts, LONG)


def test_an_array_that_grows_on_its_way_is_refused_before_there_is_room_for_it():
    made = message(bytes(60 * MIB))
    name, parts = made.object_id, contents(made)
    assert sum(map(len, parts.values())) < 6 * MIB
    with pytest.raises(ValueError, match="an array of 62914560 bytes"):
        put_together(name, parts, 59 * MIB)
