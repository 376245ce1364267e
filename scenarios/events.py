"""What befalls the replies of a played federation: lost, doubled, corrupted, replayed, late. A network as data."""

from collections.abc import Iterable, Sequence

from scenarios.grid import Reply, envelope_of, with_envelope
from scenarios.scenario import Event

_FIRST_NODE = 2  # of the sites, in their order: see `engines.py`


class Network:
    """A `Delivery` that does what the events say. happened: how often each has."""

    def __init__(self, events: Sequence[Event], sites: Sequence[str]) -> None:
        self.events, self.sites = events, sites
        self.happened = [0] * len(events)
        self._earlier: dict[tuple[str, str], bytes] = {}
        self._late: dict[tuple[str, str], list[Reply]] = {}

    def __call__(self, reply: Reply) -> Iterable[Reply]:
        about = reply.metadata
        site, kind = self.sites[about.src_node_id - _FIRST_NODE], about.message_type.removeprefix("query.")
        due = [with_envelope(reply, envelope_of(late)) for late in self._late.pop((site, kind), [])]
        for place, event in enumerate(self.events):
            if (event.site, event.message) == (site, kind) and str(event.round) in ("0", about.group_id):
                self.happened[place] += 1
                return [*due, *self._befall(event, reply, (site, kind))]
        if not reply.has_error():
            self._earlier[site, kind] = envelope_of(reply)
        return [*due, reply]

    def _befall(self, event: Event, reply: Reply, kind: tuple[str, str]) -> Iterable[Reply]:
        match event.action:
            case "lose":
                return ()
            case "double":
                return reply, reply
            case "corrupt":
                data = bytearray(envelope_of(reply))
                data[len(data) // 2] ^= 1
                return (with_envelope(reply, bytes(data)),)
            case "replay":
                return (with_envelope(reply, self._earlier[kind]),)
            case "delay":
                self._late.setdefault(kind, []).append(reply)
                return ()
