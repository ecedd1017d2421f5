"""Text from outside on a terminal or in a message: one line, control characters escaped."""

from __future__ import annotations

_QUOTED = 80


def printable(text: str | bytes) -> str:
    """All of `text`, what cannot be printed as Python's escapes: `\\n`, `\\x1b`, `\\u202e`.

    Bytes are UTF-8, those that are not become `\\xNN`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str | bytes, limit: int = 300) -> str:
    """Printable text of at most `limit` characters; the end is replaced by an ellipsis."""
    shown = printable(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def quote(text: str) -> str:
    """Printable text in quotes, at most 80 characters of it."""
    return repr(text) if len(text) <= _QUOTED else repr(text[: _QUOTED - 3] + "...")
