"""Text from outside in messages and on terminals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from soci_cli.text import brief, printable, quote


def test_control_characters_are_escaped() -> None:
    assert printable("a\n\x1b[2J\u202e é") == "a\\n\\x1b[2J\\u202e é"


def test_bytes_that_are_no_utf_8() -> None:
    assert printable(b"\xff\n\x1b ok") == "\\xff\\n\\x1b ok"


def test_long_text_is_cut_after_it_was_escaped() -> None:
    assert brief("\n" * 300, 10) == "\\n\\n\\n\\n\\…"
    assert brief("a" * 300) == "a" * 300
    assert brief("a" * 301) == "a" * 299 + "…"


@given(st.text() | st.binary(), st.integers(1, 400))
def test_whatever_comes_is_one_printable_line(text: str | bytes, limit: int) -> None:
    assert printable(text).isprintable()
    shown = brief(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    if isinstance(text, str):
        assert quote(text).isprintable()
