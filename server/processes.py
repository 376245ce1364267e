"""What runs at the coordinator: the list of its processes, and the ports at which they find each other."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.config import fill
from common.errors import ConfigError
from common.files import write_atomically
from common.monitoring import VARIABLE
from common.ports import LOOPBACK, accepts, free_port, is_free
from common.supervisor import CARRIES, Child, environment, module
from server.gateway.configuration import Gateway, Listen, nginx_conf
from server.inside import inside

WARM = Path("run") / "warm"  # in the home: there while a conductor has been ready since the executor started
_WHERE_NGINX_MAY_BE = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"  # not on everybody's PATH
_QUIET_FLOWER = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


@dataclass(frozen=True)
class Ports:
    """On the loopback. superlink: Flower's HTTPS. health: its gRPC health service. status: nginx's counters."""

    superlink: int
    health: int
    status: int

    @classmethod
    def read(cls, home: Path) -> "Ports":
        """Those in force. Raises ConfigError when the coordinator was never started."""
        path = home / "run" / "ports.json"
        try:
            return fill(cls, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", f"veilfed server start {home}") from None

    @classmethod
    def kept(cls, home: Path, public: int) -> "Ports":
        """Those of the last start while they are free, else new ones, kept in run/ports.json.

        public: the gateway's own, on which nobody listens yet.
        """
        with suppress(ConfigError):
            ports = cls.read(home)
            if all(port != public and is_free(LOOPBACK, port) for port in asdict(ports).values()):
                return ports
        chosen: dict[str, int] = {}
        for field in fields(cls):
            chosen[field.name] = free_port((public, *chosen.values()))
        write_atomically(home / "run" / "ports.json", json.dumps(chosen, indent=1).encode())
        return cls(**chosen)


def processes(home: Path, listen: Listen, ports: Ports) -> tuple[Child, ...]:
    """In the order of their starting. Writes what nginx reads."""
    return (
        superlink(home, ports),
        gateway(Gateway(home, listen, ports.superlink, ports.status)),
        Child("nodes", module("server.nodes", str(home)), _for_flower(home)),
        executor(home),
    )


def superlink(home: Path, ports: Ports) -> Child:
    """Flower's SuperLink: on the loopback, for our own processes and registered node keys, starting no programs."""
    certificate, key = home / "tls" / "superlink.crt", home / "tls" / "superlink.key"
    argv = (
        *module("server.superlink", str(home)),
        *("--host", LOOPBACK, "--port", str(ports.superlink)),
        *("--ssl-ca-certfile", str(home / "roots.pem"), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home / "superexec.secret")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(home / "superlink.db")),
        *("--health-server-address", f"{LOOPBACK}:{ports.health}"),
    )
    return Child(
        "superlink",
        argv,
        _for_flower(home),
        ready=lambda: accepts(LOOPBACK, ports.superlink),
        restart_on=(certificate, key),
    )


def executor(home: Path) -> Child:
    """Ready once a conductor has loaded what it needs: the first run need not wait for that."""
    argv = module("server.executor", str(home))
    return Child("executor", argv, _for_flower(home, VARIABLE), ready=(home / WARM).exists)


def gateway(settings: Gateway) -> Child:
    """nginx, its configuration written anew."""
    (settings.folder / "temp").mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(settings.folder / "bell", b"0", mode=0o644)
    inside(settings.home)
    write_atomically(settings.folder / "nginx.conf", nginx_conf(settings).encode())
    near = LOOPBACK if settings.listen.host == "0.0.0.0" else settings.listen.host  # noqa: S104 - asks, does not bind
    return Child(
        "gateway",
        (find_nginx(), "-p", str(settings.folder), "-c", "nginx.conf", *_as_owner_of(settings.home)),
        environment(),
        ready=lambda: accepts(near, settings.listen.port),
        reload_on=settings.watched,
    )


def _as_owner_of(home: Path) -> tuple[str, ...]:
    """nginx that is started by root gives its rights away, and could read nothing here: it keeps the owner's."""
    return ("-g", f"user {home.owner()} {home.group()};") if os.geteuid() == 0 else ()


def find_nginx() -> str:
    """The program. Raises ConfigError when there is none."""
    found = shutil.which("nginx") or shutil.which("nginx", path=_WHERE_NGINX_MAY_BE)
    if found is None:
        raise ConfigError("nginx is not installed here", "install it, e.g. apt install nginx, and start again")
    return found


def _for_flower(home: Path, *passed: str) -> dict[str, str]:
    return environment(passed, FLWR_HOME=str(home / "flower"), **_QUIET_FLOWER, **CARRIES)
