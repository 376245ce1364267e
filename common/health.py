"""Whether a process answers, for containers: `python -m common.health WHERE...`, exit code 0 when all do, else 1.

/srv/veilfed/run/worker.sock    somebody listens on that Unix socket
127.0.0.1:8443                  somebody listens on that port
http://127.0.0.1:9464/readyz    that page answers 200
"""

import http.client
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from common.unix_sockets import connect

_PATIENCE = 3.0  # seconds


def answers(where: str) -> bool:
    try:
        if where.startswith("/"):
            with connect(Path(where), _PATIENCE):
                return True
        if where.startswith("http://"):
            page = urlsplit(where)
            connection = http.client.HTTPConnection(page.netloc, timeout=_PATIENCE)
            connection.request("GET", page.path)
            return connection.getresponse().status == 200
        host, _, port = where.rpartition(":")
        with socket.create_connection((host, int(port)), _PATIENCE):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def main(places: Sequence[str]) -> int:
    silent = [place for place in places if not answers(place)]
    for place in silent:
        print(f"{place} does not answer", file=sys.stderr)
    return 1 if silent or not places else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
