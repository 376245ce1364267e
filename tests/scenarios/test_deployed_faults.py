"""The fault table of `server/README.md`, a row a test: what is killed, cut, forged or full, and what comes of it.

Sampling and noise are fixed, so a run that went on rightly gives the very model of a run that nothing disturbed.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from client import local_socket
from client.signs_of_life import BUSY
from client.site import Site
from client.start import listens
from common import bundle
from common.certificates import Authority, now_utc
from common.dp.events import PoissonGaussian
from common.errors import ProtocolError, TrustError
from common.signing import Identity
from common.supervisor import environment, module, status
from common.tls_keys import TlsKey
from common.unix_sockets import connect
from scenarios.simulate import simulate
from scenarios.simulation import set_up
from server.account import Account
from server.home import Home, unlock_roots
from tests.deployment import LOCKED, Deployment, Run, caught, eventually, kill, simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Of a size that gives each moment of a round a length.
BLOCK = 4096  # bytes: of a disk in memory
LONG = ("model.factory=mlp", "model.hidden=[1000]", "training.local_steps=8", "privacy.epsilon=0.5")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The model of LONG, played in one process."""
    place = set_up(simulation(*LONG), tmp_path_factory.mktemp("undisturbed"))
    simulate(place)
    return Run.model_in(place.run)


def require_whole(run: Run, undisturbed: np.ndarray) -> None:
    """The run ended well, each site was charged once a round, and the model is that of a run without a fault."""
    assert [one["round"] for one in run.report()["rounds"]] == [1, 2, 3]
    for site in run.consortium.sites:
        assert run.charges(site) == [1, 2, 3], site.name
    assert run.model.tolist() == undisturbed.tolist()


# --- kill -9


def training(run: Run, site: Path) -> bool:
    return run.shown(site) > run.charged_in_a_hurry(site)


def charged_and_not_sealed(run: Run, site: Path) -> bool:
    return run.charged_in_a_hurry(site) > run.sealed(site)


def unmasking(run: Run, site: Path) -> bool:
    made, published = run.sums()
    return made > published


@pytest.mark.parametrize("moment", [training, charged_and_not_sealed, unmasking])
def test_a_worker_killed_at_any_moment_comes_back_and_answers_the_same(deployment, undisturbed, moment):
    site = deployment.site(LOCKED)
    run = deployment.run(*LONG)
    kill(caught(lambda: deployment.process(site, "worker"), lambda: moment(run, site)))
    require_whole(run, undisturbed)
    assert "was killed by SIGKILL" in status(site)["rows"][0]["last_exit"]


def test_a_node_killed_while_its_worker_trains_connects_again_and_is_asked_again(deployment, undisturbed):
    site = deployment.site(LOCKED)
    run = deployment.run(*LONG)
    kill(caught(lambda: deployment.process(site, "node"), lambda: training(run, site)))
    require_whole(run, undisturbed)
    assert deployment.log(site, "node").count('"connected"') >= 2


PHASES: dict[str, Callable[[Run], bool]] = {
    "making the key": lambda run: (run.place / "ceremonies").exists() and not (run.place / "offers").exists(),
    "training": lambda run: (run.place / "offers").exists() and run.sums()[0] == 0,
    "unmasking": lambda run: run.sums()[0] > run.sums()[1],
    "opening": lambda run: run.sums()[1] > run.closed,
    "releasing": lambda run: run.closed == 3 and not (run.place / "released.safetensors").exists(),
}


def test_a_conductor_killed_in_every_phase_of_one_run_is_replaced_each_time(deployment, undisturbed):
    run = deployment.run(*LONG)
    for phase in PHASES.values():
        kill(caught(deployment.conductor, lambda phase=phase: phase(run)))
    require_whole(run, undisturbed)
    assert run.rounds == sorted(set(run.rounds))


@pytest.mark.parametrize("name", ["executor", "superlink", "gateway"])
def test_each_process_of_the_coordinator_may_be_killed_in_a_round(deployment, undisturbed, name):
    run = deployment.run(*LONG)
    eventually(lambda: run.sums()[0] > run.sums()[1], "a sum is being unmasked")
    kill(deployment.process(deployment.home, name))
    require_whole(run, undisturbed)


def test_the_whole_coordinator_killed_and_started_again_goes_on_by_itself(deployment, undisturbed):
    run = deployment.run(*LONG)
    eventually(lambda: run.sums()[1] == 1, "the first sum is published")
    deployment.kill_all_of(deployment.home)
    deployment.start(deployment.home)
    require_whole(run, undisturbed)


def test_a_run_that_was_stopped_says_so_and_goes_on_when_it_is_asked_for(deployment):
    plan = ("federation.rounds=6", *LONG)
    run = deployment.run(*plan)
    eventually(lambda: run.closed >= 1, "a round is closed")
    deployment.give("stop", run.number, "--home", deployment.home)
    with pytest.raises(ProtocolError, match="was stopped"):
        run.report()
    again = deployment.run(*plan, number=run.number)
    assert [one["round"] for one in again.report()["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert all(run.charges(site) == [1, 2, 3, 4, 5, 6] for site in deployment.sites)


# --- bundles, straight to the Control API with the administrator's certificate


def unsigned(deployment: Deployment, content: bytes, run: bytes) -> tuple[bytes, str]:
    return content, ""


def tampered(deployment: Deployment, content: bytes, run: bytes) -> tuple[bytes, str]:
    other = bundle.build(replace(deployment.plan(), federation=replace(deployment.plan().federation, rounds=2)))
    return other, bundle.sign(content, Account.of(deployment.home).bundle_key, run)


def by_a_stranger(deployment: Deployment, content: bytes, run: bytes) -> tuple[bytes, str]:
    return content, bundle.sign(content, Identity.generate(), run)


def with_code(deployment: Deployment, content: bytes, run: bytes) -> tuple[bytes, str]:
    from flwr.cli.build import build_fab_from_files

    files = bundle._files(content) | {"server/app.py": b"raise SystemExit('hello')\n"}
    files = {name: data for name, data in files.items() if not name.startswith(".info")}
    more = build_fab_from_files(files)[0]
    return more, bundle.sign(more, Account.of(deployment.home).bundle_key, run)


def of_another_version(deployment: Deployment, content: bytes, run: bytes) -> tuple[bytes, str]:
    from flwr.cli.build import build_fab_from_files

    files = {name: data for name, data in bundle._files(content).items() if not name.startswith(".info")}
    files["pyproject.toml"] = files["pyproject.toml"].replace(b'version = "', b'version = "9')
    other = build_fab_from_files(files)[0]
    return other, bundle.sign(other, Account.of(deployment.home).bundle_key, run)


@pytest.mark.parametrize(
    ("forge", "error", "reason"),
    [
        (unsigned, TrustError, "not signed"),
        (tampered, TrustError, "signature"),
        (by_a_stranger, TrustError, "key that is not trusted here"),
        (with_code, ProtocolError, "more than a plan"),
        (of_another_version, ProtocolError, "is for veilfed 9"),
    ],
)
def test_a_bundle_that_is_not_what_it_should_be_is_refused_before_any_site_is_asked(deployment, forge, error, reason):
    number = np.random.default_rng().bytes(16).hex()
    content, signature = forge(deployment, bundle.build(deployment.plan()), bytes.fromhex(number))
    Account.of(deployment.home).control.start(content, signature, number)
    with pytest.raises(error, match=reason):
        Run(deployment, number).report()
    assert not any((site / "runs" / number).exists() for site in deployment.sites)
    said = deployment.give("status", number, "--home", deployment.home)["rows"]
    assert [row["outcome"] for row in said] == ["failed"]


# --- who may not come in


@contextmanager
def started(bare: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (bare / "words").open("wb") as words:
        process = subprocess.Popen(module("client.node", str(bare)), env=environment(), stdout=words, stderr=words)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def words_of(bare: Path) -> str:
    return (bare / "words").read_text()


def certified(deployment: Deployment, key: TlsKey, name: str, ago: timedelta = timedelta()) -> bytes:
    home = Home.open(deployment.home)
    (authority,) = unlock_roots(deployment.home / "root", home.roots, None)
    return authority.certify_client(key.public, name, "site", now_utc() - ago)


def test_a_coordinator_of_another_root_is_not_spoken_to(deployment):
    bare = deployment.bare(deployment.sites[0], "wrong-ca")
    (bare / "roots.pem").write_bytes(Authority.make(Identity.generate(), "Quickstart", now_utc()).root.pem)
    with started(bare):
        eventually(lambda: "roots.pem vouches for" in words_of(bare), "the cause is named")
    assert "veilfed site join" in words_of(bare)
    assert '"connected"' not in words_of(bare)


def test_a_node_with_a_certificate_but_not_on_the_roster_is_not_let_in(deployment):
    bare, key = deployment.bare(deployment.sites[0], "ghost"), TlsKey.generate()
    (bare / "node.key").write_bytes(key.pkcs8())
    (bare / "node.crt").write_bytes(certified(deployment, key, "ghost"))
    with started(bare):
        eventually(lambda: "does not let this node in" in words_of(bare), "it is refused")
    assert "was the site admitted, and not revoked?" in words_of(bare)


def test_a_certificate_that_ended_is_named_with_its_date_and_the_next_step(deployment):
    site = deployment.sites[0]
    bare, key = deployment.bare(site, "expired"), TlsKey.read(site / "node.key")
    (bare / "node.crt").write_bytes(certified(deployment, key, site.name, timedelta(days=1500)))
    with started(bare) as process:
        assert process.wait(60) == 2
    assert "ended on" in words_of(bare)
    assert "veilfed site renew" in words_of(bare)


# --- what a node may do to its worker's words


class Meddler:
    """Between a node and its worker: passes all on, and changes the answers to one action."""

    def __init__(self, directory: Path, worker: Path, action: str, change: Callable[[bytes], bytes]) -> None:
        self._server, self._worker = local_socket.listen(directory), worker
        self._action, self._change = action, change
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._between, args=(connection,), daemon=True).start()

    def _between(self, node: socket.socket) -> None:
        with node, connect(self._worker) as worker:
            try:
                while True:
                    head, order = local_socket.receive(node)
                    local_socket.send(worker, head, order)
                    said, data = local_socket.receive(worker)
                    while said == BUSY:
                        local_socket.send(node, said, b"")
                        said, data = local_socket.receive(worker)
                    local_socket.send(node, said, self._change(data) if head["action"] == self._action else data)
            except ConnectionError:
                return


def corrupted(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def oversized(data: bytes) -> bytes:
    return data + os.urandom(100_000_000)


@pytest.mark.parametrize(("change", "reason"), [(corrupted, "TrustError"), (oversized, "ProtocolError")])
def test_an_update_that_was_changed_on_its_way_leaves_its_site_out_and_the_others_go_on(deployment, change, reason):
    site = deployment.site("switzerland")
    deployment.stop(site)
    worker = subprocess.Popen(module("client.worker", str(site)), env=environment())
    try:
        eventually(lambda: listens(local_socket.address(site)), "the worker listens")
        bare = deployment.bare(site, change.__name__)
        Meddler(bare, local_socket.address(site), "train", change)
        with started(bare):
            eventually(lambda: '"connected"' in words_of(bare), "the node is connected")
            report = deployment.run("federation.rounds=1").report()
        (record,) = report["rounds"]
        assert record["sites"] == ["cleveland", "hungary", "va-long-beach"]
        assert [(left["site"], left["reason"]) for left in record["left_out"]] == [("switzerland", reason)]
    finally:
        worker.terminate()
        worker.wait(30)
        deployment.start(site)
        deployment.until_ready(site)


# --- a site's own machine


def fill_the_last_block(site: Path) -> None:
    """Charges until the ledger ends where a block of the disk does: the next byte needs a new one."""
    ledger, path = Site.open(site).ledger, site / "ledgers" / "heart.jsonl"
    name, number = "x", 1
    while path.stat().st_size % BLOCK:
        ledger.charge(name, number, [PoissonGaussian(50.0, 0.1, 1)])
        about = len(path.read_bytes().splitlines()[-1]) + 1 - len(name)
        name, number = "x" * (1 + (-path.stat().st_size - about - 1) % BLOCK), number + 1
        assert number < 10


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A disk of its own under that directory, and full: the file that fills it."""
    kept = {path.name: path.read_bytes() for path in directory.iterdir()}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        for name, data in kept.items():
            (directory / name).write_bytes(data)
        filler = directory / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(1))
                except OSError:
                    break
                file.write(bytes(BLOCK - 1))
        yield filler
    finally:
        kept = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "filler"}
        subprocess.run(["umount", str(directory)], check=True)
        for name, data in kept.items():
            (directory / name).write_bytes(data)


def test_a_ledger_that_cannot_be_written_stops_the_site_and_nobody_else(deployment):
    site = deployment.site("cleveland")
    fill_the_last_block(site)
    with small_disk(site / "ledgers") as filler:
        run = deployment.run("federation.rounds=2")
        report = run.report()
        for record in report["rounds"]:
            assert record["sites"] == ["hungary", "switzerland", "va-long-beach"]
            (left,) = record["left_out"]
            assert (left["site"], left["reason"]) == ("cleveland", "NotNow")
            assert "no space left" in left["message"]
        assert not [one for one in Site.open(site).spent() if one.run == run.number]
        assert run.sealed(site) == 0
        filler.unlink()
        again = deployment.run("federation.rounds=1")
        assert "cleveland" in again.report()["rounds"][0]["sites"]
    deployment.give("site", "ledger", "verify", site)
    assert again.charges(site) == [1]


def test_a_run_waits_for_a_person_and_goes_on_when_they_say_yes(deployment):
    site = deployment.site("cleveland")
    deployment.allow(site, approval="manual")
    try:
        run = deployment.run("federation.rounds=1")
        rows = eventually(lambda: deployment.give("site", "approve", site, "--list")["runs"], "the run waits")
        assert [row["run"] for row in rows if row["state"] == "waiting"] == [run.number]
        assert not run.charges(site)
        deployment.give("site", "approve", site, run.number[:8])
        assert "cleveland" in run.report()["rounds"][0]["sites"]
        assert run.charges(site) == [1]
    finally:
        deployment.allow(site)


# --- the last row: it cannot be undone


def test_a_site_that_is_revoked_in_a_run_is_out_and_the_others_go_on(deployment):
    site = deployment.site("va-long-beach")
    run = deployment.run("federation.rounds=8", *LONG)
    eventually(lambda: run.closed >= 1, "a round is closed")
    deployment.give("server", "revoke", site.name, "--home", deployment.home)
    kill(deployment.conductor())
    report = run.report()
    last = report["rounds"][-1]
    assert last["round"] == 8
    assert last["sites"] == ["cleveland", "hungary", "switzerland"]
    assert {left["site"] for one in report["rounds"] for left in one["left_out"]} <= {"va-long-beach"}
    eventually(lambda: "does not let this node in" in deployment.log(site, "node"), "the site is told")
    after = deployment.run("federation.rounds=1").report()
    assert [row["site"] for row in after["sites"]] == ["cleveland", "hungary", "switzerland"]
