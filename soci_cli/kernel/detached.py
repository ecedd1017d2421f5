"""File systems that are mounted without a place, by the newer mount calls (fsopen(2), Linux 5.2).

One is a descriptor; it gets a place by `attach`, or is used by way of the descriptor and goes with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls

# These numbers are the same on every processor but Alpha.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH
_AT_FDCWD = -100
_MESSAGE = 1024
RDONLY, NOSUID, NODEV = 1, 2, 4
"""Attributes of a mount; the numbers are those of mount(2)."""


def mount(kind: str, options: Iterable[tuple[str, str]], attributes: int) -> int:
    """Mounts a file system of a kind; the descriptor of the mount.

    Each option is a key and a value of less than 256 bytes, "" for one that has none. MountError, with what
    the kernel says of it.
    """
    context = -1
    try:
        context = calls.syscall(_FSOPEN, kind.encode(), _CLOEXEC)
        for key, value in options:
            if value:
                calls.syscall(_FSCONFIG, context, _SET_STRING, key.encode(), value.encode(), 0)
            else:
                calls.syscall(_FSCONFIG, context, _SET_FLAG, key.encode(), None, 0)
        calls.syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        return calls.syscall(_FSMOUNT, context, _CLOEXEC, attributes)
    except OSError as error:
        said = _said(context)
        raise MountError(
            f"{kind} cannot be mounted: {error.strerror}" + (f" ({said})" if said else "")
        ) from error
    finally:
        if context >= 0:
            os.close(context)


def attach(mount_fd: int, target: Path) -> None:
    """Gives a mount its place. MountError."""
    try:
        calls.syscall(_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, os.fsencode(target), _EMPTY_PATH)
    except OSError as error:
        raise MountError(f"{target} cannot be mounted on: {error.strerror}") from error


def _said(context: int) -> str:
    """What the kernel says of the last error, such as "erofs: cannot find valid superblock"."""
    lines = []
    with suppress(OSError):  # ENODATA at the end
        while context >= 0:
            lines.append(os.read(context, _MESSAGE).decode(errors="replace").strip())
    return "; ".join(line[2:] for line in lines if line[:2] == "e ")
