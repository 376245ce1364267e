"""Proves: a private key is read by OpenSSL and by us, from its owner's file alone; its public line is one line."""

import pickle
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP521R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common.errors import ConfigError, WireError
from common.tls_keys import TlsKey, public_key, public_line

KEY = TlsKey.generate()


def kept(place, data: bytes, mode: int = 0o600):
    path = place / "node.key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_is_read_as_it_was_written_by_us_and_by_openssl(place):
    path = kept(place, KEY.pkcs8())
    assert TlsKey.read(path).public == KEY.public
    shown = subprocess.run(
        ["openssl", "ec", "-in", path, "-noout", "-text"], capture_output=True, text=True, check=True
    )
    assert "secp384r1" in shown.stdout


def test_a_key_that_others_may_read_is_refused(place):
    with pytest.raises(ConfigError, match="0640"):
        TlsKey.read(kept(place, KEY.pkcs8(), 0o640))


@pytest.mark.parametrize(
    "other",
    [
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        KEY.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        KEY.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"",
    ],
)
def test_any_other_key_is_refused(place, other):
    with pytest.raises(ConfigError, match="no EC P-384 private key"):
        TlsKey.read(kept(place, other))


def test_a_public_line_is_read_as_it_was_written_and_nothing_else_is():
    assert public_line(public_key(KEY.public)) == KEY.public
    assert "\n" not in KEY.public
    other = generate_private_key(SECP521R1()).public_key()
    kind, body = KEY.public.split()
    for line in (
        other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        f"{KEY.public} adler@example.org",
        f"{KEY.public}\n",
        f" {KEY.public}",
        f'command="sh" {KEY.public}',
        kind,
        f"ecdsa-sha2-nistp256 {body}",
        "",
        None,
        7,
    ):
        with pytest.raises(WireError):
            public_key(line)


def test_a_private_key_is_neither_shown_nor_pickled():
    number = str(KEY.key.private_numbers().private_value)
    assert number not in repr(KEY)
    assert "object at" not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
