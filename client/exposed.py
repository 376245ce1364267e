"""A site's numbers at an address of the site's own network: the worker's, from its file, and the node's.

The node imports this: no torch, no records, no keys.
"""

from collections.abc import Callable, Iterable
from http.server import ThreadingHTTPServer
from pathlib import Path

from common.health import answers
from common.monitoring import expiry_of, expose
from common.telemetry import Number

CONNECTED = "run/connected"  # there while the node is connected to the coordinator
NUMBERS = "run/worker.numbers"  # below the site's directory, in the place that worker and node share


def expose_site(
    directory: Path, address: tuple[str, int], worker: str, connected: Callable[[], bool]
) -> ThreadingHTTPServer:
    """For the node: the worker's numbers and its own. Ready when it is connected and the worker is there.

    worker: the worker's socket. connected: whether the coordinator can be reached now.
    """

    def now() -> Iterable[Number]:
        return (
            Number("veilfed_site_connected", float(connected())),
            Number("veilfed_site_worker_up", float(answers(worker))),
            *expiry_of({"node": directory / "node.crt"}),
        )

    return expose(address, [directory / NUMBERS], now, lambda: connected() and answers(worker))
