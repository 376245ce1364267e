"""Proves: a coordinator asks again where a site says not now, and takes every other no for the last word."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import tomli_w
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.approvals import decide, waiting
from client.site import Site
from common.audit import Audit
from common.config import load_table
from common.errors import CohortTooSmall, NotNow
from common.wire import Envelope, Kind, to_json
from scenarios.engines import run_local
from server.round import refusal_of
from server.store import RunStore
from tests.by_hand import NAMES, workplace


def gathered(place) -> dict:
    store = RunStore.open(place.run)
    log = Audit.read(place.out / "coordinator", store.identity.public).entries()
    (event,) = (entry.record for entry in log if entry.record["event"] == "SitesGathered")
    return dict(event)


def manual(directory: Path) -> None:
    path = directory / "policy.toml"
    path.write_text(tomli_w.dumps(load_table(path) | {"approval": "manual"}))


def person(directory: Path, agrees: bool) -> threading.Thread:
    """Looks after a while at what waits, and decides."""

    def look() -> None:
        for _ in range(600):
            time.sleep(0.1)
            site = Site.open(directory)
            if asks := waiting(site):
                decide(site, asks[0][0].run, agrees)
                return

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("agrees", [True, False])
def test_a_run_begins_when_the_last_person_has_decided(tmp_path, agrees):
    """Although three sites would do, the fourth is waited for; after a no the three begin."""
    place = workplace(tmp_path / "run", NAMES, "federation.rounds=1")
    manual(place.sites[0])
    thread = person(place.sites[0], agrees)
    store = RunStore.open(place.run)
    run_local(place.run, list(place.sites), lambda record: None)
    thread.join()
    taking_part = list(NAMES if agrees else NAMES[1:])
    assert store.rounds()[0]["sites"] == gathered(place)["joined"] == taking_part
    refused = "adler: PrivacyError, policy.approval: this site's administrator has denied this run"
    assert gathered(place)["refused"] == ([] if agrees else [refused])


def test_a_node_that_is_missed_when_a_run_begins_is_asked_again(tmp_path):
    """As when a coordinator takes up its run while its nodes connect anew."""
    place = workplace(tmp_path / "run", NAMES, "federation.rounds=1", "federation.min_cohort=4")
    missed: list[int] = []

    def deliver(reply: Message) -> Iterable[Message]:
        node = reply.metadata.src_node_id
        if node in missed:
            return [reply]
        missed.append(node)
        error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "failed to report a heartbeat"), reply_to=reply)
        error.metadata.__dict__.update(reply.metadata.__dict__)
        return [error]

    run_local(place.run, list(place.sites), lambda record: None, deliver)
    assert len(missed) == 4
    assert RunStore.open(place.run).rounds()[0]["sites"] == gathered(place)["joined"] == list(NAMES)


def test_too_few_is_the_last_word_when_nobody_may_change_their_mind(tmp_path):
    place = workplace(tmp_path / "run", NAMES)
    for site in place.sites:
        path = site / "policy.toml"
        path.write_text(tomli_w.dumps(load_table(path) | {"min_cohort": 9}))
    started = time.monotonic()
    with pytest.raises(CohortTooSmall, match="round 0 stopped: 0 of at least 2"):
        run_local(place.run, list(place.sites), lambda record: None)
    assert time.monotonic() - started < 60
    events = [
        e.record for e in Audit.read(place.out / "coordinator", RunStore.open(place.run).identity.public).entries()
    ]
    assert [event["event"] for event in events] == ["RunSubmitted", "SitesGathered", "RunEnded"]
    assert [refused.split(",")[0] for refused in events[1]["refused"]] == [f"{name}: CohortTooSmall" for name in NAMES]
    assert events[2]["outcome"] == "CohortTooSmall"


@pytest.mark.parametrize(
    ("code", "not_now", "person"),
    [("NotNow", True, False), ("AwaitingApproval", True, True), ("PrivacyError", False, False), ("", False, False)],
)
def test_not_now_is_told_from_never_by_the_code_alone(code, not_now, person):
    body = to_json({"code": code, "exit_code": NotNow.exit_code, "message": "m"})
    said = refusal_of(Envelope(Kind.REFUSAL, bytes(16), 0, bytes(32), "a", body))
    assert (said.not_now, said.awaits_a_person, str(said)) == (not_now, person, f"a: {code}, m")
