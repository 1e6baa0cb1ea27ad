"""Texts of other software, and names of other people's files, as parts of a message."""

from __future__ import annotations

import pytest

from trainables.common.errors import one_line, without_controls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\n\tlines", "two lines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[?25lhidden\x9b2J", "hidden"),
        ("\x1b]0;a title\x07shown", "shown"),
        ("\x1b]52;c;Y29weQ==\x1b\\shown", "shown"),
        ("\x1b]0;without an end", ""),
        ("bell\x07 and \x1bescape", "bell? and ?escape"),
        ("Łódź 写真 कर्म", "Łódź 写真 कर्म"),
    ],
)
def test_a_terminal_obeys_nothing_in_a_message(text: str, expected: str) -> None:
    assert one_line(text) == expected


def test_a_name_keeps_its_letters() -> None:
    assert without_controls("a\x1b]0;b\x07\n写.png") == "a?]0;b??写.png"
