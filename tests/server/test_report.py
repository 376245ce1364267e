"""The report: one safe, self-contained page that agrees with its JSON, and never claims more than the run did."""

import copy
import hashlib
import json
import math
import os
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.alerts import AlertRule
from server.report import write_report
from server.watched import alerts_of

SITES = ("north", "south", "east", "west")
VOID = {"meta", "link", "br", "hr", "img", "input", "area", "base", "col", "embed", "source", "track", "wbr"}


def figures(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.03, "high": value + 0.03}


def a_report(**changes: Any) -> dict[str, Any]:
    metrics = {"auc": figures(0.85), "accuracy": figures(0.78), "loss": figures(0.47)}
    return {
        "outcome": "done",
        "report": "",
        "run": "5f2c9a61",
        "created": "2025-11-23T20:21:07+00:00",
        "insecure": [],
        "engine": "local",
        "config": {
            "federation": {"name": "heart", "rounds": 3, "min_cohort": 3, "reveal": "final"},
            "model": {"factory": "logistic", "inputs": [28], "classes": 2},
            "training": {"local_steps": 5},
            "privacy": {"mode": "local", "epsilon": 3.0, "delta": 1e-3},
            "encryption": {"preset": "compact"},
            "data": {"loader": "heart", "options": {}},
            "simulation": {"baselines": True, "site_epsilon": 0.0},
        },
        "versions": {"veilfed": "0.1.0", "python": "3.11.2"},
        "rounds": [
            {
                "round": number,
                "seconds": 0.13,
                "train_s": 0.05,
                "encrypt_s": 0.02,
                "sum_s": 0.004,
                "open_s": 0.02,
                "metrics": metrics,
                "epsilon": dict.fromkeys(SITES, float(number) - 0.01),
                "left_out": [{"site": "west", "reason": "WireError", "message": "too short"}] if number == 2 else [],
            }
            for number in (1, 2, 3)
        ],
        "final": metrics,
        "final_by_site": {site: {"auc": figures(0.8)} for site in SITES},
        "baselines": {
            "non_private": metrics,
            "central": metrics,
            "alone": {site: {"auc": figures(0.7)} for site in SITES},
        },
        "sites": [
            {
                "site": site,
                "epsilon": 2.99,
                "delta": 1e-3,
                "bytes_up": 29_472,
                "bytes_down": 31_000,
                "refusals": 0,
                "records": None,
                "noise_multiplier": 1.83,
                "ledger_head": hashlib.sha256(site.encode()).hexdigest(),
            }
            for site in SITES
        ],
        "contribution": {
            "metric": "auc",
            "shapley": {site: figures(0.09 - 0.04 * place) for place, site in enumerate(SITES)},
            "left_out": dict.fromkeys(SITES, -0.01),
            "nothing": 0.5,
            "whole": 0.85,
            "exact": False,
        },
        "wire": {
            "parameters": 29,
            "bytes_up_per_parameter": 338.7,
            "bytes_per_update": 9824,
            "header_bytes": 346,
            "scheme": {"preset": "compact", "security_bits": 128},
        },
        "privacy": {"mode": "local", "unit": "record", "epsilon": 3.0, "delta": 1e-3, "sampling": "poisson"},
        **changes,
    }


def configured(**tables: Any) -> dict[str, Any]:
    """A report whose configuration differs in these tables, told everywhere alike. Without figures: they take time."""
    report = copy.deepcopy(a_report())
    for part in ("final", "baselines"):
        del report[part]
    report["rounds"] = [{"round": entry["round"], "left_out": entry["left_out"]} for entry in report["rounds"]]
    for site in report["sites"]:
        del site["bytes_up"]
    for name, values in tables.items():
        report["config"][name].update(values)
    report["privacy"]["mode"] = report["config"]["privacy"]["mode"]
    return report


class Page(HTMLParser):
    """The page as a strict reader sees it: every element closed in order, text and attributes kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[str] = []
        self.alarm: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> says an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag if dict(attrs).get("class") != "alarm" else "div.alarm")
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().split(".")[0] == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "tr" in self.open:
            self.rows[-1] += data.replace("\n", " ")
        if "div.alarm" in self.open:
            self.alarm.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, start: str) -> str:
        return next(" ".join(row.split()) for row in self.rows if row.strip().startswith(start))


@pytest.fixture
def page_of(tmp_path):
    def write(report: dict[str, Any]) -> Page:
        return Page(write_report(tmp_path, report).read_text())

    return write


def test_the_page_says_what_a_privacy_officer_asks(page_of):
    page = page_of(a_report())
    for words in (
        "A model (logistic) of 29 numbers, on the heart records, in 3 rounds.",
        "4 sites: north, south, east, west.",
        "One encrypted update of 9.8 kB in each of 3 rounds.",
        "At most ε = 2.99, δ = 0.001.",
        "it finds at most 20 in 100 that were",
        "AUC 0.850 (0.820 to 0.880) on held-out records.",
        "A site that trains alone under the same limit reaches 0.700 to 0.700.",
        "One trusted centre with all records under the same limit: 0.850.",
        "No test-only switch was on.",
        "WireError",
        "23 November 2025, 20:21 UTC",
        "Learning rate, rounds and other settings were chosen in advance.",
    ):
        assert words in page.text
    assert page.alarm == []


def test_the_page_loads_nothing_runs_nothing_and_every_id_is_used_once(page_of):
    page = page_of(a_report())
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & set(names)
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "background", "data"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_no_address_of_the_outside_world_is_in_the_page(tmp_path):
    html = write_report(tmp_path, a_report()).read_text()
    assert "://" not in html
    assert "@import" not in html


def test_figures_are_described_and_tables_have_headers(page_of):
    page = page_of(a_report())
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 6
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert any("in round 3" in (drawing["aria-label"] or "") for drawing in drawings)
    assert all(attributes["scope"] in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert dict(page.tags)["html"] == {"lang": "en"}


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\nosuch$", "{{ 7*7 }}", "a\x00\nb", "患者"],
)
def test_a_hostile_name_is_only_a_name(page_of, name):
    report = json.loads(json.dumps(a_report()).replace('"west"', json.dumps(name)))
    report["config"]["federation"]["name"] = name
    report["config"]["data"]["options"] = {name: name}
    report["rounds"][0]["left_out"] = [{"site": name, "reason": name, "message": name}]
    report["insecure"] = [name]
    report["versions"] = {name: name}
    page = page_of(report)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert sum(tag == "svg" for tag, _ in page.tags) == 6
    assert "49" not in page.text.split("Who learns what")[0]


def test_json_round_trips_and_the_page_carries_its_fingerprint(tmp_path, page_of):
    page = page_of(a_report())
    data = (tmp_path / "report.json").read_bytes()
    assert json.loads(data) == a_report()
    assert hashlib.sha256(data).hexdigest() in page.text


def test_numbers_that_are_not_finite_become_null(tmp_path):
    report = a_report(sites=[{"site": "north", "epsilon": math.inf, "delta": math.nan, "bytes_up": 1, "bytes_down": 1}])
    report["rounds"][0]["metrics"] = {"auc": {"value": math.nan, "low": math.nan, "high": -math.inf}}
    html = write_report(tmp_path, report).read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read["sites"][0]["epsilon"] is None
    assert read["rounds"][0]["metrics"]["auc"]["value"] is None
    assert "nan" not in html.lower().replace("finance", "")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    shuffled = dict(reversed(a_report().items()))
    one, other = write_report(tmp_path / "one", a_report()), write_report(tmp_path / "other", shuffled)
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".json").read_bytes() == other.with_suffix(".json").read_bytes()


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_crash_leaves_whole_files_only(tmp_path, monkeypatch, stop_at):
    """The first or the second file cannot be put in place, as when the disk is full: what is there stays whole."""
    write_report(tmp_path, a_report(run="before"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls, real = [], os.replace

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == stop_at:
            raise OSError("no space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, a_report(run="after"))
    assert {path.name for path in tmp_path.iterdir()} == set(before)
    assert (tmp_path / "report.html").read_bytes() == before["report.html"]
    assert json.loads((tmp_path / "report.json").read_text())["run"] == ("before" if stop_at == 1 else "after")


def test_nothing_is_written_when_the_page_cannot_be_made(tmp_path):
    with pytest.raises(TypeError):
        write_report(tmp_path, a_report(run={"a", "set"}))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=8, deadline=None)
@given(st.sets(st.sampled_from(sorted(a_report()))), st.sets(st.sampled_from(sorted(a_report()["config"]))))
def test_whatever_is_missing_leaves_its_part_out(tmp_path_factory, missing, missing_tables):
    report = {key: value for key, value in a_report().items() if key not in missing}
    if "config" in report:
        report["config"] = {key: value for key, value in report["config"].items() if key not in missing_tables}
    page = Page(write_report(tmp_path_factory.mktemp("report"), report).read_text())
    assert "Who learns what" in page.text
    assert ("Compared" in page.text) == (not {"baselines", "final"} & missing)


def test_bare_rows_are_enough(page_of):
    page = page_of({"outcome": "done", "sites": [{"site": "a"}, {"site": "b"}], "rounds": [{"round": 1}], "wire": {}})
    assert "2 sites: a, b." in page.text


def test_hundred_sites_and_one_round_are_drawn(page_of):
    names = [f"site-{number}" for number in range(100)]
    report = a_report(
        sites=[{**a_report()["sites"][0], "site": name} for name in names],
        rounds=[{**a_report()["rounds"][0], "epsilon": dict.fromkeys(names, 1.0)}],
        baselines={"non_private": {}, "alone": {name: {"auc": figures(0.7)} for name in names}},
    )
    page = page_of(report)
    assert "and 88 more" in page.text
    assert "the best, the middle and the worst" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 6


def test_an_encrypted_run_hides_updates_from_the_coordinator_even_with_one_site_at_its_side(page_of):
    page = page_of(configured())
    assert "No It holds ciphertexts, and no key." in page.row("The coordinator No")
    assert "No Masks hide each update." in page.row("The coordinator together")
    assert "they can lift the masks of the others" in page.text


def test_masks_cannot_help_where_only_two_sites_are_added_up(page_of):
    page = page_of(configured(federation={"min_cohort": 2}) | {"sites": a_report()["sites"][:2]})
    assert "Yes In a round of two sites it can subtract its own part" in page.row("One other site")
    assert "Yes In a round of two sites it can subtract its own part" in page.row("The coordinator together")
    assert "The plan lets a round close with two sites." in page.text


def test_readable_updates_are_said_to_be_readable_even_if_nobody_flagged_them(page_of):
    page = page_of(configured(encryption={"preset": "none"}))
    assert "Updates travelled readable." in page.alarm
    assert "Yes Every update arrives readable. It is noisy" in page.row("The coordinator Yes")
    assert "One readable update" in page.text
    assert "For each record at most ε = 2.99, δ = 0.001." in page.row("The coordinator Yes")


def test_without_differential_privacy_no_limit_is_claimed(page_of):
    page = page_of(configured(privacy={"mode": "none"}))
    assert "No differential privacy." in page.alarm
    assert "At most ε" not in page.text
    assert "at most ε" not in page.text
    assert "There is no limit." in page.text
    for party in ("The coordinator No", "One other site", "A reader"):
        assert "No limit. A model or update without noise can give records away." in page.row(party)


def test_a_mode_this_page_does_not_know_is_not_praised(page_of):
    assert "At most ε" not in page_of(configured(privacy={"mode": "surprise"})).text


@pytest.mark.parametrize(
    ("mode", "colluding", "told"),
    [
        ("distributed", 1, "For each record at most ε = 2.99, δ = 0.001, while no two sites pool their noise."),
        ("distributed", 3, "ε = 2.99, δ = 0.001, while no more than 3 of the sites pool their noise."),
        ("site", 1, "For all records of a site together at most ε = 2.99, δ = 0.001, while no two sites"),
    ],
)
def test_noise_in_shares_is_a_limit_under_a_condition(page_of, mode, colluding, told):
    report = configured(privacy={"mode": mode, "colluding": colluding})
    page = page_of(report)
    assert told in page.row("A reader")
    assert f"The limit holds up to {colluding} such." in page.text
    assert "pool their noise" not in page_of(configured()).text


def test_figures_that_rules_watch_are_drawn_with_their_alerts_and_silence_is_no_all_clear(page_of):
    rules = [AlertRule("auc", "below", 0.9, 2), AlertRule("auc", "moved", 0.1), AlertRule("sex: gap", "above", 0.2)]
    page = page_of(a_report(alerts=alerts_of(rules, a_report()["rounds"])))
    assert "auc below 0.9, 2 times in a row (round 2 to 3)" in page.text
    assert "1 rule had nothing to watch" in page.text
    assert page.row("auc below 0.9").endswith("32 to 3")
    assert page.row("auc moved").endswith("3never")
    assert page.row("sex: gap above").endswith("nothing to watch: no round has this figure")
    drawn = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert "AUC in 3 rounds; alerts in 2 rounds." in drawn
    assert "What was watched" not in page_of(a_report()).text


def test_what_each_site_adds_is_told_from_the_most_with_its_interval(page_of):
    page = page_of(a_report())
    assert "from 0.500 without any site to 0.850 with all of them" in page.text
    rows = [row for row in page.rows if "-0.010" in row]
    assert all(row.strip().startswith(site) for row, site in zip(rows, SITES, strict=True))
    assert "+0.090 (+0.060 to +0.120)" in rows[0]
    assert "a sample of them was tried" in page.text


def test_what_the_sites_measured_together_is_told_with_its_noise(page_of):
    report = configured()
    assert "What the sites measured together" not in page_of(report).text
    report["rounds"][1]["reported"] = {"accuracy": figures(0.8), "records": figures(276.4)}
    page = page_of(report)
    assert "The counts travelled masked and encrypted" in page.text
    row = page.row("2276 (276 to 276)")
    assert "0.800 (" in row
    assert row.count("–") == 2


@pytest.mark.parametrize(
    "reason", ["noise and sampling were fixed by a test-only switch: anyone can subtract it", "a switch of next year"]
)
def test_a_test_only_switch_voids_the_limit_in_red(page_of, reason):
    page = page_of(configured() | {"insecure": [reason]})
    assert f"{reason[0].upper()}{reason[1:]}." in page.alarm
    assert "There is no limit that holds." in page.text
    assert "at most ε" not in page.text
    assert "No limit holds. See the red box." in page.row("A reader")


@pytest.mark.parametrize(
    ("tuning", "trials", "told", "red"),
    [
        ("unstated", 0, "The plan does not say.", None),
        ("none", 0, "no site's records had a part in it", None),
        ("trial", 1, "counts for every later run", None),
        ("counted", 3, "The ledgers hold 3 trials", None),
        ("counted", 0, "what those cost is not counted here", "none holds any"),
        ("not counted", 2, "what those cost is not counted here", "no ledger counts"),
    ],
)
def test_tuning_that_was_not_counted_is_told_in_red_and_beside_the_limit(page_of, tuning, trials, told, red):
    report = configured(federation={"tuning": tuning})
    report["sites"][2]["trials"] = trials
    page = page_of(report)
    assert told in page.text
    assert (page.alarm == []) == (red is None)
    assert (red or "") in " ".join(page.alarm)
    assert ("δ = 0.001, not counting the trials that chose its settings" in page.text) == (red is not None)
    assert ("with δ = 0.001, trials not counted" in page.text) == (red is not None)


def test_a_reason_is_told_once(page_of):
    report = configured(encryption={"preset": "none"}, privacy={"mode": "none"})
    report["insecure"] = ["updates travelled readable and unsigned", "no differential privacy: records may leak"]
    assert page_of(report).text.count("ravelled readable") == 1
    assert [line for line in page_of(report).alarm if line.endswith(".")] == [
        "Updates travelled readable and unsigned.",
        "No differential privacy: records may leak.",
    ]


@pytest.mark.parametrize(
    ("reveal", "told"),
    [
        ("never", "No It holds encrypted sums, and no key. No It can read nothing"),
        ("final", "Limited The final model only."),
        ("every-round", "Yes After every round."),
    ],
)
def test_the_coordinator_learns_the_model_as_agreed(page_of, reveal, told):
    assert told in page_of(configured(federation={"reveal": reveal})).row("The coordinator No")


def test_what_an_earlier_run_spent_counts(page_of):
    report = configured()
    report["sites"][2]["epsilon"] = 4.231
    page = page_of(report)
    assert "At most ε = 4.24" in page.text, "rounded up, never down"
    assert "at most ε = 4.24" in page.row("A reader")


def test_an_unfinished_run_says_so(page_of):
    assert "This run is not finished" in page_of(configured() | {"outcome": "stopped"}).alarm


def test_slow_libraries_wait_until_a_report_is_written():
    import subprocess
    import sys

    check = "import sys, server.report; sys.exit(bool({'matplotlib', 'jinja2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def measured_by(attribute: str, groups: tuple[str, str]) -> dict[str, Any]:
    rates = {"selection_rate": figures(0.2), "true_positive_rate": figures(0.5), "false_positive_rate": figures(0.1)}
    return {
        "figures": {
            f"{attribute}: {name}": figures(value)
            for name, value in [
                ("demographic_parity_difference", 0.19),
                ("equal_opportunity_difference", 0.12),
                ("equalized_odds_difference", 0.13),
                ("worst_accuracy", 0.71),
            ]
        },
        "remarks": [],
        "groups": {attribute: {groups[0]: {**rates, "accuracy": figures(0.71)}, groups[1]: {"accuracy": figures(0.9)}}},
        "thresholds": {attribute: {groups[0]: 0.21, groups[1]: 0.76}},
    }


def test_gaps_between_groups_are_shown_with_their_intervals_and_what_would_mend_them(page_of):
    report = a_report()
    for entry in report["rounds"][1:]:
        entry["fairness"] = measured_by("sex", ("Female", "Male"))
    judged = {"accuracy": figures(0.8), "demographic_parity_difference": figures(0.05)}
    report["mitigation"] = {"sex": {"thresholds": {}, "before": {**judged, "accuracy": figures(0.82)}, "after": judged}}
    page = page_of(report)
    gaps = "0.190 (0.160 to 0.220) 0.120 (0.090 to 0.150) 0.130 (0.100 to 0.160) 0.710 (0.680 to 0.740) Female"
    told = [row.replace(" ", "") for row in page.rows]
    assert f"2{gaps}".replace(" ", "") in told
    assert f"3{gaps}".replace(" ", "") in told
    assert "Male–––0.900(0.870to0.930)0.76" in told
    assert "bysex0.050(0.020to0.080)0.800(0.770to0.830)" in told
    assert "Gaps by sex before round 3: demographic parity 0.190 (0.160 to 0.220)" in page.text
    assert "Named right least: Female." in page.text
    assert any("Gaps by sex before round 3" in (a["aria-label"] or "") for tag, a in page.tags if tag == "svg")
    assert "treats groups alike" not in page_of(a_report()).text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x00\nb", "items"])
def test_a_hostile_group_is_only_a_name(page_of, name):
    report = a_report()
    for entry in report["rounds"]:
        entry["fairness"] = measured_by(name, (name, "other"))
    page = page_of(report)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert sum(tag == "svg" for tag, _ in page.tags) == 7


def test_features_are_shown_by_what_is_lost_without_them_with_their_intervals(page_of):
    report = a_report()
    report["rounds"][1]["importance"] = {"old": figures(0.9)}
    report["rounds"][2]["importance"] = {"age": figures(0.02), "thal": figures(0.12), "zero": figures(-0.01)}
    page = page_of(report)
    told = [row.replace(" ", "") for row in page.rows]
    expected = ["thal+0.120(+0.090to+0.150)", "age+0.020(-0.010to+0.050)", "zero-0.010(-0.040to+0.020)"]
    assert [row for row in told if row in expected] == expected
    assert "thal +0.120 (+0.090 to +0.150). 2 features cannot be told from chance and noise." in page.text
    assert any("Accuracy lost without: thal" in (a["aria-label"] or "") for tag, a in page.tags if tag == "svg")
    assert "What the model looks at" not in page_of(a_report()).text


def test_a_hostile_feature_is_only_a_name(page_of):
    report = a_report()
    report["rounds"][-1]["importance"] = {"<script>alert(1)</script>": figures(0.1), "a\x00\nb": figures(0.2)}
    page = page_of(report)
    assert "script" not in {tag for tag, _ in page.tags}
