"""Proves: what was spent stays spent, over crashes, restarts, new jobs, copies and whoever holds the file."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.append_log import AppendLog
from common.dp.accounting import calibrate_noise, epsilon
from common.dp.events import Gaussian, PoissonGaussian
from common.dp.ledger import Ledger, PrivacyBudget
from common.errors import BudgetExceeded, ConfigError, PrivacyError, TrustError, UnknownEvent

BUDGET = PrivacyBudget(3.0, 1e-3)
ROUND = (PoissonGaussian(4.0, 0.2, 5),)  # forty of them come to about 2.2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "heart.jsonl"


def opened(path: Path, budget: PrivacyBudget = BUDGET) -> Ledger:
    return Ledger.open(path, "cleveland", "heart", budget)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_no_budget_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        PrivacyBudget(value, 1e-5)
    with pytest.raises(ConfigError, match="delta"):
        PrivacyBudget(1.0, value)


def test_a_delta_of_one_half_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta"):
        PrivacyBudget(3.0, 0.5)


def test_a_new_ledger_has_spent_nothing(path: Path) -> None:
    ledger = opened(path)
    assert (ledger.epsilon, ledger.remaining_epsilon, ledger.entries, ledger.events) == (0.0, 3.0, (), ())


def test_epsilon_is_that_of_one_uninterrupted_run(path: Path) -> None:
    """Restart after every round, and a second job in between."""
    for number in range(20):
        ledger = opened(path)
        ledger.charge("first" if number % 3 else "second", number, ROUND)
        del ledger
    whole = epsilon([PoissonGaussian(4.0, 0.2, 100)], 1e-3)
    assert opened(path).epsilon == pytest.approx(whole, abs=1e-9)  # the order of compositions rounds
    assert Ledger.read(path).epsilon == opened(path).epsilon


def test_the_accountant_cannot_be_reset(path: Path) -> None:
    """Opening again under another budget, name of the run or purpose changes what may be spent, not what was."""
    ledger = opened(path)
    ledger.charge("run", 1, ROUND)
    spent = ledger.epsilon
    for budget in (PrivacyBudget(1.5, 1e-3), PrivacyBudget(9.0, 1e-3), BUDGET):
        again = opened(path, budget)
        assert (again.epsilon, again.budget, len(again.entries)) == (spent, budget, 1)
    assert len(AppendLog(path).entries()) == 5  # each change of the budget is on record
    with pytest.raises(AttributeError):
        ledger.events = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        ledger.epsilon = 0.0  # type: ignore[misc]


def test_history_given_in_or_handed_out_is_not_the_ledgers_own(path: Path) -> None:
    ledger, events = opened(path), [Gaussian(10.0)]
    ledger.charge("run", 1, events)
    events.append(Gaussian(0.1))
    events.clear()
    assert ledger.events == (Gaussian(10.0),)
    assert isinstance(ledger.entries, tuple)
    assert ledger.entries[0].events == (Gaussian(10.0),)


def test_spending_over_the_budget_is_refused_and_nothing_is_written(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, ROUND)
    before, spent = path.read_bytes(), ledger.epsilon
    for spend in (ledger.require, lambda events: ledger.charge("run", 2, events)):
        with pytest.raises(BudgetExceeded) as refusal:
            spend([PoissonGaussian(0.5, 0.2, 5)])
        total = epsilon([*ROUND, PoissonGaussian(0.5, 0.2, 5)], 1e-3)
        for told in (f"epsilon {total:.4f}", "budget of 3 at delta 0.001", f"{3 - spent:.4f} remains", "heart"):
            assert told in refusal.value.message
    assert path.read_bytes() == before
    assert not ledger.charged("run", 2)
    ledger.require(ROUND)
    assert path.read_bytes() == before


def test_a_calibrated_run_fits_to_its_last_round_and_not_one_more(path: Path) -> None:
    statistics = Gaussian(8.0, 2)
    ledger = opened(path)
    ledger.charge("profile", 0, [statistics], "statistics")
    noise = calibrate_noise(BUDGET, lambda noise: (*ledger.events, PoissonGaussian(noise, 0.2, 200)))
    per_round = (PoissonGaussian(noise, 0.2, 5),)
    ledger.require(per_round * 40)
    for number in range(40):
        assert ledger.epsilon <= 3.0
        ledger.charge("run", number, per_round)
    assert 2.98 < ledger.epsilon <= 3.0
    with pytest.raises(BudgetExceeded):
        ledger.charge("run", 40, per_round)


def test_one_round_is_paid_for_once_per_purpose(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, ROUND)
    ledger.charge("run", 1, [Gaussian(20.0)], "metrics")
    for holder in (ledger, opened(path)):
        with pytest.raises(PrivacyError, match="charged before"):
            holder.charge("run", 1, ROUND)
        assert holder.charged("run", 1)
        assert holder.charged("run", 1, "metrics")
        assert not holder.charged("run", 2)
        assert not holder.charged("other", 1)
    assert len(opened(path).entries) == 2


def test_an_unknown_release_is_never_paid_for(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(UnknownEvent):
        ledger.charge("run", 1, ["gaussian"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="events"):
        ledger.charge("run", 1, [])
    assert opened(path).entries == ()


def test_an_event_of_a_later_version_makes_the_ledger_refuse_everything(path: Path) -> None:
    opened(path)
    record = {"kind": "charge", "run": "r", "round": 1, "purpose": "train", "events": [{"kind": "shuffled", "x": 1}]}
    AppendLog(path).append(record)
    with pytest.raises(UnknownEvent):
        opened(path)


# Whose ledger it is


@pytest.mark.parametrize(("site", "data_set"), [("hungary", "heart"), ("cleveland", "adult")])
def test_the_ledger_of_another_site_or_data_set_is_refused(path: Path, site: str, data_set: str) -> None:
    opened(path)
    with pytest.raises(TrustError, match="line 1: the ledger of data set 'heart' at 'cleveland'"):
        Ledger.open(path, site, data_set, BUDGET)


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "ledger", "version": 1, "site": "cleveland", "data_set": "heart", "epsilon": 9, "delta": 0.001},
        {"kind": "refund", "epsilon": 1},
        {"kind": "budget", "epsilon": -1, "delta": 0.001},
        {"kind": "budget"},
        {"kind": "charge", "run": "run", "round": "1", "purpose": "train", "events": []},
        {"kind": "charge", "run": "run", "round": 1, "purpose": "train", "events": 1},
        {},
    ],
)
def test_a_line_that_is_no_entry_of_a_ledger_is_named(path: Path, record: dict[str, object]) -> None:
    opened(path)
    AppendLog(path).append(record)
    for look in (lambda: opened(path), lambda: Ledger.read(path)):
        with pytest.raises(TrustError, match="line 2"):
            look()


def test_a_charge_repeated_by_hand_is_refused(path: Path) -> None:
    opened(path).charge("run", 1, ROUND)
    AppendLog(path).append(dict(AppendLog(path).entries()[1].record))
    with pytest.raises(TrustError, match="line 3"):
        opened(path)


def test_a_log_of_another_kind_or_none_is_no_ledger(path: Path) -> None:
    AppendLog(path)
    with pytest.raises(TrustError, match="empty"):
        Ledger.read(path)
    AppendLog(path).append({"round": 1})
    with pytest.raises(TrustError, match="line 1"):
        opened(path)


def test_only_the_owner_of_the_key_can_write_a_ledger(path: Path, tmp_path: Path) -> None:
    owner, thief = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    verify = owner.public_key().verify
    ledger = Ledger.open(path, "cleveland", "heart", BUDGET, sign=owner.sign, verify=verify)
    ledger.charge("run", 1, ROUND)
    assert Ledger.read(path, verify=verify).entries == ledger.entries
    forged = tmp_path / "forged"
    Ledger.open(forged, "cleveland", "heart", BUDGET, sign=thief.sign)
    with pytest.raises(TrustError, match="line 1: not signed"):
        Ledger.read(forged, verify=verify)


def test_a_rolled_back_or_deleted_ledger_is_noticed(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "elsewhere"
    ledger = Ledger.open(path, "cleveland", "heart", BUDGET, witness)
    ledger.charge("run", 1, ROUND)
    old = path.read_bytes()
    ledger.charge("run", 2, ROUND)
    head = ledger.head
    path.write_bytes(old)
    for look in (lambda: Ledger.open(path, "cleveland", "heart", BUDGET, witness), lambda: Ledger.read(path, witness)):
        with pytest.raises(TrustError, match="rolled back"):
            look()
    with pytest.raises(TrustError, match="rolled back"):
        ledger.charge("run", 3, ROUND)
    path.unlink()
    with pytest.raises(TrustError, match="rolled back"):
        Ledger.open(path, "cleveland", "heart", BUDGET, witness)
    assert json.loads(witness.read_bytes())["head"] == head.hex()


# Crashes and company


def test_a_ledger_cut_at_any_byte_remembers_every_complete_charge(path: Path, tmp_path: Path) -> None:
    ledger = opened(path)
    sizes = [path.stat().st_size]
    for number in range(2):
        ledger.charge("run", number, ROUND)
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(sizes[0], len(whole) + 1):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:length])
        complete = sum(length >= size - 1 for size in sizes[1:])
        again = opened(cut)
        assert again.entries == ledger.entries[:complete]
        assert [again.charged("run", number) for number in range(2)] == [number < complete for number in range(2)]


def test_a_ledger_whose_first_line_was_cut_begins_anew(path: Path) -> None:
    opened(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert opened(path).entries == ()
        assert path.read_bytes() == whole


def charge_alone(path: Path, name: str, rounds: int, start: "multiprocessing.synchronize.Barrier") -> None:
    ledger = opened(path)
    start.wait()
    try:
        for number in range(rounds):
            ledger.charge(name, number, ROUND)
    except BudgetExceeded:
        pass


@pytest.mark.parametrize("rounds", [10, 50])
def test_two_processes_charging_at_once_both_land_or_are_refused(path: Path, rounds: int) -> None:
    """Ten rounds each fit the budget, fifty each do not: together they never pass it."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    children = [spawn.Process(target=charge_alone, args=(path, name, rounds, start)) for name in ("a", "b")]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    ledger = opened(path)
    assert ledger.epsilon <= 3.0
    if rounds == 10:
        assert len(ledger.entries) == 20
    else:
        with pytest.raises(BudgetExceeded):
            ledger.require(ROUND)


def test_a_ledger_open_before_sees_what_another_spent(path: Path) -> None:
    early, late = opened(path), opened(path)
    late.charge("late", 1, [Gaussian(1.2)])
    with pytest.raises(BudgetExceeded):
        early.charge("early", 1, [Gaussian(1.2)])
    with pytest.raises(PrivacyError, match="charged before"):
        early.charge("late", 1, ROUND)


def test_reading_changes_nothing_and_waits_for_nobody(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, ROUND)
    before = path.read_bytes()
    with AppendLog(path).exclusive():
        reader = Ledger.read(path)
    assert reader.entries == ledger.entries
    assert path.read_bytes() == before
    with pytest.raises(TrustError, match="reading only"):
        reader.charge("run", 2, ROUND)


def test_the_report_is_the_contracts(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, ROUND)
    report = Ledger.read(path).to_report()
    assert json.loads(json.dumps(report)) == report
    contract = {
        "site": "cleveland",
        "data_set": "heart",
        "entries": 1,
        "epsilon": ledger.epsilon,
        "delta": 1e-3,
        "remaining_epsilon": 3.0 - ledger.epsilon,
        "neighbouring": "add-or-remove-one",
        "unit": "record",
        "verified": True,
    }
    assert report.items() >= contract.items()
    assert {"sampling", "adversary", "accountant", "head"} <= set(report)


def test_trials_are_runs_that_count_like_all_others(path: Path) -> None:
    ledger = opened(path)
    for number in range(1, 4):
        ledger.charge("attempt", number, ROUND, "tuning")
        ledger.charge("another", number, ROUND, "tuning")
        ledger.charge("run", number, ROUND)
    assert ledger.trials == opened(path).to_report()["trials"] == 2
    assert ledger.epsilon == epsilon(ROUND * 9, 1e-3)


# Reserve, then settle


RESERVED, CAME_TO = (PoissonGaussian(3.0, 0.2, 5),), (PoissonGaussian(4.0, 0.2, 5),)


def test_what_was_reserved_is_replaced_by_what_it_came_to(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, RESERVED)
    ledger.settle("run", 1, CAME_TO)
    assert ledger.events == opened(path).events == CAME_TO
    assert ledger.epsilon == epsilon(CAME_TO, 1e-3)
    assert [entry.record["kind"] for entry in AppendLog(path).entries()] == ["ledger", "charge", "settle"]


def test_a_crash_before_settling_counts_as_the_worst(path: Path) -> None:
    opened(path).charge("run", 1, RESERVED)
    assert opened(path).events == RESERVED


def test_settling_happens_once(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, RESERVED)
    ledger.settle("run", 1, CAME_TO)
    before = path.read_bytes()
    ledger.settle("run", 1, (PoissonGaussian(50.0, 0.2, 5),))
    assert path.read_bytes() == before
    assert opened(path).events == CAME_TO


def test_settling_never_costs_more_than_was_reserved_nor_pays_for_what_was_not(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(PrivacyError, match="never charged"):
        ledger.settle("run", 1, CAME_TO)
    ledger.charge("run", 1, CAME_TO)
    with pytest.raises(PrivacyError, match="cost more than was reserved"):
        ledger.settle("run", 1, RESERVED)
    with pytest.raises(PrivacyError, match="never charged"):
        ledger.settle("run", 1, CAME_TO, "metrics")
    assert opened(path).events == CAME_TO


def test_a_second_settlement_written_into_the_file_is_found(path: Path) -> None:
    ledger = opened(path)
    ledger.charge("run", 1, RESERVED)
    ledger.settle("run", 1, CAME_TO)
    log = AppendLog(path)
    log.append(dict(log.entries()[-1].record))
    with pytest.raises(TrustError, match="line 4"):
        opened(path)


# One message of a round's charges


def test_what_was_sealed_is_known_after_a_restart_and_is_one_thing(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(PrivacyError, match="nothing of round 1"):
        ledger.seal("run", 1, "aa")
    ledger.charge("run", 1, ROUND)
    assert ledger.sealed("run", 1) is None
    ledger.seal("run", 1, "aa")
    before = path.read_bytes()
    opened(path).seal("run", 1, "aa")
    assert path.read_bytes() == before
    assert opened(path).sealed("run", 1) == "aa"
    with pytest.raises(PrivacyError, match="another release"):
        opened(path).seal("run", 1, "bb")
    assert opened(path).sealed("run", 2) is None
