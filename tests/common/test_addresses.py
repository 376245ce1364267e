"""Proves: an address is read one way or not at all."""

import pytest

from common.addresses import Address, require_host
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org:8443", "fl.example.org", 8443),
        ("localhost:1", "localhost", 1),
        ("10.0.0.5:65535", "10.0.0.5", 65535),
        ("[2001:db8::5]:8443", "2001:db8::5", 8443),
        ("fl_1.example.org:8443", "fl_1.example.org", 8443),
    ],
)
def test_addresses_are_read_and_written_alike(text, host, port):
    assert Address.parse(text) == Address(host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a",
        "a:",
        "a:0",
        "a:65536",
        "a:01",
        "a:+1",
        "a: 1",
        "a:1\n",
        "::1:5",
        "[a:1",
        "a]:1",
        "[a]:1:2",
        "http://a:1",
        "a/b:1",
        "a b:1",
        "-a:1",
        "a-:1",
        "a..b:1",
        "A:1",
        "ä:1",
        "*.a:1",
        "[fe80::1%eth0]:1",
        "x" * 64 + ":1",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError):
        Address.parse(text)


def test_a_host_that_a_certificate_could_not_name_is_refused():
    require_host("::1")
    for host in ("*", "a b", "a,b", "a\0b", "x" * 254):
        with pytest.raises(ConfigError):
            require_host(host)
