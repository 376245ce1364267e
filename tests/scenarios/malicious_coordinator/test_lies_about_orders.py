"""An order is what its signed envelope says, and what was asked and refused is on record."""

import json

import pytest

from common.audit import Audit
from common.wire import Kind
from tests.by_hand import NAMES, Coordinator, restart, run_of, secrets_of

ADLER = NAMES[0]


# The envelope means what it says.


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ORDER])
def test_a_relabelled_order_is_refused(attack, kind):
    data = bytearray(attack.order(2, attack.wanted(attack.names, b"sum")))
    data[3] = kind
    assert attack.refuses(ADLER, "agree", bytes(data))[0] in ("TrustError", "WireError")


def test_an_order_of_the_wrong_kind_is_refused(attack):
    for kind in Kind:
        if kind is not Kind.ORDER:
            body = attack.wanted(attack.names, b"sum")
            assert attack.refused(ADLER, "agree", 2, body, kind=kind)[0] == "ProtocolError"
    assert attack.refused(ADLER, "format_disk", 2)[0] == "ProtocolError"


# The record.


def test_the_audit_log_is_chained_signed_and_says_what_was_asked(attack):
    attack.refused(ADLER, "release", 2)
    attack.refuses(ADLER, "agree", b"garbage")
    log = Audit.read(attack.directories[ADLER], attack.site(ADLER).identity.public)
    *_, refused, unread = (dict(entry.record) for entry in log.entries())
    assert refused.pop("time").endswith("+00:00")
    assert refused == {
        "event": "Refused",
        "action": "release",
        "run": attack.store.run.hex(),
        "round": 2,
        "code": "ProtocolError",
        "message": "the plan does not reveal the model now (federation.reveal = 'final')",
    }
    assert (unread["run"], unread["round"], unread["code"]) == ("", 0, "WireError")


def test_a_record_that_was_taken_out_is_noticed_and_the_site_still_refuses(attack):
    attack.refused(ADLER, "release", 2)
    attack.refused(ADLER, "release", 2)
    path = attack.directories[ADLER] / "audit.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    restart()
    said = attack.read(attack.send(ADLER, "release", attack.order(2, b"{}")))
    assert said.kind is Kind.REFUSAL
    assert json.loads(said.body)["code"] == "TrustError"
    assert "rolled back or truncated" in json.loads(said.body)["message"]


def test_the_record_holds_no_secret_and_no_flood_of_words(attack):
    wanted = attack.wanted(attack.names, b"sum")
    attack.ask(ADLER, "agree", 2, wanted)
    attack.refused(ADLER, "unmask", 2, {**wanted, "agreed": []})
    attack.refused(ADLER, "train", 3, attack.training(ADLER, attack.made))
    attack.refused(ADLER, "join", 0, {**attack.join_order(), "plan": {"x" * 100_000: 1}}, run=bytes(16))
    log = (attack.directories[ADLER] / "audit.jsonl").read_bytes()
    run = run_of(attack, ADLER)
    keys = [run.exchange_key(1).private_bytes(), run.cohort_key(1).export_for_wrapping()]
    secrets = [*secrets_of(attack, ADLER, 2), *keys]
    assert not any(secret.hex().encode() in log or secret in log for secret in secrets)
    assert len(log) < 10_000


def test_a_site_without_a_key_or_peers_refuses_in_words(tmp_path):
    """It has joined, and the coordinator skips the key ceremony."""
    coordinator = Coordinator.ready(tmp_path / "run")
    run = run_of(coordinator, ADLER)
    for name in ("peers-000001", "offer-000001"):
        (run.directory / name).unlink()
    assert coordinator.refused(ADLER, "offer", 1)[0] == "ProtocolError"
