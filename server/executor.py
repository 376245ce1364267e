"""Takes the tasks of the SuperLink and gives each to a conductor that is warm already.

`python -m server.executor HOME` replaces Flower's SuperExec, which would run whatever code a bundle holds. A run whose
conductor was killed, or that the coordinator's own stop cut short, is submitted again and goes on where it stopped.
"""

import argparse
import logging
import os
import select
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
from common.log import configure, say, say_error
from common.monitoring import address_in
from server.control import Control
from server.loopback import READY, Loopback
from server.observed import expose_coordinator
from server.processes import WARM
from server.store import RunStore

_POLL_SECONDS = 0.4
_PAUSE_SECONDS = 2.0  # before the SuperLink is tried again
_ATTEMPTS = 5  # of a run that does not close a round in between
_STARTS, _READY_SECONDS = 3, 120.0  # of a conductor that is to take a task, each from when it is needed
_PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})
log = logging.getLogger("veilfed.executor")


class Conductors:
    """Those at work, and one warm process in reserve."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._working: list[subprocess.Popen[str]] = []
        self._spare: subprocess.Popen[str] | None = self._started()

    @property
    def busy(self) -> bool:
        self._working = [one for one in self._working if one.poll() is None]
        return bool(self._working)

    def conduct(self, token: str) -> None:
        """Hand the task to the warm process, and warm up the next one once that works.

        Raises FederationError when none that is started becomes ready.
        """
        chosen, self._spare = self._spare, None  # the next task may come before another one is warm
        for _ in range(_STARTS):
            if chosen is None or chosen.poll() is not None:
                chosen = self._started()
            if _is_ready(chosen):
                break
            say(log, "a conductor did not start", logging.WARNING)
            chosen.kill()
            chosen.wait()
        else:
            raise FederationError("no conductor starts", "see the coordinator's log")
        stdin = cast(IO[str], chosen.stdin)  # PIPE was asked for
        stdin.write(token + "\n")
        stdin.close()
        self._working.append(chosen)
        Thread(target=self._warm_up, daemon=True).start()

    def _warm_up(self) -> None:
        time.sleep(_PAUSE_SECONDS)  # the run that has just begun comes first
        if self._spare is None:
            self._spare = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "server.conductor", str(self._home)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def _is_ready(conductor: "subprocess.Popen[str]") -> bool:
    """Whether it says so in time; one that has ended says nothing."""
    stdout = cast(IO[str], conductor.stdout)  # PIPE was asked for
    spoke, _, _ = select.select([stdout], [], [], _READY_SECONDS)
    return bool(spoke) and stdout.readline().strip() == READY


class Unfinished:
    """Runs that have begun, have not ended, and that nobody conducts."""

    def __init__(self, home: Path, control: Control) -> None:
        self._home, self._control = home, control
        self._tried: dict[str, tuple[int, int]] = {}  # run -> rounds closed, and attempts since

    def resubmit(self) -> None:
        """Each as it was submitted, under its own number, so that it goes on where it stopped."""
        listed = self._control.runs()
        for store in RunStore.unfinished(self._home):
            run, closed = store.run.hex(), len(store.rounds())
            before = [one for one in listed if one.run == run and not one.finished]
            if any(one.state == "pending" for one in before):
                continue
            rounds, attempts = self._tried.get(run, (closed, 0))
            self._tried[run] = (closed, 1 if closed > rounds else attempts + 1)
            if self._tried[run][1] > _ATTEMPTS:
                store.end("LostConductor")
                continue
            newest = [one for one in listed if one.run == run][-1:]
            if any(one.outcome == "stopped" for one in newest):
                store.end("stopped")  # by a person
                continue
            content, signature = store.bundle()
            self._control.start(content, signature, run)
            for one in before:  # after it: the newest of a run is stopped by nobody but a person
                self._control.stop(one.number)
            say(log, "run submitted again", run=run, round=closed)


def run(home: Path) -> None:
    """For ever."""
    (home / WARM).unlink(missing_ok=True)  # of an executor before
    loopback, conductors = Loopback(home), Conductors(home)
    unfinished = Unfinished(home, Control(loopback.address, loopback.tls()))
    client = RuntimeHttpClient(
        f"https://{loopback.address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=loopback.secret, protected_methods=_PROTECTED),
        ],
        verify=loopback.tls(),
    )
    worked = True  # before this process was
    while True:
        try:
            given = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if given.HasField("task") and given.token:
                say(log, "run taken", run=str(given.task.run_id))
                conductors.conduct(given.token)
            elif worked and not conductors.busy:
                unfinished.resubmit()
            worked = conductors.busy
        except (httpx.HTTPError, FederationError, OSError) as error:
            say(log, "the SuperLink does not answer", logging.WARNING, message=str(error) or type(error).__name__)
            time.sleep(_PAUSE_SECONDS)
        time.sleep(_POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m server.executor", description=__doc__)
    parser.add_argument("home", type=Path)
    home = parser.parse_args(arguments).home
    configure("executor")
    try:
        if address := address_in(os.environ):
            expose_coordinator(home, address)
        run(home)
    except FederationError as error:
        say_error(log, "not started", error)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
