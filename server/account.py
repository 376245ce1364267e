"""What a person needs to give the coordinator orders: a client certificate, the pinned roots, and a bundle key.

DIR is the coordinator's home, or a person's own directory with copies of what is named here:
DIR/consortium.toml, roots.pem, roster.json     whom to talk to, and who belongs
DIR/admins/NAME.crt and .key, or DIR/NAME.*     the person's certificate and key (`veilfed user init`)
DIR/bundle.key                                  signs bundles; needed to submit, not to look or to stop
"""

import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.config import fill, load_table
from common.errors import ConfigError
from common.keystore import load_secret
from common.roster import Roster
from common.signing import Identity
from server.control import Control
from server.home import ConsortiumSettings


@dataclass(frozen=True)
class Account:
    """certificate, key: PEM files of one person."""

    directory: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, directory: Path) -> "Account":
        """The first in the alphabet whose key is there. Raises ConfigError when there is none."""
        for place in (directory, *(directory / role for role in ("admins", "researchers", "auditors"))):
            for certificate in sorted(place.glob("*.crt")):
                if (key := certificate.with_suffix(".key")).exists():
                    return cls(directory, certificate, key)
        raise ConfigError(
            f"{directory} holds no certificate of a person together with its key",
            "name the coordinator's home with --home, or see: veilfed user init --help",
        )

    @cached_property
    def roster(self) -> Roster:
        return Roster.read(self.directory / "roster.json")

    @cached_property
    def control(self) -> Control:
        settings = fill(ConsortiumSettings, load_table(self.directory / "consortium.toml"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.directory / "roots.pem")
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.certificate} and {self.key} do not fit: {error}") from None
        return Control(settings.address, context)

    @property
    def bundle_key(self) -> Identity:
        """Raises ConfigError when it is not there, or is not on the roster."""
        path = self.directory / "bundle.key"
        if not path.exists():
            raise ConfigError(f"{path} is missing: a run has to be signed", "whoever may submit runs holds the key")
        key = Identity.from_private_bytes(load_secret(path, None))
        if key.public not in self.roster.bundles:
            raise ConfigError(f"{path} is not on the roster: no site would take what it signs")
        return key
