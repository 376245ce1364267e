"""Proves: the probe of a container says yes only when somebody answers."""

import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.health import answers, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page():
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_page_a_port_and_a_socket(page, place):
    path = str(place / "worker.sock")
    assert not answers(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        assert not answers(path)  # a socket that a dead worker left behind
        listening.listen()
        assert answers(path)
    assert answers(page)
    assert answers(f"http://{page}/readyz")
    assert not answers(f"http://{page}/healthz")


def test_nobody_is_no(place):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    for where in (free, f"http://{free}/readyz", "http://", "rubbish", "127.0.0.1:x", str(place)):
        assert not answers(where)


def test_the_exit_code_is_the_answer(page):
    assert main([]) == 1
    for places, code in (([page], 0), ([page, "/nowhere/worker.sock"], 1)):
        done = subprocess.run([sys.executable, "-m", "common.health", *places], cwd=ROOT, capture_output=True)
        assert done.returncode == code
