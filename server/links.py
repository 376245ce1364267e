"""The coordinator's side of the wire: which Flower node is which site, what was sent, what came back."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.errors import FederationError, ProtocolError, TrustError
from common.messages import SHORT
from common.roster import Roster
from common.wire import Envelope, Kind, decode, from_json
from server.round import LeftOut, refusal_of


@dataclass
class Link:
    """One site as the coordinator sees it. round_number, model_hash: what it said that it has applied."""

    site: str
    node: int
    round_number: int
    model_hash: str
    bytes_up: int = 0
    bytes_down: int = 0
    refusals: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """A reply whose envelope was read and whose signature holds."""

    envelope: Envelope
    data: bytes
    metrics: Mapping[str, float]


def packed(data: bytes) -> RecordDict:
    """An envelope as Flower content; one content may go to many nodes. Flower sends a long one in chunks of 5 MiB."""
    if len(data) <= SHORT:
        return RecordDict({"veilfed": ConfigRecord({"envelope": bytes(data)})})
    array = Array("uint8", (len(data),), "veilfed.envelope", data)
    return RecordDict({"veilfed": ArrayRecord({"envelope": array})})


def outgoing(node: int, message_type: str, content: RecordDict, round_number: int) -> Message:
    return Message(content, dst_node_id=node, message_type=message_type, group_id=str(round_number))


def is_away(reply: Message) -> bool:
    """Whether it is the SuperLink's, in the place of a node that it misses."""
    return bool(reply.has_error()) and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def incoming(message: Message, roster: Roster) -> Reply:
    """Raises ProtocolError or TrustError for anything but a well-formed, signed envelope."""
    if message.has_error():
        raise ProtocolError(f"the site gave no answer: {message.error.reason}")
    try:
        record = message.content["veilfed"]
        envelope, public = record["envelope"], message.content.get("public", record)
        data = envelope if isinstance(envelope, bytes) else envelope.data
        numbers = {key: value for key, value in public.items() if isinstance(value, float)}
        metrics = {key: value for key, value in numbers.items() if math.isfinite(value)}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ProtocolError("the reply holds no envelope") from None
    return Reply(decode(data, roster.public_key_of), data, metrics)


class Links:
    """All sites that joined, by name and by node."""

    def __init__(
        self, grid: Grid, roster: Roster, cohort: Sequence[str], site_of: Callable[[int], str] = lambda node: ""
    ) -> None:
        """cohort: who may join. site_of: whose node it is, where the grid knows; empty as in a simulation."""
        self.grid, self.roster, self.cohort, self._site_of = grid, roster, cohort, site_of
        self._names: dict[int, str] = {}
        self.by_site: dict[str, Link] = {}
        self._by_node: dict[int, Link] = {}

    def exchange(
        self, message_type: str, orders: Mapping[str, bytes], round_number: int, timeout: float
    ) -> dict[str, Reply | LeftOut]:
        """Each named site's answer to its order, or why there is none that counts."""
        return dict(self.answers(message_type, orders, round_number, timeout))

    def answers(
        self, message_type: str, orders: Mapping[str, bytes], round_number: int, timeout: float
    ) -> Iterator[tuple[str, Reply | LeftOut]]:
        """The same, one after the other: of long ones only one need be in memory."""
        messages = self.messages(message_type, orders, round_number)
        yield from map(self.read, self.grid.send_and_receive(messages, timeout=timeout))

    def messages(self, message_type: str, orders: Mapping[str, bytes], round_number: int) -> list[Message]:
        """One message a site; sites that get the same order share its content."""
        contents = {order: packed(order) for order in {id(order): order for order in orders.values()}.values()}
        messages = []
        for site, order in orders.items():
            link = self.by_site[site]
            link.bytes_down += len(order)
            messages.append(outgoing(link.node, message_type, contents[order], round_number))
        return messages

    def read(self, message: Message) -> tuple[str, Reply | LeftOut]:
        """The site whose node answered, and its verified reply. Faults are the node's, not a claimed name's."""
        link = self._by_node[message.metadata.src_node_id]
        try:
            reply = incoming(message, self.roster)
            link.bytes_up += len(reply.data)
            if reply.envelope.sender != link.site:
                raise TrustError(f"the node of {link.site} answered in the name of {reply.envelope.sender}")
            refused = refusal_of(reply.envelope)
        except FederationError as error:
            refused = LeftOut.because(link.site, error)
        if refused:
            link.refusals.append(refused)
            return link.site, refused
        return link.site, reply

    def at_round(self, round_number: int) -> list[str]:
        return sorted(link.site for link in self.by_site.values() if link.round_number == round_number)

    def there(self) -> set[int]:
        """The nodes that are connected now, but for those of sites that are not in the cohort."""
        return {node for node in self.grid.get_node_ids() if self._name_of(node) in ("", *self.cohort)}

    def _name_of(self, node: int) -> str:
        """Asked for once, when it is known: a node's key, and with it its name, never changes."""
        if not self._names.get(node):
            self._names[node] = self._site_of(node)
        return self._names[node]

    @property
    def nodes(self) -> set[int]:
        return set(self._by_node)

    def add(self, message: Message, run: bytes, plan: bytes) -> Reply | LeftOut:
        """Learn from a join answer which site a node is. Raises FederationError when it is not to be trusted."""
        reply = incoming(message, self.roster)
        site, node = reply.envelope.sender, message.metadata.src_node_id
        if self._name_of(node) not in ("", site):
            raise TrustError(f"the node of {self._name_of(node)} answered in the name of {site}")
        if site not in self.cohort:
            raise TrustError(f"{site} is not in this run's cohort: it came to the consortium later")
        if site in self.by_site:
            raise TrustError(f"two nodes say that they are {site}")
        if refused := refusal_of(reply.envelope):
            return refused
        if (reply.envelope.kind, reply.envelope.run, reply.envelope.plan) != (Kind.ANSWER, run, plan):
            raise TrustError(f"{site} answered for another run")
        model_hash = str(from_json(reply.envelope.body).get("model_hash"))
        link = Link(site, node, reply.envelope.round_number, model_hash, bytes_up=len(reply.data))
        self.by_site[site] = self._by_node[node] = link
        return reply
