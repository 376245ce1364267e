"""A whole federation as a user runs it: faults, crashes, budgets, and what is on disk afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from client.site import Site
from common.config import fill, load_table, override
from common.errors import BudgetExceeded, CohortTooSmall, ConfigError, PrivacyError, ProtocolError
from common.wire import Envelope, Kind, encode
from scenarios.cli import main
from scenarios.grid import Delivery, as_it_is
from scenarios.simulate import simulate
from scenarios.simulation import Simulation, Workplace, reopen, set_up
from server.store import RunStore
from tests.by_hand import envelope_of, with_envelope

ROOT = Path(__file__).parents[2]
HEART = ROOT / "scenarios" / "heart.toml"
SHORT = ["federation.rounds=2", "simulation.baselines=false", "simulation.insecure_randomness=7"]
READABLE = ["encryption.preset=none", "privacy.mode=none"]


def workplace(out: Path, *overrides: str) -> Workplace:
    return set_up(fill(Simulation, override(load_table(HEART), [*SHORT, *overrides])), out)


def released(place: Workplace) -> np.ndarray:
    return load_file(place.run / "released.safetensors")["model"]


class Network:
    """Changes the replies of one site to one kind of message, in one round."""

    def __init__(self, change: Callable[[Message], Iterable[Message]], site: int, kind: str = "train", number: int = 2):
        self.change, self.site, self.kind, self.number = change, site, kind, str(number)
        self.seen: list[Message] = []

    def __call__(self, reply: Message) -> Iterable[Message]:
        about = reply.metadata
        if about.src_node_id == self.site + 1 and about.message_type == self.kind:
            self.seen.append(reply)
            if about.group_id == self.number:
                return self.change(reply)
        return (reply,)


def test_the_report_keeps_the_contract_and_the_ledgers_agree(tmp_path):
    place = workplace(tmp_path / "run", "simulation.baselines=true")
    report = simulate(place)
    assert report["outcome"] == "done"
    baselines = report["baselines"]
    assert set(baselines["alone"]) == {site.name for site in place.sites}
    for metrics in (baselines["non_private"], baselines["central"], *baselines["alone"].values()):
        assert {"value", "low", "high"} == set(metrics["auc"])
    assert Path(report["report"]).read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["run"] == report["run"]
    assert [record["round"] for record in report["rounds"]] == [1, 2]
    for record in report["rounds"]:
        assert {"seconds", "train_s", "encrypt_s", "sum_s", "open_s", "metrics"} <= set(record)
        assert {"value", "low", "high"} == set(record["metrics"]["auc"])
    assert [site["site"] for site in report["sites"]] == ["cleveland", "hungary", "switzerland", "va-long-beach"]
    for row, path in zip(report["sites"], place.sites, strict=True):
        ledger = Site.open(path).ledger
        assert row["epsilon"] == ledger.epsilon <= 3.0
        assert len(ledger.entries) == 2
        assert row["bytes_up"] > 0
        assert row["bytes_down"] > 0
    assert any("test-only switch" in reason for reason in report["insecure"])
    assert "va-long-beach" in report["final_by_site"]


def test_rules_of_the_plan_watch_the_rounds_and_alerts_are_in_the_report(tmp_path, capsys):
    rules = '[{figure="output_shift", when="above", limit=0.0}, {figure="auc", when="below", limit=0.1, rounds=2}]'
    changed = ["--set", "federation.rounds=3", "--set", f"monitoring.alerts={rules}", "--out", str(tmp_path)]
    assert main(["simulate", "heart", "--set", "simulation.baselines=false", *changed]) == 0
    assert "ALERT: output_shift above 0, in rounds 2, 3" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(rule["measured"], rule["fired"]) for rule in report["alerts"]] == [(2, [2, 3]), (3, [])]
    assert "What was watched" in (tmp_path / "report.html").read_text()
    assert report["config"]["monitoring"]["alerts"][1]["rounds"] == 2


def test_trials_of_settings_stay_in_the_ledgers_and_the_run_that_follows_says_so(tmp_path):
    budget = ["simulation.site_epsilon=9", "federation.tuning=trial"]
    for rate in (0.2, 0.8):
        trial = simulate(workplace(tmp_path, *budget, f"training.learning_rate={rate}"))
    chosen = simulate(workplace(tmp_path, *budget, "federation.tuning=counted"))
    assert [site["trials"] for site in chosen["sites"]] == [2, 2, 2, 2]
    purposes = {charge.purpose for charge in Site.open(tmp_path / "sites" / "hungary").ledger.entries}
    assert purposes == {"tuning", "train"}
    assert chosen["sites"][0]["epsilon"] > trial["sites"][0]["epsilon"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "The ledgers hold 2 trials" in page


@pytest.mark.parametrize(
    "encoded",
    [
        [],
        ["encryption.rotate=true", "encryption.rounding=conditional"],
        ["encryption.layer_scales=[2, 2]"],
        ["encryption.largest=1.9"],
    ],
)
def test_encrypted_and_readable_runs_give_the_same_model_up_to_rounding(tmp_path, encoded):
    encrypted, readable = workplace(tmp_path / "e", *encoded), workplace(tmp_path / "r", "encryption.preset=none")
    simulate(encrypted)
    simulate(readable)
    step = 2.0 / 32767
    assert np.abs(released(encrypted) - released(readable)).max() < 4 * step
    assert np.abs(released(readable)).max() > 100 * step


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("encryption.layer_scales", ["encryption.layer_scales=[1, 1, 1]"]),
        ("metrics.groups.sex", ["metrics.groups.sex=['x', 'y']"]),
        ("metrics.every", ["metrics.every=1", "data.holdout=0"]),
        ("simulation.contribution", ["simulation.contribution=true", "data.holdout=0"]),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_anything_is_written(tmp_path, key, wrong):
    with pytest.raises(ConfigError, match=re.escape(key)):
        workplace(tmp_path / "new", *wrong)
    assert not (tmp_path / "new").exists()
    workplace(tmp_path / "earlier")
    before = _contents(tmp_path / "earlier")
    with pytest.raises(ConfigError, match=re.escape(key)):
        workplace(tmp_path / "earlier", "simulation.site_epsilon=9", *wrong)
    assert _contents(tmp_path / "earlier") == before


def _contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_coordinator_holds_no_model_when_nothing_is_revealed(tmp_path):
    place = workplace(tmp_path, "federation.reveal=never")
    simulate(place)
    assert not (place.run / "released.safetensors").exists()
    assert not (place.run / "model").exists()
    model = Site.open(place.sites[0]).directory / "runs" / place.run.name / "state"
    assert model.exists()
    for path in place.run.rglob("*"):
        assert not path.is_file() or not path.name.startswith(("cohort", "exchange", "made"))


def test_only_declared_numbers_leave_a_site_readable(tmp_path):
    seen: set[str] = set()

    def network(reply: Message) -> Iterable[Message]:
        assert set(reply.content) <= {"veilfed", "public"}
        seen.update(name for part in reply.content.values() for name in part if name != "envelope")
        return (reply,)

    simulate(workplace(tmp_path / "all"), deliver=network)
    assert seen == {"train_s", "encrypt_s", "open_s", "epsilon"}
    seen.clear()
    simulate(workplace(tmp_path / "none", "federation.public=[]"), deliver=network)
    assert seen == set()


def test_running_twice_on_the_same_sites_spends_twice(tmp_path):
    roomy = ["simulation.site_epsilon=10"]
    first = simulate(workplace(tmp_path, *roomy))["sites"][0]["epsilon"]
    second = simulate(workplace(tmp_path, *roomy))["sites"][0]["epsilon"]
    assert second > first * 1.2


def test_a_spent_budget_refuses_before_training_and_nothing_is_charged(tmp_path):
    simulate(workplace(tmp_path))
    again = workplace(tmp_path)
    with pytest.raises(CohortTooSmall, match="BudgetExceeded") as refused:
        simulate(again)
    assert refused.value.exit_code == 3
    assert len(Site.open(again.sites[0]).ledger.entries) == 2
    assert issubclass(BudgetExceeded, PrivacyError)


def flipped(reply: Message) -> Iterable[Message]:
    data = bytearray(envelope_of(reply))
    data[len(data) // 2] ^= 1
    return (with_envelope(reply, bytes(data)),)


def truncated(reply: Message) -> Iterable[Message]:
    return (with_envelope(reply, envelope_of(reply)[:-70]),)


def doubled(reply: Message) -> Iterable[Message]:
    return (reply, reply)


def lost(reply: Message) -> Iterable[Message]:
    return ()


def empty(reply: Message) -> Iterable[Message]:
    return (with_envelope(reply, b""),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flipped, "TrustError"),
        (truncated, "WireError"),
        (doubled, "UnexpectedSender"),
        (lost, "Silent"),
        (empty, "WireError"),
    ],
)
def test_a_bad_answer_leaves_its_site_out_by_name_and_the_round_goes_on(tmp_path, change, reason):
    report = simulate(workplace(tmp_path), deliver=Network(change, site=3))
    assert [record["left_out"][0]["reason"] for record in report["rounds"] if record["left_out"]] == [reason]
    assert report["rounds"][1]["left_out"][0]["site"] == "switzerland"
    assert report["rounds"][1]["sites"] == ["cleveland", "hungary", "va-long-beach"]


def test_a_replayed_update_of_an_earlier_round_is_refused(tmp_path):
    network = Network(lambda reply: (with_envelope(reply, envelope_of(network.seen[0])),), site=2)
    report = simulate(workplace(tmp_path), deliver=network)
    assert report["rounds"][1]["left_out"] == [
        {"site": "hungary", "reason": "LateUpdate", "message": "hungary answered round 1, now collecting 2"}
    ]


@pytest.mark.parametrize("kept", [(), READABLE], ids=["encrypted", "readable"])
def test_an_update_that_comes_one_round_late_is_dropped_and_does_not_cost_its_site_the_next(tmp_path, kept):
    held: list[bytes] = []

    def network(reply: Message) -> Iterable[Message]:
        about = reply.metadata
        if (about.src_node_id, about.message_type) != (3, "train"):
            return (reply,)
        if about.group_id == "1":
            held.append(envelope_of(reply))
            return ()
        return (with_envelope(reply, held[0]), reply)

    place = workplace(tmp_path, *kept)
    first, second = simulate(place, deliver=network)["rounds"]
    assert [(left["site"], left["reason"]) for left in first["left_out"]] == [("hungary", "Silent")]
    assert "hungary" in second["sites"]
    told = "hungary answered round 1, now collecting 2"
    assert (second["late"], second["left_out"]) == ([{"site": "hungary", "reason": "LateUpdate", "message": told}], [])
    assert "hungary in round 2." in (tmp_path / "report.html").read_text()
    assert len(Site.open(place.sites[1]).ledger.entries) == 2 * (not kept)


def test_a_site_that_answers_in_anothers_name_is_the_one_left_out(tmp_path):
    heard: list[bytes] = []

    def network(reply: Message) -> Iterable[Message]:
        if reply.metadata.message_type != "train" or reply.metadata.group_id != "1":
            return (reply,)
        heard.append(envelope_of(reply))
        return (with_envelope(reply, heard[0]),) if reply.metadata.src_node_id == 3 else (reply,)

    report = simulate(workplace(tmp_path), deliver=network)
    assert [left["site"] for left in report["rounds"][0]["left_out"]] == ["hungary"]
    assert "cleveland" in report["rounds"][0]["sites"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda size: np.full(size, np.nan), "NaN or infinite"),
        (lambda size: np.full(size, np.inf), "NaN or infinite"),
        (lambda size: np.zeros(size + 1), "values for a model of"),
        (lambda size: np.zeros(0), "values for a model of"),
    ],
)
def test_readable_updates_must_be_finite_and_of_the_models_length(tmp_path, values, message):
    place = workplace(tmp_path, *READABLE)
    store = RunStore.open(place.run)

    def network(reply: Message) -> Iterable[Message]:
        if reply.metadata.src_node_id != 2 or reply.metadata.message_type != "train":
            return (reply,)
        size = len(envelope_of(reply)) // 4 - 40
        body = values(size).astype("<f4").tobytes()
        number = int(reply.metadata.group_id)
        sent = Envelope(Kind.READABLE_UPDATE, store.run, number, store.plan_hash, "cleveland", body)
        return (with_envelope(reply, encode(sent)),)

    report = simulate(place, deliver=network)
    left = report["rounds"][0]["left_out"][0]
    assert (left["site"], left["reason"]) == ("cleveland", "InvalidUpdate")
    assert message in left["message"] or "values for a model of" in left["message"]


def test_too_few_good_answers_stop_the_run_and_lose_nothing(tmp_path):
    def network(reply: Message) -> Iterable[Message]:
        late = reply.metadata.message_type == "train" and reply.metadata.group_id == "2"
        return flipped(reply) if late and reply.metadata.src_node_id <= 3 else (reply,)

    place = workplace(tmp_path)
    with pytest.raises(ProtocolError, match=r"cleveland: TrustError.*hungary: TrustError") as stopped:
        simulate(place, deliver=network)
    assert stopped.value.exit_code == 4
    report = simulate(reopen(tmp_path))
    assert [record["round"] for record in report["rounds"]] == [1, 2]
    assert all(len(Site.open(path).ledger.entries) == 2 for path in place.sites)


class PulledPlug(BaseException):
    """The process is gone: nothing may catch it."""


def unplugged_after(count: int) -> Delivery:
    left = [count]

    def network(reply: Message) -> Iterable[Message]:
        left[0] -= 1
        if left[0] < 0:
            raise PulledPlug
        return (reply,)

    return network


def test_a_site_that_refuses_to_join_costs_the_run_that_site_and_not_its_report(tmp_path):
    place = workplace(tmp_path)
    first = place.sites[0]
    (first / "policy.toml").write_text("epsilon = 0.1\ndelta = 1e-3\n")
    report = simulate(place)
    assert [len(record["sites"]) for record in report["rounds"]] == [3, 3]
    assert {row["site"]: row["epsilon"] > 0 for row in report["sites"]}[first.name] is False
    assert report["final"]["auc"]["value"] > 0.5


def whole_run(out: Path, deliver: Delivery = as_it_is, *overrides: str) -> tuple[Workplace, dict[str, Any]]:
    place = workplace(out, *overrides)
    return place, simulate(place, deliver=deliver)


@pytest.mark.parametrize("count", [0, 3, 4, 6, 10, 13, 15, 18, 22, 24, 27, 30, 34, 38, 41, 42, 44])
def test_a_run_unplugged_at_any_message_resumes_to_the_same_model_and_charges_once(tmp_path, count):
    """45 answers cross the network: 4 join, 1 makes the key, 4 install it, in each of 2 rounds 4 train, 4 agree,
    4 unmask and 4 apply, and 4 release."""
    place, _ = whole_run(tmp_path / "whole")
    stopped = workplace(tmp_path / "stopped")
    with pytest.raises(PulledPlug):
        simulate(stopped, deliver=unplugged_after(count))
    report = simulate(reopen(stopped.out))
    assert released(stopped).tolist() == released(place).tolist()
    assert [record["round"] for record in report["rounds"]] == [1, 2]
    for path in stopped.sites:
        entries = Site.open(path).ledger.entries
        assert len(entries) == 2
    assert list(stopped.out.rglob(".*.part")) == []


def test_a_finished_run_resumes_to_its_report(tmp_path):
    place, first = whole_run(tmp_path)
    again = simulate(reopen(place.out))
    assert again["final"] == first["final"]


def veilfed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scenarios.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=580,
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 3])
def test_kill_dash_nine_and_resume(tmp_path, rows):
    """A real process, killed without warning after so many rounds; `rows` 0 kills it while it sets up."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "scenarios.cli", "simulate", "--out", str(out)]
    command += ["--set", "simulation.baselines=false", "--set", "federation.rounds=6"]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    seen = 0
    while seen < rows and child.stderr.readline():
        seen += 1
    if rows == 0:
        while not (out / "simulation.json").exists():
            pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = veilfed("simulate", "--resume", str(out), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [record["round"] for record in report["rounds"]] == list(range(1, 7))
    for path in sorted((out / "sites").iterdir()):
        ledger = Site.open(path).ledger
        assert len(ledger.entries) == 6
        assert ledger.epsilon <= 3.0
    assert list(out.rglob(".*.part")) == []


@pytest.mark.slow
def test_ray_gives_the_same_model_and_the_true_outcome(tmp_path):
    pytest.importorskip("ray", reason="the extra `simulation` is not installed")
    local, ray = workplace(tmp_path / "local"), workplace(tmp_path / "ray")
    simulate(local)
    simulate(ray, engine="ray")
    assert released(ray).tolist() == released(local).tolist()
    failed = veilfed("simulate", "--out", str(tmp_path / "ray"), "--engine", "ray", "--json")
    assert failed.returncode == 3, failed.stderr
    assert json.loads(failed.stdout)["error"]["code"] == "CohortTooSmall"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--set", "privacy.epsilon=0"], "privacy.epsilon"),
        (["--set", "privacy.delta=0.05"], "privacy.delta"),
        (["--set", "privacy.epsilon=nan"], "privacy.epsilon"),
        (["--set", "federation.rounds=0"], "federation.rounds"),
        (["--set", "federation.rounds=2.5"], "federation.rounds"),
        (["--set", "federation.colour=red"], "federation.colour"),
        (["--set", "data.partition=iid", "--set", "data.sites=1"], "data.sites"),
        (["--set", "federation.min_cohort=5"], "federation.min_cohort"),
        (["nowhere.toml"], "nowhere.toml"),
        (["--engine", "teleport"], "teleport"),
        (["--resume", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_that_names_the_key(tmp_path, arguments, key, capsys):
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
    assert main(["simulate", *out, *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert key in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_with_json_a_mistake_is_an_object_too(capsys):
    assert main(["simulate", "--set", "privacy.epsilon=0", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "ConfigError"
    assert "privacy.epsilon" in error["message"]
    assert error["hint"]
