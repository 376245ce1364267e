"""Proves: the runner's exit code is the truth, its pages load nothing, and each report is signed."""

import json
import re
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from scenarios import run as runner
from scenarios.cli import main
from scenarios.run import run_all, worst_exit
from scenarios.scenario import Expectation, Scenario
from scenarios.stage import Picture, Played, Stage, Table
from server.signature import require_claim_stands, verify_report


def scenario(name: str = "baseline", **changes: object) -> Scenario:
    settings = {"title": "T <b>", "question": "Why?", "about": "So.", "play": "models:baseline", "seconds": 1}
    expect = (
        Expectation("leak", "nothing leaks", "privacy", at_most=1.0),
        Expectation("use", "works", "use", equals=1.0),
    )
    return Scenario(name, expect=expect, **{**settings, **changes})


@pytest.fixture
def plays(monkeypatch):
    """Plays that give the figures they are told to."""

    def give(**figures: float) -> None:
        played = Played(figures, [Picture("P", "<svg></svg>")], [Table("T", ("a", "b"), (("<i>", 1.0),))], ["<script>"])
        fake = type("Module", (), {"baseline": staticmethod(lambda stage: played)})
        monkeypatch.setattr(runner, "import_module", lambda name: fake)

    return give


@pytest.mark.parametrize(
    ("figures", "code"),
    [({"leak": 0.5, "use": 1.0}, 0), ({"leak": 2.0, "use": 1.0}, 3), ({"leak": 0.5, "use": 0.0}, 4), ({"use": 1.0}, 3)],
)
def test_the_exit_code_is_the_worst_that_happened(plays, tmp_path, figures, code):
    plays(**figures)
    result = run_all([scenario()], tmp_path, quick=True)
    assert worst_exit(result) == code
    assert result["scenarios"][0]["passed"] == (code == 0)
    assert {"name", "passed", "seconds", "report", "expectations"} <= set(result["scenarios"][0])
    assert {"name", "expected", "actual", "passed"} <= set(result["scenarios"][0]["expectations"][0])


def test_pages_load_nothing_and_words_are_only_words(plays, tmp_path):
    plays(leak=0.5, use=1.0)
    run_all([scenario()], tmp_path, quick=True)
    for page in (tmp_path / "index.html", tmp_path / "baseline" / "report.html"):
        html = page.read_text()
        assert not re.search(r"<script|<img|<link|://|\bon\w+=", html)
        assert "default-src 'none'" in html
        assert "T &lt;b&gt;" in html
    assert "report.html" in (tmp_path / "index.html").read_text()


def test_each_report_is_signed(plays, tmp_path):
    plays(leak=0.5, use=1.0)
    run_all([scenario()], tmp_path, quick=True)
    signed = verify_report(tmp_path / "baseline")
    require_claim_stands(signed.said)
    assert signed.said["name"] == "baseline"


def test_no_scenario_is_played_on_the_ledgers_of_an_earlier_one(plays, tmp_path):
    plays(leak=0.5, use=1.0)
    run_all([scenario()], tmp_path, quick=True)
    with pytest.raises(ConfigError, match="earlier scenario"):
        run_all([scenario("private"), scenario()], tmp_path, quick=True)
    assert not (tmp_path / "private").exists()


@pytest.mark.parametrize("error", [ConfigError("a setting is wrong"), KeyboardInterrupt()], ids=["refused", "stopped"])
def test_half_a_scenario_is_taken_away_and_does_not_stand_in_the_way_of_the_next_try(plays, tmp_path, error):
    def breaks_off(stage: Stage) -> Played:
        (stage.out / "run").mkdir()
        raise error

    plays(leak=0.5, use=1.0)
    run_all([scenario("private")], tmp_path, quick=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "import_module", lambda name: SimpleNamespace(baseline=breaks_off))
        with pytest.raises(type(error)):
            run_all([scenario()], tmp_path, quick=True)
    assert (tmp_path / "private" / "report.json").exists()
    assert run_all([scenario()], tmp_path, quick=True)["scenarios"][0]["passed"]


def test_a_quickstart_whose_plan_does_not_fit_founds_nothing(tmp_path, capsys):
    assert main(["quickstart", str(tmp_path / "q"), "--set", "encryption.layer_scales=[1, 1, 1]"]) == 2
    assert "encryption.layer_scales" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_what_needs_data_that_is_not_there_is_skipped_and_named(plays, tmp_path, monkeypatch):
    monkeypatch.setenv("VEILFED_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    plays(leak=0.5, use=1.0)
    result = run_all([scenario(federation="mnist")], tmp_path, quick=True)
    assert result["scenarios"] == []
    assert "mnist" in result["skipped"][0]


def test_the_commands_list_show_and_refuse(capsys):
    assert main(["scenario", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["scenarios"]) > 10
    assert main(["scenario", "show", "dropout"]) == 0
    assert "vanishes" in capsys.readouterr().out
    assert main(["scenario", "run", "no-such"]) == 2
    assert main(["scenario", "run", "all", "dropout"]) == 2
