"""What is mounted where, as /proc says it (proc_pid_mountinfo(5)), and who uses it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.kernel import calls

_MAX_LINKS = 40


@dataclass(frozen=True)
class MountPoint:
    """One line of the kernel's list.

    `device` is major:minor, `number` the mount's id, which other mounts get when it is gone, and `parent`
    that of the mount which it is on.
    """

    path: str
    device: str
    kind: str
    source: str
    number: int
    parent: int


@dataclass(frozen=True)
class MountIdentity:
    """Which mount it is. `device` and `number` are those of its `MountPoint`, and are used again.

    `unique` is not, before the next boot: see `calls.unique_mount_id`. Both ids count in the mount
    namespace `namespace`; in a copy of it the same mount has others. 0 is unknown.
    """

    device: str
    number: int
    unique: int
    namespace: str

    def fits(self, point: MountPoint) -> bool:
        """Whether a line of this process's list is this mount."""
        return point.device == self.device and (
            self.number in (0, point.number) or self.namespace != mount_namespace()
        )

    def is_uppermost(self, point: MountPoint) -> bool:
        """As `fits`, of one that no other covers, of which more is known."""
        if not self.fits(point):
            return False
        unique = calls.unique_mount_id(Path(point.path))
        return self.namespace != mount_namespace() or not (
            self.unique and unique and self.unique != unique
        )


def identify(target: Path) -> MountIdentity:
    """The identity of what is mounted at a folder, the uppermost, to know it again later.

    Where nothing is, that of no mount.
    """
    point = mount_at(str(target)) or MountPoint("", "", "", "", 0, 0)
    return MountIdentity(
        point.device, point.number, calls.unique_mount_id(target), mount_namespace()
    )


def mount_namespace() -> str:
    """The mount namespace of this process; "" where /proc does not say it."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/mnt")  # noqa: PTH115 - it is no path
    return ""


def mount_points() -> list[MountPoint]:
    """All that is mounted in this mount namespace."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            head, dash, tail = line.partition(b" - ")
            fields, rest = head.split(b" "), tail.split(b" ")
            if dash and len(fields) >= 6 and len(rest) >= 2:
                texts = (fields[4], fields[2], rest[0], rest[1])
                path, device, kind, source = (os.fsdecode(_unescape(text)) for text in texts)
                found.append(MountPoint(path, device, kind, source, int(fields[0]), int(fields[1])))
    return found


def mount_at(target: str) -> MountPoint | None:
    """What is mounted at a folder, the uppermost."""
    found = stack_at(target)
    return found[-1] if found else None


def stack_at(target: str) -> list[MountPoint]:
    """What is mounted at a folder, each covered by the next."""
    left = {point.number: point for point in mount_points() if point.path == target}
    found: list[MountPoint] = []
    while left:
        # The list is not sorted so: mounts can be moved, and put below others.
        lower = next((one for one in left.values() if one.parent not in left), None)
        found.append(left.pop(lower.number if lower else next(iter(left))))
    return found


def points_below(target: str) -> list[str]:
    """The folders below one that something is mounted at."""
    prefix = f"{target.rstrip('/')}/"
    return [point.path for point in mount_points() if point.path.startswith(prefix)]


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


def copies_of(device: str) -> list[tuple[int, str]]:
    """Who has a mount of a device in another mount namespace: of each, pid and name of one process.

    A namespace that is copied has copies of all mounts, which live on when the originals are gone.
    """
    copies: dict[str, tuple[int, str]] = {}
    here, wanted = mount_namespace(), os.fsencode(device)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            namespace = os.readlink(entry / "ns/mnt")  # noqa: PTH115 - it is no path
            if namespace == here or namespace in copies:
                continue
            lines = (entry / "mountinfo").read_bytes().splitlines()
            if any(line.split(b" ", 3)[2] == wanted for line in lines):
                copies[namespace] = int(entry.name), _name(entry)
    return sorted(copies.values())


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
