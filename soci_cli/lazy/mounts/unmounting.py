"""Ending a mount, with its server or, where that crashed or hangs, without it."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import BusyError, MountError, NotMountedError, StorageError
from soci_cli.kernel.points import MountIdentity, identify, mount_at, points_below, users_of
from soci_cli.kernel.unmount import check_uppermost, unmount, unmount_below
from soci_cli.lazy.fuse.mounting import is_image
from soci_cli.lazy.mounts.control import NoAnswerError, ask
from soci_cli.lazy.mounts.state import MountFolder, MountRecord

_PATIENCE = 5.0
_SHORT = 2.0
_MOST_USERS = 5


def end_mount(folder: MountFolder, record: MountRecord, *, force: bool = False) -> bool:
    """Unmounts what is mounted and removes its state; whether anything was mounted.

    With `force` even while it is in use: who uses it gets errors. Raises BusyError, which names who that
    is, CoveredError, MountError and StorageError.
    """
    identity = _mounted_here(record)
    # The server, as long as it sees the mount, can end it at once, and those who wait for it with it.
    was_served = folder.is_served()
    if force and was_served and _ask(folder, "abort") and folder.wait(_PATIENCE):
        clear(folder)
        return True
    if identity is not None:
        _unmount(record.target, identity, force)
    if folder.is_served():
        _end_server(folder, record, told=identity is not None, force=force)
    clear(folder)
    return identity is not None or was_served


def clear(folder: MountFolder) -> None:
    """Removes the state of a mount that has no server any more."""
    with suppress(MountError):
        unmount_below(folder.path, is_image)
    folder.remove()


def unmount_unknown(target: Path, *, force: bool = False) -> None:
    """Unmounts an image whose state is not here. Raises as `end_mount` does."""
    _unmount(str(target), identify(target), force)


def _mounted_here(record: MountRecord) -> MountIdentity | None:
    """The mount that the server wrote down, if it is there. CoveredError where another lies on it."""
    target, identity = Path(record.target), record.identity
    if not record.device:
        # The server may have crashed before it wrote that down.
        point = mount_at(record.target)
        return identify(target) if point is not None and is_image(point) else None
    if identity is not None:
        with suppress(NotMountedError):
            check_uppermost(target, identity)
            return identity
    return None


def _unmount(target: str, identity: MountIdentity, force: bool) -> None:
    try:
        unmount(Path(target), identity, force=force)
    except BusyError as error:
        inside = points_below(target)
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
        if record.process.send_signal(number) and folder.wait(patience):
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
