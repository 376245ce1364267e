"""A coordinator's door for tests: certificates, nginx, and the SuperLink or our own ear behind it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from common.certificates import Authority, Certificate, now_utc, write_roots
from common.ports import LOOPBACK, accepts, free_port
from common.signing import Identity
from common.supervisor import Child
from common.tls_keys import TlsKey
from server.gateway.configuration import Gateway, Listen
from server.gateway.routes import ROLES
from server.processes import Ports, gateway, superlink

PROTOBUF = "application/protobuf"


@dataclass(frozen=True)
class Person:
    """A client certificate and its key, as files; None for a stranger who has only the roots."""

    certificate: Path
    key: Path
    pem: bytes

    @property
    def serial(self) -> int:
        return Certificate.read(self.pem).serial


class Consortium:
    """A coordinator's home with as much in it as the door needs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.authority = Authority.make(Identity.generate(), "Heart Study 2.0", now_utc())
        for name in ("tls", "people"):
            (home / name).mkdir(mode=0o700)
        (home / "roots.pem").write_bytes(write_roots([self.authority.root]))
        (home / "superexec.secret").write_bytes(b"0123456789abcdef")
        self.revoke()
        for name in ("gateway", "superlink"):
            self.certify_server(name)
        self.people = {role: self.admit(f"a-{role}", role) for role in ROLES}

    def certify_server(self, name: str) -> None:
        key = TlsKey.generate()
        _private(self.home / "tls" / f"{name}.key", key.pkcs8())
        pem = self.authority.certify_server(key.public, ["localhost", LOOPBACK], now_utc())
        (self.home / "tls" / f"{name}.crt").write_bytes(pem)

    def admit(self, name: str, role: str, ago: timedelta = timedelta(0)) -> Person:
        key = TlsKey.generate()
        pem = self.authority.certify_client(key.public, name, role, now_utc() - ago)
        place = self.home / "people" / f"{len(list((self.home / 'people').iterdir()))}"
        _private(place.with_suffix(".key"), key.pkcs8())
        place.with_suffix(".crt").write_bytes(pem)
        return Person(place.with_suffix(".crt"), place.with_suffix(".key"), pem)

    def revoke(self, *people: Person) -> None:
        (self.home / "crl.pem").write_bytes(self.authority.revoke([one.serial for one in people], 1, now_utc()))


def _private(path: Path, data: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(data)


class Door:
    """nginx and the SuperLink behind it, and what has reached either."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium, home = consortium, consortium.home
        self.port = free_port()
        (home / "run").mkdir(exist_ok=True)
        self.ports = Ports.kept(home, self.port)
        settings = Gateway(home, Listen(LOOPBACK, self.port), self.ports.superlink, self.ports.status)
        self.logs = {name: home / f"{name}.log" for name in ("superlink", "gateway")}
        self.processes = {child.name: self._start(child) for child in (superlink(home, self.ports), gateway(settings))}

    def _start(self, child: Child) -> subprocess.Popen[bytes]:
        with self.logs[child.name].open("ab") as log:
            # start_new_session, as the supervisor does: nginx's workers end with their group
            process = subprocess.Popen(
                child.argv, env=child.environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self._copy(process, self.logs[child.name])
        give_up = time.monotonic() + 60
        while not child.ready():
            assert process.poll() is None, self.logs[child.name].read_text()
            assert time.monotonic() < give_up, self.logs[child.name].read_text()
            time.sleep(0.05)
        return process

    @staticmethod
    def _copy(process: subprocess.Popen[bytes], log: Path) -> None:
        def copy() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                with log.open("ab") as file:
                    file.write(line)

        threading.Thread(target=copy, daemon=True).start()

    def stop(self) -> None:
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def tls(self, person: Person | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.consortium.home / "roots.pem"))
        if person:
            context.load_cert_chain(person.certificate, person.key)
        return context

    def post(self, person: Person | None, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """(status, body); status 0 when the door closed without a word."""
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.tls(person), timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body, {"Content-Type": PROTOBUF, **named})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, ssl.SSLError, http.client.BadStatusLine):
            return 0, b""
        finally:
            connection.close()

    def pour(self, person: Person | None, path: str, head: str, body_bytes: int) -> tuple[int, int]:
        """Send a body until all is sent or the door closes: (bytes that the kernels took, bytes that nginx read)."""
        before, sent = self._read_by_nginx(), 0
        block = b"10000\r\n" + b"\0" * 65536 + b"\r\n" if "chunked" in head else b"\0" * 65536
        with (
            socket.create_connection((LOOPBACK, self.port), 20) as plain,
            self.tls(person).wrap_socket(plain, server_hostname="localhost") as connection,
            contextlib.suppress(ConnectionError, ssl.SSLError),
        ):
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\n{head}\r\n".encode())
            while sent < body_bytes:
                connection.sendall(block)
                sent += len(block)
        time.sleep(0.1)
        return sent, self._read_by_nginx() - before

    def _read_by_nginx(self) -> int:
        """Bytes that nginx's workers have read so far: OpenSSL reads sockets with read(2), which the kernel counts."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rsplit(")", 1)[1].split()[2]) == self.processes["gateway"].pid:
                    total += int(re.search(r"rchar: (\d+)", (stat.parent / "io").read_text())[1])
            except OSError:
                continue
        return total

    def log(self) -> list[dict[str, object]]:
        """Its lines, once nginx answers nobody but the one who looks, and what it says has come through the pipe."""
        heard, before = self.logs["gateway"], -1
        while (size := heard.stat().st_size) != before or b"Writing: 1 " not in self._counters():
            before = size
            time.sleep(0.2)
        lines = self.logs["gateway"].read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _counters(self) -> bytes:
        status = http.client.HTTPConnection(LOOPBACK, self.ports.status, timeout=20)
        try:
            status.request("GET", "/status")
            return status.getresponse().read()
        finally:
            status.close()

    def reached_superlink(self) -> int:
        """How many requests came through: nginx names the time that the SuperLink took for each."""
        return sum(bool(line["upstream_seconds"]) for line in self.log())


class Ear:
    """nginx before a listener of ours: what a SuperLink would hear, and whatever we answer in its place."""

    def __init__(self, consortium: Consortium, own: Path, listener: socket.socket) -> None:
        self.consortium, self._listener = consortium, listener
        own.mkdir()
        for name in ("tls", "roots.pem", "crl.pem"):
            (own / name).symlink_to(consortium.home / name)
        self.port = free_port()
        child = gateway(Gateway(own, Listen(LOOPBACK, self.port), listener.getsockname()[1], free_port()))
        self.nginx = subprocess.Popen(
            child.argv,
            env=child.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not accepts(LOOPBACK, self.port):
            assert self.nginx.poll() is None
            time.sleep(0.02)
        listener.settimeout(20)

    def close(self) -> None:
        """Nobody listens any more."""
        self._listener.close()

    def connect(self, person: Person) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.consortium.home / "roots.pem"))
        context.load_cert_chain(person.certificate, person.key)
        return context.wrap_socket(socket.create_connection((LOOPBACK, self.port), 20), server_hostname="localhost")

    def hear(self, home: Path | None = None) -> ssl.SSLSocket:
        """The next connection of nginx, answered with the SuperLink's certificate in that home."""
        tls, place = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), (home or self.consortium.home) / "tls"
        tls.load_cert_chain(place / "superlink.crt", place / "superlink.key")
        plain, _ = self._listener.accept()
        plain.settimeout(20)
        return tls.wrap_socket(plain, server_side=True)


@contextmanager
def ear(consortium: Consortium, own: Path) -> Iterator[Ear]:
    with socket.create_server((LOOPBACK, free_port())) as listener:
        made = Ear(consortium, own, listener)
        try:
            yield made
        finally:
            os.killpg(made.nginx.pid, signal.SIGKILL)
            made.nginx.wait()


def head(path: str, length: int = 0, **headers: str) -> bytes:
    """The head of a POST."""
    named = {"Host": "evil.example", "Content-Type": PROTOBUF, "Content-Length": str(length), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode()
