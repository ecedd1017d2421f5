"""What is mounted where, as /proc says it (proc_pid_mountinfo(5)), and who uses it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_LINKS = 40


@dataclass(frozen=True)
class MountPoint:
    """One line of the kernel's list; `device` is major:minor."""

    path: str
    device: str
    kind: str
    source: str

    @property
    def is_soci(self) -> bool:
        """Whether it is an image that this program mounted."""
        return self.kind == "fuse.soci" or self.source.startswith("soci:")


def mount_points() -> list[MountPoint]:
    """All that is mounted in this mount namespace, what covers something after what it covers."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            head, dash, tail = line.partition(b" - ")
            fields, rest = head.split(b" "), tail.split(b" ")
            if dash and len(fields) >= 6 and len(rest) >= 2:
                texts = (fields[4], fields[2], rest[0], rest[1])
                path, device, kind, source = (os.fsdecode(_unescape(text)) for text in texts)
                found.append(MountPoint(path, device, kind, source))
    return found


def mount_at(target: str) -> MountPoint | None:
    """What is mounted at a folder, the uppermost."""
    found = [point for point in mount_points() if point.path == target]
    return found[-1] if found else None


def resolve(path: Path) -> Path:
    """The absolute path of a folder without links. Asks for nothing inside a mount, which may hang."""
    here = Path.cwd() / path
    for _ in range(_MAX_LINKS):
        if here.name in ("", ".."):
            return here.resolve()
        here = here.parent.resolve() / here.name
        try:
            here = here.parent / here.readlink()
        except OSError:
            return here
    return here


def users_of(target: str) -> list[tuple[int, str]]:
    """The processes that use something below a folder, as far as they can be looked at: pid and name."""
    users = []
    for entry in sorted(Path("/proc").iterdir(), key=lambda path: (len(path.name), path.name)):
        if entry.name.isdigit() and any(_is_below(path, target) for path in _used(entry)):
            users.append((int(entry.name), _name(entry)))
    return users


def _used(process: Path) -> Iterator[str]:
    """The files that a process holds. Links of /proc are read without a question to their targets."""
    with suppress(OSError):
        for name in ("cwd", "root", "exe"):
            yield str((process / name).readlink())
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                yield str(link.readlink())
    with suppress(OSError):
        for line in (process / "maps").read_bytes().splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6:
                yield os.fsdecode(fields[5])


def _name(process: Path) -> str:
    with suppress(OSError):
        return os.fsdecode((process / "comm").read_bytes().rstrip(b"\n"))
    return "?"


def _is_below(path: str, target: str) -> bool:
    return path == target or path.startswith(f"{target.rstrip('/')}/")


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), text)
