"""Ports of this machine: whether one is free, whether somebody answers, and free ones to keep."""

import errno
import random
import socket
from collections.abc import Collection

from common.errors import ConfigError

LOOPBACK = "127.0.0.1"
_PRIVATE = range(20_000, 32_000)  # below those that Linux gives to connections that go out
_LOOK_SECONDS = 0.2
_TRIES = 200


def is_free(host: str, port: int) -> bool:
    """Whether this process could listen there now. Raises ConfigError when it never could."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            hint = "take a port from 1024 on" if error.errno == errno.EACCES else "name an address of this machine"
            raise ConfigError(f"nobody can listen on {host}, port {port}, here: {error.strerror}", hint) from None
    return True


def accepts(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.settimeout(_LOOK_SECONDS)
        return probe.connect_ex((host, port)) == 0


def free_port(taken: Collection[int] = ()) -> int:
    """One on the loopback that nobody listens on and that is not among `taken`."""
    for _ in range(_TRIES):
        port = random.choice(_PRIVATE)  # noqa: S311 - no secret
        if port not in taken and is_free(LOOPBACK, port):
            return port
    raise ConfigError(f"no free port between {_PRIVATE.start} and {_PRIVATE.stop}", "see what listens: ss -ltn")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
