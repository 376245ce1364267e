"""Proves: not a byte of a signed report, its page or its signature can change, and a refuted claim is no success."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from common.commands import NotVerified
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.roster import COORDINATOR, Roster
from common.signing import Identity
from scenarios.cli import main
from server import run_commands
from server.control import Submitted
from server.report import write_report
from server.signature import (
    FILES,
    SIGNATURE,
    copy_of,
    keep_copy,
    require_claim_stands,
    sign_report,
    verify_report,
)

RUN = {
    "outcome": "done",
    "run": "ab" * 16,
    "config": {"federation": {"name": "heart"}, "privacy": {"mode": "local", "epsilon": 3.0, "delta": 1e-3}},
    "sites": [{"site": "north", "ledger_head": "cd" * 32}],
    "versions": {"veilfed": "0.1.0"},
}


@dataclass(frozen=True)
class SubmittedRun:
    """A person's account and the control of a coordinator that ends every run at once, with that copy."""

    roster: Roster
    copy: Mapping[str, str]
    bundle_key: Identity = field(default_factory=Identity.generate)
    started: list[str] = field(default_factory=list)

    @property
    def control(self) -> Self:
        return self

    def start(self, content: bytes, signature: str, run: str) -> None:
        self.started.append(run)

    def runs(self) -> list[Submitted]:
        return [Submitted(0, self.started[0], "running", "", "", "")]

    def events(self, number: int) -> list[Mapping[str, Any]]:
        return [{"signed": self.copy}, {"report": {**RUN, "report": "", "final": {}, "insecure": []}}]


@pytest.fixture
def signer(tmp_path):
    identity = Identity.generate()
    write_report(tmp_path, RUN)
    sign_report(tmp_path, identity)
    return identity


def test_a_signed_report_says_what_was_run_and_who_signed(tmp_path, signer):
    signed = verify_report(tmp_path, signer.public.hex())
    assert signed.signer == signer.public.hex()
    assert signed.said["configuration"] == RUN["config"]
    assert signed.said["ledger_heads"] == {"north": "cd" * 32}
    assert (signed.said["claimed_epsilon"], signed.said["audited_epsilon"]) == (3.0, None)
    assert verify_report(tmp_path).subject.startswith("report of heart, SHA-256 ")


@pytest.mark.parametrize("name", [*FILES, SIGNATURE])
def test_every_byte_counts(tmp_path, signer, name):
    """Each byte of the signature and of the report is changed once, and 40 places of the page; more and fewer bytes."""
    path = tmp_path / name
    good = path.read_bytes()
    step = max(1, len(good) // 40) if name == "report.html" else 1
    changed = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), step)]
    for bad in (*changed, good[:-1], good + b"\n", b""):
        path.write_bytes(bad)
        with pytest.raises(NotVerified):
            verify_report(tmp_path)
    path.write_bytes(good)
    verify_report(tmp_path)


def test_another_key_is_not_the_one_that_was_named(tmp_path, signer):
    with pytest.raises(NotVerified, match="another key"):
        verify_report(tmp_path, Identity.generate().public.hex())


def test_a_signature_does_not_fit_another_report(tmp_path, signer):
    write_report(tmp_path / "other", {**RUN, "run": "ef" * 16})
    sign_report(tmp_path / "other", signer)
    (tmp_path / SIGNATURE).write_bytes((tmp_path / "other" / SIGNATURE).read_bytes())
    with pytest.raises(NotVerified, match="not the one that was signed"):
        verify_report(tmp_path)


def test_a_copy_is_verified_where_it_arrives_and_is_byte_for_byte_what_was_signed(tmp_path, signer):
    there = tmp_path / "there"
    assert keep_copy(there, copy_of(tmp_path), signer.public.hex()).said == verify_report(tmp_path).said
    for name in (*FILES, SIGNATURE):
        assert (there / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", [*FILES, SIGNATURE])
@pytest.mark.parametrize("text", ["another text", "\ud800"], ids=["changed", "no text at all"])
def test_a_copy_that_does_not_hold_is_never_written(tmp_path, signer, name, text):
    there, bad = tmp_path / "there", {**copy_of(tmp_path), name: text}
    for copy, key in ((bad, signer.public), (copy_of(tmp_path), Identity.generate().public)):
        with pytest.raises(NotVerified):
            keep_copy(there, copy, key.hex())
        assert not there.exists()
    keep_copy(there, copy_of(tmp_path), signer.public.hex())
    with pytest.raises(NotVerified):
        keep_copy(there, bad, signer.public.hex())
    assert verify_report(there, signer.public.hex()).said == verify_report(tmp_path).said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("honest", [True, False])
def test_veilfed_run_keeps_no_report_that_its_coordinator_has_not_signed(tmp_path, signer, monkeypatch, honest):
    sites = {name: Identity.generate().public for name in ("cleveland", "hungary", "switzerland", "va-long-beach")}
    key = signer if honest else Identity.generate()
    account = SubmittedRun(Roster({**sites, COORDINATOR: key.public}), copy_of(tmp_path))
    monkeypatch.setattr(run_commands, "account", lambda chosen: account)
    out = tmp_path / "out"
    assert main(["run", "heart", "--json", "--out", str(out)]) == (0 if honest else 4)
    assert out.exists() == honest


@pytest.mark.parametrize("changed", [{"../other": "text"}, {SIGNATURE: None}])
def test_a_copy_is_three_files_and_no_others(tmp_path, signer, changed):
    with pytest.raises(ProtocolError, match="no signed report"):
        keep_copy(tmp_path / "there", {**copy_of(tmp_path), **changed}, signer.public.hex())
    assert not (tmp_path / "there").exists()


def test_no_report_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ConfigError, match="holds no"):
        verify_report(tmp_path)


@pytest.mark.parametrize(("certificate", "stands"), [(2.9, True), (3.0, True), (3.01, False)])
def test_a_claim_that_its_own_audit_refutes_does_not_stand(tmp_path, certificate, stands):
    write_report(tmp_path, {**RUN, "audit": {"claimed_epsilon": 3.0, "certificate": certificate}})
    sign_report(tmp_path, Identity.generate())
    said = verify_report(tmp_path).said
    assert main(["report", "verify", str(tmp_path)]) == (0 if stands else 3)
    if stands:
        require_claim_stands(said)
    else:
        with pytest.raises(PrivacyError, match="certificate"):
            require_claim_stands(said)


def test_the_command_keeps_the_contract(tmp_path, signer, capsys):
    assert main(["report", "verify", str(tmp_path), "--key", signer.public.hex(), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verified"] is True
    assert said["signer"] == signer.public.hex()
    (tmp_path / "report.json").write_bytes(b"{}")
    assert main(["report", "verify", str(tmp_path), "--json"]) == 4
    assert json.loads(capsys.readouterr().out) == {
        "verified": False,
        "reason": "the file is not the one that was signed",
        "where": "report.json",
    }
