"""A consortium for tests: its root in memory, rosters that it signs, and what its people type."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from common.certificates import Authority, now_utc
from common.roster import COORDINATOR, Roster, install
from common.signing import Identity
from scenarios.cli import main
from server.home import Home

CONSORTIUM = """
name = "Heart study"
address = "fl.example.org:8443"
further_names = ["127.0.0.1"]
admins = ["ada"]
researchers = ["rosa"]
"""


def founded(name: str = "Heart study") -> Authority:
    return Authority.make(Identity.generate(), name, now_utc())


def roster_of(root: Authority, *names: str, **changes: object) -> Roster:
    keys = {name: Identity.generate().public for name in (*names, COORDINATOR)}
    return replace(Roster(keys, root.root.consortium), **changes)


def hand_out(roster: Roster, directory: Path, *roots: Authority) -> None:
    """Signed by all these roots, the newest first."""
    directory.mkdir(exist_ok=True)
    install(directory, roster.signed([one.identity for one in roots]), [one.root for one in roots])


class People:
    """Everybody at their own command line: what they say is the exit code and what `--json` printed."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self._monkeypatch, self._capsys = place, monkeypatch, capsys
        self.home = place / "home"
        self.asked = ""

    def say(self, *arguments: object, answer: str = "") -> tuple[int, Mapping[str, object]]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        code = main([*map(str, arguments), "--json"])
        shown = self._capsys.readouterr()
        self.asked = shown.err
        return code, json.loads(shown.out)

    def done(self, *arguments: object, answer: str = "") -> Mapping[str, object]:
        code, said = self.say(*arguments, answer=answer)
        assert code == 0, said
        return said

    def refused(self, *arguments: object, answer: str = "") -> tuple[int, str, str]:
        """Exit code, name of the error, sentence."""
        code, said = self.say(*arguments, answer=answer)
        assert code != 0
        error = said["error"]
        return code, error["code"], error["message"]

    def found(self, text: str = CONSORTIUM, *options: object) -> Mapping[str, object]:
        (self.place / "consortium.toml").write_text(text)
        return self.done("server", "init", self.place / "consortium.toml", "--out", self.home, *options)

    def server(self, word: str, *arguments: object, answer: str = "") -> Mapping[str, object]:
        return self.done("server", word, *arguments, "--home", self.home, answer=answer)

    def site(self, name: str) -> Path:
        return self.place / "sites" / name

    def kit(self, name: str) -> Path:
        return self.home / "kits" / f"{name}.json"

    def ask_in(self, name: str, *options: object) -> Path:
        """The request of a new site."""
        self.done("site", "init", self.site(name), "--name", name, "--server", "fl.example.org:8443", *options)
        return self.site(name) / "request.json"

    def let_in(self, *names: str) -> None:
        """Sites from nothing to members."""
        for name in names:
            self.server("admit", self.ask_in(name), "--yes")
        for name in names:
            self.done("site", "join", self.site(name), self.kit(name), "--root-fingerprint", self.fingerprint())

    def fingerprint(self) -> str:
        return Home.open(self.home).roots[0].fingerprint
