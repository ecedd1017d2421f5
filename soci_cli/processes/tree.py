"""Removing a folder with all that is in it, and nothing that is mounted there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from soci_cli.kernel.calls import mount_id

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
_ALL = 0o700


def remove_tree(path: Path) -> None:
    """Removes a folder as far as possible, even folders without permissions.

    What is mounted below it, bind mounts included, is neither entered nor changed.
    """
    with suppress(OSError):
        top = _open(path, None, None)
        try:
            _empty(top)
        finally:
            os.close(top)
        path.rmdir()


def _empty(top: int) -> None:
    # However deep it is, few descriptors are enough: folders are moved up into the first one.
    mount = mount_id(top)
    waiting = list(_clear(top, top, mount))
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            folder = _open(name, top, mount)
            try:
                waiting += _clear(folder, top, mount)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _clear(folder: int, top: int, mount: int) -> Iterator[str]:
    """Removes all but folders, and moves those into the folder `top`; their names there."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with suppress(OSError):
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif folder == top:
                yield name
            else:
                os.close(_open(name, folder, mount))  # who is not root moves only what he can write
                new = os.urandom(16).hex()
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
                yield new


def _open(path: Path | str, above: int | None, mount: int | None) -> int:
    """A folder, readable and writable from now on. OSError, also for one of another mount."""
    at = os.open(path, os.O_PATH | os.O_NOFOLLOW | _FOLDER, dir_fd=above)
    try:
        if mount is not None and mount_id(at) != mount:
            raise OSError(errno.EXDEV, "mounted here")
        itself = f"/proc/self/fd/{at}"
        if os.fstat(at).st_mode & _ALL != _ALL:
            os.chmod(itself, _ALL)  # noqa: PTH101 - of the descriptor
        return os.open(itself, os.O_RDONLY | _FOLDER)
    finally:
        os.close(at)
