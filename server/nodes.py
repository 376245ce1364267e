"""Keeps the SuperLink's list of nodes what the signed roster says: `python -m server.nodes DIR`, until it is ended.

A node's key that was struck off never comes back, neither on our roster nor in Flower's database.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.control.control_http_client import ControlHttpClient

from common.errors import FederationError
from common.roster import Roster
from common.tls_keys import public_key
from server.loopback import Loopback

_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 60.0  # without a change: the SuperLink may have started from an older database
_STRUCK_OFF = "unregistered"


def agree(control: ControlHttpClient, roster: Roster) -> Iterator[Mapping[str, str]]:
    """Register who is on the roster and strike off who is not; what was done, as lines of a log."""
    wanted = {_flower_key(roster.node_key_of(site)): site for site in roster.sites if site in roster.nodes}
    known = control.ListNodes(ListNodesRequest()).nodes_info
    registered = {node.public_key for node in known if node.status != _STRUCK_OFF}
    struck_off = {node.public_key for node in known} - registered
    for node in known:
        if node.public_key in registered - wanted.keys():
            control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            yield {"event": "struck off", "site": node.name}
    for key, site in wanted.items():
        if key in struck_off:
            yield {"event": "cannot come back", "site": site, "hint": "admit it under another name, with new keys"}
        elif key not in registered:
            control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
            yield {"event": "registered", "site": site}


def main(home: Path) -> None:
    """Agree at once, whenever the roster changes, and now and then."""
    done, next_time = None, 0.0
    while True:
        stamp = _stamp(home / "roster.json")
        if stamp != done or time.monotonic() >= next_time:
            try:
                control = _control(home)
                try:
                    for line in agree(control, Roster.read(home / "roster.json")):
                        _say(**line)
                finally:
                    control.close()
                done, next_time = stamp, time.monotonic() + _AGAIN_SECONDS
            except (httpx.HTTPError, FederationError, OSError) as error:
                _say(event="failed", reason=str(error))
        time.sleep(_LOOK_SECONDS)


def _control(home: Path) -> ControlHttpClient:
    loopback = Loopback(home)
    return ControlHttpClient(f"https://{loopback.address}", verify=loopback.tls())


def _flower_key(line: str) -> bytes:
    return public_key(line).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def _say(**line: str) -> None:
    said = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "process": "nodes", **line}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
