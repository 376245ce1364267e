"""What a site and the coordinator hand each other before the first run: a request, and a kit in return.

Both are files of one signed object (`common/signed_json.py`). A request is signed by the site's identity, and by its
node's key, which signs the certificate signing request with the identity inside. A kit is signed by every root in
force. Neither holds anything secret; what makes them trustworthy is that people compare a fingerprint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.addresses import Address
from common.certificates import Certificate, Root, SigningRequest, read_roots, write_roots
from common.errors import ConfigError, TrustError, WireError
from common.fingerprints import fingerprint
from common.roster import COORDINATOR, Roster, require_name
from common.signed_json import SignedJson, signed_table
from common.signing import Identity
from common.tls_keys import TlsKey
from common.wire import from_hex, from_json, to_json

REQUEST_CONTEXT = "veilfed.request.v1"
KIT_CONTEXT = "veilfed.kit.v1"


@dataclass(frozen=True)
class Request:
    """identity: (32,) bytes.   node: OpenSSH line.   server: where the site expects the gateway."""

    name: str
    server: Address
    identity: bytes
    node: str

    @staticmethod
    def make(name: str, server: Address, identity: Identity, node: TlsKey) -> bytes:
        """The file, signed by both keys."""
        asked = SigningRequest.make(node, name, identity.public).decode()
        said = {"name": name, "server": str(server), "identity": identity.public.hex(), "csr": asked}
        return to_json(signed_table(REQUEST_CONTEXT, said, [identity]))

    @classmethod
    def read(cls, data: bytes) -> "Request":
        """Raises WireError for what is no request, TrustError where a key that it names did not sign it."""
        table = SignedJson.of(from_json(data))
        identity = from_hex(table.claim("identity"))
        said = table.said_by(REQUEST_CONTEXT, [identity])
        try:
            if len(said) != 4 or len(identity) != 32:
                raise WireError("this is not a request")
            name, server = require_name(said["name"]), Address.parse(said["server"])
            asked = SigningRequest.read(said["csr"].encode())
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WireError(f"this is not a request: {error}") from None
        if name == COORDINATOR:
            raise WireError(f"{COORDINATOR!r} is no name for a site")
        if (asked.name, asked.identity) != (name, identity):
            raise TrustError("the node's key signed for another name or identity than this request")
        return cls(name, server, identity, asked.public)

    @property
    def fingerprint(self) -> str:
        """Of both keys and the name they go by."""
        return fingerprint(self.name.encode(), self.identity, self.node.encode())


@dataclass(frozen=True)
class Kit:
    """What makes a site a member: to be verified as a whole by `read`, then installed as a whole.

    roots: all in force, the newest first.   signed_roster: the object that `Roster.opened` reads.
    """

    server: Address
    roots: tuple[Root, ...]
    certificate: Certificate
    roster: Roster
    signed_roster: Mapping[str, Any]

    @property
    def consortium(self) -> str:
        return self.roster.consortium

    @property
    def name(self) -> str:
        return self.certificate.name

    @staticmethod
    def make(
        server: Address,
        roots: Sequence[Root],
        certificate: Certificate,
        signed_roster: Mapping[str, Any],
        signers: Sequence[Identity],
    ) -> bytes:
        """signers: every root in force."""
        said = {
            "server": str(server),
            "roots": write_roots(roots).decode(),
            "certificate": certificate.pem.decode(),
            "roster": dict(signed_roster),
        }
        return to_json(signed_table(KIT_CONTEXT, said, signers))

    @staticmethod
    def claimed_roots(data: bytes) -> tuple[Root, ...]:
        """What the kit says are the roots, before anything of it is believed: for a person to compare."""
        try:
            return read_roots(SignedJson.of(from_json(data)).claim("roots").encode())  # type: ignore[attr-defined]
        except AttributeError:
            raise WireError("this is not a kit") from None

    @classmethod
    def read(cls, data: bytes, pinned: Root) -> "Kit":
        """The kit, signed by the newest root that this party pins and by all that the kit brings.

        Raises WireError for what is no kit, TrustError for one that is not of this consortium's root. Whether it
        fits this party's keys and what it holds already, only the party can say.
        """
        table, roots = SignedJson.of(from_json(data)), cls.claimed_roots(data)
        keys = [pinned.key, *(root.key for root in roots)]
        said = table.said_by(KIT_CONTEXT, keys)
        try:
            if len(said) != 4:
                raise WireError("this is not a kit")
            server, certificate = Address.parse(said["server"]), Certificate.read(said["certificate"].encode())
            roster = Roster.opened(said["roster"], roots)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WireError(f"this is not a kit: {error}") from None
        if pinned.consortium != roster.consortium:
            raise TrustError(f"the kit is of {roster.consortium!r}, this is a member of {pinned.consortium!r}")
        return cls(server, roots, certificate, roster, said["roster"])
