"""Flower's grid over the network, with a wait of our own: cheap looks, one reply in memory at a time, nobody forgotten.

Flower's `send_and_receive` sleeps three seconds between two looks and gathers every reply first. This one yields a
reply as soon as it is there. A node that came back since it was asked (a restart, a cut line) is asked again: sites
answer the same order with the same bytes. How long a silent site is waited for follows from the others: see `Patience`.

Every call to the SuperLink costs it about 10 ms, whether there is news or not. So all orders go out in one call, one
look asks for all replies, and a bell is rung for the nodes, which the gateway shows them for next to nothing.
"""

import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from common.messages import is_whole, whole
from common.parts import put_together, send_parts
from server.links import is_away

SOONEST, LATEST = 0.05, 0.5  # seconds between two looks
_SLOWER = 1.25
_ROLL_CALL = 2.0  # seconds between two looks at which nodes came back
_BACK_SOON = 3 * _ROLL_CALL  # seconds for a node that was there when it was asked
_STALLED = 60.0  # seconds without another part of a reply that has begun to come
_MOST_AT_ONCE = 8 << 20  # bytes of orders in one call
_LARGEST_PART = 8 << 20  # bytes: see the gateway's routes
_OBJECT_PAUSE = 0.05  # seconds before a part that is still on its way is asked for again


@dataclass(frozen=True)
class Patience:
    """When to go on without the rest: `enough` have answered, and the rest take `times` as long as the last of those.

    Sites are so different from task to task that no number of seconds is right; `least` only keeps a fast exchange
    from being cut short by a slow moment. Before `enough` have answered there is nothing to compare with: a site that
    hangs says so itself (`client/signs_of_life.py`), and one that hides it could as well refuse.
    """

    enough: int
    times: float = 4.0
    least: float = 60.0  # seconds

    def until(self, answered_after: Sequence[float]) -> float:
        """Seconds after the orders went out. answered_after: seconds it took each site that has answered, ascending."""
        if len(answered_after) < self.enough:
            return float("inf")
        return max(self.least, self.times * answered_after[self.enough - 1])


class _BrokenOff(Exception):
    """The rest of a reply does not come. came_back: its node has connected anew since it was asked."""

    def __init__(self, came_back: bool) -> None:
        super().__init__(came_back)
        self.came_back = came_back


class PollingGrid(HttpGrid):  # type: ignore[misc]  # flwr has no types here
    """Set `tls`, `patience`, and `ring` to what tells the nodes that there are orders, before the first exchange.

    most_parts: of a reply that is fetched; a part has at most what the gateway lets through.
    """

    tls: ssl.SSLContext
    patience = Patience(1)
    most_parts = 1000
    ring: Callable[[], None] = staticmethod(lambda: None)

    def _connect(self) -> None:
        """Flower's own, but for the certificate that it shows."""
        self._client = RuntimeHttpClient(
            f"https://{self._addr}",
            interceptors=[
                self._tracing,
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=self._token),
            ],
            verify=self.tls,
            retry_invoker=self._retry_invoker,
        )

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Each reply as it arrives; ends when all have come or patience has. `timeout` is Flower's, and not used.

        For a node that is away the SuperLink's error is its answer: at once when it was away before it was asked, in a
        moment when it went since, as nodes do to connect with another certificate, and when too few are left to go on
        without it, once it has had the time of `Patience.least` to come back.
        """
        orders = {_node(order): order for order in messages}
        since = there = self._activations()
        away: dict[int, Message] = {}
        left_at: dict[int, float] = {}
        waiting = self._push(orders.values(), away)
        started = called = time.monotonic()
        answered: dict[int, float] = {}
        wait = SOONEST
        while len(answered) < len(orders):
            quiet = True
            asked = [number for number, node in waiting.items() if node not in answered]
            for number, reply in self._arrived(asked, since):
                node = waiting.pop(number)
                if reply is None:
                    called = 0.0  # the next look at who is there finds that it connected anew
                elif is_away(reply):
                    away[node], left_at[node] = _from(reply, node), time.monotonic()
                elif node not in answered:
                    answered[node] = time.monotonic() - started
                    quiet = False
                    yield _from(reply, node)
                del reply  # a large one is gone before the next is fetched
            now, missing = time.monotonic(), len(orders) - len(answered)
            hopeless = self.patience.enough <= len(orders) and len(answered) < self.patience.enough
            gone = {node for node in away if node not in there or now - left_at.get(node, 0.0) > _BACK_SOON}
            all_away = missing == len(gone - answered.keys())
            if now - started > self.patience.until(list(answered.values())) or (
                all_away and not (hopeless and now - started < self.patience.least)
            ):
                yield from (reply for node, reply in away.items() if node not in answered)
                return
            if now - called > _ROLL_CALL:
                current = self._activations()
                back = [node for node in current if node in orders and current[node] != since.get(node)]
                waiting |= self._push([again(orders[node]) for node in back if node not in answered], away)
                since, called = since | current, now
            if quiet:
                time.sleep(wait)
            wait = min(wait * _SLOWER, LATEST) if quiet else SOONEST

    def _push(self, messages: Collection[Message], away: dict[int, Message]) -> dict[str, int]:
        """The SuperLink's number of each order, and its node. Keeps in `away` who could not be given one, and why."""
        if not messages:
            return {}
        numbers = self._push_whole(messages) or list(self.push_messages(messages))
        self.ring()
        given = {}
        for number, order in zip(numbers, messages, strict=True):
            if number:
                given[str(number)] = _node(order)
                away.pop(_node(order), None)
            else:
                away[_node(order)] = _unanswered(
                    order, ErrorCode.NODE_UNAVAILABLE, "the node is not registered any more"
                )
        return given

    def _push_whole(self, messages: Collection[Message]) -> list[str]:
        """All in one call; nothing where one is long, or all are together: then what they share travels but once."""
        short = [pair for message in messages if (pair := whole(message)) is not None]
        if len(short) < len(messages) or sum(head.ByteSize() for head, _ in short) > _MOST_AT_ONCE:
            return []
        heads, trees = zip(*short, strict=True)
        sent = self._runtime_client.PushMessages(
            PushAppMessagesRequest(messages_list=heads, message_object_trees=trees)
        )
        return list(sent.message_ids)

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        """Flower's own, but for its copy of all parts at once."""
        heads, trees, parts = [], [], {}
        for message in messages:
            heads.append(message_to_proto(remove_content_from_message(message)))
            trees.append(get_object_tree(message))
            parts |= get_all_nested_objects(message)
        asked = PushAppMessagesRequest(messages_list=heads, message_object_trees=trees)
        said = self._runtime_client.PushMessages(asked)
        push = make_push_object_fn_protobuf(self._runtime_client.PushObject, self.node, run_id, said.session_id)
        send_parts(parts, said.objects_to_push, push)
        return list(said.message_ids)

    def _arrived(self, numbers: Sequence[str], since: Mapping[int, str]) -> Iterator[tuple[str, Message | None]]:
        """The replies that are there by now, by the number of their order, each fetched when it is asked for.

        None: the reply broke off, as its node was cut off while it sent it, and connected anew.
        """
        if not numbers:
            return
        there = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=numbers))
        for head, tree in zip(there.messages_list, there.message_object_trees, strict=True):
            yield head.metadata.reply_to_message_id, self._fetched(head, tree, since)

    def _fetched(self, head: ProtoMessage, tree: ObjectTree, since: Mapping[int, str]) -> Message | None:
        if head.HasField("error") or is_whole(head):
            return message_from_proto(head)
        parts = [part.object_id for part in iterate_object_tree(tree)]
        if len(parts) > self.most_parts:
            return _in_place_of(
                head, ErrorCode.UNKNOWN, f"its answer has {len(parts)} parts, more than any that is due"
            )
        node = head.metadata.src_node_id
        try:
            contents = pull_objects(parts, self._part(node, since.get(node, "")), initial_backoff=_OBJECT_PAUSE)
        except _BrokenOff as error:
            return None if error.came_back else _in_place_of(head, ErrorCode.UNKNOWN, "its answer broke off")
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=self.run.run_id, message_object_id=head.metadata.message_id
            )
        )
        try:
            message = put_together(head.metadata.message_id, contents, self.most_parts * _LARGEST_PART)
        except Exception as error:  # what a site sends is read here for the first time
            return _in_place_of(head, ErrorCode.UNKNOWN, f"its answer cannot be read: {type(error).__name__}")
        told = message_from_proto(head).metadata  # what the SuperLink knows of it, not what it says of itself
        message.metadata.__dict__.update(told.__dict__)
        return message

    def site_of(self, node: int) -> str:
        """The name under which that node's key is registered, as on the roster; empty for a node that is gone."""
        return next((str(one.name) for one in self.get_nodes() if one.node_id == node), "")

    def _part(self, node: int, since: str) -> Callable[[str], bytes]:
        """Fetches one part, which may still be on its way, unless nothing more is: then it raises _BrokenOff."""
        pull = make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, self.run.run_id)
        moved = looked = time.monotonic()

        def part(name: str) -> bytes:
            nonlocal moved, looked
            try:
                content = bytes(pull(name))
            except ObjectUnavailableError:
                now = time.monotonic()
                if now - looked > _ROLL_CALL:
                    looked = now
                    if self._activations().get(node, since) != since:
                        raise _BrokenOff(came_back=True) from None
                if now - moved > _STALLED:
                    raise _BrokenOff(came_back=False) from None
                raise
            moved = time.monotonic()
            return content

        return part

    def _activations(self) -> dict[int, str]:
        """Node -> when it connected last; only those that are there now."""
        return {node.node_id: node.last_activated_at for node in self.get_nodes()}


def again(order: Message) -> Message:
    """The same order as a new message. Whoever has connected anew since may have lost the first, or never seen it."""
    metadata = order.metadata
    return Message(order.content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)


def _unanswered(order: Message, code: int, reason: str) -> Message:
    reply = Message(Error(code, reason), reply_to=order)
    return _from(reply, _node(order))


def _in_place_of(head: ProtoMessage, code: int, reason: str) -> Message:
    """An error instead of a reply that cannot be had."""
    short = ProtoMessage()
    short.CopyFrom(head)
    short.ClearField("content")
    short.error.code, short.error.reason = code, reason
    return message_from_proto(short)


def _node(order: Message) -> int:
    return int(order.metadata.dst_node_id)


def _from(reply: Message, node: int) -> Message:
    """An error that the SuperLink made in a site's place names that site's node as its source."""
    if reply.has_error():
        reply.metadata.__dict__["_src_node_id"] = node
    return reply
