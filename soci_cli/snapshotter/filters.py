"""containerd's filters, by which snapshots are listed (its package pkg/filters).

filters    any of them must match; none match everything
filter     selectors, separated by commas, all of which must match
selector   field [operator value]      a field alone asks whether it is there
field      word {"." word}             a word may be quoted
operator   == | != | ~=                the last is a regular expression, found anywhere
value      quoted by ", after ~= also by / or |, else all up to white space or a comma
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from soci_cli.errors import UsageError
from soci_cli.snapshotter.metadata import Kind, Snapshot
from soci_cli.text import brief

Filter = Callable[[Snapshot], bool]

_MAX_FILTERS = 1000
_MAX_LENGTH = 64 << 10
_WORD = re.compile(r"[A-Za-z0-9_]+")
_BARE = re.compile(r"[^\s,]+")
_SPACE = re.compile(r"\s*")
_OPERATORS = ("==", "!=", "~=")
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))"
)
_NAMED = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    "'": "'",
    '"': '"',
}
_KINDS = {Kind.ACTIVE: "active", Kind.VIEW: "view", Kind.COMMITTED: "committed"}


def parse_filters(texts: Sequence[str]) -> Filter:
    """What tells whether a snapshot is wanted. UsageError for a filter that cannot be read."""
    if len(texts) > _MAX_FILTERS or sum(map(len, texts)) > _MAX_LENGTH:
        raise UsageError("too many or too long filters")
    filters = [_parse(text) for text in texts]
    if not filters:
        return lambda snapshot: True
    return lambda snapshot: any(
        all(one.matches(snapshot) for one in selectors) for selectors in filters
    )


@dataclass(frozen=True)
class _Selector:
    """One condition; an `operator` of "" asks whether the field is there."""

    field: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, snapshot: Snapshot) -> bool:
        found = _value_of(snapshot, self.field)
        if self.operator == "==":
            return found is not None and found == self.value
        if self.operator == "!=":
            return found != self.value
        if self.operator == "~=":
            return (
                found is not None and self.pattern is not None and bool(self.pattern.search(found))
            )
        return found is not None


def _value_of(snapshot: Snapshot, field: tuple[str, ...]) -> str | None:
    """The value of a field; None when it is not there."""
    first, *rest = field
    if first == "labels" and rest:
        return snapshot.labels.get(".".join(rest))
    if rest:
        return None
    if first == "name":
        return snapshot.name
    if first == "parent":
        return snapshot.parent
    return _KINDS[snapshot.kind] if first == "kind" else None


def _parse(text: str) -> list[_Selector]:
    reader = _Reader(text)
    if reader.at_end():
        return []
    selectors = [reader.selector()]
    while not reader.at_end():
        reader.expect(",")
        selectors.append(reader.selector())
    return selectors


class _Reader:
    """Reads a filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def at_end(self) -> bool:
        """Whether only white space is left, which is skipped."""
        self._skip()
        return self._at >= len(self._text)

    def selector(self) -> _Selector:
        """The next condition."""
        self._skip()
        parts = [self._word()]
        while self._text.startswith(".", self._at):
            self._at += 1
            parts.append(self._word())
        field = tuple(parts)
        self._skip()
        operator = self._text[self._at : self._at + 2]
        if operator not in _OPERATORS:
            return _Selector(field)
        self._at += 2
        self._skip()
        value = self._value('"/|' if operator == "~=" else '"')
        if operator != "~=":
            return _Selector(field, operator, value)
        try:
            return _Selector(field, operator, value, re.compile(value))
        except (re.error, RecursionError, OverflowError):
            raise self.error(f"no regular expression: {brief(value)}") from None

    def expect(self, character: str) -> None:
        """Passes over a character that must be there."""
        if not self._text.startswith(character, self._at):
            raise self.error(f"{character!r} is expected")
        self._at += 1

    def error(self, reason: str) -> UsageError:
        """What is wrong, and where."""
        return UsageError(f"filter {brief(self._text)}: {reason} at character {self._at + 1}")

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _word(self) -> str:
        if self._text[self._at : self._at + 1] == '"':
            return self._quoted()
        return self._take(_WORD, "a field is expected")

    def _value(self, quotes: str) -> str:
        if self._text[self._at : self._at + 1] in tuple(quotes):
            return self._quoted()
        return self._take(_BARE, "a value is expected")

    def _take(self, pattern: re.Pattern[str], reason: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self.error(reason)
        self._at = found.end()
        return found[0]

    def _quoted(self) -> str:
        quote = self._text[self._at]
        end = self._at + 1
        while end < len(self._text) and self._text[end] != quote:
            end += 2 if self._text[end] == "\\" else 1
        if end >= len(self._text):
            raise self.error("a quote is not closed")
        inner, self._at = self._text[self._at + 1 : end], end + 1
        if quote != '"':
            return inner.replace(f"\\{quote}", quote)
        return self._unescaped(inner)

    def _unescaped(self, text: str) -> str:
        """Go's escapes in a string."""
        parts, at = [], 0
        while (backslash := text.find("\\", at)) >= 0:
            found = _ESCAPE.match(text, backslash)
            if found is None:
                raise self.error("an unknown escape")
            parts.append(text[at:backslash])
            named, two, four, eight, octal = found.groups()
            number = int(two or four or eight or octal or "0", 8 if octal else 16)
            if number > 0x10FFFF:
                raise self.error("an unknown escape")
            parts.append(_NAMED[named] if named else chr(number))
            at = found.end()
        return "".join([*parts, text[at:]])
