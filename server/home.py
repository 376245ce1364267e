"""The coordinator's own directory: where each thing of it is. What made it, see `provision.py`.

DIR/roster.json       who belongs to the consortium      DIR/roots.pem        the roots in force
DIR/identity.key      the coordinator's Ed25519 key      DIR/superexec.secret what lets the executor take tasks
DIR/run/ports.json    loopback ports                     DIR/runs/RUN/        one run: see `store.py`
"""

import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.files import write_atomically
from common.roster import Roster


@dataclass(frozen=True)
class Home:
    directory: Path

    @property
    def superlink(self) -> str:
        """host:port of the SuperLink, on loopback. Raises ConfigError when it has never been started."""
        try:
            ports = json.loads((self.directory / "run" / "ports.json").read_text(encoding="utf-8"))
            return f"127.0.0.1:{int(ports['superlink'])}"
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.directory} has no SuperLink", f"start it: veilfed server start {self.directory}"
            ) from None

    @property
    def roots(self) -> bytes:
        """The roots in force, PEM."""
        return (self.directory / "roots.pem").read_bytes()

    @property
    def superexec_secret(self) -> bytes:
        return (self.directory / "superexec.secret").read_bytes()

    def tls(self) -> ssl.SSLContext:
        """For calls to the SuperLink on loopback."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.roots.decode("ascii"))
        return context

    def ring_bell(self) -> None:
        """Tell the nodes that there are orders: they look at this file through the gateway."""
        write_atomically(self.directory / "bell", str(time.time_ns()).encode(), mode=0o644)

    def roster(self) -> Roster:
        return Roster.read(self.directory / "roster.json")
