"""Proves: replies are handed on as they come, whoever came back is asked again, and nobody is waited for for ever."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from common.messages import is_whole, whole
from server import polling
from server.links import packed
from server.polling import Patience, PollingGrid

Answer = Callable[[int], float | None]  # how many seconds after the n-th order to a node it answers; None: never


class SuperLink:
    """Flower's Runtime API in memory: nodes that answer after a while, or not at all.

    answers: node -> its `Answer`. A node answers with the words `node N, order M`.
    """

    def __init__(self, answers: Mapping[int, Answer]) -> None:
        self.answers = answers
        self.activated = dict.fromkeys(answers, "first")
        self.orders: dict[int, int] = dict.fromkeys(answers, 0)
        self.pushes = 0
        self.confirmed: list[str] = []
        self._due: dict[str, tuple[float, Message]] = {}
        self._objects: dict[str, bytes] = {}

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:  # noqa: N802 - Flower's name
        self.pushes += 1
        numbers = []
        for order in map(message_from_proto, request.messages_list):
            node = order.metadata.dst_node_id
            if node not in self.activated:
                numbers.append("")
                continue
            self.orders[node] += 1
            numbers.append(order.metadata.message_id)
            seconds = self.answers[node](self.orders[node])
            if seconds is not None:
                words = RecordDict({"said": ConfigRecord({"words": f"node {node}, order {self.orders[node]}"})})
                reply = Message(words, reply_to=order)
                reply.metadata.__dict__["_src_node_id"] = node
                self._due[order.metadata.message_id] = (time.monotonic() + seconds, reply)
        return PushAppMessagesResponse(message_ids=numbers, objects_to_push=[])

    def hurry(self) -> None:
        """Whatever was to come later is there now."""
        self._due = {number: (0.0, reply) for number, (_, reply) in self._due.items()}

    def PushObject(self, request: Any) -> PushObjectResponse:  # noqa: N802
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        heads, trees = [], []
        for number in request.message_ids:
            due, reply = self._due.get(number, (float("inf"), None))
            if reply is None or due > time.monotonic():
                continue
            del self._due[number]
            with no_object_id_recompute():
                reply.metadata.__dict__["_message_id"] = reply.object_id
                for name, part in get_all_nested_objects(reply).items():
                    self._objects[name] = part.deflate()
                heads.append(message_to_proto(remove_content_from_message(reply)))
                trees.append(get_object_tree(reply))
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self._objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)

    def GetNodes(self, request: Any) -> GetNodesResponse:  # noqa: N802
        nodes = [NodeInfo(node_id=node, last_activated_at=when) for node, when in self.activated.items()]
        return GetNodesResponse(nodes=nodes)


@pytest.fixture(autouse=True)
def at_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower has every message say whose task it is of."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def grid_over(superlink: SuperLink, patience: Patience) -> PollingGrid:
    grid = PollingGrid("nowhere:1", token="a token")  # noqa: S106 - of a test
    grid._client = superlink
    grid.set_run(Run.create_empty(1))
    grid.patience = patience
    return grid


def orders(*nodes: int) -> list[Message]:
    return [Message(packed(f"order for {node}".encode()), node, "train", group_id="1") for node in nodes]


def at_once(order: int) -> float | None:
    return 0.0


def never(order: int) -> float | None:
    return None


def soon(seconds: float, change: Callable[[], object]) -> Callable[[], None]:
    """A bell that is rung when orders are out: so many seconds after it first was, something changes."""
    timer = threading.Timer(seconds, change)

    def ring() -> None:
        if timer.ident is None:  # not started yet
            timer.start()

    return ring


def words(reply: Message) -> str:
    return str(reply.content["said"]["words"])


def test_each_reply_is_handed_on_before_the_next_one_is_there():
    superlink = SuperLink({2: at_once, 3: lambda order: float("inf")})
    replies = grid_over(superlink, Patience(2)).send_and_receive(orders(2, 3))
    assert words(next(replies)) == "node 2, order 1"
    superlink.hurry()
    assert [words(reply) for reply in replies] == ["node 3, order 1"]


def test_all_orders_go_out_in_one_call_and_the_bell_is_rung_once():
    superlink, rung = SuperLink(dict.fromkeys(range(2, 12), at_once)), []
    grid = grid_over(superlink, Patience(10))
    grid.ring = lambda: rung.append(1)
    assert len(list(grid.send_and_receive(orders(*range(2, 12))))) == 10
    assert superlink.pushes == len(rung) == 1
    assert len(superlink.confirmed) == 10


def test_a_site_that_is_slow_for_ever_is_left_out_and_one_that_is_only_slower_is_not():
    superlink = SuperLink({2: lambda order: 0.2, 3: lambda order: 0.3, 4: lambda order: 0.8, 5: never})
    grid = grid_over(superlink, Patience(enough=2, times=4.0, least=0.1))
    started = time.monotonic()
    said = [words(reply) for reply in grid.send_and_receive(orders(2, 3, 4, 5))]
    assert said == ["node 2, order 1", "node 3, order 1", "node 4, order 1"]
    assert 1.0 <= time.monotonic() - started < 30  # 4 * 0.3, less what lies between an order and the watch


def test_too_few_are_waited_for_however_long_it_takes():
    """Patience that is long over does not end an exchange that nobody could go on from."""
    grid = grid_over(SuperLink({2: at_once, 3: lambda order: 1.0, 4: never}), Patience(enough=2, times=1.0, least=0.0))
    assert [words(reply) for reply in grid.send_and_receive(orders(2, 3, 4))] == ["node 2, order 1", "node 3, order 1"]


def test_a_node_that_connected_anew_is_asked_again_and_counts_once():
    superlink = SuperLink({2: at_once, 3: lambda order: None if order == 1 else 0.0})
    grid = grid_over(superlink, Patience(2))

    def comes_back() -> None:
        superlink.activated[3] = "second"

    grid.ring = soon(0.3, comes_back)
    assert [words(reply) for reply in grid.send_and_receive(orders(2, 3))] == ["node 2, order 1", "node 3, order 2"]
    assert superlink.orders == {2: 1, 3: 2}


def test_a_node_that_answers_both_times_it_was_asked_counts_once():
    superlink = SuperLink({2: at_once, 3: lambda order: 3.0 if order == 1 else 0.9, 4: lambda order: 5.0})
    grid = grid_over(superlink, Patience(3))
    grid.ring = soon(0.3, lambda: superlink.activated.update({3: "second"}))
    said = [words(reply) for reply in grid.send_and_receive(orders(2, 3, 4))]
    assert len(said) == 3
    assert sum(word.startswith("node 3") for word in said) == 1


def test_a_node_that_nobody_knows_any_more_is_told_of_at_once():
    superlink = SuperLink({2: at_once, 3: at_once, 4: at_once})
    del superlink.activated[3], superlink.activated[4]
    grid = grid_over(superlink, Patience(1))
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(orders(2, 3, 4))}
    assert sorted(replies) == [2, 3, 4]
    assert all(replies[node].has_error() for node in (3, 4))
    assert "not registered" in replies[3].error.reason


def test_a_reply_that_is_longer_than_any_answer_can_be_is_not_fetched():
    class Long(SuperLink):
        def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
            answer = super().PullMessages(request)
            for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                if head.metadata.src_node_id == 3:
                    tree.children.extend([tree.children[0]] * 40)
            return answer

    superlink = Long({2: at_once, 3: at_once})
    grid = grid_over(superlink, Patience(2))
    grid.most_parts = 30
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(orders(2, 3))}
    assert words(replies[2]) == "node 2, order 1"
    assert "parts" in replies[3].error.reason
    assert len(superlink.confirmed) == 1


class Whole(SuperLink):
    """Nodes answer as ours do: what is short, whole."""

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        heads, trees = [], []
        for number in request.message_ids:
            due, reply = self._due.get(number, (float("inf"), None))
            if reply is not None and due <= time.monotonic():
                del self._due[number]
                said = Message(packed(str(reply.content["said"]["words"]).encode()), reply_to=reply)
                said.metadata.__dict__.update(reply.metadata.__dict__)
                head, tree = whole(said)
                heads.append(head)
                trees.append(tree)
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        raise AssertionError("there is nothing to fetch")


def test_a_short_answer_costs_no_call_but_the_look_that_found_it():
    superlink = Whole({2: at_once, 3: lambda order: 0.3})
    replies = list(grid_over(superlink, Patience(2)).send_and_receive(orders(2, 3)))
    assert [reply.content["veilfed"]["envelope"] for reply in replies] == [b"node 2, order 1", b"node 3, order 1"]
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3]
    assert not superlink.confirmed


@pytest.mark.parametrize(("size", "objects"), [(900_000, False), (1_100_000, True)])
def test_what_many_short_orders_share_travels_once_when_they_are_long_together(size, objects):
    class Recording(SuperLink):
        whole_orders = 0

        def PushMessages(self, request: Any) -> PushAppMessagesResponse:  # noqa: N802
            self.whole_orders += sum(is_whole(head) for head in request.messages_list)
            return super().PushMessages(request)

    for nodes, alone in ((range(2, 4), not objects), (range(2, 14), False)):
        superlink = Recording(dict.fromkeys(nodes, at_once))
        content = packed(b"x" * size)
        asked = [Message(content, node, "train", group_id="1") for node in nodes]
        assert len(list(grid_over(superlink, Patience(len(nodes))).send_and_receive(asked))) == len(nodes)
        assert superlink.whole_orders == (len(nodes) if alone else 0)


class Failing(SuperLink):
    """Says of the nodes in `gone` that they are not there, in their place."""

    gone: set[int] = set()  # noqa: RUF012 - set by each test

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        gone = set(self.gone)
        answer = super().PullMessages(request)
        for head in answer.messages_list:
            if head.metadata.src_node_id in gone:
                head.ClearField("content")
                head.error.code, head.error.reason = ErrorCode.NODE_UNAVAILABLE, "gone"
                head.metadata.src_node_id = 1
        return answer


def test_an_error_in_a_nodes_place_names_that_node_and_holds_up_nobody():
    superlink = Failing({2: at_once, 3: at_once, 7: at_once})
    superlink.gone = {7}
    started = time.monotonic()
    replies = list(grid_over(superlink, Patience(2)).send_and_receive(orders(2, 3, 7)))
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [7]
    assert len(replies) == 3
    assert time.monotonic() - started < 30


def test_when_too_few_are_there_those_who_are_away_have_time_to_come_back():
    """As when the coordinator itself was cut off: every node is missed, and all connect again."""
    superlink = Failing({2: at_once, 3: at_once})
    superlink.gone = {2, 3}

    def back() -> None:
        superlink.gone = set()
        superlink.activated.update({2: "second", 3: "second"})

    grid = grid_over(superlink, Patience(2))
    grid.ring = soon(0.5, back)
    said = [words(reply) for reply in grid.send_and_receive(orders(2, 3))]
    assert sorted(said) == ["node 2, order 2", "node 3, order 2"]


def test_a_node_that_connects_with_another_certificate_is_missed_by_nobody():
    """It is away for a moment while the others, who are enough, answer."""
    superlink = Failing({2: at_once, 3: at_once, 4: at_once})
    superlink.gone = {4}

    def back() -> None:
        superlink.gone = set()
        superlink.activated[4] = "second"

    grid = grid_over(superlink, Patience(2))
    grid.ring = soon(0.5, back)
    said = [words(reply) for reply in grid.send_and_receive(orders(2, 3, 4))]
    assert sorted(said) == ["node 2, order 1", "node 3, order 1", "node 4, order 2"]


def test_a_node_that_was_away_before_holds_up_nobody():
    class Away(Failing):
        def GetNodes(self, request: Any) -> GetNodesResponse:  # noqa: N802
            nodes = [NodeInfo(node_id=node, last_activated_at="first") for node in self.activated if node != 4]
            return GetNodesResponse(nodes=nodes)

    superlink = Away({2: at_once, 3: at_once, 4: at_once})
    superlink.gone = {4}
    started = time.monotonic()
    assert len(list(grid_over(superlink, Patience(2)).send_and_receive(orders(2, 3, 4)))) == 3
    assert time.monotonic() - started < 3 * polling._ROLL_CALL


def test_those_who_do_not_come_back_are_told_of_when_their_time_is_over():
    superlink = Failing({2: at_once, 3: at_once})
    superlink.gone = {2, 3}
    started = time.monotonic()
    replies = list(grid_over(superlink, Patience(2, least=1.0)).send_and_receive(orders(2, 3)))
    assert all(reply.has_error() for reply in replies)
    assert len(replies) == 2
    assert 1.0 <= time.monotonic() - started < 30


def test_a_node_that_is_away_is_not_sent_the_same_order_again_and_again():
    superlink = Failing({2: at_once, 3: at_once})
    superlink.gone = {2, 3}
    grid = grid_over(superlink, Patience(2, least=5.0))
    grid.ring = soon(0.3, lambda: superlink.activated.pop(3))
    assert len(list(grid.send_and_receive(orders(2, 3)))) == 2
    assert superlink.orders == {2: 1, 3: 1}


@given(st.lists(st.floats(0, 1e4), max_size=9), st.integers(1, 9), st.floats(1, 10), st.floats(0, 100))
def test_patience_ends_no_sooner_than_the_least_and_never_before_enough_have_answered(after, enough, times, least):
    until = Patience(enough, times, least).until(sorted(after))
    if len(after) < enough:
        assert until == float("inf")
    else:
        assert until >= max(least, sorted(after)[enough - 1])


class Torn(SuperLink):
    """Node 3 sent the head of its first answer, and was cut off."""

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        answer = super().PullObject(request)
        if b"node 3, order 1" in self.whole[request.object_id]:
            return PullObjectResponse(object_found=True, object_available=False)
        return answer

    @property
    def whole(self) -> dict[str, bytes]:
        """Each part, and all that is stored when one of node 3 is: its parts hold its words in one of them."""
        torn = any(b"node 3, order 1" in content for content in self._objects.values())
        fresh = any(b"node 3, order 2" in content for content in self._objects.values())
        return {name: b"node 3, order 1" if torn and not fresh else content for name, content in self._objects.items()}


def test_an_answer_that_broke_off_is_asked_for_again_when_its_node_connects_anew():
    superlink = Torn({2: lambda order: 0.0, 3: lambda order: 0.5})
    grid = grid_over(superlink, Patience(2))
    grid.ring = soon(1.0, lambda: superlink.activated.update({3: "second"}))
    assert [words(reply) for reply in grid.send_and_receive(orders(2, 3))] == ["node 2, order 1", "node 3, order 2"]


def test_an_answer_that_is_begun_and_never_ended_holds_up_nobody_for_ever(monkeypatch):
    monkeypatch.setattr(polling, "_STALLED", 0.5)
    grid = grid_over(Torn({2: at_once, 3: lambda order: 0.5}), Patience(2))
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(orders(2, 3))}
    assert words(replies[2]) == "node 2, order 1"
    assert "broke off" in replies[3].error.reason


def test_an_error_is_what_flower_sends_as_one():
    """What the last tests stand on."""
    assert Message(Error(ErrorCode.UNKNOWN, "reason"), reply_to=orders(2)[0]).has_error()
