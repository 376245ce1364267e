"""What a scenario is: a question, a set-up, events, and expectations that can fail. One TOML file each in `plays/`.

question = "..."                      what somebody who must decide would ask
play = "models:private"               the function that finds out, in scenarios/plays/
federation = "heart"                  a shipped federation file; [setup.TABLE] changes keys of it, [quick.TABLE]
                                      more of them for `--quick`
[[event]]                             what befalls a reply on its way: see `events.py`
[[expect]]                            a figure of the play, what it must be, and what it means if it is not
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.config import fill, load_table
from common.errors import ConfigError
from common.federation import require

PLAYS = Path(__file__).parent / "plays"
_SETUPS = ("setup", "quick")  # tables of a federation file, which has its own reader


@dataclass(frozen=True)
class Expectation:
    """figure: as the play names it. One of the others says what it must be.

    kind: `privacy` and `trust` are promises, which fail when their protection is off; `use` is what the model is good
    for; `control` shows that the attack or measurement can see at all.
    """

    figure: str
    says: str
    kind: Literal["privacy", "trust", "use", "control"]
    at_least: float | None = None
    at_most: float | None = None
    equals: float | None = None

    def __post_init__(self) -> None:
        bounds = [self.at_least, self.at_most, self.equals]
        require(
            sum(bound is not None for bound in bounds) == 1, self.figure, bounds, "one of at_least, at_most, equals"
        )

    def holds(self, value: float) -> bool:
        """NaN never holds."""
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most if self.at_most is not None else value == self.equals

    @property
    def wanted(self) -> str:
        for words, bound in (("at least", self.at_least), ("at most", self.at_most)):
            if bound is not None:
                return f"{words} {bound:g}"
        return f"{self.equals:g}"


@dataclass(frozen=True)
class Event:
    """One reply of one site to one kind of message, in one round (0: in all).

    message: join, offer, train, agree, unmask, stand_in, evaluate, ... action: `lose` it; `double` it; `corrupt` one
    bit; `replay` an earlier one of that kind in its stead; `delay` it until the site is next asked the same.
    """

    round: int
    site: str
    message: str
    action: Literal["lose", "double", "corrupt", "replay", "delay"]

    def __post_init__(self) -> None:
        require(self.round >= 0, "event.round", self.round, "0 or more")
        require(bool(self.site and self.message), "event", (self.site, self.message), "a site and a kind of message")


@dataclass(frozen=True)
class Scenario:
    """about: how it is played, for the page. seconds: of `--quick`, about, on two cores."""

    name: str
    title: str
    question: str
    about: str
    play: str
    seconds: int
    expect: tuple[Expectation, ...]
    event: tuple[Event, ...] = ()
    federation: str = "heart"
    setup: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.expect), f"{self.name}: expect", self.expect, "at least one expectation")
        require(self.play.count(":") == 1, f"{self.name}: play", self.play, "module:function in scenarios/plays")


def scenario_names() -> list[str]:
    """All that there are, from the plainest to everything at once."""
    order = load_table(PLAYS / "order.toml")["order"]
    return [str(name) for name in order]


def load(name: str) -> Scenario:
    """Raises ConfigError when there is none of that name, or its file is wrong."""
    if name not in scenario_names():
        raise ConfigError(f"there is no scenario {name!r}", f"one of: {', '.join(scenario_names())}")
    table = load_table(PLAYS / f"{name}.toml")
    setups = {key: table.pop(key, {}) for key in _SETUPS}
    return replace(fill(Scenario, {"name": name, **table}), **setups)
