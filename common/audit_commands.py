"""`veilfed audit ...`: for whoever may read a party's home, at either side. Needs no private key, changes nothing."""

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.audit import Audit
from common.commands import NotVerified, command, group
from common.config import load_table
from common.errors import ConfigError, TrustError
from common.roster import COORDINATOR, Roster

_EXPORT_EXAMPLES = """examples:
  veilfed audit export /srv/veilfed/cleveland --since 2026-11-01 > november.jsonl
  veilfed audit export COORDINATOR --since 2026-11-24T18:00:00+01:00 | jq 'select(.event == "Refused")'
one event a line, oldest first; a log that does not verify is not exported: exit code 4
"""


def add_commands(commands: Any) -> None:
    """Put `audit` and what is under it among the commands of `veilfed`."""
    audit = group(commands, "audit", "what a party has written down about itself", "ACTION")
    about, example = "every line, signature and the witness of a log", "example: veilfed audit verify DIR --json"
    _on_home(command(audit, "verify", _verify, _verdict, about, example))
    export = command(audit, "export", _export, _lines, "the events as JSON lines", _EXPORT_EXAMPLES)
    _on_home(export)
    export.add_argument("--since", type=moment, metavar="TIME", help="leave out what is older; without a zone: UTC")


def moment(text: str) -> datetime:
    """A day or a time in ISO 8601, for argparse."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _on_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the home of a site or of the coordinator")
    parser.add_argument(
        "--witness", type=Path, metavar="FILE", help="the newest head as it was kept elsewhere (default: DIR's own)"
    )


def _verify(chosen: argparse.Namespace) -> Mapping[str, Any]:
    signer, log = _read(chosen)
    return {"verified": True, "subject": f"{len(log.entries())} events, head {log.head.hex()}", "signer": signer}


def _verdict(result: Mapping[str, Any]) -> str:
    return f"verified: {result['subject']}, every one signed by {result['signer']}"


def _export(chosen: argparse.Namespace) -> Mapping[str, Any]:
    signer, log = _read(chosen)
    since = chosen.since.astimezone(UTC).isoformat(timespec="seconds") if chosen.since else ""
    rows = [{"index": e.index, "signer": signer, **e.record, "hash": e.digest.hex()} for e in log.entries()]
    return {"signer": signer, "events": [row for row in rows if row["time"] >= since]}


def _lines(result: Mapping[str, Any]) -> str:
    """Nothing in a value can end a line or move a terminal's cursor: JSON escapes all but printable ASCII."""
    return "\n".join(json.dumps(event, sort_keys=True) for event in result["events"])


def _read(chosen: argparse.Namespace) -> tuple[str, Audit]:
    """The party's name and its log. Raises NotVerified when the log is not what that party wrote."""
    directory: Path = chosen.directory
    if chosen.witness and not chosen.witness.exists():
        raise ConfigError(f"{chosen.witness} does not exist", "name the file that holds the head of this log")
    settings = load_table(directory / "site.toml") if (directory / "site.toml").exists() else {}
    signer, kept = str(settings.get("name", COORDINATOR)), settings.get("witnesses")
    public = Roster.read(directory / "roster.json").public_key_of(signer)
    witness = chosen.witness or (Path(str(kept)) / "audit" if kept else None)
    try:
        return signer, Audit.read(directory, public, witness)
    except TrustError as error:
        raise NotVerified(error.message, str(directory / "audit.jsonl")) from error
