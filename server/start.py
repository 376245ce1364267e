"""Starts the coordinator, or says in one sentence why it cannot; and what is known of one that runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from common.addresses import Address, is_ip
from common.certificates import Certificate, now_utc
from common.errors import ConfigError
from common.ports import is_free
from common.supervisor import Child, require_ready, status, supervise
from common.tracing import require_installed
from server.gateway.configuration import Listen
from server.home import SERVERS, Home
from server.processes import Ports, processes


def start(home: Path, report: Callable[[str], None]) -> None:
    """Run the coordinator's processes until SIGTERM or SIGINT. Raises as `check` and `supervise` do."""
    if os.geteuid() == 0:
        report("started as root, and so are nginx and all the others: give the coordinator an account of its own")
    home = home.absolute()
    Home.open(home)
    supervise(home, lambda: _checked(home), report)


def _checked(home: Path) -> Sequence[Child]:
    opened = Home.open(home)
    listen = listen_at(Address.parse(opened.settings.address))
    check(opened, listen, now_utc())
    return processes(home, listen, Ports.kept(home, listen.port))


def check(home: Home, listen: Listen, now: datetime) -> None:
    """Returns if the coordinator can be started. Raises ConfigError that names what is in the way."""
    require_installed(home.settings.monitoring.traces)
    for name in SERVERS:
        certificate = Certificate.read(home.server_certificate(name).read_bytes())
        if certificate.ends <= now:
            raise ConfigError(
                f"the {name}'s certificate ended on {certificate.ends:%Y-%m-%d}",
                f"veilfed server renew {name} --home {home.directory}",
            )
    if not is_free(listen.host, listen.port):
        raise ConfigError(
            f"port {listen.port} is taken by another program", f"see which: ss -ltnp | grep :{listen.port}"
        )


def listen_at(address: Address) -> Listen:
    """Where to listen to be reached at that address: the loopback for its own sake, else wherever this machine is."""
    if address.host == "localhost":
        return Listen("127.0.0.1", address.port)
    if is_ip(address.host):
        ip = ip_address(address.host)
        return Listen(str(ip) if ip.is_loopback else "::" if ip.version == 6 else "0.0.0.0", address.port)  # noqa: S104
    return Listen("0.0.0.0", address.port)  # noqa: S104 - the door is meant for everybody who has a certificate


def known(home: Path) -> Mapping[str, Any]:
    """Of a coordinator that runs and is ready. Raises ConfigError naming what is not."""
    found, opened = status(home), Home.open(home)
    require_ready(found, f"veilfed server start {home}")
    return {
        "address": opened.settings.address,
        "sites": len(opened.roster.sites),
        "roster_version": opened.roster.version,
        "rows": found["rows"],
    }
