"""User namespaces: whether this process is in one, and which ids it has (user_namespaces(7))."""

from __future__ import annotations

import os
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


def process_namespaces() -> tuple[str, ...]:
    """The namespaces that decide what this process sees of mounts, users, processes and the network."""
    kinds = ("mnt", "net", "pid", "user")
    with suppress(OSError):
        return tuple(os.readlink(f"/proc/self/ns/{kind}") for kind in kinds)  # noqa: PTH115
    return ()


def privileges() -> str:
    """What decides what this process may mount: its user namespace, user, capabilities and filters."""
    found = list(process_namespaces()[-1:])
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith(("CapEff:", "Uid:", "Seccomp:")):
                found.append("=".join(line.split()))
    return " ".join(found)
