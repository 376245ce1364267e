"""The Unix socket between a site's node, which has the network, and its worker, which has records and keys.

A message is   length of head u32 | head, JSON | length of body u64 | body   (integers big-endian). Both ends run as the
same user; the kernel says who is at the other end, and nobody else is listened to.
"""

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ProtocolError, TrustError
from common.unix_sockets import reachable
from common.wire import from_json, to_json

SOCKET = "run/worker.sock"  # below the site's directory, in the place that worker and node share
_HEAD, _BODY = struct.Struct(">I"), struct.Struct(">Q")
_LONGEST_HEAD = 4_000_000  # bytes: a bundle in it, as text
LONGEST_BODY = 2**36
_PART = 1 << 20  # bytes that are read at once
_CREDENTIALS = struct.Struct("3i")  # process, user, group: SO_PEERCRED, unix(7)


def address(directory: Path) -> Path:
    """Where the worker of that site listens."""
    return directory.absolute() / SOCKET


def listen(directory: Path) -> socket.socket:
    """The worker's end: for this user alone. One that a worker left behind when it was killed is replaced."""
    path = address(directory)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with reachable(path) as near:
            server.bind(near)
    finally:
        os.umask(before)
    server.listen()
    return server


def require_same_user(connection: socket.socket) -> None:
    """Raises TrustError when the process at the other end belongs to another user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user != os.geteuid():
        raise TrustError(f"a process of user {user} is no node of this site")


def send(connection: socket.socket, head: Mapping[str, Any], body: bytes | memoryview) -> None:
    """Raises ProtocolError, and sends nothing, when the other end would not read so much; OSError when it is gone."""
    text = to_json(dict(head))
    if len(text) > _LONGEST_HEAD or len(body) > LONGEST_BODY:
        raise ProtocolError(f"a message of {len(text)} and {len(body)} bytes for the site's own socket")
    connection.sendall(_HEAD.pack(len(text)) + text + _BODY.pack(len(body)))
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Raises ConnectionError when the other end is gone, ProtocolError when it sends what no end of ours would."""
    (length,) = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if length > _LONGEST_HEAD:
        raise ProtocolError(f"a head of {length} bytes on the site's own socket")
    head = from_json(bytes(_exactly(connection, length)))
    (length,) = _BODY.unpack(_exactly(connection, _BODY.size))
    if length > LONGEST_BODY:
        raise ProtocolError(f"a body of {length} bytes on the site's own socket")
    return head, _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytearray:
    """Room is made for what comes, not for what is announced."""
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(_PART, length - len(data)))
        if not part:
            raise ConnectionError("the other end of the site's socket is gone")
        data += part
    return data
