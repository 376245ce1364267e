"""Who may speak TLS as whom: X.509 certificates of one consortium, all issued directly by its root. Pure.

A root is an Ed25519 key and its own certificate. Below it there is one level:
  servers    EC P-384, for TLS servers alone, their addresses as subject alternative names
  clients    EC P-384, for TLS clients alone; subject O = consortium, OU = role, CN = name
A revocation list holds as long as its root: it lies at the gateway, nobody fetches it, and its end would only stop
the federation. `now` is an argument everywhere. All is PEM.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.addresses import is_ip
from common.errors import TrustError, WireError
from common.fingerprints import fingerprint
from common.signing import Identity
from common.tls_keys import TlsKey, public_key, public_line

Role = Literal["site", "admin", "researcher", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)
ROOT_LIFE = timedelta(days=3653)
LIFE = timedelta(days=365)
CLOCK_SKEW = timedelta(hours=1)  # between two parties; certificates begin that much before they are made
_NEAR_END = 5  # the last fifth of a certificate's life, 73 days of a year, is time to renew
_IDENTITY = "veilfed:identity:"


@dataclass(frozen=True)
class Root:
    """What everybody pins. `key`: the (32,) bytes that signatures are verified with."""

    certificate: x509.Certificate = field(repr=False)
    key: bytes

    @classmethod
    def read(cls, pem: bytes) -> "Root":
        """Raises WireError for anything but the certificate of an Ed25519 root, issued by itself."""
        with _explained("the certificate of a consortium's root"):
            loaded = x509.load_pem_x509_certificate(pem)
            public = loaded.public_key()
            basic = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = loaded.extensions.get_extension_for_class(x509.KeyUsage).value
            if not (isinstance(public, Ed25519PublicKey) and basic.ca and usage.key_cert_sign and usage.crl_sign):
                raise WireError("not the certificate of a consortium's root")
            loaded.verify_directly_issued_by(loaded)
            _one(loaded.subject, NameOID.ORGANIZATION_NAME)
            return cls(loaded, public.public_bytes_raw())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def consortium(self) -> str:
        return _one(self.certificate.subject, NameOID.ORGANIZATION_NAME)

    @property
    def fingerprint(self) -> str:
        """Of the certificate, which names the consortium, and its key."""
        return fingerprint(self.certificate.public_bytes(Encoding.DER))


def read_roots(pems: bytes) -> tuple[Root, ...]:
    """One or more of one consortium, the newest first. Raises WireError."""
    with _explained("a file of root certificates"):
        found = x509.load_pem_x509_certificates(pems)
    roots = tuple(Root.read(one.public_bytes(Encoding.PEM)) for one in found)
    if len({root.consortium for root in roots}) != 1 or len({root.key for root in roots}) != len(roots):
        raise WireError("not a file of different roots of one consortium")
    return roots


def write_roots(roots: Sequence[Root]) -> bytes:
    return b"".join(root.pem for root in roots)


@dataclass(frozen=True)
class Certificate:
    """One that a root issued, or that says so: `require_issued_by` knows."""

    certificate: x509.Certificate = field(repr=False)

    @classmethod
    def read(cls, pem: bytes) -> "Certificate":
        """Raises WireError for anything but one certificate of an EC P-384 key with one name, role and consortium."""
        with _explained("a certificate"):
            loaded = x509.load_pem_x509_certificate(pem)
            for part in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME):
                _one(loaded.subject, part)
            _p384(loaded.public_key())
            loaded.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            return cls(loaded)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def name(self) -> str:
        return _one(self.certificate.subject, NameOID.COMMON_NAME)

    @property
    def role(self) -> str:
        """One of ROLES for a client, `server` for a server."""
        return _one(self.certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)

    @property
    def consortium(self) -> str:
        return _one(self.certificate.subject, NameOID.ORGANIZATION_NAME)

    @property
    def public(self) -> str:
        """The key's OpenSSH line."""
        return public_line(_p384(self.certificate.public_key()))

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    @property
    def ends(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def is_near_end(self, now: datetime) -> bool:
        """Whether it is time to renew: the last fifth of its life has begun, or it is over."""
        life = self.ends - self.certificate.not_valid_before_utc
        return now > self.ends - life / _NEAR_END

    def is_issued_by(self, root: Root) -> bool:
        """Whether the root's signature is on it; for choosing among trusted ones, `require_issued_by` for trust."""
        try:
            self.certificate.verify_directly_issued_by(root.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def require_client(self, roots: Sequence[Root], now: datetime) -> None:
        """Returns for a client's certificate that one of the roots issued and that holds now, give or take the skew.

        Raises TrustError. Says nothing about revocation: the roster does.
        """
        if not any(self.is_issued_by(root) and self.consortium == root.consortium for root in roots):
            raise TrustError("the certificate was not issued by the consortium's root")
        usage = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH] or self.role not in ROLES:
            raise TrustError("the certificate is not for a client")
        if now > self.ends + CLOCK_SKEW:
            raise TrustError(f"the certificate ended on {self.ends:%Y-%m-%d}", "ask the coordinator to renew it")
        if now < self.certificate.not_valid_before_utc - CLOCK_SKEW:
            starts = self.certificate.not_valid_before_utc
            raise TrustError(f"the certificate begins on {starts:%Y-%m-%d %H:%M} UTC", "check this machine's clock")


@dataclass(frozen=True)
class SigningRequest:
    """A wish for a client's certificate, signed by the key it is for. identity: what that key says goes with it."""

    name: str
    public: str
    identity: bytes | None

    @staticmethod
    def make(key: TlsKey, name: str, identity: bytes | None) -> bytes:
        """identity: (32,) Ed25519 public key of the site, or None for a person."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        if identity is not None:
            uri = x509.UniformResourceIdentifier(_IDENTITY + identity.hex())
            builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        return builder.sign(key.key, SHA384()).public_bytes(Encoding.PEM)

    @classmethod
    def read(cls, pem: bytes) -> "SigningRequest":
        """Raises WireError for what is no such request, TrustError when it is not signed with its own key."""
        with _explained("a certificate signing request with an EC P-384 key and one common name"):
            loaded = x509.load_pem_x509_csr(pem)
            public, name = public_line(_p384(loaded.public_key())), _one(loaded.subject, NameOID.COMMON_NAME)
            if not loaded.is_signature_valid:
                raise TrustError("a certificate signing request is not signed with its own key")
            return cls(name, public, _identity_in(loaded))


@dataclass(frozen=True)
class Authority:
    """A root with its private key: issues certificates, and signs rosters and kits as `identity`."""

    identity: Identity
    root: Root

    def __post_init__(self) -> None:
        if self.identity.public != self.root.key:
            raise TrustError("the root's certificate is for another key")

    @classmethod
    def make(cls, identity: Identity, consortium: str, now: datetime) -> "Authority":
        """consortium: at most 64 characters."""
        public = Ed25519PublicKey.from_public_bytes(identity.public)
        name = _name(consortium, "root", f"root {identity.public.hex()[:16]}")
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(name, name, public, public, now, now + ROOT_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = builder.add_extension(usage, critical=True).sign(_ed25519(identity), None)
        return cls(identity, Root(signed, identity.public))

    def certify_server(self, public: str, hosts: Sequence[str], now: datetime) -> bytes:
        """For a TLS server reached under `hosts`: DNS names or IP addresses, the first its common name."""
        names = [x509.IPAddress(ip_address(host)) if is_ip(host) else x509.DNSName(host) for host in hosts]
        extension = x509.SubjectAlternativeName(names)
        return self._issue(public, "server", hosts[0][:64], ExtendedKeyUsageOID.SERVER_AUTH, now, extension)

    def certify_client(self, public: str, name: str, role: Role, now: datetime) -> bytes:
        return self._issue(public, role, name, ExtendedKeyUsageOID.CLIENT_AUTH, now)

    def revoke(self, serials: Sequence[int], number: int, now: datetime) -> bytes:
        """The revocation list of those serials. number: never smaller than that of an earlier list."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.certificate.subject)
            .last_update(now - CLOCK_SKEW)
            .next_update(self.root.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_issued_by(Ed25519PublicKey.from_public_bytes(self.root.key)), critical=False)
        )
        for serial in serials:
            gone = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - CLOCK_SKEW).build()
            builder = builder.add_revoked_certificate(gone)
        return builder.sign(_ed25519(self.identity), None).public_bytes(Encoding.PEM)

    def _issue(
        self,
        public: str,
        role: str,
        name: str,
        purpose: x509.ObjectIdentifier,
        now: datetime,
        *extensions: x509.ExtensionType,
    ) -> bytes:
        root = self.root.certificate
        subject = _name(self.root.consortium, role, name)
        issuer = Ed25519PublicKey.from_public_bytes(self.root.key)
        ends = min(now + LIFE, root.not_valid_after_utc)
        builder = _builder(subject, root.subject, public_key(public), issuer, now, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(_ed25519(self.identity), None).public_bytes(Encoding.PEM)


def now_utc() -> datetime:
    """The time as certificates tell it, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: Ed25519PublicKey | EllipticCurvePublicKey,
    issuer_key: Ed25519PublicKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_issued_by(issuer_key), critical=False)
    )


def _name(consortium: str, unit: str, name: str) -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, consortium), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in (*parts, (NameOID.COMMON_NAME, name))])


def _issued_by(public: Ed25519PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def _key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, key_cert_sign, crl_sign, False, False)


def _ed25519(identity: Identity) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(identity.private_bytes())


def _identity_in(request: x509.CertificateSigningRequest) -> bytes | None:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(_IDENTITY):
            return bytes.fromhex(uri.removeprefix(_IDENTITY))
    return None


def _p384(public: object) -> EllipticCurvePublicKey:
    if not isinstance(public, EllipticCurvePublicKey):
        raise ValueError("not an elliptic curve")
    return public_key(public_line(public))


def _one(name: x509.Name, part: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(part)
    if len(found) != 1 or not isinstance(found[0].value, str):
        raise ValueError(f"{len(found)} of {part.dotted_string}")
    return found[0].value


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The library's many ways of saying no, as one of ours."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        NotImplementedError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
    ):
        raise WireError(f"this is not {what}") from None
