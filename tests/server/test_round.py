"""A round that is open: late, doubled, replayed and forged answers, three lines each."""

import pytest

from common.errors import CohortTooSmall, LateUpdate, ProtocolError, UnexpectedSender, WireError, WrongRound
from common.wire import Envelope, Kind, to_json
from server.round import Collecting, LeftOut, refusal_of

RUN, PLAN = b"r" * 16, b"p" * 32


def answer(site: str, number: int = 3, kind: Kind = Kind.UPDATE, run: bytes = RUN, plan: bytes = PLAN) -> Envelope:
    return Envelope(kind, run, number, plan, site, site.encode())


def collecting(*sites: str, min_cohort: int = 2) -> Collecting:
    return Collecting(RUN, PLAN, 3, frozenset(sites), min_cohort, Kind.UPDATE)


def test_a_round_closes_with_what_it_received_in_a_fixed_order():
    closed = collecting("b", "a", "c").receive(answer("b")).receive(answer("a")).close()
    assert list(closed.received.items()) == [("a", b"a"), ("b", b"b")]
    assert [(left.site, left.code) for left in closed.left_out] == [("c", "Silent")]


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        (answer("stranger"), UnexpectedSender),
        (answer("a"), UnexpectedSender),
        (answer("b", number=2), LateUpdate),
        (answer("b", number=4), WrongRound),
        (answer("b", run=b"x" * 16), WrongRound),
        (answer("b", plan=b"x" * 32), WrongRound),
        (answer("b", kind=Kind.READABLE_UPDATE), WireError),
    ],
    ids=[
        "stranger",
        "doubled",
        "replayed",
        "of a round to come",
        "other run",
        "other plan",
        "readable instead of encrypted",
    ],
)
def test_what_does_not_belong_here_is_refused(envelope, error):
    with pytest.raises(error):
        collecting("a", "b").receive(answer("a")).receive(envelope)


def test_a_site_that_is_left_out_takes_its_update_with_it_and_cannot_come_back():
    open_round = collecting("a", "b", "c").receive(answer("a")).leave_out(LeftOut("a", "WireError", "twice"))
    assert "a" not in open_round.received
    with pytest.raises(UnexpectedSender):
        open_round.receive(answer("a"))


LATE = LeftOut("a", "LateUpdate", "a answered round 2, now collecting 3")


@pytest.mark.parametrize("comes", ["before", "after"])
def test_a_late_update_is_dropped_and_its_sites_own_update_of_this_round_counts(comes):
    open_round, own = collecting("a", "b"), answer("a")
    for envelope in (answer("a", number=2), own) if comes == "before" else (own, answer("a", number=2)):
        try:
            open_round = open_round.receive(envelope)
        except LateUpdate as error:
            open_round = open_round.drop(LeftOut.because("a", error))
    closed = open_round.receive(answer("b")).close()
    assert (closed.received["a"], closed.late, closed.left_out) == (own.body, (LATE,), ())


def test_a_site_of_which_nothing_but_a_late_update_came_is_left_out_for_that():
    closed = collecting("a", "b", "c").drop(LATE).receive(answer("b")).receive(answer("c")).close()
    assert (closed.left_out, closed.late) == ((LATE,), ())


def test_too_few_is_a_protocol_error_and_names_everybody():
    with pytest.raises(ProtocolError, match=r"1 of at least 2.*b: Silent") as stopped:
        collecting("a", "b").receive(answer("a")).close()
    assert stopped.value.exit_code == 4


def test_too_few_for_privacys_sake_is_a_privacy_error():
    body = to_json({"code": "BudgetExceeded", "message": "spent", "exit_code": 3})
    refused = refusal_of(Envelope(Kind.REFUSAL, RUN, 3, PLAN, "b", body))
    with pytest.raises(CohortTooSmall, match="BudgetExceeded") as stopped:
        collecting("a", "b").receive(answer("a")).leave_out(refused).close()
    assert stopped.value.exit_code == 3


def test_a_refusal_without_a_reason_is_a_wire_error():
    with pytest.raises(WireError):
        refusal_of(Envelope(Kind.REFUSAL, RUN, 3, PLAN, "b", to_json({"code": 5})))
