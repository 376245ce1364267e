"""A run as the coordinator conducts it: gather the sites, run the rounds, take the released model."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from common.audit import RunEnded, SitesGathered
from common.commands import printable
from common.config import to_table
from common.errors import FederationError, InvalidUpdate, TrustError
from common.federation import Plan
from common.he.parameters import choose_scheme
from common.layout import longest
from common.model_state import ModelState
from common.models import build, parameters_of, planned_sizes
from common.roster import COORDINATOR
from common.spans import span
from common.wire import Envelope, Kind, digest, encode, to_json
from server.encrypted_rounds import EncryptedRounds
from server.key_relay import KeyRelay
from server.links import Link, Links, is_away, outgoing, packed
from server.round import LeftOut, too_few
from server.store import RunStore
from server.strategy import ROUND_TIMEOUT_SECONDS, OnRound, ReadableRounds, Rounds

JOIN_TIMEOUT_SECONDS = 300.0  # for as many sites as the run needs
_LATECOMER_SECONDS = 20.0  # for those that are not connected, once there are enough
ASK_AGAIN_SECONDS, LATEST_SECONDS = 1.0, 60.0  # between two times that a site is asked; each time twice as long
log = logging.getLogger("veilfed.server")


@dataclass(frozen=True)
class Outcome:
    """How the run ended for the coordinator: traffic and refusals per site, and the error that stopped it."""

    links: tuple[Link, ...] = ()
    error: FederationError | None = None


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


def coordinate(
    grid: Grid, store: RunStore, on_round: OnRound, site_of: Callable[[int], str] = lambda node: ""
) -> Outcome:
    """The whole run, from wherever the store says it stopped. site_of: see `Links`."""
    store.sweep()
    with _noting_the_end(store):
        return _coordinate(Links(grid, store.roster, store.cohort, site_of), store, on_round)


def _coordinate(links: Links, store: RunStore, on_round: OnRound) -> Outcome:
    with span("gather"):
        joined = _join(links, store)
    rounds = _rounds(links, store, joined, on_round)
    while rounds.closed < store.plan.last_round:
        with span("round", round=rounds.closed + 1):
            rounds.start(links.grid, ArrayRecord(), num_rounds=1, timeout=ROUND_TIMEOUT_SECONDS)
    with span("release"):
        _take_release(links, store, rounds)
    return Outcome(tuple(links.by_site[site] for site in sorted(links.by_site)))


def _join(links: Links, store: RunStore) -> dict[str, str]:
    """Every site's signed join answer, hexadecimal. Raises when fewer than `min_cohort` sites join.

    Where a person must agree at a site, that is waited for, as nobody joins later; where it says "not now" for another
    reason, is silent or not connected, only while too few have joined. Whoever submitted the run can stop it.
    """
    wanted, enough = len(set(store.cohort) & set(store.roster.sites)), store.plan.federation.min_cohort
    order = _order(store, {"plan": to_table(store.plan), "cohort": list(store.cohort)})
    joined: dict[str, str] = {}
    refused: dict[int, LeftOut] = {}
    started, pause = time.monotonic(), ASK_AGAIN_SECONDS
    while True:
        there = links.there()
        asked = sorted(node for node in there - links.nodes if node not in refused or _again(refused[node]))
        refused |= {node: LeftOut(f"node {node}", "Silent", "no answer in time") for node in asked}
        messages = [outgoing(node, "query.join", content, 0) for content in [packed(order)] for node in asked]
        for message in links.grid.send_and_receive(messages, timeout=JOIN_TIMEOUT_SECONDS):
            if is_away(message):
                continue  # it is as good as silent, and connects again
            node = message.metadata.src_node_id
            try:
                answer = links.add(message, store.run, store.plan_hash)
            except FederationError as error:
                answer = LeftOut.because(f"node {node}", error)
            if isinstance(answer, LeftOut):
                refused[node] = answer
                continue
            del refused[node]
            joined[answer.envelope.sender] = answer.data.hex()
            links.by_site[answer.envelope.sender].bytes_down += len(order)
        waited, few = time.monotonic() - started, len(joined) < enough
        awaited = [left for left in refused.values() if left.awaits_a_person or (few and _again(left))]
        absent = wanted > len(there) and waited < (JOIN_TIMEOUT_SECONDS if few else _LATECOMER_SECONDS)
        silent = all(left.code == "Silent" for left in awaited)
        if not absent and (not awaited or (silent and waited > JOIN_TIMEOUT_SECONDS)):
            break
        if awaited:
            log.info("waiting for %s", printable("; ".join(map(str, awaited))))
        time.sleep(pause)
        pause = min(2 * pause, LATEST_SECONDS if awaited else ASK_AGAIN_SECONDS)
    left_out = tuple(refused.values())
    store.audit.note(SitesGathered(store.run.hex(), tuple(sorted(joined)), tuple(map(str, left_out))))
    if len(joined) < enough:
        raise too_few(0, len(joined), enough, left_out)
    return joined


def _again(left: LeftOut) -> bool:
    return left.not_now or left.awaits_a_person or left.code == "Silent"


def _rounds(links: Links, store: RunStore, joined: Mapping[str, str], on_round: OnRound) -> Rounds:
    if store.plan.encryption.preset == "none":
        state = store.state() or ModelState.initial(parameters_of(build(store.plan.model)))
        store.fill_gap(state.round_number)
        return ReadableRounds(store, links, state, on_round)
    closed = len(store.rounds())
    while store.has_aggregate(closed + 1):
        closed += 1
    store.fill_gap(closed)
    keys, parameters = KeyRelay(store, links, joined), sum(planned_sizes(store.plan.model))
    scheme = choose_scheme(store.plan.encryption.preset, len(store.cohort), longest(store.plan, parameters))
    return EncryptedRounds(store, links, keys, closed, on_round, scheme, parameters)


def longest_reply(plan: Plan, sites: int) -> int:
    """Bytes of the longest body that an honest site sends in a run of that plan: its update, or the model."""
    parameters = sum(planned_sizes(plan.model))
    if plan.encryption.preset == "none":
        return 4 * parameters
    length = longest(plan, parameters)
    return max(4 * parameters, choose_scheme(plan.encryption.preset, sites, length).message_bytes(length))


def _take_release(links: Links, store: RunStore, rounds: Rounds) -> None:
    """The final model, when the plan reveals it: all sites that answer must have signed the same bytes."""
    if isinstance(rounds, ReadableRounds):
        store.keep_release(rounds.state.released, rounds.closed)
    elif isinstance(rounds, EncryptedRounds) and store.plan.federation.reveal != "never":
        ready = dict.fromkeys(links.at_round(rounds.closed), _order(store, {}))
        models: dict[bytes, IO[bytes]] = {}
        failed: list[LeftOut] = []
        for _, answer in links.answers("query.release", ready, rounds.closed, ROUND_TIMEOUT_SECONDS):
            if isinstance(answer, LeftOut):
                failed.append(answer)
            elif answer.envelope.kind is Kind.RELEASE and (named := digest(answer.envelope.body)) not in models:
                models[named] = store.set_aside(answer.envelope.body)
            del answer  # a large one is gone before the next is fetched
        if not models:
            raise too_few(rounds.closed, 0, 1, tuple(failed))
        if len(models) > 1:
            raise TrustError(f"the sites released {len(models)} different models")
        with models.popitem()[1] as file:
            size = file.seek(0, os.SEEK_END)
            if size != 4 * rounds.parameters:
                raise InvalidUpdate(f"a model of {size} bytes was released, {4 * rounds.parameters} were expected")
            file.seek(0)
            store.keep_release(np.frombuffer(file.read(), "<f4"), rounds.closed)


def _order(store: RunStore, body: Mapping[str, Any]) -> bytes:
    envelope = Envelope(Kind.ORDER, store.run, 0, store.plan_hash, COORDINATOR, to_json(dict(body)))
    return encode(envelope, store.identity)
