"""Who may call what at the coordinator: the one table of it. Whatever is not in it does not exist. Pure."""

from dataclasses import dataclass

SITE, ADMIN, RESEARCHER, AUDITOR = "site", "admin", "researcher", "auditor"
ROLES = (SITE, ADMIN, RESEARCHER, AUDITOR)  # the OU of a client certificate

_SMALL = 64 * 1024
_MESSAGES = 2 * 1024 * 1024  # of a short message; of a long one only metadata, and 70 bytes for each chunk of 5 MiB
_LARGE = 8 * 1024 * 1024  # Flower sends objects in chunks of 5 MiB; our bundles are a few kB
HOPELESS_BYTES = 10**7  # no route takes as much: such a request is cut off before a byte of it is read


@dataclass(frozen=True)
class Route:
    """One method of Flower's APIs. body_bytes: its longest request; streams: it answers as long as a run lasts.

    shows: a file of the coordinator's home that is the answer to a GET; then Flower is not asked.
    """

    path: str
    roles: tuple[str, ...]
    body_bytes: int = _SMALL
    streams: bool = False
    shows: str = ""


def _fleet(method: str, body_bytes: int = _SMALL) -> Route:
    return Route(f"/v1/fleet/{method}", (SITE,), body_bytes)


def _control(method: str, *roles: str, body_bytes: int = _SMALL, streams: bool = False) -> Route:
    return Route(f"/v1/control/{method}", (ADMIN, *roles), body_bytes, streams)


ROUTES = (
    # A site's node. Not register-node and unregister-node: the signed roster alone says who is a node.
    _fleet("activate-node"),
    _fleet("deactivate-node"),
    _fleet("send-node-heartbeat"),
    _fleet("pull-messages"),
    _fleet("push-messages", _MESSAGES),
    _fleet("get-run"),
    _fleet("get-fab"),
    _fleet("pull-object"),
    _fleet("push-object", _LARGE),
    _fleet("confirm-message-received"),
    # Changes when there are orders: a look at it costs the SuperLink nothing.
    Route("/v1/bell", (SITE,), shows="gateway/bell"),
    # Its own newest kit: who belongs, who no longer does, and its renewed certificate.
    Route("/v1/kit", (SITE,), shows="kits/$client.json"),
    # People.
    _control("start-run", RESEARCHER, body_bytes=_LARGE),
    _control("stop-run", RESEARCHER),
    _control("list-runs", RESEARCHER, AUDITOR),
    _control("stream-logs", RESEARCHER, AUDITOR, streams=True),
    _control("list-nodes", AUDITOR),
    _control("register-node"),
    _control("unregister-node"),
)

# Of what a client sends, these headers alone are passed on.
PASSED_HEADERS = (
    "Content-Type",
    "Accept",
    "Accept-Encoding",
    "User-Agent",
    "flwr-public-key",
    "flwr-signature",
    "flwr-timestamp",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)
