"""The site's node: the one process with a network. It carries bytes between the coordinator and the worker.

`python -m client.node DIR` holds the key and certificate of the connection, no identity key, no records; it runs
nothing that it receives. A lost connection is made again, a worker that is away is waited for.
"""

import argparse
import base64
import logging
import os
import signal
import socket
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client import local_socket
from client.courier import order_of, reply_to
from client.enroll import NEWEST_KIT, Connection
from client.exposed import CONNECTED, expose_site
from client.fleet import Credentials, Fleet, Unreachable, connected
from client.signs_of_life import BUSY, SILENT_SECONDS
from common.bundle import LARGEST
from common.errors import FederationError, ProtocolError
from common.files import write_atomically
from common.log import configure, say, say_error
from common.monitoring import address_in
from common.tracing import Collector
from common.unix_sockets import connect

SOONEST, LATEST = 0.04, 0.5  # seconds between two looks at the bell: soon after a message, and when all is quiet
_SLOWER = 1.25
_ANYWAY = 5.0  # seconds after which is asked for messages though no bell rang
_KIT_SECONDS = 60.0  # between two looks for a newer kit
_LARGEST_KIT = 4_000_000  # bytes; one of a thousand sites has less than one million
_LAST = Path("run") / "node.number"  # in the site's directory
_LONGEST_PAUSE = 30.0  # seconds before the coordinator, or the worker, is tried again
_ATTEMPTS = 5  # at an order on which the worker ends
_AWAY_SECONDS = 900.0  # for a worker that starts again, to read its records

log = logging.getLogger("veilfed.node")


class Worker:
    """The worker's socket, opened again whenever the worker comes back."""

    def __init__(self, directory: Path, collector: Collector | None = None) -> None:
        self._address, self._collector = local_socket.address(directory), collector
        self._connection: socket.socket | None = None

    def ask(self, head: dict[str, Any], order: bytes) -> tuple[bytes, dict[str, float]]:
        """The worker's answer, however often it has to be started: the same order gets the same answer.

        Raises ProtocolError when there will be none: the worker says so, hangs, does not come back, or has ended on
        this order so often that it will again.
        """
        pause, ended, met = 0.1, 0, time.monotonic()
        while True:
            try:
                if self._connection is None:
                    self._connection = connect(self._address, SILENT_SECONDS)
                ended, met = ended + 1, time.monotonic()
                local_socket.send(self._connection, head, order)
                return self._answer(self._connection)
            except TimeoutError:
                self._close()
                raise ProtocolError(f"its worker has shown no sign of life for {SILENT_SECONDS:g} s") from None
            except OSError as error:
                say(log, "the worker is away", logging.WARNING, message=error.strerror or str(error))
                self._close()
                if ended == _ATTEMPTS:
                    raise ProtocolError(f"its worker has ended {ended} times on this order") from None
                if time.monotonic() - met > _AWAY_SECONDS:
                    raise ProtocolError("its worker does not come back") from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _answer(self, connection: socket.socket) -> tuple[bytes, dict[str, float]]:
        said, data = local_socket.receive(connection)
        while said == BUSY:
            said, data = local_socket.receive(connection)
        if "spans" in said:
            self._deliver(said["spans"])
        if "error" in said:
            raise ProtocolError(f"its worker could not answer: {said['error']}")
        return data, said["metrics"]

    def _deliver(self, spans: Any) -> None:
        """To the site's own collector. They are no part of what goes to the coordinator."""
        if self._collector:
            self._collector.take_told(spans)
        else:
            _say_that_no_collector_is_known()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class Carrier:
    """What is under way between the two. A reply that could not be delivered is kept for the next connection."""

    def __init__(self, directory: Path, collector: Collector | None = None) -> None:
        self._directory, self._worker = directory, Worker(directory, collector)
        self._unsent: tuple[Message, float] | None = None
        self.connected = False

    def run(self) -> None:
        """For ever: connect, carry, and connect again."""
        pause = 1.0
        (self._directory / "run").mkdir(mode=0o700, exist_ok=True)
        (self._directory / CONNECTED).unlink(missing_ok=True)  # of a node that was killed
        while True:
            try:
                server, last = str(Connection.read(self._directory).server), self._directory / _LAST
                with connected(server, Credentials.of(self._directory), last) as fleet:
                    say(log, "connected")
                    pause, self.connected = 1.0, True
                    (self._directory / CONNECTED).touch()
                    self._carry(fleet)
                say(log, "connecting with other credentials")
            except Unreachable as error:
                say_error(log, "not connected", error)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            finally:
                self.connected = False
                (self._directory / CONNECTED).unlink(missing_ok=True)

    def _carry(self, fleet: Fleet) -> None:
        """Until the connection has to be made with other credentials. Raises Unreachable when it is lost."""
        stamp, wait, asked, looked = _stamp(self._directory), SOONEST, 0.0, 0.0
        while _stamp(self._directory) == stamp:
            if time.monotonic() - looked > _KIT_SECONDS:
                looked = time.monotonic()
                self._hand_over(fleet.kit())
            if self._unsent is not None:
                fleet.reply(*self._unsent)
                self._unsent = None
            if fleet.rung() or time.monotonic() - asked > _ANYWAY:
                asked = time.monotonic()
                while (message := fleet.receive()) is not None:
                    self._unsent, wait = self._answered(fleet, message), SOONEST
                    fleet.reply(*self._unsent)
                    self._unsent = None
            time.sleep(wait)
            wait = min(wait * _SLOWER, LATEST)

    def _hand_over(self, kit: bytes) -> None:
        """Put a kit where the worker finds it, which verifies and installs it."""
        path = self._directory / NEWEST_KIT
        if kit and len(kit) <= _LARGEST_KIT and (not path.exists() or path.read_bytes() != kit):
            write_atomically(path, kit)

    def _answered(self, fleet: Fleet, message: Message) -> tuple[Message, float]:
        started = time.monotonic()
        try:
            action, order = order_of(message)
        except ProtocolError as error:
            return Message(Error(ErrorCode.UNKNOWN, error.message), reply_to=message), 0.0
        head: dict[str, Any] = {"action": action}
        if action == "join":
            content, signature = fleet.bundle(message.metadata.run_id)
            head |= {"bundle": base64.b64encode(content[: LARGEST + 1]).decode(), "signature": signature}
        try:
            data, metrics = self._worker.ask(head, order)
        except ProtocolError as error:  # the coordinator is told once, and goes on without this site
            say_error(log, "no answer", error)
            return Message(Error(ErrorCode.UNKNOWN, error.message), reply_to=message), time.monotonic() - started
        return reply_to(message, data, metrics), time.monotonic() - started


@cache
def _say_that_no_collector_is_known() -> None:
    """Once. In containers the node has its own copy of the file, or none."""
    say(log, "traces are not delivered", logging.WARNING, message="the node's site.toml names no collector")


def _stamp(directory: Path) -> tuple[bytes, ...]:
    """What the connection is made with: a kit that says nothing new is installed as well, and changes none of it."""
    return tuple((directory / name).read_bytes() for name in ("node.crt", "roots.pem", "connection.json"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.node", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    configure("node")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        carrier = Carrier(directory, Collector.named_in(directory / "site.toml", "veilfed-site"))
        if address := address_in(os.environ):
            expose_site(directory, address, str(local_socket.address(directory)), lambda: carrier.connected)
        carrier.run()
    except FederationError as error:
        say_error(log, "not started", error)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
