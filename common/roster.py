"""Who belongs to the consortium: names and their Ed25519 public keys, handed out before any run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError, TrustError

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Roster:
    """keys: name -> 32 public bytes; the coordinator is listed under its own name."""

    keys: Mapping[str, bytes]

    def public_key_of(self, name: str) -> bytes:
        try:
            return self.keys[name]
        except KeyError:
            raise TrustError(f"{name!r} is not on the roster") from None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.keys if name != COORDINATOR))

    def to_bytes(self) -> bytes:
        return json.dumps({name: key.hex() for name, key in sorted(self.keys.items())}, indent=1).encode()

    @classmethod
    def read(cls, path: Path) -> "Roster":
        """Raises ConfigError naming the file when it is missing or not a roster."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            keys = {name: bytes.fromhex(key) for name, key in table.items()}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} is not a roster: {error}", "ask the coordinator for a new copy") from None
        if COORDINATOR not in keys or any(len(key) != 32 for key in keys.values()):
            raise ConfigError(f"{path} is not a roster: it needs the coordinator and 32-byte keys")
        return cls(keys)
