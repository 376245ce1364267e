"""How the SuperLink knows the coordinator's own processes, and no other program on their machine.

Flower's Control API asks a caller on the loopback for nothing, and takes its word. So the SuperLink hangs up on whoever
does not show HOME/run/inside.crt, whose key beside it only the coordinator's user can read. Nobody issued it: it is
trusted because it is that very one. It is made once, and anew when it is taken away.
"""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificates import now_utc
from common.files import write_atomically
from common.tls_keys import TlsKey

_LIFE = timedelta(days=36500)


def inside(home: Path) -> tuple[Path, Path]:
    """Certificate and key, PEM; made where one is missing."""
    certificate, key = home / "run" / "inside.crt", home / "run" / "inside.key"
    if not (certificate.exists() and key.exists()):
        key.parent.mkdir(mode=0o700, exist_ok=True)
        made = TlsKey.generate()
        write_atomically(key, made.pkcs8())
        write_atomically(certificate, _certificate(made, now_utc()))
    return certificate, key


def _certificate(key: TlsKey, now: datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inside")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
    )
    return builder.sign(key.key, SHA384()).public_bytes(Encoding.PEM)
