"""Our in-process Flower Grid: calls the ClientApp directly, so a message costs microseconds, not a poll.

The only home of Flower's private names; `tests/scenarios/test_grid.py` says what to do when a release moves them.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.links import packed

NO_SUCH_NODE = 2
_COORDINATOR_NODE = 1
Reply = Message
Delivery = Callable[[Reply], Iterable[Reply]]


def as_it_is(reply: Message) -> Iterable[Message]:
    """An honest network: one reply for one order."""
    return (reply,)


def envelope_of(message: Message) -> bytes:
    """What a message of Flower carries of ours."""
    envelope = message.content["veilfed"]["envelope"]
    return envelope if isinstance(envelope, bytes) else envelope.data


def with_envelope(reply: Message, data: bytes) -> Message:
    """The same reply, with other bytes in it."""
    changed = Message(packed(data), reply_to=reply)
    changed.metadata.__dict__.update(reply.metadata.__dict__)
    return changed


class LocalGrid(Grid):
    """Sites in this very process, asked one after the other.

    contexts: one per site, each with its own node id. deliver: what the network makes of a reply - scenarios
    lose, double, replay or corrupt it here.
    """

    def __init__(self, client_app: ClientApp, contexts: Sequence[Context], deliver: Delivery = as_it_is) -> None:
        self._client_app = client_app
        self._contexts = {context.node_id: context for context in contexts}
        self._deliver = deliver
        self._replies: dict[str, list[Message]] = {}
        self._ids = itertools.count(1)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _COORDINATOR_NODE

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            message.metadata.__dict__["_message_id"] = ids[-1]  # as Flower's own grids do
            self._replies[ids[-1]] = list(self._deliver(self._ask(message)))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message_id in message_ids for reply in self._replies.pop(message_id, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Each reply before the next site is asked, so that only one is held at a time."""
        return (reply for message in messages for reply in self.pull_messages(self.push_messages([message])))

    def _ask(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(NO_SUCH_NODE, "no such node"), reply_to=message)
        return self._client_app(message, context)
