"""Proves: a site joins only with a bundle that a key it trusts signed, for this version and for the order's plan."""

import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client import local_socket
from client.signs_of_life import BUSY
from client.site import Site
from client.worker import respond, serve
from common import bundle
from common.certificates import Root
from common.config import fill, load_table, override, to_table
from common.federation import Plan
from common.keystore import load_secret
from common.roster import Roster, install
from common.signing import Identity
from common.unix_sockets import connect
from common.wire import Kind, digest, from_json
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER = NAMES[0]
KEY = Identity.generate()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def played(tmp_path: Path) -> Coordinator:
    """A run that nobody has joined, of a consortium whose roster names one bundle key."""
    made = Coordinator(workplace(tmp_path / "run"))
    trust(made, KEY)
    return made


def trust(made: Coordinator, *keys: Identity) -> None:
    """Everybody has the next roster, which names these bundle keys."""
    consortium = made.place.out / "consortium"
    held, root = Roster.read(consortium / "roster.json"), Root.read((consortium / "root.crt").read_bytes())
    signer = Identity.from_private_bytes(load_secret(consortium / "root.key", None))
    newer = replace(held, version=held.version + 1, bundles=tuple(key.public for key in keys))
    for place in (*made.place.sites, consortium):
        install(place, newer.signed([signer]), [root])
    restart()


def head(content: bytes, signature: str) -> dict[str, Any]:
    return {"action": "join", "bundle": base64.b64encode(content).decode(), "signature": signature}


def said(played: Coordinator, head: Mapping[str, Any], **changes: Any) -> tuple[Kind, dict[str, Any]]:
    order = played.order(0, played.join_order(**changes))
    answer = played.read(respond(played.directories[ADLER], head, order).data)
    return answer.kind, from_json(answer.body)


def test_a_signed_bundle_of_the_orders_plan_is_joined_and_noted(played):
    content = bundle.build(played.store.plan)
    kind, _ = said(played, head(content, bundle.sign(content, KEY, played.store.run)))
    assert kind is Kind.ANSWER
    restart()
    site = Site.open(played.directories[ADLER])
    noted = [entry.record for entry in site.audit.entries()]
    assert any(digest(content).hex() in record.values() for record in noted)
    assert (site.directory / "runs" / played.store.run.hex()).is_dir()


def plain(plan: Plan, run: bytes) -> dict[str, Any]:
    return {"action": "join"}


def unsigned(plan: Plan, run: bytes) -> dict[str, Any]:
    return head(bundle.build(plan), "")


def tampered(plan: Plan, run: bytes) -> dict[str, Any]:
    content = bundle.build(plan)
    return head(content[:-1] + bytes([content[-1] ^ 1]), bundle.sign(content, KEY, run))


def by_a_stranger(plan: Plan, run: bytes) -> dict[str, Any]:
    content = bundle.build(plan)
    return head(content, bundle.sign(content, Identity.generate(), run))


def with_code(plan: Plan, run: bytes) -> dict[str, Any]:
    from flwr.cli.build import build_fab_from_files

    files = {name: data for name, data in bundle._files(bundle.build(plan)).items() if not name.startswith(".info")}
    content = build_fab_from_files(files | {"client/app.py": b"raise SystemExit(1)\n"})[0]
    return head(content, bundle.sign(content, KEY, run))


def of_another_version(plan: Plan, run: bytes) -> dict[str, Any]:
    from flwr.cli.build import build_fab_from_files

    files = {name: data for name, data in bundle._files(bundle.build(plan)).items() if not name.startswith(".info")}
    files["pyproject.toml"] = files["pyproject.toml"].replace(b'version = "', b'version = "9')
    content = build_fab_from_files(files)[0]
    return head(content, bundle.sign(content, KEY, run))


def of_another_plan(plan: Plan, run: bytes) -> dict[str, Any]:
    content = bundle.build(fill(Plan, override(to_table(plan), ["federation.rounds=2"])))
    return head(content, bundle.sign(content, KEY, run))


def no_text(plan: Plan, run: bytes) -> dict[str, Any]:
    return {"action": "join", "bundle": "***", "signature": 3}


def of_another_run(plan: Plan, run: bytes) -> dict[str, Any]:
    content = bundle.build(plan)
    return head(content, bundle.sign(content, KEY, bytes(16)))


@pytest.mark.parametrize(
    ("forge", "code", "reason"),
    [
        (plain, "ProtocolError", "without a bundle"),
        (no_text, "ProtocolError", "without a bundle"),
        (unsigned, "TrustError", "not signed"),
        (tampered, "TrustError", "signature"),
        (by_a_stranger, "TrustError", "not trusted here"),
        (of_another_run, "TrustError", "signature"),
        (with_code, "ProtocolError", "more than a plan"),
        (of_another_version, "ProtocolError", "is for veilfed 9"),
        (of_another_plan, "ProtocolError", "another plan than the signed bundle"),
    ],
)
def test_every_other_bundle_is_refused_with_its_reason_and_nothing_of_the_run_is_kept(played, forge, code, reason):
    kind, body = said(played, forge(played.store.plan, played.store.run))
    assert kind is Kind.REFUSAL
    assert body["code"] == code
    assert reason in body["message"]
    restart()
    site = Site.open(played.directories[ADLER])
    assert site.audit.entries()[-1].record["message"] == body["message"]
    assert not (site.directory / "runs" / played.store.run.hex()).exists()


def test_a_key_that_the_roster_trusts_and_the_sites_policy_does_not_signs_nothing_here(played):
    path = played.directories[ADLER] / "policy.toml"
    policy = load_table(path) | {"bundle_keys": [digest(Identity.generate().public).hex()]}
    path.write_text(tomli_w.dumps(policy))
    content = bundle.build(played.store.plan)
    kind, body = said(played, head(content, bundle.sign(content, KEY, played.store.run)))
    assert kind is Kind.REFUSAL
    assert body["code"] in ("TrustError", "PrivacyError")


def bundled(played: Coordinator, key: Identity) -> dict[str, Any]:
    content = bundle.build(played.store.plan)
    return head(content, bundle.sign(content, key, played.store.run))


def asked(played: Coordinator, action: str) -> tuple[Kind, dict[str, Any]]:
    """What adler says to an order of the run that it has joined."""
    answer = played.read(respond(played.directories[ADLER], {"action": action}, played.order(1, {})).data)
    return answer.kind, from_json(answer.body)


def named_by_policy(played: Coordinator, key: Identity) -> None:
    path = played.directories[ADLER] / "policy.toml"
    path.write_text(tomli_w.dumps(load_table(path) | {"bundle_keys": [digest(key.public).hex()]}))
    restart()


@pytest.mark.parametrize("withdraw", [trust, named_by_policy], ids=["by the consortium", "by the site"])
@pytest.mark.parametrize("action", ["make_key", "offer", "train", "agree", "unmask", "stand_in", "apply", "release"])
def test_a_key_that_is_withdrawn_stops_the_runs_that_it_signed_with_its_reason(played, withdraw, action):
    """Until a key that is trusted signs the run anew."""
    other = Identity.generate()
    trust(played, KEY, other)
    assert said(played, bundled(played, KEY))[0] is Kind.ANSWER
    before = asked(played, action)
    withdraw(played, other)
    kind, body = asked(played, action)
    assert (kind, body["code"]) == (Kind.REFUSAL, "TrustError")
    assert "this run's bundle is not on the roster" in body["message"] or "policy.bundle_keys" in body["message"]
    restart()
    assert Site.open(played.directories[ADLER]).audit.entries()[-1].record["message"] == body["message"]
    assert said(played, bundled(played, other))[0] is Kind.ANSWER
    assert asked(played, action)[0] is before[0]
    assert asked(played, action)[1].get("message") == before[1].get("message")


def test_a_run_that_was_joined_without_a_bundle_is_asked_for_one(played):
    played.join([ADLER])
    kind, body = asked(played, "offer")
    assert (kind, body["code"]) == (Kind.REFUSAL, "ProtocolError")
    assert "without a bundle" in body["message"]


def converse(directory: Path, talk: Callable[[socket.socket], Any]) -> Any:
    """With a worker that serves at its socket."""
    server = local_socket.listen(directory)
    threading.Thread(target=_until_closed, args=(directory, server), daemon=True).start()
    with server, connect(local_socket.address(directory), 60) as node:
        return talk(node)


def _until_closed(directory: Path, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        serve(directory, server)


def test_over_its_socket_the_worker_says_the_same_and_outlives_a_node_that_talks_nonsense(played):
    directory = played.directories[ADLER]
    content = bundle.build(played.store.plan)
    order = played.order(0, played.join_order())

    def talk(node: socket.socket) -> tuple[bytes, bytes]:
        with connect(local_socket.address(directory), 60) as broken:
            broken.sendall(b"\xff" * 4)
            assert broken.recv(1) == b""
        answers = []
        for _ in range(2):
            local_socket.send(node, head(content, bundle.sign(content, KEY, played.store.run)), order)
            said, data = local_socket.receive(node)
            while said == BUSY:
                said, data = local_socket.receive(node)
            answers.append(bytes(data))
        return answers[0], answers[1]

    first, second = converse(directory, talk)
    assert first == second
    assert played.read(first).kind is Kind.ANSWER


@pytest.mark.parametrize("action", ["", "delete", "__init__", "joined"])
def test_an_action_that_is_none_is_refused(played, action):
    answer = respond(played.directories[ADLER], {"action": action}, played.order(0, {}))
    assert played.read(answer.data).kind is Kind.REFUSAL
