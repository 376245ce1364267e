"""Starts a site: the list of its processes, each with no more of this machine than its work needs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from client import local_socket
from client.exposed import CONNECTED
from common.errors import ConfigError
from common.monitoring import VARIABLE
from common.spans import collector_in
from common.supervisor import CARRIES, Child, environment, module, require_ready, status, supervise
from common.tracing import require_installed
from common.unix_sockets import connect

_COMPUTES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "VEILFED_PROCESSES",
)
_CALLS_OUT = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", VARIABLE)
_QUIET_FLOWER = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_LOOK_SECONDS = 0.2


def start(directory: Path, report: Callable[[str], None]) -> None:
    """Run the site's processes until SIGTERM or SIGINT. Raises ConfigError that names what is in the way."""
    directory = directory.absolute()
    for name, hint in (("site.toml", "veilfed site init"), ("node.crt", "veilfed site join")):
        if not (directory / name).exists():
            raise ConfigError(f"{directory} has no {name}", f"{hint} makes it")
    require_installed(collector_in(directory / "site.toml"))
    supervise(directory, lambda: processes(directory), report)


def processes(directory: Path) -> tuple[Child, ...]:
    """The worker has records and keys and is told no way out; the node has the way out and no word of the records."""
    at = local_socket.address(directory)
    return (
        Child("worker", module("client.worker", str(directory)), environment(_COMPUTES), ready=lambda: listens(at)),
        Child(
            "node",
            module("client.node", str(directory)),
            environment(_CALLS_OUT, **_QUIET_FLOWER, **CARRIES),
            ready=(directory / CONNECTED).exists,
        ),
    )


def listens(path: Path) -> bool:
    """Whether somebody answers at that Unix socket."""
    try:
        with connect(path, _LOOK_SECONDS):
            return True
    except OSError:
        return False


def known(directory: Path) -> Mapping[str, Any]:
    """Of a site that runs and is ready. Raises ConfigError naming what is not."""
    found = status(directory)
    require_ready(found, f"veilfed site start {directory}")
    return {"rows": found["rows"]}
