"""Who a container's program is: `-u` and an image's `User`, by the image's /etc/passwd and /etc/group.

As runc and Docker read them: an id that /etc/passwd does not have is taken as it is, with group 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from soci_cli.errors import UsageError
from soci_cli.text import quote

_MAX_ID = (1 << 31) - 1


@dataclass(frozen=True)
class User:
    """Ids of a program, its groups besides `gid`, and where its home is."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve_user(text: str, passwd: bytes, group: bytes) -> User:
    """The user that USER[:GROUP] means, each a name or a number; "" is root. UsageError."""
    user, colon, wanted = text.partition(":")
    if colon and not wanted:
        raise UsageError(f"user {quote(text)}: the group after the colon is missing")
    found = next(_matching(passwd, user or "0", 7), None)
    if found is not None:
        name, uid, gid, home = found[0], _id(found[2]), _id(found[3]), found[5] or "/"
        if uid is None or gid is None:
            raise UsageError(f"user {quote(text)}: its line in the image's /etc/passwd is damaged")
    else:
        number = _id(user or "0")
        if number is None:
            raise UsageError(f"user {quote(user)} is not in the image's /etc/passwd")
        name, uid, gid, home = "", number, 0, "/"
    if wanted:
        return User(uid, _group(wanted, group), (), home)
    groups = (
        _id(fields[2]) for fields in _lines(group, 4) if name and name in fields[3].split(",")
    )
    return User(uid, gid, tuple(dict.fromkeys(one for one in groups if one is not None)), home)


def _group(text: str, group: bytes) -> int:
    found = next(_matching(group, text, 4), None)
    number = _id(text if found is None else found[2])
    if number is None:
        raise UsageError(f"group {quote(text)} is not in the image's /etc/group")
    return number


def _matching(data: bytes, wanted: str, count: int) -> Iterator[list[str]]:
    """The lines of a name, or of an id."""
    number = _id(wanted)
    for fields in _lines(data, count):
        if fields[0] == wanted or (number is not None and _id(fields[2]) == number):
            yield fields


def _lines(data: bytes, count: int) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) >= count and not line.startswith("#"):
            yield fields


def _id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    return int(text) if int(text) <= _MAX_ID else None
