"""User namespaces: whether this process is in one, and which ids it has (user_namespaces(7))."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

_WHOLE_RANGE = "0 0 4294967295"


def is_initial_user_namespace() -> bool:
    """Whether this is no user namespace that somebody made."""
    with suppress(OSError):
        return " ".join(Path("/proc/self/uid_map").read_text().split()) == _WHOLE_RANGE
    return True


def mapped_ids(kind: Literal["uid", "gid"]) -> list[range]:
    """The users or groups that this process's user namespace has. OSError."""
    lines = (line.split() for line in Path(f"/proc/self/{kind}_map").read_text().splitlines())
    return [range(int(first), int(first) + int(count)) for first, _, count in lines]
