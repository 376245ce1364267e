"""When rounds may train here: windows of the week, on the clock of the site's own wall. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal

from common.federation import require

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True)
class Window:
    """From `start` up to `end`, beginning on `days`: "HH:MM", or "24:00" for the end of a day.

    An end that comes before the start is on the day after: 22:00 to 06:00 of "fri" ends on Saturday. What counts is
    what the clock shows: an hour that a change of clocks skips is no part of a window, one that it repeats is twice.
    """

    start: str
    end: str
    days: tuple[Day, ...] = DAYS

    def __post_init__(self) -> None:
        require(bool(_CLOCK.fullmatch(self.start)), "windows.start", self.start, "HH:MM, 00:00 to 23:59")
        known = bool(_CLOCK.fullmatch(self.end)) or self.end == "24:00"
        require(known, "windows.end", self.end, "HH:MM, 00:01 to 24:00")
        require(self.start != self.end, "windows.end", self.end, "other than start; a whole day is 00:00 to 24:00")
        require(bool(self.days), "windows.days", self.days, "at least one day")

    def holds(self, local: datetime) -> bool:
        """local: the time on the site's wall."""
        today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
        minute, start, end = 60 * local.hour + local.minute, _minute(self.start), _minute(self.end)
        if start < end:
            return today in self.days and start <= minute < end
        return (today in self.days and minute >= start) or (yesterday in self.days and minute < end)


def is_open(windows: Sequence[Window], local: datetime) -> bool:
    """Whether rounds may train then; without any window, always."""
    return not windows or any(window.holds(local) for window in windows)


def next_opening(windows: Sequence[Window], local: datetime) -> datetime:
    """When, after `local`, the next window begins."""
    days = (local.date() + timedelta(days=ahead) for ahead in range(9))
    starts = (
        datetime.combine(day, time.fromisoformat(window.start), local.tzinfo)
        for day in days
        for window in windows
        if DAYS[day.weekday()] in window.days
    )
    return min(start for start in starts if start > local)


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)
