"""Proves: what the root issues is what TLS accepts, for one purpose each; and what it did not issue is refused.

OpenSSL is asked through Python's `ssl` (a server and a client in memory), and nginx as a running gateway.
"""

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import (
    CLOCK_SKEW,
    LIFE,
    ROLES,
    ROOT_LIFE,
    Authority,
    Certificate,
    Root,
    SigningRequest,
    now_utc,
    read_roots,
    write_roots,
)
from common.errors import TrustError, WireError
from common.signing import Identity
from common.tls_keys import TlsKey

NOW = now_utc()
NAME = "Heart study"
HOUR = timedelta(hours=1)


def authority(now=NOW, name: str = NAME) -> Authority:
    return Authority.make(Identity.generate(), name, now)


ROOT, OTHER = authority(), authority()


class Party:
    """A key and a certificate, as files."""

    def __init__(self, place: Path, name: str, pem: bytes, key: TlsKey) -> None:
        self.crt, self.key = place / f"{name}.crt", place / f"{name}.key"
        self.crt.write_bytes(pem)
        self.key.write_bytes(key.pkcs8())


def server(place: Path, by: Authority = ROOT, hosts: Sequence[str] = ("localhost", "127.0.0.1"), now=NOW) -> Party:
    key = TlsKey.generate()
    return Party(place, "server", by.certify_server(key.public, hosts, now), key)


def client(place: Path, by: Authority = ROOT, role: str = "site", now=NOW, name: str = "cleveland") -> Party:
    key = TlsKey.generate()
    return Party(place, name, by.certify_client(key.public, name, role, now), key)


def pinned(place: Path, *roots: Authority) -> Path:
    path = place / f"roots-{len(list(place.iterdir()))}.pem"
    path.write_bytes(write_roots([one.root for one in roots]))
    return path


def client_context(roots: Path, of: Party | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(roots))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if of:
        context.load_cert_chain(of.crt, of.key)
    return context


def handshake(of_server: Party, of_client: Party | None, roots: Path, host: str, at_server: Path | None = None):
    """Both sides in memory, client certificates required; the client's certificate as the server sees it."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.minimum_version = ssl.TLSVersion.TLSv1_3
    serving.load_cert_chain(of_server.crt, of_server.key)
    serving.load_verify_locations(at_server or roots)
    serving.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client_context(roots, of_client).wrap_bio(back, there, server_hostname=host),
        serving.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(10):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert sides[0].version() == sides[1].version() == "TLSv1.3"
    return sides[1].getpeercert()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_both_sides_of_tls_accept_what_an_ed25519_root_issued(place, host):
    seen = handshake(server(place), client(place, role="researcher", name="rosa"), pinned(place, ROOT), host)
    subject = {key: value for ((key, value),) in seen["subject"]}
    assert subject == {"organizationName": NAME, "organizationalUnitName": "researcher", "commonName": "rosa"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"server": {"by": OTHER}}, "self-signed|unable to get local issuer"),
        ({"client": {"by": OTHER}}, "self-signed|unable to get local issuer|unknown ca"),
        ({"client": None}, "did not return a certificate"),
        ({"host": "fl.example.org"}, "Hostname mismatch"),
        ({"host": "127.0.0.2"}, "IP address mismatch"),
        ({"server": {"now": NOW - LIFE - HOUR}}, "expired"),
        ({"client": {"now": NOW - LIFE - HOUR}}, "expired"),
        ({"client": {"now": NOW + CLOCK_SKEW + HOUR}}, "not yet valid"),
        ({"swap": True}, "unsuitable certificate purpose|unsupported certificate purpose"),
    ],
)
def test_tls_refuses(place, change, why):
    """Each of these, and nothing else is wrong: the test above is the same without the change."""
    of_server = server(place, **change.get("server", {}))
    settings = change.get("client", {})
    of_client = None if settings is None else client(place, **settings)
    if change.get("swap"):
        of_server, of_client = of_client, of_server
    with pytest.raises(ssl.SSLError, match=why):
        handshake(of_server, of_client, pinned(place, ROOT), change.get("host", "localhost"))


def test_with_two_roots_in_force_either_is_accepted(place):
    of_server, of_client, both = server(place, ROOT), client(place, OTHER), pinned(place, OTHER, ROOT)
    assert handshake(of_server, of_client, both, "localhost")
    assert handshake(of_server, of_client, pinned(place, ROOT), "localhost", at_server=both)
    with pytest.raises(ssl.SSLError):
        handshake(of_server, of_client, pinned(place, OTHER), "localhost", at_server=both)


# nginx, as a gateway would run it.

_CONF = """
daemon off; pid {place}/pid; error_log {place}/error.log info; events {{}}
http {{
  access_log off; client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;
  uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {server.crt}; ssl_certificate_key {server.key};
    ssl_client_certificate {roots}; ssl_crl {crl}; ssl_verify_client on;
    location / {{ return 200 "$ssl_client_s_dn"; }}
  }}
}}
"""


@contextmanager
def nginx(place: Path, of_server: Party, roots: Path, crl: bytes) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "crl.pem").write_bytes(crl)
    conf = place / "nginx.conf"
    conf.write_text(_CONF.format(place=place, port=port, server=of_server, roots=roots, crl=place / "crl.pem"))
    process = subprocess.Popen(["nginx", "-p", str(place), "-c", str(conf), "-e", str(place / "error.log")])
    try:
        for _ in range(200):
            assert process.poll() is None, (place / "error.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def asked(port: int, roots: Path, of_client: Party | None) -> str:
    """The whole answer of the gateway."""
    context = client_context(roots, of_client)
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        tls.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        while part := tls.recv(65536):
            answer += part
    return answer.decode()


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx_serves_members_and_nobody_who_was_revoked_even_with_two_roots_in_force(place):
    both = pinned(place, OTHER, ROOT)
    old, new = client(place, ROOT, name="old"), client(place, OTHER, "admin", name="new")
    gone, expired = client(place, ROOT, name="gone"), client(place, ROOT, name="expired", now=NOW - LIFE - HOUR)
    stranger = client(place, authority(), name="stranger")
    serials = [Certificate.read(gone.crt.read_bytes()).serial]
    lists = OTHER.revoke([], 3, NOW) + ROOT.revoke(serials, 3, NOW)
    with nginx(place, server(place), both, lists) as port:
        assert asked(port, both, old).endswith(f"CN=old,OU=site,O={NAME}")
        assert asked(port, both, new).endswith(f"CN=new,OU=admin,O={NAME}")
        for refused, why in (
            (gone, "revoked"),
            (expired, "expired"),
            (stranger, "unable to verify"),
            (None, "No required"),
        ):
            answer = asked(port, both, refused)
            assert " 400 " in answer.splitlines()[0]
            assert "CN=" not in answer
            assert refused is None or why in (place / "error.log").read_text()


# What our own code reads.


def test_what_certificates_say():
    key = TlsKey.generate()
    for role in ROLES:
        made = Certificate.read(ROOT.certify_client(key.public, "rosa", role, NOW))
        assert (made.name, made.role, made.consortium, made.public) == ("rosa", role, NAME, key.public)
        made.require_client([ROOT.root], NOW)
        assert made.ends == NOW + LIFE
    served = Certificate.read(ROOT.certify_server(key.public, ["fl.example.org", "10.0.0.5", "::1"], NOW)).certificate
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.5"), ip_address("::1")]
    for one in (served, made.certificate):
        assert one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
        issuer = one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        subject = ROOT.root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert issuer == subject.digest


def test_a_certificate_is_near_its_end_in_the_last_fifth_and_trusted_one_skew_longer():
    made = Certificate.read(ROOT.certify_client(TlsKey.generate().public, "rosa", "admin", NOW))
    assert not made.is_near_end(NOW)
    assert not made.is_near_end(NOW + LIFE * 0.79)
    assert made.is_near_end(NOW + LIFE * 0.81)
    made.require_client([ROOT.root], made.ends + CLOCK_SKEW)
    made.require_client([ROOT.root], NOW - 2 * CLOCK_SKEW)
    with pytest.raises(TrustError, match="ended"):
        made.require_client([ROOT.root], made.ends + CLOCK_SKEW + timedelta(seconds=1))
    with pytest.raises(TrustError, match="begins"):
        made.require_client([ROOT.root], NOW - 2 * CLOCK_SKEW - timedelta(seconds=1))


def test_no_certificate_outlives_its_root():
    late = NOW + ROOT_LIFE - 2 * HOUR
    assert Certificate.read(ROOT.certify_client(TlsKey.generate().public, "a", "site", late)).ends == NOW + ROOT_LIFE


def test_only_a_client_of_this_consortium_passes_as_one():
    public = TlsKey.generate().public
    elsewhere = authority(name="Lung study")
    for pem, why in (
        (OTHER.certify_client(public, "a", "site", NOW), "not issued"),
        (elsewhere.certify_client(public, "a", "site", NOW), "not issued"),
        (ROOT.certify_server(public, ["localhost"], NOW), "not for a client"),
    ):
        with pytest.raises(TrustError, match=why):
            Certificate.read(pem).require_client([ROOT.root], NOW)


def test_a_name_in_an_issuer_is_no_signature():
    """A stranger's root that calls itself exactly as ours does."""
    real, public = ROOT.root.certificate, TlsKey.generate().public
    loaded = x509.load_pem_x509_certificate(OTHER.certify_client(public, "a", "site", NOW))
    builder = x509.CertificateBuilder(
        real.subject, loaded.subject, loaded.public_key(), 7, NOW - HOUR, NOW + HOUR, list(loaded.extensions)
    )
    forged = builder.sign(Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM)
    assert x509.load_pem_x509_certificate(forged).issuer == real.subject
    with pytest.raises(TrustError, match="not issued"):
        Certificate.read(forged).require_client([ROOT.root], NOW)


def test_roots_are_read_as_they_were_written_and_others_are_refused():
    assert read_roots(write_roots([ROOT.root, OTHER.root])) == (ROOT.root, OTHER.root)
    assert ROOT.root.fingerprint != OTHER.root.fingerprint
    leaf = ROOT.certify_client(TlsKey.generate().public, "a", "site", NOW)
    for pems in (b"", leaf, ROOT.root.pem * 2, ROOT.root.pem + authority(name="Lung study").root.pem):
        with pytest.raises(WireError):
            read_roots(pems)
    with pytest.raises(WireError):
        Certificate.read(ROOT.root.pem)
    with pytest.raises(TrustError):
        Authority(OTHER.identity, ROOT.root)


def test_requests_carry_what_the_key_signed():
    key, identity = TlsKey.generate(), Identity.generate()
    pem = SigningRequest.make(key, "cleveland", identity.public)
    assert SigningRequest.read(pem) == SigningRequest("cleveland", key.public, identity.public)
    assert SigningRequest.read(SigningRequest.make(key, "rosa", None)).identity is None


def test_requests_with_another_curve_or_a_broken_signature_are_refused():
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rosa")])
    small = x509.CertificateSigningRequestBuilder().subject_name(name)
    weak = small.sign(generate_private_key(SECP256R1()), SHA256()).public_bytes(Encoding.PEM)
    for pem in (weak, b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(WireError):
            SigningRequest.read(pem)
    der = x509.load_pem_x509_csr(SigningRequest.make(TlsKey.generate(), "rosa", None)).public_bytes(Encoding.DER)
    changed = x509.load_der_x509_csr(der.replace(b"rosa", b"rose")).public_bytes(Encoding.PEM)
    with pytest.raises(TrustError, match="own key"):
        SigningRequest.read(changed)


def test_a_request_made_by_openssl_is_as_good(place):
    command = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k -out r -subj /CN=rosa"
    subprocess.run(command.split(), cwd=place, check=True, capture_output=True)
    (place / "k").chmod(0o600)
    read = SigningRequest.read((place / "r").read_bytes())
    assert (read.name, read.public) == ("rosa", TlsKey.read(place / "k").public)


@pytest.mark.parametrize("pem", [ROOT.root.pem, ROOT.certify_client(TlsKey.generate().public, "a", "site", NOW)])
def test_openssl_has_nothing_to_object_to(place, pem):
    (place / "roots.pem").write_bytes(ROOT.root.pem)
    (place / "one.crt").write_bytes(pem)
    command = ["openssl", "verify", "-x509_strict", "-CAfile", "roots.pem", "one.crt"]
    assert "OK" in subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout


def test_the_revocation_list_is_for_its_root(place):
    lists = x509.load_pem_x509_crl(ROOT.revoke([5, 7], 3, NOW))
    assert sorted(one.serial_number for one in lists) == [5, 7]
    assert lists.is_signature_valid(Root.read(ROOT.root.pem).certificate.public_key())
    assert lists.next_update_utc == ROOT.root.certificate.not_valid_after_utc
    assert lists.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
