"""nginx's configuration from a few checked values: what it listens to, whom it trusts, who may call what. Pure.

Every text that comes from outside is an address, a port or a path, and each is checked at birth, so that no value can
end a directive and begin another. What a role may call is `routes.ROUTES` and nowhere else.
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from server.gateway.routes import HOPELESS_BYTES, PASSED_HEADERS, ROLES, ROUTES, Route

SUPERLINK_NAME = "localhost"  # what the SuperLink's own certificate is for
_PATH = re.compile(r"/[\w ./+@=,:~-]*")
# nginx writes a subject as RFC 2253 does, the last attribute first. The whole of it must be one name, one role and one
# consortium in the spelling that rosters allow: there is no room in it for text that passes for another attribute.
_NAME, _CONSORTIUM = r"^CN=(?<name>[a-z0-9][a-z0-9._-]*)", r"O=[A-Za-z0-9][A-Za-z0-9 ._-]*$"


@dataclass(frozen=True)
class Listen:
    """Where the gateway listens: an IP address of this machine, 0.0.0.0 or :: for all of them."""

    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ConfigError(f"{self.host!r} is no IP address to listen on", "e.g. 0.0.0.0, or [::] as ::") from None
        _check_port(self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Gateway:
    """home: the coordinator's directory. superlink_port, status_port: on the loopback."""

    home: Path
    listen: Listen
    superlink_port: int
    status_port: int

    def __post_init__(self) -> None:
        _check_port(self.superlink_port)
        _check_port(self.status_port)
        if not _PATH.fullmatch(str(self.home)):
            raise ConfigError(
                f"{str(self.home)!r} cannot stand in nginx's configuration",
                "an absolute path of letters, digits, spaces and ./+@=,:~-_",
            )

    @property
    def folder(self) -> Path:
        """All that nginx writes is in here."""
        return self.home / "gateway"

    @property
    def watched(self) -> tuple[Path, ...]:
        """When one of these changes, nginx must read them again."""
        tls = self.home / "tls"
        return (tls / "gateway.crt", tls / "gateway.key", self.home / "roots.pem", self.home / "crl.pem")


def nginx_conf(gateway: Gateway) -> str:
    """The text of nginx.conf: run by `nginx -p HOME/gateway -c nginx.conf`, in the foreground, logging to its pipes."""
    home = gateway.home
    return f"""\
# Written by `veilfed server start`; it is written again at every start.
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes 2;
worker_rlimit_nofile 8192;
worker_shutdown_timeout 300s;

events {{
    worker_connections 2048;
}}

http {{
    server_tokens off;
    default_type application/json;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;

{_maps()}
    log_format line escape=json '{_LOG_LINE}';
    access_log /dev/stdout line;

    # By certificate: a site that sends 100 million parameters makes about 70 requests of 5 MiB, eight at a time.
    limit_req_zone $ssl_client_serial zone=requests:1m rate=100r/s;
    limit_req_zone $ssl_client_serial zone=bell:1m rate=50r/s;
    limit_conn_zone $ssl_client_serial zone=connections:1m;
    limit_req_status 429;
    limit_conn_status 429;

    upstream superlink {{
        server 127.0.0.1:{gateway.superlink_port};
        keepalive 32;
        keepalive_timeout 4s;  # the SuperLink closes after 5
    }}

    server {{
        listen {gateway.listen} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate "{home}/tls/gateway.crt";
        ssl_certificate_key "{home}/tls/gateway.key";
        ssl_client_certificate "{home}/roots.pem";
        ssl_crl "{home}/crl.pem";
        ssl_verify_client on;
        ssl_verify_depth 1;
        ssl_session_cache none;  # every connection shows its certificate, to the list of revoked ones in force
        ssl_session_tickets off;

        client_header_timeout 10s;
        client_header_buffer_size 4k;
        large_client_header_buffers 4 8k;
        client_body_timeout 30s;
        send_timeout 60s;
        keepalive_timeout 75s;
        keepalive_requests 10000;
        reset_timedout_connection on;
        lingering_close off;  # what was refused is not read
        limit_req zone=requests burst=1000 nodelay;
        limit_conn connections 64;

        proxy_http_version 1.1;
        proxy_request_buffering off;
        proxy_buffers 16 64k;
        proxy_buffer_size 64k;
        proxy_busy_buffers_size 128k;
        proxy_max_temp_file_size 0;
        proxy_connect_timeout 5s;
        proxy_read_timeout 120s;
        proxy_next_upstream off;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 1;
        proxy_ssl_trusted_certificate "{home}/roots.pem";
        proxy_ssl_name {SUPERLINK_NAME};
        proxy_ssl_certificate "{home}/run/inside.crt";
        proxy_ssl_certificate_key "{home}/run/inside.key";
        proxy_ssl_session_reuse on;
        proxy_pass_request_headers off;
{_headers()}
        # nginx reads what it refuses, as long as it comes. 444 does not: it closes, without a word.
        if ($hopeless) {{
            return 444;
        }}
        error_page 495 496 @stranger;
        location @stranger {{
            if ($long) {{
                return 444;
            }}
            return 400 '{_STRANGER}';
        }}
        location / {{
            return 404;
        }}

{"".join(_location(route, home) for route in ROUTES)}    }}

    server {{
        listen 127.0.0.1:{gateway.status_port};
        access_log off;
        location = /status {{
            stub_status;
        }}
        location / {{
            return 404;
        }}
    }}
}}
"""


_STRANGER = '{"detail":"this door opens to a certificate of the consortium that is in force, and to no other"}'
_LOG_LINE = (
    '{"time":"$time_iso8601","process":"gateway","from":"$remote_addr","role":"$role","name":"$client",'
    '"serial":"$ssl_client_serial","verified":"$ssl_client_verify","method":"$request_method","path":"$uri",'
    '"status":$status,"bytes_in":$request_length,"bytes_out":$bytes_sent,"seconds":$request_time,'
    '"upstream_seconds":"$upstream_response_time"}'
)
_HOPELESS_DIGITS = len(str(HOPELESS_BYTES - 1))
_LONG_DIGITS = 5  # what a stranger may send and still be answered
_SHOWN = {
    "X-Veilfed-Role": "$role",
    "X-Veilfed-Name": "$client",
    "X-Veilfed-Serial": "$ssl_client_serial",
    "X-Veilfed-Fingerprint": "$ssl_client_fingerprint",
}


def _maps() -> str:
    roles = "".join(f"        {_regex(f'{_NAME},OU={role},{_CONSORTIUM}')} {role};\n" for role in ROLES)
    client = _regex(f"{_NAME},OU=(?:{'|'.join(ROLES)}),{_CONSORTIUM}")
    return (
        f"    map $http_transfer_encoding$content_length $hopeless {{\n{_longer_than(_HOPELESS_DIGITS)}    }}\n"
        f"    map $http_transfer_encoding$content_length $long {{\n{_longer_than(_LONG_DIGITS)}    }}\n"
        f'    map $ssl_client_s_dn $role {{\n        default "";\n{roles}    }}\n'
        f'    map $ssl_client_s_dn $client {{\n        default "";\n        {client} $name;\n    }}\n'
    )


def _longer_than(digits: int) -> str:
    """A body whose length has more digits than that, or that does not say how long it is."""
    return f'        default 1;\n        "" 0;\n        {_regex(f"^[0-9]{{1,{digits}}}$")} 0;\n'


def _regex(pattern: str) -> str:
    """A case-sensitive pattern as one word of the configuration, where a backslash before a backslash is eaten."""
    escaped = pattern.replace("\\", "\\\\").replace('"', '\\"')
    return f'"~{escaped}"'


def _headers() -> str:
    passed = {name: f"$http_{name.lower().replace('-', '_')}" for name in PASSED_HEADERS}
    headers = {"Host": SUPERLINK_NAME, "Connection": '""', **passed, **_SHOWN}
    return "".join(f"        proxy_set_header {name} {value};\n" for name, value in headers.items())


def _location(route: Route, home: Path) -> str:
    return f"""\
        location = {route.path} {{
            if ($role !~ "^(?:{"|".join(route.roles)})$") {{
                return 403;
            }}
            if ($request_method != {"GET" if route.shows else "POST"}) {{
                return 405;
            }}
            client_max_body_size {route.body_bytes};
{_shown(route, home) if route.shows else _asked(route)}        }}
"""


def _asked(route: Route) -> str:
    streams = "            proxy_buffering off;\n            proxy_read_timeout 1d;\n" if route.streams else ""
    return f'{streams}            set $args "";\n            proxy_pass https://superlink{route.path};\n'


def _shown(route: Route, home: Path) -> str:
    return f"""\
            limit_req zone=bell burst=100 nodelay;
            access_log off;
            default_type application/octet-stream;
            root "{home}";
            try_files /{route.shows} =404;
"""


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"{port} is no port", "1 to 65535")
