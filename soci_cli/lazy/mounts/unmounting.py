"""Ending a mount, with its server or, where that crashed or hangs, without it."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import BusyError, MountError, StorageError
from soci_cli.lazy.fuse.mounting import unmount
from soci_cli.lazy.mount_points import mount_at, mount_points, users_of
from soci_cli.lazy.mounts.control import NoAnswerError, ask
from soci_cli.lazy.mounts.state import MountFolder, MountRecord

_PATIENCE = 5.0
_SHORT = 2.0
_MOST_USERS = 5


def end_mount(folder: MountFolder, record: MountRecord, *, force: bool = False) -> bool:
    """Unmounts what is mounted and removes its state; whether anything was mounted.

    With `force` even while it is in use: who uses it gets errors. Raises BusyError, which names who that
    is, MountError and StorageError.
    """
    # The server, as long as it sees the mount, can end it at once, and those who wait for it with it.
    was_served = folder.is_served()
    if force and was_served and _ask(folder, "abort") and folder.wait(_PATIENCE):
        clear(folder)
        return True
    is_mounted = _is_mounted(record)
    if is_mounted:
        _unmount(record.target, force)
    if folder.is_served():
        _end_server(folder, record, told=is_mounted, force=force)
    clear(folder)
    return is_mounted or was_served


def clear(folder: MountFolder) -> None:
    """Removes the state of a mount that has no server any more."""
    below = f"{folder.path}/"
    for point in reversed(mount_points()):
        if point.path.startswith(below):
            with suppress(MountError):
                unmount(Path(point.path), force=True)
    folder.remove()


def unmount_unknown(target: Path, *, force: bool = False) -> None:
    """Unmounts an image whose state is not here. Raises as `end_mount` does."""
    _unmount(str(target), force)


def _is_mounted(record: MountRecord) -> bool:
    """Whether what is mounted at the target is what the server wrote down."""
    point = mount_at(record.target)
    if point is None:
        return False
    # It may have crashed before it wrote that down.
    return point.device == record.device if record.device else point.is_soci


def _unmount(target: str, force: bool) -> None:
    try:
        unmount(Path(target), force=force)
    except BusyError as error:
        inside = [point.path for point in mount_points() if point.path.startswith(f"{target}/")]
        if inside:
            raise BusyError(
                f"{target} has something mounted in it, {inside[-1]}; unmount that first, or unmount with "
                "--force"
            ) from error
        users = [f"{name} ({pid})" for pid, name in users_of(target)]
        more = ", ..." if len(users) > _MOST_USERS else ""
        who = ", ".join(users[:_MOST_USERS]) + more or "a process that cannot be seen from here"
        raise BusyError(
            f"{target} is in use by {who}; end that, or unmount with --force"
        ) from error


def _end_server(folder: MountFolder, record: MountRecord, *, told: bool, force: bool) -> None:
    """Sees to it that a server ends: by itself, when its mount is gone or it is asked, or killed."""
    if told:
        if folder.wait(0 if force else _PATIENCE):
            return
        if not force and _ask(folder, "stats"):
            # It is well, and its mount is gone from here: it lives on somewhere else.
            raise StorageError(
                f"{record.target} is unmounted here, but another mount namespace still has it, so its "
                f"server goes on (process {record.pid}); --force ends it"
            )
    elif not force and _ask(folder, "stop") and folder.wait(_PATIENCE):
        return
    # Without its connection to the kernel everybody who waits for it gets an error.
    for number, patience in ((signal.SIGTERM, _SHORT), (signal.SIGKILL, _PATIENCE)):
        if folder.signal(record, number) and folder.wait(patience):
            return
    if not folder.wait(0):
        raise StorageError(
            f"the server of {record.target}, process {record.pid}, does not end and cannot be killed from "
            "here"
        )


def _ask(folder: MountFolder, command: str) -> bool:
    """Whether the server answered. StorageError for what it refuses."""
    try:
        ask(folder.path, command, _SHORT)
    except NoAnswerError:
        return False
    return True
