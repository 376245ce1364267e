"""Coordinator and four sites as real processes on real sockets: the same model as in one process, and no secret out."""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from client.local_socket import SOCKET
from client.site import Site
from client.start import listens
from common.keystore import load_secret
from common.roster import COORDINATOR, Roster
from common.supervisor import environment, module, status
from scenarios.public_sets import HEART_TABLE
from scenarios.simulate import simulate
from scenarios.simulation import set_up
from server.signature import keep_copy
from server.store import RunStore
from tests.deployment import LOCKED, PASSPHRASE, Deployment, Run, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Watched:
    """Looks, while a run lasts, at what the processes of all parties are told and hold open."""

    def __init__(self, deployment: Deployment) -> None:
        self.places = (deployment.home, *deployment.sites)
        self.told: set[bytes] = set()
        self.ended = threading.Event()
        self.networked: set[str] = set()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join(30)

    def _look(self) -> None:
        while not self.ended.wait(0.3):
            for place in self.places:
                for row in status(place)["rows"]:
                    if row["pid"]:
                        self._at(row["name"], Path(f"/proc/{row['pid']}"))

    def _at(self, name: str, process: Path) -> None:
        try:
            for what in ("cmdline", "environ"):
                self.told.add((process / what).read_bytes())
            if internet_sockets(process):
                self.networked.add(name)
        except OSError:
            pass  # it has just ended


def internet_sockets(process: Path) -> set[str]:
    """The inodes of the TCP and UDP sockets that a process holds."""
    held = set()
    for descriptor in (process / "fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            held.add(target[8:-1])
    known = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        known |= {line.split()[9] for line in (process / "net" / table).read_text().splitlines()[1:]}
    return held & known


@pytest.fixture(scope="module")
def whole(deployment: Deployment) -> tuple[Run, Watched]:
    """One run from its beginning to its end, watched."""
    with Watched(deployment) as watched:
        run = deployment.run()
        run.report()
    return run, watched


def test_the_model_is_bit_for_bit_that_of_one_process_and_the_ledgers_agree(deployment, whole, tmp_path):
    run, _ = whole
    local = set_up(deployment.settings, tmp_path / "local")
    told = simulate(local)
    mine, theirs = RunStore.open(local.run), RunStore.open(run.place)
    assert mine.plan == theirs.plan
    assert mine.plan.privacy.mode == "local"
    assert mine.plan.encryption.preset == "compact"
    report = run.report()
    assert [one["round"] for one in report["rounds"]] == run.rounds == [1, 2, 3]
    assert (local.run / "released.safetensors").read_bytes() == (run.place / "released.safetensors").read_bytes()
    for row, other, site, place in zip(report["sites"], told["sites"], deployment.sites, local.sites, strict=True):
        deployed, simulated = Site.open(site).ledger, Site.open(place).ledger
        assert [(one.round_number, one.events) for one in deployed.entries if one.run == run.number] == [
            (one.round_number, one.events) for one in simulated.entries
        ]
        assert row["site"] == other["site"] == site.name
        assert row["epsilon"] == other["epsilon"] == simulated.epsilon
        assert run.charges(site) == [1, 2, 3]


def test_a_different_draw_of_noise_would_be_another_model(deployment, whole, tmp_path):
    """Else the test above would compare what no randomness went into."""
    run, _ = whole
    redrawn = replace(deployment.settings.simulation, insecure_randomness=8)
    other = set_up(replace(deployment.settings, simulation=redrawn), tmp_path / "other")
    simulate(other)
    assert (other.run / "released.safetensors").read_bytes() != (run.place / "released.safetensors").read_bytes()


def test_whoever_follows_the_run_has_the_report_as_its_coordinator_signed_it(deployment, whole, tmp_path):
    run, _ = whole
    key = Roster.read(deployment.home / "roster.json").public_key_of(COORDINATOR).hex()
    keep_copy(tmp_path, run.signed, key)
    assert deployment.give("report", "verify", tmp_path)["signer"] == key
    assert json.loads((tmp_path / "report.json").read_bytes())["rounds"] == run.report()["rounds"]


def test_both_sides_logs_are_whole(deployment, whole):
    for site in deployment.sites:
        deployment.give("audit", "verify", site)
        deployment.give("site", "ledger", "verify", site)
    deployment.give("audit", "verify", deployment.home)


def secrets_of(deployment: Deployment) -> Mapping[str, bytes]:
    """Everything that must be where it lies and nowhere else, and as little of it as tells it from all else."""
    found = {
        "passphrase": PASSPHRASE.encode(),
        "superexec": (deployment.home / "superexec.secret").read_bytes().strip(),
    }
    for place in (deployment.home, *deployment.sites):
        locked = PASSPHRASE if place.name == LOCKED else None
        found[f"identity of {place.name}"] = load_secret(place / "identity.key", locked)
    for key in (deployment.home / "bundle.key", *(deployment.home / "root").glob("*.key")):
        found[key.name] = load_secret(key, None)
    for key in (*(site / "node.key" for site in deployment.sites), *deployment.home.glob("*/*.key")):
        lines = key.read_bytes().splitlines()
        if lines[0].startswith(b"-----BEGIN"):
            found[str(key)] = lines[len(lines) // 2]
    for site in deployment.sites:
        row = Site.open(site).training_records.features[0]
        found[f"record of {site.name}"] = row.tobytes()
    found["line of the table"] = HEART_TABLE.read_bytes().splitlines()[1]
    return found


def spelled(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")[:-1]
    yield repr(secret).encode()[2:-1]


def where_secrets_may_lie(path: Path) -> bool:
    return path.suffix == ".key" or path.name in ("superexec.secret", "passphrase")


def test_no_secret_is_in_logs_reports_bundles_databases_arguments_or_environments(deployment, whole):
    _, watched = whole
    deployment.give(
        "run",
        "heart",
        "--home",
        deployment.home,
        "--set",
        "privacy.epsilon=0.5",
        "--set",
        "federation.rounds=1",
        "--out",
        deployment.place / "report",
    )
    written = [path for path in deployment.place.rglob("*") if path.is_file() and not where_secrets_may_lie(path)]
    names = {path.name for path in written}
    assert {"bundle", "superlink.db", "worker.log", "node.log", "executor.log", "report.html", "audit.jsonl"} <= names
    texts = {str(path): path.read_bytes() for path in written} | {"/proc": b"\n".join(watched.told)}
    assert b"client.node" in texts["/proc"]
    for name, secret in secrets_of(deployment).items():
        assert len(secret) >= 16, name
        for spelling in spelled(secret):
            assert [where for where, text in texts.items() if spelling in text] == [], name


def test_the_search_for_secrets_finds_what_is_there(deployment):
    """A search that could not find a secret would prove nothing: each is found where it may lie."""
    kept = b"".join(
        path.read_bytes() for path in deployment.place.rglob("*") if path.is_file() and where_secrets_may_lie(path)
    )
    hidden = [
        name for name, secret in secrets_of(deployment).items() if not any(one in kept for one in spelled(secret))
    ]
    assert hidden == [
        f"identity of {LOCKED}",
        *[f"record of {site.name}" for site in deployment.sites],
        "line of the table",
    ]


def test_the_worker_has_no_network_and_the_node_has(whole):
    _, watched = whole
    assert "node" in watched.networked
    assert "worker" not in watched.networked


def test_a_node_that_has_neither_records_nor_identity_nor_ledger_does_its_work(deployment, tmp_path):
    """By construction: what lies in its directory is all that it could open."""
    site = deployment.site("switzerland")
    deployment.stop(site)
    bare = deployment.bare(site, "bare")
    (bare / "run").symlink_to(site / "run")
    with (tmp_path / "words").open("wb") as words:
        started = [
            subprocess.Popen(module(name, str(place)), env=environment(), stdout=words, stderr=words)
            for name, place in (("client.worker", site), ("client.node", bare))
        ]
        try:
            eventually(lambda: listens(site / SOCKET), "the worker listens")
            eventually(lambda: "connected" in (tmp_path / "words").read_text(), "the node is connected")
            report = deployment.run("federation.rounds=1").report()
            assert "switzerland" in report["rounds"][0]["sites"]
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(30)
    deployment.start(site)
    deployment.until_ready(site)
