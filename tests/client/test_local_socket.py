"""Proves: on a site's own socket only this user is heard, and only whole messages of a sane size are read."""

import os
import resource
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import local_socket
from common.errors import ProtocolError, TrustError, WireError
from common.unix_sockets import connect

NOBODY = 65534


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with mine, theirs:
        yield mine, theirs


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(-5, 5), max_size=4), st.binary())
def test_what_is_sent_is_what_is_received(head, body):
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with mine, theirs:
        local_socket.send(mine, head, body)
        assert local_socket.receive(theirs) == (head, body)


def test_messages_longer_than_the_socket_holds_arrive_whole_and_in_their_order(pair):
    mine, theirs = pair
    bodies = [os.urandom(5_000_000), b"", os.urandom(3)]
    sender = threading.Thread(target=lambda: [local_socket.send(mine, {"n": n}, body) for n, body in enumerate(bodies)])
    sender.start()
    assert [local_socket.receive(theirs) for _ in bodies] == [({"n": n}, body) for n, body in enumerate(bodies)]
    sender.join()


@pytest.mark.parametrize(
    "sent",
    [b"", b"\0", struct.pack(">I", 5) + b"{}", struct.pack(">I", 2) + b"{}" + struct.pack(">Q", 9) + b"short"],
)
def test_an_end_that_goes_away_in_the_middle_is_a_lost_connection(pair, sent):
    mine, theirs = pair
    mine.sendall(sent)
    mine.close()
    with pytest.raises(ConnectionError):
        local_socket.receive(theirs)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">I", 4_000_001), "a head of 4000001 bytes"),
        (b"\xff\xff\xff\xff", "a head of 4294967295 bytes"),
        (struct.pack(">I", 2) + b"{}" + b"\xff" * 8, "a body of 18446744073709551615 bytes"),
        (struct.pack(">I", 2) + b"{}" + struct.pack(">Q", 2**36 + 1), "a body of"),
    ],
)
def test_a_size_that_no_end_of_ours_would_send_is_refused_before_room_is_made_for_it(pair, sent, reason):
    mine, theirs = pair
    mine.sendall(sent)
    with pytest.raises(ProtocolError, match=reason):
        local_socket.receive(theirs)


@pytest.mark.parametrize("head", [b"[]", b"3", b"{", b'{"a":1,"a":2}', b"\xff", b"nul"])
def test_a_head_that_is_no_object_is_refused(pair, head):
    mine, theirs = pair
    mine.sendall(struct.pack(">I", len(head)) + head + struct.pack(">Q", 0))
    with pytest.raises(WireError):
        local_socket.receive(theirs)


def test_the_socket_is_for_this_user_alone_and_takes_the_place_of_one_that_was_left_behind(place):
    for _ in range(2):
        with local_socket.listen(place) as server, socket.socket(socket.AF_UNIX) as caller:
            path = Path(local_socket.address(place))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            caller.connect(str(path))
            connection, _ = server.accept()
            with connection:
                local_socket.require_same_user(connection)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_heard_whatever_the_permissions():
    with tempfile.TemporaryDirectory() as directory, local_socket.listen(Path(directory)) as server:
        path = Path(local_socket.address(Path(directory)))
        for open_to_all in (path, path.parent, Path(directory)):
            open_to_all.chmod(0o777)
        stranger = os.fork()
        if not stranger:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as caller:
                os._exit(caller.connect_ex(str(path)))
        server.settimeout(30)
        connection, _ = server.accept()
        with connection, pytest.raises(TrustError, match=f"user {NOBODY}"):
            local_socket.require_same_user(connection)
        assert os.waitpid(stranger, 0)[1] == 0


def test_a_site_may_lie_deeper_than_an_address_is_long(place):
    deep = place / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    with local_socket.listen(deep) as server, connect(local_socket.address(deep), 30):
        connection, _ = server.accept()
        with connection:
            local_socket.require_same_user(connection)
    with pytest.raises(OSError, match="refused"):
        connect(local_socket.address(deep), 30)


def test_room_is_made_for_what_comes_and_not_for_what_is_announced():
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with mine, theirs:
        mine.sendall((2).to_bytes(4, "big") + b"{}" + local_socket.LONGEST_BODY.to_bytes(8, "big") + b"a little")
        mine.close()
        with pytest.raises(ConnectionError):
            local_socket.receive(theirs)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
