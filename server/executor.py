"""Takes the tasks of the SuperLink and gives each to a conductor that is warm already.

`python -m server.executor HOME` replaces Flower's SuperExec, which would run whatever code a bundle holds. A run whose
conductor was killed, or that the coordinator's own stop cut short, is submitted again and goes on where it stopped.
"""

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import IO, cast

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from common.errors import FederationError
from server.conductor import READY
from server.loopback import Loopback

_POLL_SECONDS = 0.4
_PAUSE_SECONDS = 2.0  # before the SuperLink is tried again
_PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})
log = logging.getLogger("veilfed.executor")


class Conductors:
    """One warm process in reserve."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._spare = self._started()

    def conduct(self, token: str) -> None:
        """Hand the task to the warm process, and warm up the next one."""
        chosen, self._spare = self._spare, self._started()
        if chosen.poll() is not None:
            chosen = self._started()
        stdin, stdout = cast(IO[str], chosen.stdin), cast(IO[str], chosen.stdout)  # PIPE was asked for
        if stdout.readline().strip() != READY:
            raise FederationError("a conductor did not start", "see the coordinator's log")
        stdin.write(token + "\n")
        stdin.close()
        Thread(target=chosen.wait, daemon=True).start()  # no zombie stays behind

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "server.conductor", str(self._home)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def run(home: Path) -> None:
    """For ever."""
    conductors = Conductors(home)
    loopback = Loopback(home)
    client = RuntimeHttpClient(
        f"https://{loopback.address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=loopback.secret, protected_methods=_PROTECTED),
        ],
        verify=loopback.tls(),
    )
    while True:
        try:
            given = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        except httpx.HTTPError as error:
            log.warning("the SuperLink does not answer (%s)", error or type(error).__name__)
            time.sleep(_PAUSE_SECONDS)
            continue
        if given.HasField("task") and given.token:
            log.info("task %d of run %d", given.task.task_id, given.task.run_id)
            conductors.conduct(given.token)
        time.sleep(_POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m server.executor", description=__doc__)
    parser.add_argument("home", type=Path)
    home = parser.parse_args(arguments).home
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        run(home)
    except FederationError as error:
        log.error("%s %s", error.message, f"({error.hint})" if error.hint else "")
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
