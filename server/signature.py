"""Who stands for a report: `report.sig` beside `report.json` and `report.html`, signed by the coordinator of that home.

report.sig is a signed object (`common/signed_json.py`), canonical JSON (RFC 8785), of which not a byte can change:
    {"said": {files: {name: SHA-256}, run, outcome, configuration, versions, ledger_heads, claimed_epsilon,
              audited_epsilon, certificate_confidence}, "signatures": {key: signature}}
What is said twice, there and in report.json, must agree, so a signature cannot be moved to another report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.commands import NotVerified
from common.errors import ConfigError, FederationError, PrivacyError, ProtocolError
from common.files import write_atomically
from common.signed_json import SignedJson, signed_table
from common.signing import Identity
from common.wire import digest, from_hex, from_json, to_json

CONTEXT = "veilfed.report.v1"
FILES = ("report.json", "report.html")
SIGNATURE = "report.sig"


@dataclass(frozen=True)
class SignedReport:
    """A report whose signature holds. signer: the key, hexadecimal."""

    said: Mapping[str, Any]
    signer: str

    @property
    def subject(self) -> str:
        return f"report of {self.said['name']}, SHA-256 {self.said['files'][FILES[0]]}"


def sign_report(directory: Path, identity: Identity) -> None:
    """Sign what lies in the directory, and write the signature beside it."""
    said = _said({name: (directory / name).read_bytes() for name in FILES})
    write_atomically(directory / SIGNATURE, to_json(signed_table(CONTEXT, said, [identity])), mode=0o644)


def verify_report(directory: Path, key: str = "") -> SignedReport:
    """The signed report. key: who must have signed, hexadecimal; "" takes the key that the signature names.

    Raises NotVerified when any byte of the report, its page or its signature is not as it was signed, ConfigError when
    there is no report. Whether its claim survived its audit is another question: `require_claim_stands`.
    """
    for name in (*FILES, SIGNATURE):
        if not (directory / name).exists():
            raise ConfigError(f"{directory} holds no {name}", "name the directory of a finished run or scenario")
    return _verified({name: (directory / name).read_bytes() for name in (*FILES, SIGNATURE)}, key)


def _verified(files: Mapping[str, bytes], key: str) -> SignedReport:
    try:
        table = from_json(files[SIGNATURE])
        signers = list(table.get("signatures", {}))
        if len(signers) != 1 or signers[0] != signers[0].lower():
            raise NotVerified("a report has one signer", SIGNATURE)
        if key and signers[0] != key.lower():
            raise NotVerified("another key has signed than the one that was named", SIGNATURE)
        said = SignedJson.of(table).said_by(CONTEXT, [from_hex(signers[0])])
    except NotVerified:
        raise
    except (FederationError, AttributeError, TypeError) as error:
        raise NotVerified(str(error), SIGNATURE) from error
    for name in FILES:
        if said.get("files", {}).get(name) != digest(files[name]).hex():
            raise NotVerified("the file is not the one that was signed", name)
    if dict(said) != _said(files):
        raise NotVerified("the signature says something else than the report", SIGNATURE)
    return SignedReport(said, signers[0])


def copy_of(directory: Path) -> dict[str, str]:
    """The report, its page and its signature, file by file, for somebody who does not see this disk."""
    return {name: (directory / name).read_bytes().decode() for name in (*FILES, SIGNATURE)}


def keep_copy(directory: Path, files: Mapping[str, str], key: str) -> SignedReport:
    """Verify what `copy_of` gave, then write it. key: who must have signed, hexadecimal.

    Raises ProtocolError when it is not those three files, NotVerified when they are not what that key signed; nothing
    is written then, and what lies there stays.
    """
    if set(files) != {*FILES, SIGNATURE} or not all(isinstance(text, str) for text in files.values()):
        raise ProtocolError(
            "the coordinator sent no signed report", "it may be another version; its own copy is in runs/RUN there"
        )
    contents = {name: text.encode(errors="surrogatepass") for name, text in files.items()}
    signed = _verified(contents, key)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(directory / name, content, mode=0o644)
    return signed


def require_claim_stands(said: Mapping[str, Any]) -> None:
    """Raises PrivacyError when an audit proved that more was lost than is claimed."""
    claimed, audited = said["claimed_epsilon"], said["audited_epsilon"]
    if audited is not None and claimed is not None and audited > claimed:
        raise PrivacyError(
            f"the audit's certificate is epsilon {audited:.3f}, the claim was {claimed:g}",
            "do not release this model; look for what adds too little noise",
        )


def _said(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a signature says of a report, read from the report alone."""
    import json

    report = json.loads(files[FILES[0]])
    config, audit = report.get("config", {}), report.get("audit", {})
    private = config.get("privacy", {}).get("mode", "none") != "none"
    return {
        "name": report.get("scenario") or config.get("federation", {}).get("name", ""),
        "run": report.get("run", ""),
        "outcome": report.get("outcome", ""),
        "files": {name: digest(files[name]).hex() for name in FILES},
        "configuration": config,
        "versions": report.get("versions", {}),
        "ledger_heads": {site["site"]: site.get("ledger_head") for site in report.get("sites", [])},
        "claimed_epsilon": audit.get("claimed_epsilon", config.get("privacy", {}).get("epsilon") if private else None),
        "audited_epsilon": audit.get("certificate"),
    }
