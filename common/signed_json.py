"""One JSON object and the signatures of everybody who stands for it: how rosters, kits and requests are kept.

A file is canonical JSON (RFC 8785):  {"said": {...}, "signatures": {Ed25519 key, hex: signature, hex}}
where each signature holds over the canonical JSON of `said` and one context (`common/signing.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import TrustError, WireError
from common.signing import Identity, verify
from common.wire import from_hex, to_json

_MOST_SIGNATURES = 16


@dataclass(frozen=True)
class SignedJson:
    """Bytes that were taken apart and of which nothing is believed yet: only `said_by` tells what they say."""

    _said: Mapping[str, Any]
    _signatures: Mapping[bytes, bytes]

    @classmethod
    def of(cls, table: object) -> "SignedJson":
        """From parsed JSON. Raises WireError for what is no such object."""
        if not isinstance(table, Mapping) or set(table) != {"said", "signatures"}:
            raise WireError("a signed object is made of `said` and `signatures`")
        said, shown = table["said"], table["signatures"]
        if not isinstance(said, Mapping) or not isinstance(shown, Mapping) or len(shown) > _MOST_SIGNATURES:
            raise WireError("a signed object is made of an object and a few signatures")
        return cls(said, {from_hex(key): from_hex(signature) for key, signature in shown.items()})

    def claim(self, key: str) -> object:
        """What the object would say under `key` if it were true: to find out who ought to have signed it."""
        return self._said.get(key)

    def said_by(self, context: str, publics: Sequence[bytes]) -> Mapping[str, Any]:
        """What all of `publics` signed as `context`. Raises TrustError when one of them did not, or none is asked."""
        if not publics:
            raise TrustError("nobody vouches for this")
        data = to_json(dict(self._said))
        for public in publics:
            if public not in self._signatures:
                raise TrustError("a signature is missing")
            verify(public, context, data, self._signatures[public])
        return self._said


def signed_table(context: str, said: Mapping[str, Any], signers: Iterable[Identity]) -> dict[str, Any]:
    """The object that `SignedJson.of` reads, `to_json` of it the file."""
    data = to_json(dict(said))
    return {"said": dict(said), "signatures": {one.public.hex(): one.sign(context, data).hex() for one in signers}}
