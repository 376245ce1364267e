"""Proves: a span tells only what is listed, wherever the code makes one, and nothing at all unless somebody records."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import fill, to_table
from common.errors import BudgetExceeded, ConfigError
from common.spans import NAMES, NUMBERS, WORDS, Monitoring, Span, collector_in, recording, span
from common.wire import from_json, to_json

ROOT = Path(__file__).parents[2]
SECRETS = ["ab" * 32, "/srv/veilfed/cleveland/records.csv", "b2xkIHNlY3JldA==" * 3, "Ada Lovelace, 1815", b"key", None]


def test_a_span_lies_within_the_one_around_it_and_says_how_long_it_took():
    told: list[Span] = []
    with recording(told.append), span("round", round=3):
        with span("sum"):
            pass
        with span("unmask") as tell:
            tell(cohort=4)
    total, unmask, whole = told
    assert [one.name for one in told] == ["sum", "unmask", "round"]
    assert whole.parent == ""
    assert total.parent == unmask.parent == whole.number != total.number
    assert len({one.trace for one in told}) == 1
    assert whole.begun <= total.begun <= total.ended <= unmask.begun <= unmask.ended <= whole.ended
    assert [one.attributes for one in told] == [{}, {"cohort": 4}, {"round": 3}]


def test_a_function_may_be_one():
    told: list[Span] = []

    @span("charge")
    def charge(amount: int) -> int:
        return 2 * amount

    assert charge(2) == 4
    with recording(told.append):
        assert [charge(1), charge(2)] == [2, 4]
    assert [one.name for one in told] == ["charge", "charge"]
    assert told[0].number != told[1].number


@pytest.mark.parametrize(("error", "code"), [(BudgetExceeded("9 of 3"), "BudgetExceeded"), (KeyError("x"), "other")])
def test_what_went_wrong_is_told_by_its_name_alone_and_goes_on(error, code):
    told: list[Span] = []
    with pytest.raises(type(error)), recording(told.append), span("charge"):
        raise error
    assert [(one.name, one.attributes) for one in told] == [("charge", {"code": code})]
    with recording(told.append), span("sum"):
        pass
    assert told[1].parent == ""


def test_traces_are_apart():
    told: list[Span] = []
    for _ in range(2):
        with recording(told.append), span("order"):
            pass
    assert told[0].trace != told[1].trace


@pytest.mark.parametrize("name", sorted(WORDS))
@pytest.mark.parametrize("place", range(len(SECRETS)))
def test_nothing_private_fits_into_a_word(name, place):
    told: list[Span] = []
    with recording(told.append), span("order", **{name: SECRETS[place]}):
        pass
    assert told[0].attributes == {}


@pytest.mark.parametrize("value", ["3", True and "a", math.nan, math.inf, 2**60, [1, 2], None])
def test_nothing_but_a_number_fits_into_a_number(value):
    told: list[Span] = []
    with recording(told.append), span("order", round=value, records=3, epsilon=0.1):
        pass
    assert told[0].attributes == {}


def test_every_span_of_the_program_has_a_listed_name_and_listed_attributes():
    """Read off the source: a slip would be left out of traces without a word."""
    names, attributes = set(), set()
    for folder in ("client", "common", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("span", "tell"):
                    attributes |= {keyword.arg for keyword in call.keywords}
                    if call.func.id == "span" and isinstance(call.args[0], ast.Constant):
                        names.add(call.args[0].value)
                if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "_phase":
                    names.add(call.args[0].value)
    assert names == NAMES
    assert attributes == NUMBERS | set(WORDS)


def made(**changes) -> Span:
    fields = {"name": "order", "trace": "0" * 31 + "1", "number": "0" * 15 + "1", "parent": "", "begun": 1, "ended": 2}
    return Span(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a name of somebody"},
        {"trace": "x" * 32},
        {"number": "1"},
        {"parent": "ab" * 32},
        {"attributes": {"path": "/data"}},
        {"attributes": {"site": "Ada Lovelace"}},
    ],
    ids=["name", "trace", "number", "parent", "attribute", "value"],
)
def test_a_span_that_says_more_is_none(changes):
    with pytest.raises(ValueError, match=r"no span of ours|are not told"):
        made(**changes)


def test_a_span_travels_between_two_processes_of_a_party_as_a_table():
    one = made(begun=1_800_000_000_000_000, attributes={"round": 3, "train_seconds": 0.25, "site": "adler"})
    assert fill(Span, from_json(to_json(to_table(one)))) == one


def test_the_collector_is_the_one_that_the_file_names(tmp_path):
    path = tmp_path / "site.toml"
    assert collector_in(path) == ""
    path.write_text('name = "adler"\n')
    assert collector_in(path) == ""
    path.write_text('name = "adler"\n[monitoring]\ntraces = "http://127.0.0.1:4318"\n')
    assert collector_in(path) == "http://127.0.0.1:4318"
    for wrong in ("monitoring = 3", "[monitoring]\ntrace = 'http://x'", "[monitoring]\ntraces = 3", "= nonsense"):
        path.write_text(wrong)
        with pytest.raises(ConfigError):
            collector_in(path)


@pytest.mark.parametrize("address", ["https://otel.example.org", "http://[::1]:4318", "http://10.0.0.5:4318"])
def test_an_address(address):
    assert Monitoring(address).traces == address


@pytest.mark.parametrize(
    "address",
    [
        "localhost:4318",
        "grpc://a:4317",
        "http://me:secret@a:4318",
        "http://a:4318/?key=1",
        "http://a b",
        "http://",
        "http://a:65536",
    ],
)
def test_no_address(address):
    with pytest.raises(ConfigError, match=r"monitoring\.traces"):
        Monitoring(address)


def test_where_nobody_records_the_library_is_not_even_loaded():
    program = """
import sys
import client.worker, client.node, client.check, client.start, server.conductor, server.start
from common.spans import span
from common.tracing import delivering, require_installed
from pathlib import Path
require_installed("")
with delivering(Path("there is none.toml"), "veilfed-coordinator"), span("run", run="a" * 32):
    pass
found = [name for name in sys.modules if name.startswith("opentelemetry")]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
