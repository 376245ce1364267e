"""Proves: whatever becomes of a site's worker, the coordinator is answered, and one that works is waited for."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client import local_socket, node, signs_of_life
from client.node import Carrier, Worker
from client.worker import serve
from common import bundle
from common.errors import ProtocolError
from common.files import exclusive, write_atomically
from common.signing import Identity
from common.wire import Kind
from server.links import packed
from tests.by_hand import NAMES, Coordinator, workplace

ADLER = NAMES[0]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Coordinator:
    return Coordinator(workplace(tmp_path_factory.mktemp("node") / "run"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes takes a second."""
    monkeypatch.setattr(node, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(signs_of_life, "_BEAT_SECONDS", 0.2)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@contextmanager
def at_work(directory: Path, work: Callable[[Path, socket.socket], None] = serve) -> Iterator[None]:
    """A worker serves at that site's socket."""

    def until_closed() -> None:
        with suppress(OSError):
            work(directory, server)

    server = local_socket.listen(directory)
    thread = threading.Thread(target=until_closed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def ask(worker: Worker, played: Coordinator) -> Kind:
    """One order that the worker refuses, as any order of a run that it has not joined."""
    data, _ = worker.ask({"action": "offer"}, played.order(1, {}))
    return played.read(data).kind


def test_a_worker_that_hangs_is_told_of_and_answers_again_when_it_does_not(played, impatient):
    directory = played.directories[ADLER]
    with at_work(directory):
        worker = Worker(directory)
        with exclusive(directory / "turn"), pytest.raises(ProtocolError, match="no sign of life"):
            ask(worker, played)
        assert ask(worker, played) is Kind.REFUSAL


def test_a_worker_that_works_is_waited_for_however_long_it_takes(played, impatient):
    directory, until = played.directories[ADLER], time.monotonic() + 3 * 1.5

    def busy() -> None:
        with exclusive(directory / "turn"):
            begun.set()
            while time.monotonic() < until:
                sum(range(1000))

    begun, thread = threading.Event(), threading.Thread(target=busy)
    with at_work(directory):
        thread.start()
        begun.wait(30)
        assert ask(Worker(directory), played) is Kind.REFUSAL
    assert time.monotonic() > until
    thread.join()


def test_helpers_work_for_their_worker():
    used = signs_of_life._processor_seconds()
    helper = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until = time.monotonic() + 60
        while signs_of_life._processor_seconds() - used < 0.3:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        helper.kill()
        helper.wait()


def test_what_a_worker_cannot_answer_is_told_once_and_the_next_order_is_answered(played, impatient):
    directory = played.directories[ADLER]
    settings = (directory / "site.toml").read_text()
    with at_work(directory):
        worker = Worker(directory)
        (directory / "site.toml").write_text("nonsense")
        try:
            with pytest.raises(ProtocolError, match="could not answer: ConfigError"):
                ask(worker, played)
        finally:
            (directory / "site.toml").write_text(settings)
        assert ask(worker, played) is Kind.REFUSAL


def test_an_order_on_which_the_worker_ends_is_not_asked_for_ever(played, impatient):
    asked = []

    def ends(directory: Path, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                asked.append(local_socket.receive(connection))

    directory = played.directories[ADLER]
    with at_work(directory, ends), pytest.raises(ProtocolError, match="ended 5 times on this order"):
        ask(Worker(directory), played)
    assert len(asked) == 5


def test_a_worker_that_does_not_come_back_is_given_up(played, impatient, monkeypatch):
    monkeypatch.setattr(node, "_AWAY_SECONDS", 1.0)
    with pytest.raises(ProtocolError, match="does not come back"):
        ask(Worker(played.directories[ADLER]), played)


class Bundles:
    """What the coordinator says of a run."""

    def __init__(self, content: bytes, signature: str) -> None:
        self.said = content, signature

    def bundle(self, run_id: int) -> tuple[bytes, str]:
        return self.said


def to_join(played: Coordinator) -> Message:
    return Message(packed(played.order(0, played.join_order())), 2, "query.join", group_id="0")


def test_the_coordinator_is_answered_whatever_it_sends_and_whatever_the_worker_does(played, impatient):
    """A signature of five million letters, then a worker that hangs; the node lives on and carries the next answer."""
    directory, content = played.directories[ADLER], bundle.build(played.store.plan)
    signed = Bundles(content, bundle.sign(content, Identity.generate(), played.store.run))
    with at_work(directory):
        carrier = Carrier(directory)
        reply, _ = carrier._answered(Bundles(content, "f" * 5_000_000), to_join(played))
        assert "bytes for the site's own socket" in reply.error.reason
        with exclusive(directory / "turn"):
            reply, _ = carrier._answered(signed, to_join(played))
        assert "no sign of life" in reply.error.reason
        reply, _ = carrier._answered(signed, to_join(played))
        assert played.read(reply.content["veilfed"]["envelope"]).kind is Kind.REFUSAL


def test_a_kit_that_says_nothing_new_keeps_the_connection_and_another_certificate_does_not(tmp_path):
    for name in ("node.crt", "roots.pem", "connection.json"):
        (tmp_path / name).write_bytes(b"as it was")
    before = node._stamp(tmp_path)
    write_atomically(tmp_path / "node.crt", b"as it was")
    assert node._stamp(tmp_path) == before
    write_atomically(tmp_path / "node.crt", b"renewed")
    assert node._stamp(tmp_path) != before
