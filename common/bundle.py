"""The signed bundle of a run: a Flower App Bundle that is data, not code.

It holds the plan (`federation.toml`) and the version of Veilfed that it is for. What runs, at the coordinator and at
every site, is the installed package: a bundle is read, its signature verified, and it is built again from the plan in
it; one that holds anything else is refused. So whoever submits a run can ask for a plan, and for nothing else.
"""

import hashlib
import io
import tomllib
import zipfile
import zlib
from collections.abc import Collection
from importlib.metadata import version
from typing import Any

import tomli_w

from common.config import fill, to_table
from common.errors import ConfigError, ProtocolError, TrustError
from common.federation import Plan
from common.signing import Identity, verify

CONTEXT = "veilfed.bundle.v1"
LARGEST = 1_000_000  # bytes: a plan has a few hundred
SETTINGS = ("run", "signature")  # what may be said of a run beside its bundle
_PLAN = "federation.toml"


def build(plan: Plan) -> bytes:
    """The bundle for that plan and this version: the same content wherever it is built."""
    from flwr.cli.build import build_fab_from_files

    project: dict[str, Any] = {
        "project": {
            "name": "veilfed",
            "version": version("veilfed"),
            "description": "A signed plan",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "veilfed",
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": dict.fromkeys(SETTINGS, ""),
                }
            }
        },
    }
    files = {"pyproject.toml": tomli_w.dumps(project).encode(), _PLAN: tomli_w.dumps(to_table(plan)).encode()}
    return build_fab_from_files(files)[0]


def sign(content: bytes, key: Identity, run: bytes) -> str:
    """`public key:signature` in hexadecimal, over the SHA-256 of the bundle and the number of the one run it is for."""
    return f"{key.public.hex()}:{key.sign(CONTEXT, hashlib.sha256(content).digest() + run).hex()}"


def opened(content: bytes, signature: str, trusted: Collection[bytes], run: bytes) -> tuple[Plan, bytes]:
    """The plan in a bundle, and the key that signed it.

    trusted: public keys that may sign. run: the run that is asked for: whoever may read a signature cannot use it for
    another. Raises TrustError when none of them did, ProtocolError when the bundle is for
    another version or holds more than a plan.
    """
    signer = _signer(content, signature, trusted, run)
    found = _files(content)
    try:
        plan = fill(Plan, tomllib.loads(found[_PLAN].decode()))
        wanted = str(tomllib.loads(found["pyproject.toml"].decode())["project"]["version"])
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError):
        raise ProtocolError("the bundle holds no plan that this version understands") from None
    if wanted != version("veilfed"):
        raise ProtocolError(
            f"the bundle is for veilfed {wanted}, here is {version('veilfed')}",
            "install the same version everywhere, then submit again",
        )
    if found != _files(build(plan)):
        raise ProtocolError("the bundle holds more than a plan")
    return plan, signer


def _signer(content: bytes, signature: str, trusted: Collection[bytes], run: bytes) -> bytes:
    if len(content) > LARGEST:
        raise ProtocolError(f"a bundle of {len(content)} bytes; a plan has at most {LARGEST}")
    if not signature:
        raise TrustError("the bundle is not signed", "submit it with `veilfed run`")
    try:
        key, proof = (bytes.fromhex(part) for part in signature.split(":"))
    except ValueError:
        raise TrustError("the bundle's signature is not one") from None
    if key not in trusted:
        raise TrustError(f"the bundle is signed by a key that is not trusted here: {key.hex()[:16]}")
    verify(key, CONTEXT, hashlib.sha256(content).digest() + run, proof)
    return key


def _files(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > LARGEST:
                raise ProtocolError("the bundle unpacks to more than a plan needs")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
        raise ProtocolError("the bundle is not an archive") from None
