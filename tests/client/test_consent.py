"""Proves: policy, clock, disk, budget and administrator each stop a real site, whenever they change, and say so."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest
import tomli_w

from client import round as local_round
from client.approvals import decide, waiting
from client.dry_run import dry_run
from client.runs import SiteRun
from common.config import fill, load_table, to_table
from common.errors import ConfigError
from common.federation import Plan
from common.wire import Kind, from_json, plan_hash
from server.round import refusal_of
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER = NAMES[0]


def policy(played: Coordinator, **changes) -> None:
    path = played.directories[ADLER] / "policy.toml"
    path.write_text(tomli_w.dumps(load_table(path) | changes))
    restart()


def closed_now() -> list[dict]:
    """One window, which opens in about twelve hours."""
    later = datetime.now(UTC) + timedelta(hours=12)
    return [{"start": f"{later:%H:%M}", "end": f"{later + timedelta(minutes=5):%H:%M}"}]


def refusal(played: Coordinator, action: str, number: int, body) -> tuple[str, str, bool]:
    """Code, message, and whether the coordinator may ask again."""
    said = refusal_of(played.read(played.send(ADLER, action, played.order(number, body))))
    return said.code, said.message, said.not_now


def agreed(played: Coordinator, action: str, number: int, body) -> bool:
    return played.read(played.send(ADLER, action, played.order(number, body))).kind is not Kind.REFUSAL


@pytest.fixture(scope="module")
def offered(tmp_path_factory) -> Coordinator:
    made = Coordinator.ready(tmp_path_factory.mktemp("offered") / "run")
    made.made = made.offers(1)
    return made


@pytest.fixture
def played(offered, tmp_path) -> Coordinator:
    copied = offered.copy(tmp_path / "run")
    copied.made = offered.made
    return copied


@pytest.fixture
def new(tmp_path) -> Coordinator:
    return Coordinator(workplace(tmp_path / "new"))


@pytest.mark.parametrize(
    ("changes", "code", "key", "again"),
    [
        ({"windows": closed_now()}, "NotNow", "windows", True),
        ({"resources": {"free_disk_mb": 2**39}}, "NotNow", "resources.free_disk_mb", True),
        ({"resources": {"cpu_seconds_per_round": 1e-9}}, "ProtocolError", "resources.cpu_seconds_per_round", False),
        ({"approval": "manual"}, "AwaitingApproval", "approval", True),
        ({"min_cohort": 3}, "CohortTooSmall", "min_cohort", False),
        ({"privacy_modes": ["site"]}, "PrivacyError", "privacy_modes", False),
        ({"model_families": []}, "PrivacyError", "model_families", False),
        ({"reports": []}, "PrivacyError", "reports", False),
        ({"epsilon_per_run": 0.5}, "BudgetExceeded", "epsilon_per_run", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_that_was_tightened_holds_from_the_next_training_on(played, changes, code, key, again):
    """Not now is told from never; and once it is as it was, the same order is answered."""
    body = played.training(ADLER, played.made)
    before = (played.directories[ADLER] / "policy.toml").read_text()
    policy(played, **changes)
    said = refusal(played, "train", 1, body)
    assert (said[0], said[1].partition(": ")[0], said[2]) == (code, f"policy.{key}", again)
    assert played.site(ADLER).audit.entries()[-1].record["code"] == code
    assert not played.site(ADLER).ledger.entries
    (played.directories[ADLER] / "policy.toml").write_text(before)
    restart()
    assert agreed(played, "train", 1, body)


def test_what_has_left_is_finished_whatever_the_clock_says(played):
    """An update that left in time is sent again, agreed on, opened and applied outside of every window."""
    updates = played.train(1, played.made)
    policy(played, windows=closed_now())
    assert played.ask(ADLER, "train", 1, played.training(ADLER, played.made)) == updates[ADLER]
    published = played.publish(1, played.made, NAMES, played.total(updates.values()))
    played.apply(1, published)
    coming = played.offers(2)
    assert refusal(played, "train", 2, played.training(ADLER, coming))[0] == "NotNow"


def test_a_cap_per_run_counts_that_run_alone(new):
    """The three rounds cost 1.39: under a cap of less they are refused before anything of the run is on disk."""
    policy(new, epsilon_per_run=1.0)
    code, message, _ = refusal(new, "join", 0, new.join_order())
    assert (code, "epsilon 1.39" in message) == ("BudgetExceeded", True)
    assert not (new.directories[ADLER] / "runs").exists()
    assert not new.site(ADLER).ledger.entries
    policy(new, epsilon_per_run=1.4)
    assert agreed(new, "join", 0, new.join_order())


def test_numbers_that_the_policy_keeps_are_not_reported_even_in_a_run_that_had_begun(played):
    site, run = played.site(ADLER), SiteRun.open(played.directories[ADLER] / "runs", played.store.run)
    assert local_round.reported(site, run) == ("seconds", "epsilon", "metrics")
    policy(played, reports=["seconds"])
    assert local_round.reported(played.site(ADLER), run) == ("seconds",)


# A person.


def asked(new: Coordinator) -> tuple[str, str, bool]:
    restart()
    return refusal(new, "join", 0, new.join_order())


def test_a_run_waits_for_a_person_and_begins_with_their_word(new):
    policy(new, approval="manual")
    assert asked(new)[0] == asked(new)[0] == "AwaitingApproval"
    directory = new.directories[ADLER]
    assert not (directory / "runs").exists()
    ((ask, state),) = waiting(new.site(ADLER))
    assert (ask.run, ask.plan, list(ask.cohort), state) == (new.store.run.hex(), new.store.plan, new.names, "waiting")
    foreseen = dry_run(new.site(ADLER), new.store.plan, 4)
    assert (ask.cost.of_run, ask.cost.after) == (foreseen.epsilon_of_plan, foreseen.epsilon_after)
    decide(new.site(ADLER), ask.run[:6], agreed=True)
    restart()
    assert agreed(new, "join", 0, new.join_order())
    told = [entry.record["event"] for entry in new.site(ADLER).audit.entries()]
    assert told == ["Awaited", "Refused", "Refused", "Approved", "RunJoined"]
    assert new.site(ADLER).audit.entries()[3].record["plan"] == new.store.plan_hash.hex()


def test_a_denial_is_the_last_word_until_the_person_changes_it(new):
    policy(new, approval="manual")
    asked(new)
    decide(new.site(ADLER), new.store.run.hex(), agreed=False)
    assert asked(new) == ("PrivacyError", "policy.approval: this site's administrator has denied this run", False)
    decide(new.site(ADLER), new.store.run.hex(), agreed=True)
    assert agreed(new, "join", 0, new.join_order())


def test_a_denial_stops_a_run_that_had_begun(played):
    policy(played, approval="manual")
    body = played.training(ADLER, played.made)
    assert refusal(played, "train", 1, body)[0] == "AwaitingApproval"
    decide(played.site(ADLER), played.store.run.hex(), agreed=True)
    played.train(1, played.made, [ADLER])
    decide(played.site(ADLER), played.store.run.hex(), agreed=False)
    restart()
    assert refusal(played, "offer", 1, {})[0] == "PrivacyError"


@pytest.mark.parametrize("what", ["plan", "cohort"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_approval_is_for_what_was_shown_and_for_nothing_else(new, what, when):
    """Neither while the person still thinks, nor once they have agreed, can it be exchanged for something else."""
    policy(new, approval="manual")
    asked(new)
    table = to_table(new.store.plan)
    if what == "plan":
        table["privacy"] |= {"noise_multiplier": 0.9}
    body = {"plan": table, "cohort": new.names if what == "plan" else new.names[:3]}
    changed = new.order(0, body, plan=plan_hash(fill(Plan, table)))
    if when == "after":
        decide(new.site(ADLER), new.store.run.hex(), agreed=True)
    restart()
    said = from_json(new.read(new.send(ADLER, "join", changed)).body)
    assert (said["code"], "a run that was put before a person" in said["message"]) == ("ProtocolError", True)
    ((ask, _),) = waiting(new.site(ADLER))
    assert (ask.plan, list(ask.cohort)) == (new.store.plan, new.names)


def test_an_approval_of_another_plan_is_none_even_when_nobody_remembers_what_was_shown(new):
    """DIR/pending is lost; the coordinator asks for something else under the name of the run that was approved."""
    policy(new, approval="manual")
    asked(new)
    decide(new.site(ADLER), new.store.run.hex(), agreed=True)
    shutil.rmtree(new.directories[ADLER] / "pending")
    table = to_table(new.store.plan)
    table["privacy"] |= {"noise_multiplier": 0.9}
    changed = new.order(0, {"plan": table, "cohort": new.names}, plan=plan_hash(fill(Plan, table)))
    assert from_json(new.read(new.send(ADLER, "join", changed)).body)["code"] == "AwaitingApproval"


def test_an_approval_is_of_one_run(new):
    policy(new, approval="manual")
    asked(new)
    decide(new.site(ADLER), new.store.run.hex(), agreed=True)
    other = new.order(0, new.join_order(), run=b"another run 1234")
    assert from_json(new.read(new.send(ADLER, "join", other)).body)["code"] == "AwaitingApproval"


def test_an_approval_that_is_taken_out_of_the_record_is_none(new):
    """The log is the approval: without its last line, or with one by another hand, nothing begins."""
    policy(new, approval="manual")
    asked(new)
    path = new.directories[ADLER] / "audit.jsonl"
    decide(new.site(ADLER), new.store.run.hex(), agreed=True)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    restart()
    assert asked(new)[0] == "TrustError"


def test_a_plan_that_the_policy_forbids_is_never_put_before_a_person(new):
    policy(new, approval="manual", min_cohort=3)
    assert asked(new)[0] == "CohortTooSmall"
    policy(new, min_cohort=2, epsilon=1.0)
    assert asked(new)[0] == "BudgetExceeded"
    assert waiting(new.site(ADLER)) == []


def test_nobody_is_shown_more_than_they_can_read(new):
    policy(new, approval="manual")
    codes = []
    for number in range(102):
        order = new.order(0, new.join_order(), run=number.to_bytes(16, "big"))
        codes.append(from_json(new.read(new.send(ADLER, "join", order)).body)["code"])
    assert codes == ["AwaitingApproval"] * 100 + ["NotNow"] * 2
    assert len(list((new.directories[ADLER] / "pending").iterdir())) == 100


def test_a_run_that_is_over_leaves_the_list(tmp_path):
    played = Coordinator.ready(tmp_path / "run", NAMES, "federation.rounds=1")
    policy(played, approval="manual")
    asked(played)
    decide(played.site(ADLER), played.store.run.hex(), agreed=True)
    assert len(waiting(played.site(ADLER))) == 1
    played.whole_round(1)
    assert waiting(played.site(ADLER)) == []
    with pytest.raises(ConfigError):
        decide(played.site(ADLER), played.store.run.hex(), agreed=True)


# A full disk, as the kernel tells of it.


def test_a_full_disk_is_a_signed_not_now_even_where_that_cannot_be_written_down(new):
    (new.directories[ADLER] / "audit.jsonl").symlink_to("/dev/full")
    restart()
    said = ("NotNow", "there is no space left on this site's disk", True)
    assert refusal(new, "join", 0, new.join_order()) == said
    (new.directories[ADLER] / "audit.jsonl").unlink()
    restart()
    assert agreed(new, "join", 0, new.join_order())


def test_a_ledger_that_cannot_be_written_releases_nothing(new):
    ledgers = new.directories[ADLER] / "ledgers"
    ledgers.mkdir()
    (ledgers / "tests.by_hand.records.jsonl").symlink_to("/dev/full")
    assert refusal(new, "join", 0, new.join_order())[0] == "NotNow"
    assert new.site(ADLER).audit.entries()[-1].record["code"] == "NotNow"
    assert not (new.directories[ADLER] / "runs").exists()


def test_an_error_that_is_no_full_disk_is_not_taken_for_one(new):
    (new.directories[ADLER] / "ledgers").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="ledgers"):
        new.send(ADLER, "join", new.order(0, new.join_order()))
