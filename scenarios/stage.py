"""What a play is given and what it gives: settings and a directory in, figures and pictures out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import fill, load_table, override
from scenarios.events import Network
from scenarios.scenario import Event, Scenario
from scenarios.simulation import Simulation, Workplace, set_up

_FEDERATIONS = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """A scenario about to be played in a directory of its own. overrides: `key=value`, over all that the files say."""

    scenario: Scenario
    out: Path
    quick: bool = False
    overrides: tuple[str, ...] = ()

    def simulation(self, *overrides: str) -> Simulation:
        """The federation of the scenario's file; overrides: of this play, under those of the stage."""
        table = load_table(_FEDERATIONS / f"{self.scenario.federation}.toml")
        for changes in (self.scenario.setup, self.scenario.quick if self.quick else {}):
            table = {key: {**table.get(key, {}), **changes.get(key, {})} for key in {**table, **changes}}
        return fill(Simulation, override(table, [*overrides, *self.overrides]))

    def set_up(self, place: str, *overrides: str) -> Workplace:
        return set_up(self.simulation(*overrides), self.out / place)

    def network(self, place: Workplace, events: Sequence[Event] | None = None) -> Network:
        """The scenario's events, or others, between these sites."""
        return Network(self.scenario.event if events is None else events, [site.name for site in place.sites])


@dataclass(frozen=True)
class Picture:
    """svg: one element that loads nothing, see `pictures.py`. wide: across the whole page."""

    title: str
    svg: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers, the first column naming each."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    caption: str = ""

    def numeric(self, column: int) -> bool:
        """Whether the column holds numbers; a dash is a number that there is not."""
        return all(not isinstance(row[column], str) or row[column] == "–" for row in self.rows)


@dataclass(frozen=True)
class Played:
    """figures: what the expectations ask for. facts: what else the report keeps. notes: in plain words, for the page.

    audit: {claimed_epsilon, certificate, ...} of an audit that was to confirm a claim; a claim it refutes voids all.
    """

    figures: Mapping[str, float]
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, float] = field(default_factory=dict)
