"""The site's worker: records, policy, ledger and keys, in a process that needs no network.

`python -m client.worker DIR` listens on DIR/run/worker.sock and answers the orders that the node hands it. It runs the
package that the site's administrator installed. Of what a coordinator sends it reads data: signed orders, and the
signed bundle that says which plan they belong to. One order at a time: `agent.answer` takes turns.
"""

import argparse
import base64
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client import agent, local_socket, observed
from client.enroll import follow
from client.policy import require_bundle_key
from client.runs import SiteRun
from client.signs_of_life import signs_of_life
from client.site import Site, open_site, settings_stamp
from common import bundle
from common.audit import BundleAccepted, RosterFollowed, Started
from common.certificates import now_utc
from common.config import to_table
from common.dp.accounting import epsilon
from common.dp.events import PoissonGaussian
from common.errors import FederationError, ProtocolError
from common.federation import Plan
from common.log import configure, say, say_error
from common.spans import Span, collector_in, recording
from common.wire import Envelope, digest, plan_hash

log = logging.getLogger("veilfed.worker")


def serve(directory: Path, server: socket.socket) -> None:
    """Answer for ever. Each connection has a thread of its own; a node that goes away takes nothing with it."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_converse, args=(directory, connection), daemon=True).start()


def _converse(directory: Path, connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):
        try:
            local_socket.require_same_user(connection)
            while True:
                head, body = local_socket.receive(connection)
                with signs_of_life(connection):
                    about, data = _said(directory, head, body)
                local_socket.send(connection, about, data)
        except FederationError as error:
            say_error(log, "connection closed", error)


def _said(directory: Path, head: Mapping[str, Any], order: bytes) -> tuple[dict[str, Any], bytes]:
    """The answer's head and data; for an order that cannot be answered what kind of error it met, and no more.

    Where site.toml names a collector, the head also has this order's spans: for the node to deliver there.
    """
    spans: list[Span] = []
    about, data = {}, b""
    try:
        with recording(spans.append) if collector_in(directory / "site.toml") else contextlib.nullcontext():
            said = respond(directory, head, order)
        about, data = {"metrics": dict(said.metrics)}, said.data
    except FederationError as error:  # of this site's own files: what is wrong with an order is refused in `agent`
        say_error(log, "order not answered", error)
        about = {"error": error.code}
    except Exception as error:
        log.exception("a bug of ours")
        about = {"error": type(error).__name__}
    return about | ({"spans": [to_table(one) for one in spans]} if spans else {}), data


def respond(directory: Path, head: Mapping[str, Any], order: bytes) -> agent.Answer:
    """The site's answer to one order of the node. head: {action, and of a join the run's signed `bundle`}."""

    _follow(directory)

    def act(site: Site, action: str, order: bytes) -> agent.Answer:
        approved = partial(_require_bundle, site, head) if action == "join" else partial(_require_signer, site)
        return agent.answer(site, action, order, approved)

    return observed.answer(open_site(directory, settings_stamp(directory)), str(head.get("action")), order, act)


def _follow(directory: Path) -> None:
    """Whoever joined or was revoked since counts from the next order on."""
    try:
        if (kit := follow(directory, now_utc())) is not None:
            Site.open(directory).audit.note(RosterFollowed(kit.roster.version))
            say(log, "kit installed", version=kit.roster.version)
    except FederationError as error:
        say_error(log, "kit not installed", error)
    except OSError as error:  # a full disk, say: it is tried again with the next order
        say(log, "kit not installed", logging.ERROR, message=error.strerror or str(error))


def _require_bundle(site: Site, head: Mapping[str, Any], order: Envelope) -> bytes:
    """A run is joined only with a bundle that a trusted key signed, and only for the plan that is in it: that key."""
    try:
        content = base64.b64decode(str(head["bundle"]), validate=True)
    except (KeyError, ValueError):
        raise ProtocolError("an order to join came without a bundle") from None
    plan, signer = bundle.opened(content, str(head.get("signature", "")), site.roster.bundles, order.run)
    require_bundle_key(site.policy, signer, site.roster.bundles)
    if plan_hash(plan) != order.plan:
        raise ProtocolError("the order carries another plan than the signed bundle")
    site.audit.note(BundleAccepted(order.run.hex(), digest(content).hex(), digest(signer).hex()))
    return signer


def _require_signer(site: Site, order: Envelope) -> bytes:
    """Whatever a run asks is done only while the key that signed its bundle is still one that this site trusts."""
    signer = SiteRun.open(site.directory / "runs", order.run, site.at_rest).signer()
    require_bundle_key(site.policy, signer, site.roster.bundles)
    return b""


def _load_what_orders_need() -> None:
    """What opens a bundle and what prices a plan take seconds to load: the first order need not wait for them."""
    bundle.build(Plan())
    epsilon([PoissonGaussian(noise_multiplier=1.0, sample_rate=0.1, steps=1)], delta=1e-5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.worker", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    configure("worker")
    try:
        site = open_site(directory, settings_stamp(directory))
        records = len(site.training_records) + len(site.held_out_records)
        _load_what_orders_need()
        server = local_socket.listen(directory)
    except FederationError as error:
        say_error(log, "not started", error)
        return error.exit_code
    site.audit.note(Started("worker", version("veilfed")))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say(log, "ready", site=site.name, records=records)
    with contextlib.suppress(KeyboardInterrupt), server:
        serve(directory, server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
