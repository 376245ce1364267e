"""How the coordinator's own processes reach its SuperLink, on the loopback, and its sites' nodes, by a bell."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomically
from common.ports import LOOPBACK
from server.inside import inside
from server.processes import Ports

READY = "ready"  # a conductor's first word to the executor
BELL = Path("gateway") / "bell"  # in the home; the gateway shows it to sites


@dataclass(frozen=True)
class Loopback:
    """home: the coordinator's directory."""

    home: Path

    @property
    def address(self) -> str:
        """host:port of the SuperLink. Raises ConfigError when it has never been started."""
        return f"{LOOPBACK}:{Ports.read(self.home).superlink}"

    @property
    def secret(self) -> bytes:
        """What lets a process take tasks."""
        return (self.home / "superexec.secret").read_bytes()

    def tls(self) -> ssl.SSLContext:
        """With the roots in force, and what shows the SuperLink that it is one of the coordinator's own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.home / "roots.pem")
        context.load_cert_chain(*inside(self.home))
        return context

    def ring(self) -> None:
        """Tell the nodes that there are orders."""
        write_atomically(self.home / BELL, str(time.time_ns()).encode(), mode=0o644)
