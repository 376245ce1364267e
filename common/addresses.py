"""Where the gateway is reached: HOST:PORT, read once, and the names that its certificate must carry."""

import ipaddress
import re
from dataclasses import dataclass

from common.errors import ConfigError

_DNS_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HINT = "write it as host:port, e.g. fl.example.org:8443, 10.0.0.5:8443 or [2001:db8::5]:8443"


@dataclass(frozen=True)
class Address:
    """host: a DNS name in lower case or an IP address without brackets."""

    host: str
    port: int

    def __post_init__(self) -> None:
        require_host(self.host)
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} is not possible", _HINT)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises ConfigError for anything but host:port."""
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or (":" in host) != host.startswith("["):
            raise ConfigError(f"{text!r} is no address", _HINT)
        return cls(host[1:-1] if host.startswith("[") and host.endswith("]") else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def require_host(host: str) -> None:
    """Returns for a DNS name or an IP address. Raises ConfigError."""
    if not is_ip(host) and not _DNS_NAME.fullmatch(host):
        raise ConfigError(f"{host!r} is neither a DNS name in lower case nor an IP address", _HINT)


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
