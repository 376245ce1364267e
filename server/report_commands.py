"""`veilfed report ...`: for whoever was given a report and asks whether it is as its coordinator signed it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.commands import command, group

_EXAMPLES = """examples:
  veilfed report verify runs/strict
  veilfed report verify runs/strict --key 3b6a27bc... --json
DIR holds report.json, report.html and report.sig. Without --key the signature says itself who signed: compare the
key with the coordinator's on the roster. exit codes: 0 verified, 3 the run's own audit refutes its claim, 4 not
what was signed
"""


def add_commands(commands: Any) -> None:
    """Put `report` and what is under it among the commands of `veilfed`."""
    report = group(commands, "report", "the signed report of a run or scenario", "ACTION")
    verify = command(report, "verify", _verify, _verdict, "that not a byte has changed since it was signed", _EXAMPLES)
    verify.add_argument("directory", type=Path, metavar="DIR", help="where the report lies")
    verify.add_argument("--key", default="", metavar="HEX", help="the Ed25519 key that must have signed")


def _verify(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from server.signature import require_claim_stands, verify_report

    signed = verify_report(chosen.directory, chosen.key)
    require_claim_stands(signed.said)
    claims = {key: signed.said[key] for key in ("claimed_epsilon", "audited_epsilon")}
    return {"verified": True, "subject": signed.subject, "signer": signed.signer, **claims}


def _verdict(result: Mapping[str, Any]) -> str:
    claimed, audited = result["claimed_epsilon"], result["audited_epsilon"]
    lines = [f"verified: {result['subject']}", f"signed by {result['signer']}"]
    lines.append("no privacy is claimed" if claimed is None else f"claimed epsilon {claimed:g}")
    return "\n".join(lines if audited is None else [*lines, f"an audit found at least epsilon {audited:.3f}"])
