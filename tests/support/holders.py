"""The process that keeps what a server of mounts must leave behind."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def holder_of(server: int) -> int | None:
    """The holder of a server, which one of them started; None when there is none."""
    found = [_parent(server), *children(server)]
    return next((pid for pid in found if pid and _name(pid) == "soci-holder"), None)


def crash(server: int) -> None:
    """Kills a server and its holder at once, so that nobody takes the mounts over."""
    with suppress(OSError):
        os.kill(server, signal.SIGSTOP)  # it would start another holder
    holder = holder_of(server)
    for pid in (holder, server):
        with suppress(OSError):
            if pid:
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def _parent(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
