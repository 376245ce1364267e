"""What every party's commands share: how they are declared, how rows are shown, how a wrong call is refused."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from common.errors import ConfigError, FederationError, PrivacyError, TrustError

Command = Callable[[argparse.Namespace], Mapping[str, Any]]


class Verdict(FederationError):
    """A no that is a command's result, not its failure. answer: what `--json` prints. text: the same for people."""

    def __init__(self, message: str, answer: Mapping[str, Any], text: str = "") -> None:
        super().__init__(message)
        self.answer, self.text = answer, text


class NotVerified(Verdict, TrustError):
    """What was to be verified does not hold: `where` is the file or line."""

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(reason, {"verified": False, "reason": reason, "where": where})


class NotReady(Verdict, ConfigError):
    """Something is not as it must be before anything can start."""


class Declined(Verdict, PrivacyError):
    """What was asked would be refused."""


def printable(text: str) -> str:
    """`text` on one line, whatever another party wrote: what would move a terminal's cursor or end the line is escaped.

    Also escaped are the marks that turn the direction of writing around.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for a call it does not understand, so that it is answered like any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"see {self.prog} --help")


def group(commands: Any, name: str, about: str, metavar: str = "COMMAND") -> Any:
    """Commands under a common word."""
    return commands.add_parser(name, help=about, description=about).add_subparsers(
        required=True, metavar=metavar, parser_class=Parser
    )


def command(
    commands: Any, name: str, run: Command, show: Callable[[Any], str], about: str, epilog: str
) -> argparse.ArgumentParser:
    """One command. run: to what `--json` prints; show: from that to text for people; epilog: examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(command=run, show=show)
    return parser


def positive(text: str) -> int:
    """A whole number, 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def confirm(facts: Mapping[str, str], question: str) -> None:
    """Show a person what to compare, on standard error, and go on only for the answer `yes`. Raises ConfigError."""
    print(f"{show_fields(facts)}\n{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    if answer != "yes":
        raise ConfigError(f"answered {answer or 'nothing'}, not yes", "nothing was changed")


def show_rows(result: Mapping[str, Any]) -> str:
    """`rows` as a table, then what was `skipped`."""
    rows = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([*lines, *(f"skipped: {printable(str(item))}" for item in result.get("skipped", []))])


def show_fields(result: Mapping[str, Any]) -> str:
    """One line per field."""
    return "\n".join(f"{printable(key):<18} {printable(str(value))}" for key, value in result.items())


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else printable(str(value))
