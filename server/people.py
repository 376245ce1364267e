"""A person's own key and the request for a certificate, made on that person's machine: the key never leaves it."""

from pathlib import Path

from common.certificates import SigningRequest
from common.errors import ConfigError
from common.files import write_atomically
from common.roster import require_name
from common.tls_keys import TlsKey


def make_key(directory: Path, name: str) -> Path:
    """NAME.key for TLS clients and NAME.csr for `veilfed server admit-user`; the path of the request.

    A key that is there already is kept. Its certificate will be NAME.crt.
    """
    require_name(name)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, request = directory / f"{name}.key", directory / f"{name}.csr"
    if request.exists() and not key.exists():
        raise ConfigError(f"{request} is there, its key is not", "remove it, or restore the key")
    if not key.exists():
        write_atomically(key, TlsKey.generate().pkcs8())
    write_atomically(request, SigningRequest.make(TlsKey.read(key), name, None), 0o644)
    return request
