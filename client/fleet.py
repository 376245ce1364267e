"""This site's node at Flower's Fleet API: messages in, replies out, over TLS with a client certificate.

Flower's own client, messages and node authentication; not its SuperNode, which starts a process per message, sleeps
three seconds between two looks and runs what the coordinator ships. A connection that fails raises `Unreachable`:
connect again. Connecting activates the node anew, by which the coordinator knows to ask again for what was lost.
"""

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    pull_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.local_socket import LONGEST_BODY
from common.certificates import Certificate, now_utc
from common.errors import ConfigError, FederationError
from common.files import write_atomically
from common.log import say
from common.messages import is_whole, whole
from common.parts import put_together, send_parts
from common.tls_keys import TlsKey

BELL = "/v1/bell"  # a counter that the gateway shows: see `server/gateway/`
KIT = "/v1/kit"
_GONE = (400, 404, 409, 410)
_NOT_LET_IN = (400, 401, 403, 412)  # by the gateway: a certificate revoked or ended; by the SuperLink: an unknown key
_STALLED = 60.0  # seconds without another part of an order that has begun to come
_OBJECT_PAUSE = 0.05  # seconds before a part that is still on its way is asked for again

log = logging.getLogger("veilfed.node")


class Unreachable(FederationError):
    """The coordinator cannot be reached, or does not let this node in."""

    exit_code = 4


@dataclass(frozen=True)
class Credentials:
    """context: TLS with the roots that this site pins and its own certificate. key: the node's, ECDSA on P-384."""

    context: ssl.SSLContext
    key: EllipticCurvePrivateKey

    @classmethod
    def of(cls, directory: Path) -> "Credentials":
        """From DIR/roots.pem, node.crt and node.key. Raises ConfigError naming the one that does not fit, or ended."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        key = TlsKey.read(directory / "node.key").key
        try:
            context.load_verify_locations(directory / "roots.pem")
            context.load_cert_chain(directory / "node.crt", directory / "node.key")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{directory} is not ready to connect: {error}", "join first: veilfed site join KIT"
            ) from None
        ends = Certificate.read((directory / "node.crt").read_bytes()).ends
        if ends <= now_utc():
            raise ConfigError(
                f"this site's certificate ended on {ends:%Y-%m-%d}",
                f"ask for another: veilfed site renew {directory}; and see whether the clock is right",
            )
        return cls(context, key)


class Fleet:
    """An active connection. Use `connected`."""

    def __init__(self, client: FleetHttpClient, node: Node) -> None:
        self._client, self._node = client, node
        self._heard = b""

    def rung(self) -> bool:
        """Whether there may be a message: the coordinator rings a bell when it sends some. Cheap, unlike `receive`."""
        with _unreachable():
            answer = self._client._client.get(f"{self._client._base_url}{BELL}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                return True
            answer.raise_for_status()
        heard, self._heard = self._heard, answer.content
        return heard != self._heard

    def kit(self) -> bytes:
        """This site's newest kit, as the coordinator shows it; nothing where it shows none. Verify it."""
        with _unreachable():
            answer = self._client._client.get(f"{self._client._base_url}{KIT}")
        return answer.content if answer.status_code == httpx.codes.OK else b""

    def receive(self) -> Message | None:
        """The next message with all it carries; None when there is none."""
        with _unreachable():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            head, tree = response.messages_list[0], response.message_object_trees[0]
            if is_whole(head):
                return message_from_proto(head)
            run = head.metadata.run_id
            contents = pull_objects(
                [part.object_id for part in iterate_object_tree(tree)], self._part(run), initial_backoff=_OBJECT_PAUSE
            )
            make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, run)(
                tree.object_id
            )
        message = put_together(tree.object_id, contents, LONGEST_BODY)
        message.metadata.__dict__["_message_id"] = tree.object_id  # what is deflated does not hold its own id
        return message

    def _part(self, run: int) -> Callable[[str], bytes]:
        """Fetches one part, which may still be on its way. Raises Unreachable when nothing more is, or the run ended.

        Whoever connects anew is asked again, so that nothing is lost by it.
        """
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        moved = time.monotonic()

        def part(name: str) -> bytes:
            nonlocal moved
            try:
                content = bytes(pull(name))
            except ObjectPullError:
                raise Unreachable("an order was taken back while it was fetched", "it is asked for again") from None
            except ObjectUnavailableError:
                if time.monotonic() - moved > _STALLED:
                    raise Unreachable("the rest of an order does not come", "it is asked for again") from None
                raise
            moved = time.monotonic()
            return content

        return part

    def reply(self, reply: Message, seconds: float) -> None:
        """seconds: how long the site took, for the coordinator's records. What nobody waits for any more is dropped."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with _unreachable(), _no_longer_wanted(), no_object_id_recompute():
            short = whole(reply)
            head, tree = short or (message_to_proto(remove_content_from_message(reply)), get_object_tree(reply))
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[head],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            if short:
                return
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, reply.metadata.run_id, response.session_id
            )
            send_parts(get_all_nested_objects(reply), response.objects_to_push, push)

    def bundle(self, run_id: int) -> tuple[bytes, str]:
        """The bundle of a run and its signature, as the coordinator tells them: verify both."""
        with _unreachable():
            run = run_from_proto(self._client.GetRun(GetRunRequest(node=self._node, run_id=run_id)).run)
            request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
            fab = fab_from_proto(self._client.GetFab(request).fab)
        return fab.content, str(run.override_config.get("signature", ""))


@contextmanager
def connected(address: str, credentials: Credentials, last: Path) -> Iterator[Fleet]:
    """Active from here on, with heartbeats, until the block ends. Raises Unreachable.

    last: the file that keeps the node's number, so that one that was killed need not wait until it is missed.
    """
    public = credentials.key.public_key()
    client = FleetHttpClient(
        f"https://{address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(credentials.key, public),
        ],
        verify=credentials.context,
    )
    with client:
        with _unreachable():
            node = Node(node_id=_activated(client, public, last))
        beats = HeartbeatSender(lambda: _beat(client, node))
        beats.start()
        try:
            yield Fleet(client, node)
        finally:
            beats.stop()
            with suppress(httpx.HTTPError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


def _activated(client: FleetHttpClient, public: EllipticCurvePublicKey, last: Path) -> int:
    """The number that the coordinator gives this node. An earlier process that was killed is still active to it."""
    request = ActivateNodeRequest(public_key=_encoded(public), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    try:
        number = int(client.ActivateNode(request).node_id)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.PRECONDITION_FAILED or not last.exists():
            raise
        client.DeactivateNode(DeactivateNodeRequest(node_id=int(last.read_bytes())))
        number = int(client.ActivateNode(request).node_id)
    write_atomically(last, str(number).encode())
    return number


def _encoded(key: object) -> bytes:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return bytes(public_key_to_bytes(key))


def _beat(client: FleetHttpClient, node: Node) -> bool:
    """False is tried again; what is wrong with the connection the next call says."""
    request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    try:
        return bool(client.SendNodeHeartbeat(request).success)
    except (httpx.HTTPError, ValueError):
        return False


@contextmanager
def _no_longer_wanted() -> Iterator[None]:
    """The run of a reply has ended, or the reply came too late: there is nothing to be done with it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in _GONE and not _run_has_ended(error.response):
            raise
        say(log, "the coordinator has no use for a reply any more", code=str(error.response.status_code))


def _run_has_ended(answer: httpx.Response) -> bool:
    """Whether that is why the SuperLink forbids it: the gateway forbids with the same status, and other words."""
    told = FlowerError.from_json(answer.text)
    return told is not None and told.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED


@contextmanager
def _unreachable() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in _NOT_LET_IN:
            raise Unreachable(
                f"the coordinator does not let this node in ({code})",
                "was the site admitted, and not revoked? Is its clock right? Does it run a second time somewhere? "
                "Ask the coordinator's administrator",
            ) from None
        raise Unreachable(f"the coordinator answers {code}") from None
    except ObjectPushError:
        raise Unreachable("an answer could not be sent to its end", "it is sent again") from None
    except (httpx.HTTPError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise Unreachable(
                f"the coordinator's certificate is not one that roots.pem vouches for: {error}",
                "is this the right address? Then its root was replaced: veilfed site join with its newest kit",
            ) from None
        raise Unreachable(
            f"the coordinator cannot be reached: {error or type(error).__name__}",
            "it is tried again; is it running, and is the firewall open to it?",
        ) from None
