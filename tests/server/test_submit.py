"""Proves: who follows a run sees its true end across restarts of the coordinator; a plan fits before it is sent."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from common import bundle
from common.config import fill, override, to_table
from common.errors import BudgetExceeded, ConfigError, ProtocolError
from common.federation import Plan
from common.signing import Identity
from server import submit as submitting
from server.control import Submitted, Unreachable
from server.submit import complete, find, follow, submit

RUN = "ab" * 16
PLAN = fill(Plan, override(to_table(Plan()), ["model.inputs=[13]", "model.classes=2", "privacy.delta=1e-3"]))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Script:
    """A coordinator that says what is written: one list of events for each submission of the run.

    `lost` ends a submission without a word, as a conductor that was killed does; `cut` breaks the connection.
    """

    def __init__(self, *submissions: list[Any], outcomes: tuple[str, ...] = ()) -> None:
        self._submissions, self._outcomes = list(submissions), outcomes
        self._begun = 1
        self.cuts = 0

    def runs(self) -> list[Submitted]:
        outcomes = (*self._outcomes, *[""] * len(self._submissions))
        return [Submitted(n, RUN, "running", outcomes[n], "details", f"{n}") for n in range(self._begun)]

    def events(self, number: int) -> Iterator[Mapping[str, Any]]:
        for event in self._submissions[number]:
            if event == "lost":
                break
            if event == "cut":
                self.cuts += 1
                if self.cuts == 1:
                    raise Unreachable("the line is cut")
                continue
            yield event
        self._begun = min(self._begun + 1, len(self._submissions))


def test_a_run_that_nothing_disturbs_is_told_to_its_end():
    told = [{"begun": 1}, {"round": {"round": 1}}, {"report": {"outcome": "done"}}]
    assert list(follow(Script(told), RUN)) == [next(iter(event.items())) for event in told]


def test_a_conductor_that_was_lost_is_followed_by_the_next_one_and_each_round_is_told_once():
    first = [{"round": {"round": 1}}, "lost"]
    second = [{"round": {"round": 2}}, "lost"]
    third = [{"round": {"round": 3}}, {"report": {"outcome": "done"}}]
    seen = list(follow(Script(first, second, third), RUN))
    assert [value["round"] for kind, value in seen if kind == "round"] == [1, 2, 3]
    assert seen[-1] == ("report", {"outcome": "done"})


def test_after_a_cut_line_nothing_is_told_twice():
    """The log of a submission is read from its beginning again."""
    script = Script([{"round": {"round": 1}}, "cut", {"round": {"round": 2}}, {"report": {}}])
    assert [kind for kind, _ in follow(script, RUN)] == ["round", "round", "report"]
    assert script.cuts == 2


def test_the_error_that_stopped_the_run_is_raised_as_it_was():
    error = {"code": "BudgetExceeded", "message": "too much", "hint": "less"}
    with pytest.raises(BudgetExceeded, match="too much") as stopped:
        list(follow(Script([{"error": error}]), RUN))
    assert (stopped.value.exit_code, stopped.value.hint) == (3, "less")


@pytest.mark.parametrize("code", ["Exception", "errors", "__doc__", "", None, "KeyboardInterrupt"])
def test_an_error_with_a_name_that_is_none_of_ours_is_still_one_of_ours(code):
    with pytest.raises(Exception, match="odd") as stopped:
        list(follow(Script([{"error": {"code": code, "message": "odd"}}]), RUN))
    assert stopped.value.exit_code in (1, 2, 3, 4)


def test_a_run_that_a_person_stopped_says_so_and_how_it_goes_on():
    with pytest.raises(ProtocolError, match="was stopped") as stopped:
        list(follow(Script(["lost"], outcomes=("stopped",)), RUN))
    assert f"--run {RUN}" in stopped.value.hint


def test_a_run_that_nobody_takes_up_again_is_given_up(monkeypatch):
    monkeypatch.setattr(submitting, "_LOST_SECONDS", 1.0)
    with pytest.raises(ProtocolError, match="was lost: details"):
        list(follow(Script(["lost"]), RUN))


def test_a_coordinator_that_stays_away_is_given_up(monkeypatch):
    class Gone(Script):
        def events(self, number: int) -> Iterator[Mapping[str, Any]]:
            self.runs = self._gone  # type: ignore[method-assign]
            raise Unreachable("nobody answers")

        def _gone(self) -> list[Submitted]:
            raise Unreachable("nobody answers")

    monkeypatch.setattr(submitting, "_LOST_SECONDS", 1.0)
    with pytest.raises(Unreachable, match="nobody answers"):
        list(follow(Gone([]), RUN))


@pytest.mark.parametrize(("begins", "found"), [("ab", True), (RUN, True), ("", True), ("b", False), ("abc", False)])
def test_a_run_is_found_by_the_beginning_of_its_number(begins, found):
    if found:
        assert find(Script([]), begins).run == RUN
    else:
        with pytest.raises(ConfigError, match="no run has a number that begins with"):
            find(Script([]), begins)


def test_a_beginning_that_fits_two_runs_is_refused():
    class Two(Script):
        def runs(self) -> list[Submitted]:
            (one,) = super().runs()
            return [one, replace(one, number=1, run="ac" * 16)]

    with pytest.raises(ConfigError, match="more than one run"):
        find(Two([]), "a")


def test_what_is_submitted_is_the_plan_signed_by_the_bundle_key_under_a_number_of_its_own():
    key, sent = Identity.generate(), []

    class Account:
        bundle_key = key

        class control:  # noqa: N801 - stands for an attribute
            @staticmethod
            def start(content: bytes, signature: str, run: str) -> int:
                sent.append((content, signature, run))
                return 1

    numbers = {submit(Account, PLAN) for _ in range(3)}  # type: ignore[arg-type]
    assert len(numbers) == 3
    for content, signature, run in sent:
        assert run in numbers
        assert bundle.opened(content, signature, [key.public], bytes.fromhex(run)) == (PLAN, key.public)
    assert submit(Account, PLAN, RUN) == RUN  # type: ignore[arg-type]


def test_a_plan_is_completed_with_the_least_noise_that_fits():
    done = complete(PLAN, 4)
    assert done.privacy.noise_multiplier > 0
    assert complete(done, 4) == done


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("model.inputs=[]", "does not say what a record looks like"),
        ("model.classes=0", "does not say what a record looks like"),
        ("federation.min_cohort=5", "federation.min_cohort"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_before_it_is_sent(change, reason):
    with pytest.raises(ConfigError, match=reason):
        complete(fill(Plan, override(to_table(PLAN), [change])), 4)
