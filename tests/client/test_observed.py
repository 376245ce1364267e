"""Proves: what a site shows of itself is what happened, no record or key is in it, and the node can show it alone."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from client import observed
from client.exposed import NUMBERS, expose_site
from client.observed import answer
from common.log import Lines
from common.telemetry import read
from common.wire import Kind
from tests.by_hand import NAMES, Coordinator, workplace

ROOT = Path(__file__).parents[2]
ADLER = NAMES[0]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Coordinator, list[str]]:
    """One round of four sites; adler's worker is observed, and what it logs is kept."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(Lines("worker").format(record))

    handler = Kept()
    observed.log.addHandler(handler)
    observed.log.setLevel(logging.INFO)
    played = Coordinator.ready(tmp_path_factory.mktemp("observed") / "run")
    made = played.offers(1)
    trained = played.order(1, played.training(ADLER, made))
    said = answer(played.site(ADLER), "train", trained)
    assert played.read(said.data).kind is Kind.UPDATE
    refused = answer(played.site(ADLER), "train", played.order(1, b"{}", plan=bytes(32)))
    assert played.read(refused.data).kind is Kind.REFUSAL
    garbage = answer(played.site(ADLER), "no such action" * 100, b"garbage")
    assert played.read(garbage.data).kind is Kind.REFUSAL
    observed.log.removeHandler(handler)
    return played, lines


def numbers(played: Coordinator) -> dict[tuple[str, ...], float]:
    return {(number.name, *number.labels): number.value for number in read(played.directories[ADLER] / NUMBERS)}


def test_orders_are_counted_by_what_became_of_them(played):
    shown = numbers(played[0])
    assert {key: value for key, value in shown.items() if key[0] == "veilfed_site_orders_total"} == {
        ("veilfed_site_orders_total", "train", "answered"): 1,
        ("veilfed_site_orders_total", "train", "refused"): 1,
        ("veilfed_site_orders_total", "other", "refused"): 1,
    }
    assert {key: value for key, value in shown.items() if key[0] == "veilfed_site_refusals_total"} == {
        ("veilfed_site_refusals_total", "TrustError"): 1,
        ("veilfed_site_refusals_total", "WireError"): 1,
    }
    assert shown["veilfed_site_round",] == 1
    assert shown["veilfed_site_bytes_total", "sent"] > 1000


def test_what_was_spent_is_what_the_ledger_says(played):
    site = played[0].site(ADLER)
    shown = numbers(played[0])
    data_set = site.settings.data.name
    assert shown["veilfed_site_epsilon_spent", data_set] == site.ledger.epsilon > 0
    assert shown["veilfed_site_epsilon_budget", data_set] == site.ledger.budget.epsilon


def test_the_log_tells_each_order_on_one_line(played):
    events = [json.loads(line) for line in played[1]]
    assert [(event["event"], event["action"], event.get("code")) for event in events] == [
        ("order answered", "train", None),
        ("order refused", "train", "TrustError"),
        ("order refused", "other", "WireError"),
    ]
    assert events[0]["run"] == played[0].store.run.hex()
    assert not any("not_told" in event for event in events)


def test_neither_log_nor_numbers_hold_a_key_or_say_how_many_records_there_are(played):
    """Every file of the site with a secret in it, in hexadecimal and as it is; and the count, private as it is."""
    place, lines = played[0].directories[ADLER], played[1]
    said = "\n".join(lines) + (place / NUMBERS).read_text()
    site = played[0].site(ADLER)
    assert site.identity.private_bytes().hex() not in said
    keys = [path for path in (place / "runs").rglob("*") if path.is_file() and path.stat().st_size >= 16]
    assert keys
    for path in keys:
        assert path.read_bytes()[:32].hex() not in said
    assert not {"records", "held_out"} & {name for line in lines for name in json.loads(line)}


def test_a_bug_is_counted_and_not_swallowed(played):
    def broken(*arguments):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        answer(played[0].site(ADLER), "apply", b"", broken)
    assert numbers(played[0])["veilfed_site_orders_total", "apply", "failed"] == 1


def test_a_site_that_has_spent_nothing_gets_no_ledger_from_being_watched(tmp_path):
    place = workplace(tmp_path / "run").sites[0]
    from client.site import Site

    site = Site.open(place)
    for path in (place / "ledgers").glob("*"):
        path.unlink()
    assert observed.spent(site) == []
    assert not list((place / "ledgers").glob("*"))


def test_the_node_shows_the_workers_numbers_without_torch_records_or_keys(played):
    """In a process of its own, as the node is: its imports, and its page over a real socket."""
    program = """
import http.client, sys
from pathlib import Path
from client.exposed import expose_site
server = expose_site(Path(sys.argv[1]), ("127.0.0.1", 0), sys.argv[1] + "/worker.sock", lambda: True)
connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
for page in ("/metrics", "/readyz"):
    connection.request("GET", page)
    answer = connection.getresponse()
    print(answer.status, answer.read().decode())
assert not {"torch", "numpy", "client.site", "client.agent"} & set(sys.modules), sys.modules
"""
    place = played[0].directories[ADLER]
    done = subprocess.run([sys.executable, "-c", program, str(place)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'veilfed_site_orders_total{action="train",outcome="answered"} 1.0' in done.stdout
    assert "veilfed_site_connected 1.0" in done.stdout
    assert "veilfed_site_worker_up 0.0" in done.stdout
    assert "503 not ready" in done.stdout


def test_a_node_that_cannot_reach_the_coordinator_is_here_but_not_ready(played):
    import http.client

    server = expose_site(played[0].directories[ADLER], ("127.0.0.1", 0), "/nowhere", lambda: False)
    try:
        for page, status in (("/healthz", 200), ("/readyz", 503)):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", page)
            assert connection.getresponse().status == status
    finally:
        server.shutdown()
        server.server_close()
