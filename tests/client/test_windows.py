"""Proves: a window holds exactly in the minutes that it names, across midnight, the week's end and any time zone."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.windows import DAYS, Window, is_open, next_opening
from common.errors import ConfigError

DAY = 24 * 60
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
ZONES = ("UTC", "Europe/Vienna", "America/New_York", "Asia/Kolkata", "Pacific/Chatham", "Pacific/Kiritimati")


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@st.composite
def windows(draw) -> Window:
    start = draw(st.integers(0, DAY - 1))
    end = draw(st.integers(0, DAY).filter(lambda minute: minute != start))
    days = draw(st.lists(st.sampled_from(DAYS), min_size=1, unique=True))
    return Window(clock(start), clock(end), tuple(days))


def minutes_of(window: Window) -> set[int]:
    """Of the week, counted one by one from the start of each day's window: another road to the same answer."""
    start, end = (int(text[:2]) * 60 + int(text[3:]) for text in (window.start, window.end))
    length = end - start if end > start else end + DAY - start
    firsts = [DAYS.index(day) * DAY + start for day in window.days]
    return {(first + passed) % (7 * DAY) for first in firsts for passed in range(length)}


@given(st.lists(windows(), min_size=1, max_size=3), st.lists(st.integers(0, 7 * DAY - 1), min_size=1, max_size=200))
def test_open_in_just_the_minutes_that_are_named(chosen, asked):
    named = set().union(*map(minutes_of, chosen))
    for minute in asked:
        assert is_open(chosen, MONDAY + timedelta(minutes=minute, seconds=59)) == (minute in named)


@given(windows(), st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)), st.sampled_from(ZONES))
def test_what_counts_is_what_the_wall_shows(window, instant, zone):
    local = instant.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    minute = local.weekday() * DAY + local.hour * 60 + local.minute
    assert window.holds(local) == (minute in minutes_of(window))


@given(st.lists(windows(), min_size=1, max_size=3), st.integers(0, 7 * DAY - 1))
def test_the_next_opening_is_open_and_nothing_opens_before_it(chosen, minute):
    now = MONDAY + timedelta(minutes=minute)
    opens = next_opening(chosen, now)
    assert now < opens <= now + timedelta(days=7)
    assert is_open(chosen, opens)
    starts = [m for m in range(minute + 1, minute + 7 * DAY + 1) if _begins(chosen, m % (7 * DAY))]
    assert opens == MONDAY + timedelta(minutes=min(starts))


def _begins(chosen: list[Window], minute: int) -> bool:
    day, of_day = DAYS[minute // DAY], clock(minute % DAY)
    return any(day in window.days and window.start == of_day for window in chosen)


def test_friday_night_ends_on_saturday_morning_and_nowhere_else():
    night = Window("22:00", "06:00", ("fri",))
    at = {name: MONDAY + timedelta(days=DAYS.index(name)) for name in DAYS}
    assert night.holds(at["fri"] + timedelta(hours=22))
    assert night.holds(at["sat"] + timedelta(hours=5, minutes=59))
    assert not night.holds(at["sat"] + timedelta(hours=6))
    assert not night.holds(at["fri"] + timedelta(hours=5))
    assert not night.holds(at["sat"] + timedelta(hours=22))


def test_the_hour_that_clocks_skip_is_no_part_of_a_window_and_the_repeated_one_is_twice():
    vienna, early = ZoneInfo("Europe/Vienna"), Window("02:00", "03:00")
    spring = [datetime(2026, 3, 29, 0, tzinfo=UTC) + timedelta(minutes=m) for m in range(240)]
    autumn = [datetime(2026, 10, 25, 0, tzinfo=UTC) + timedelta(minutes=m) for m in range(-60, 180)]
    assert sum(early.holds(instant.astimezone(vienna)) for instant in spring) == 0
    assert sum(early.holds(instant.astimezone(vienna)) for instant in autumn) == 120


def test_without_a_window_it_is_always_open():
    assert is_open((), MONDAY)


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("8:00", "10:00", DAYS),
        ("24:00", "10:00", DAYS),
        ("08:00", "24:01", DAYS),
        ("08:60", "10:00", DAYS),
        ("08:00", "08:00", DAYS),
        ("08:00", "10:00", ()),
        ("08:00\n", "10:00", DAYS),
        ("٠٨:00", "10:00", DAYS),
    ],
)
def test_an_impossible_window_is_refused_at_birth(start, end, days):
    with pytest.raises(ConfigError):
        Window(start, end, days)
