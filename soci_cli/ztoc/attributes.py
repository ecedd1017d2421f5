"""The attributes of a file in a layer, and how a zTOC writes them."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from soci_cli.ztoc.model import XATTR_PREFIX

_USER_XATTR = XATTR_PREFIX + b"user."
_EPOCH = date(1970, 1, 1).toordinal()

FORMATS: Mapping[str, int] = {
    "reg": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
"""The types of `Node` as `st_mode` has them."""

TYPES = {kind.encode(): kind for kind in FORMATS}
STEERING = (b"trusted.overlay.", b"user.overlay.")
"""How the extended attributes begin that would steer an overlayfs above."""
MAX_MAJOR, MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # as Linux numbers devices


@dataclass(frozen=True, slots=True)
class Node:
    """All attributes of a file, as `lstat` would give them.

    `type` is "reg", "dir", "symlink", "char", "block" or "fifo", `mode` the twelve permission bits,
    `size` the bytes of a regular file or of a symlink's target, and `offset` where the bytes begin in the
    layer's archive. `xattrs` have their full names.
    """

    type: str
    mode: int
    uid: int = 0
    gid: int = 0
    uname: bytes = b""
    gname: bytes = b""
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    offset: int = 0


IMPLIED_DIRECTORY = Node("dir", 0o755)


class Attributes(NamedTuple):
    """The attributes that `stat` gives, as in `Node`; device numbers are clamped to those of Linux."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    devmajor: int
    devminor: int


IMPLIED_ATTRIBUTES = Attributes("dir", 0o755, 0, 0, 0, 0, 0, 0)


def xattrs_of(
    records: Iterable[tuple[bytes, bytes]], kind: bytes
) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes among the PAX records of a file of a kind, with their full names.

    Those that begin with `user.` only files and folders have (xattr(7)); of others they are left out, as
    containerd does it.
    """
    has_user = kind in (b"reg", b"dir")
    return tuple(
        (key.removeprefix(XATTR_PREFIX), value)
        for key, value in records
        if key.startswith(XATTR_PREFIX)
        and len(key) > len(XATTR_PREFIX)
        and b"\0" not in key
        and (has_user or not key.startswith(_USER_XATTR))
    )


@lru_cache(maxsize=4096)
def nanoseconds(text: bytes) -> int:
    """Nanoseconds since 1970 from RFC 3339 in UTC, as zTOCs have it; 0 for anything else."""
    seconds, _, fraction = text.removesuffix(b"Z").partition(b".")
    if len(seconds) != 19 or len(fraction) > 9 or not (seconds[:4] + fraction).isdigit():
        return 0
    try:
        whole = (
            _day(seconds[:10])
            + 3600 * int(seconds[11:13])
            + 60 * int(seconds[14:16])
            + int(seconds[17:19])
        )
    except ValueError:
        return 0
    return whole * 1_000_000_000 + (int(fraction.ljust(9, b"0")) if fraction else 0)


@lru_cache(maxsize=1024)
def _day(text: bytes) -> int:
    """Seconds since 1970 when a day begins. Python's dates begin with the year 1; the calendar repeats
    after 400 years. ValueError for what is no day."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    if year:
        return (date(year, month, day).toordinal() - _EPOCH) * 86400
    return (date(400, month, day).toordinal() - _EPOCH - 146097) * 86400
