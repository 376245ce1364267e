"""Flower's SuperLink for the coordinator alone: `python -m server.superlink HOME`, and Flower's options.

It is Flower's `flower-superlink`, which has no option for whom it answers: here TLS asks for the certificate of
`inside.py`, before a byte of a request is read.
"""

import ssl
import sys
from pathlib import Path

import uvicorn
from flwr.supercore import sql_mixin
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app

from server.inside import inside

# Flower waits for 5 s where another thread writes to its database, which a busy disk exceeds; its clients wait for 30.
_WAIT_MILLISECONDS = "25000"


def main() -> None:
    certificate, _ = inside(Path(sys.argv.pop(1)))
    sql_mixin.SQLITE_PRAGMAS = (*sql_mixin.SQLITE_PRAGMAS, ("busy_timeout", _WAIT_MILLISECONDS))
    settings = _parse_superlink_lifespan_config()
    uvicorn.run(
        create_app(settings, SuperLinkLifespan),
        host=settings.host,
        port=settings.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        ssl_ca_certs=str(certificate),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )


if __name__ == "__main__":
    main()
