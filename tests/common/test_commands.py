"""Proves: text that another party wrote stays on its line of a terminal, and reads as it was where it is harmless."""

from hypothesis import given
from hypothesis import strategies as st

from common.commands import printable, show_fields, show_rows

EVIL = st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Lu", "Nd", "Cs", "Co"]), max_size=50)


@given(EVIL)
def test_nothing_ends_the_line_or_moves_the_cursor(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


@given(st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" ")))
def test_ordinary_text_of_any_language_is_left_alone(text):
    assert printable(text) == text


@given(EVIL, EVIL)
def test_tables_and_fields_have_as_many_lines_as_entries(key, value):
    assert len(show_fields({key: value, "b": [value]}).splitlines()) == 2
    assert len(show_rows({"rows": [{"a": value}], "skipped": [value]}).splitlines()) == 3
