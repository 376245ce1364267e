"""The Flower ServerApp: gather the sites, run the rounds, take the released model."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from common.audit import RunEnded, SitesGathered
from common.commands import printable
from common.config import to_table
from common.errors import FederationError, InvalidUpdate, TrustError
from common.he.parameters import choose_scheme
from common.layout import longest
from common.model_state import ModelState
from common.models import build, parameters_of
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, encode, to_json
from server.encrypted_rounds import EncryptedRounds
from server.key_relay import KeyRelay
from server.links import Link, Links, Reply, outgoing, packed
from server.round import LeftOut, too_few
from server.store import RunStore
from server.strategy import ROUND_TIMEOUT_SECONDS, OnRound, ReadableRounds, Rounds

JOIN_TIMEOUT_SECONDS = 300.0
ASK_AGAIN_SECONDS, LATEST_SECONDS = (
    1.0,
    60.0,
)  # before a site that said "not now" is asked again; each time twice as long
log = logging.getLogger("veilfed.server")
OnEnd = Callable[["Outcome"], None]


@dataclass(frozen=True)
class Outcome:
    """How the run ended for the coordinator: traffic and refusals per site, and the error that stopped it."""

    links: tuple[Link, ...] = ()
    error: FederationError | None = None


def build_app(on_round: OnRound = lambda record: None, on_end: OnEnd = lambda outcome: None) -> ServerApp:
    """A ServerApp that reports each closed round to `on_round` and the end to `on_end`."""
    built = ServerApp()

    @built.main()
    def main(grid: Grid, context: Context) -> None:
        directory = context.run_config.get("run-directory") or os.environ.get("VEILFED_RUN", "")
        try:
            on_end(coordinate(grid, RunStore.open(Path(str(directory))), on_round))
        except FederationError as error:
            on_end(Outcome(error=error))
            raise

    return built


@contextmanager
def _noting_the_end(store: RunStore) -> Iterator[None]:
    """How the run ended, or stopped until it is resumed, is in the audit log whatever it was."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, FederationError)
        code, message = (error.code, error.message) if known else (type(error).__name__, str(error))
        store.audit.note(RunEnded(store.run.hex(), code, message))
        raise
    store.audit.note(RunEnded(store.run.hex(), "done"))


def coordinate(grid: Grid, store: RunStore, on_round: OnRound) -> Outcome:
    """The whole run, from wherever the store says it stopped."""
    with _noting_the_end(store):
        return _coordinate(grid, store, on_round)


def _coordinate(grid: Grid, store: RunStore, on_round: OnRound) -> Outcome:
    links = Links(grid, store.roster)
    joined = _join(links, store)
    rounds = _rounds(links, store, joined, on_round)
    rest = store.plan.last_round - rounds.closed
    if rest > 0:
        rounds.start(grid, ArrayRecord(), num_rounds=rest, timeout=ROUND_TIMEOUT_SECONDS)
    _take_release(links, store, rounds)
    return Outcome(tuple(links.by_site[site] for site in sorted(links.by_site)))


def _join(links: Links, store: RunStore) -> dict[str, str]:
    """Every site's signed join answer, hexadecimal. Raises when fewer than `min_cohort` sites join.

    Where a person must agree at a site, that is waited for, as nobody joins later; where it says "not now" for another
    reason, only while too few have joined. Whoever submitted the run can stop it.
    """
    wanted, settings = len(store.roster.sites), store.plan.federation
    deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
    while len(nodes := list(links.grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    order = _order(store, {"plan": to_table(store.plan), "cohort": list(store.roster.sites)})
    content = packed(order)
    joined: dict[str, str] = {}
    refused: dict[int, LeftOut] = {}
    pause = ASK_AGAIN_SECONDS
    while nodes:
        messages = [outgoing(node, "query.join", content, 0) for node in nodes]
        for message in links.grid.send_and_receive(messages, timeout=JOIN_TIMEOUT_SECONDS):
            node = message.metadata.src_node_id
            try:
                answer = links.add(message)
            except FederationError as error:
                answer = LeftOut.because(f"node {node}", error)
            if isinstance(answer, LeftOut):
                refused[node] = answer
            else:
                refused.pop(node, None)
                joined[answer.sender] = message.content.array_records["veilfed"]["envelope"].data.hex()
                links.by_site[answer.sender].bytes_down += len(order)
        enough = len(joined) >= settings.min_cohort
        nodes = [node for node, left in refused.items() if left.awaits_a_person or (left.not_now and not enough)]
        if nodes:
            log.info("waiting for %s", printable("; ".join(str(refused[node]) for node in nodes)))
            time.sleep(pause)
            pause = min(2 * pause, LATEST_SECONDS)
    left_out = tuple(refused.values())
    store.audit.note(SitesGathered(store.run.hex(), tuple(sorted(joined)), tuple(map(str, left_out))))
    if len(joined) < settings.min_cohort:
        raise too_few(0, len(joined), settings.min_cohort, left_out)
    return joined


def _rounds(links: Links, store: RunStore, joined: Mapping[str, str], on_round: OnRound) -> Rounds:
    initial = ModelState.initial(parameters_of(build(store.plan.model)))
    if store.plan.encryption.preset == "none":
        state = store.state() or initial
        store.fill_gap(state.round_number)
        return ReadableRounds(store, links, state, on_round)
    closed = len(store.rounds())
    while store.has_aggregate(closed + 1):
        closed += 1
    store.fill_gap(closed)
    keys, parameters = KeyRelay(store, links, joined), initial.model.size
    scheme = choose_scheme(store.plan.encryption.preset, len(store.roster.sites), longest(store.plan, parameters))
    return EncryptedRounds(store, links, keys, closed, on_round, scheme, parameters)


def _take_release(links: Links, store: RunStore, rounds: Rounds) -> None:
    """The final model, when the plan reveals it: all sites that answer must have signed the same bytes."""
    if isinstance(rounds, ReadableRounds):
        store.keep_release(rounds.state.released, rounds.closed)
    elif isinstance(rounds, EncryptedRounds) and store.plan.federation.reveal != "never":
        ready = dict.fromkeys(links.at_round(rounds.closed), _order(store, {}))
        answers = links.exchange("query.release", ready, rounds.closed, ROUND_TIMEOUT_SECONDS)
        models = {
            answer.envelope.body
            for answer in answers.values()
            if isinstance(answer, Reply) and answer.envelope.kind is Kind.RELEASE
        }
        if not models:
            failed = tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))
            raise too_few(rounds.closed, 0, 1, failed)
        if len(models) > 1:
            raise TrustError(f"the sites released {len(models)} different models")
        model = models.pop()
        if len(model) != 4 * rounds.parameters:
            raise InvalidUpdate(f"a model of {len(model)} bytes was released, {4 * rounds.parameters} were expected")
        store.keep_release(np.frombuffer(model, "<f4"), rounds.closed)


def _order(store: RunStore, body: Mapping[str, Any]) -> bytes:
    envelope = Envelope(Kind.ORDER, store.run, 0, store.plan_hash, COORDINATOR, to_json(dict(body)))
    return encode(envelope, store.identity)


app = build_app()
