"""Ending a mount, with its server or, where that crashed or hangs, without it."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from soci_cli.errors import (
    BusyError,
    CoveredError,
    MountError,
    NotFoundError,
    NotMountedError,
    StorageError,
)
from soci_cli.kernel.points import (
    MountIdentity,
    copies_of,
    identify,
    mount_at,
    mount_namespace,
    points_below,
    users_of,
)
from soci_cli.kernel.unmount import check_uppermost, unmount, unmount_below
from soci_cli.lazy.fuse.naming import is_image
from soci_cli.lazy.mounts.records import Hosts, Mount, MountRecord, Mounts
from soci_cli.lazy.mounts.request import AbortQuestion, StatisticsQuestion, UnmountQuestion
from soci_cli.processes.control import PATIENCE, LostAnswerError, NoAnswerError, connect, talk
from soci_cli.processes.folder import Folder
from soci_cli.text import brief

_PATIENCE = 5.0
_SHORT = 2.0
_MOST_USERS = 5
_TAKING_OVER = 10.0
_PAUSE = 0.05


def end_mount(mounts: Mounts, mount: Mount, *, force: bool = False) -> bool:
    """Unmounts what is mounted and removes its state; whether anything was mounted.

    With `force` even while it is in use: who uses it gets errors. Raises BusyError, which names who that
    is, CoveredError, MountError and StorageError. Other mounts of the same server go on.
    """
    folder, record = mount
    identity = _mounted_here(record)
    # The server, as long as it sees the mount, can end it at once, and those who wait for it with it.
    was_served = folder.is_alive()
    abort = AbortQuestion(folder.name)
    if force and was_served and _ask(mount, abort) and folder.wait(_PATIENCE):
        _clear(mount)
        return True
    if identity is not None:
        _unmount(record.target, identity, force)
    if folder.is_alive():
        _end_server(mounts, mount, identity, force=force)
    _clear(mount)
    return identity is not None or was_served


def clear(folder: Folder) -> None:
    """Removes the state of a mount that has no server any more."""
    with suppress(MountError):
        unmount_below(folder.path, is_image)
    folder.remove()


def _clear(mount: Mount) -> None:
    """Removes the state of a mount, and of its server if that crashed and has no other."""
    folder, record = mount
    clear(folder)
    root = folder.path.parent.parent
    if record.host and not any(one.host == record.host for _, one in Mounts(root).all()):
        host = Hosts(root).folder(record.host)
        if not host.is_alive():
            host.remove()


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


def _may_be_there(record: MountRecord) -> bool:
    """Whether something is mounted as far as can be seen from here."""
    try:
        return record.namespace != mount_namespace() or _mounted_here(record) is not None
    except CoveredError:
        return True


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


def _end_server(
    mounts: Mounts, mount: Mount, unmounted: MountIdentity | None, *, force: bool
) -> None:
    """Sees to it that a mount is served no more: by itself, when it is gone or its server is asked.

    `unmounted` is what was unmounted here.

    A server that does not answer is killed, if a successor serves its other mounts or it has none.
    """
    folder, record = mount
    if unmounted is not None:
        if folder.wait(0 if force else _SHORT):
            return
        copies = [] if force else copies_of(unmounted.device)
        if copies and folder.wait(_PATIENCE):
            return
        if copies and _ask(mount, StatisticsQuestion(folder.name)):
            pid, name = copies[0]
            raise StorageError(
                f"{record.target} is unmounted here, but {name} ({pid}) has it in another mount namespace, "
                f"so its server goes on (process {record.pid}) until that ends; --force ends it now"
            )
        # Nobody has it in any folder.
        if not force and _ask(mount, AbortQuestion(folder.name)) and folder.wait(_PATIENCE):
            return
    elif not force and _ask(mount, UnmountQuestion(folder.name)) and folder.wait(_PATIENCE):
        return
    others = [
        one.target
        for other, one in mounts.of(None)
        if one.host == record.host != "" and other.name != folder.name and _may_be_there(one)
    ]
    if others and not record.held:
        raise StorageError(
            f"the server of {record.target}, process {record.pid}, does not answer, and it has other "
            f"mounts ({brief(', '.join(others))}); unmount those with --force as well, or end it with: "
            f"kill -9 {record.pid}"
        )
    # Without its connection to the kernel everybody who waits for it gets an error.
    if not others and record.process.send_signal(signal.SIGTERM) and folder.wait(_SHORT):
        return
    if record.process.send_signal(signal.SIGKILL):
        _ask(mount, AbortQuestion(folder.name))  # its successor, if it has one
    if not folder.wait(_PATIENCE):
        raise StorageError(
            f"the server of {record.target}, process {record.pid}, does not end and cannot be killed from "
            "here"
        )


def ask_server(mount: Mount, question: object, patience: float | None = PATIENCE) -> Any:
    """What the server of a mount answers, as `control.talk`. NoAnswerError also for an older version's.

    Where it just ended without a word, the successor is waited for.
    """
    folder, record = mount
    host = _host(mount)
    deadline = time.monotonic() + _TAKING_OVER
    while True:
        try:
            with connect(host.path) as connection:
                return talk(connection, question, patience)
        except LostAnswerError:
            if not (record.held and folder.is_alive()) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def is_being_taken_over(mount: Mount) -> bool:
    """Whether nobody serves a mount at the moment, but its holder sees to a successor."""
    folder, record = mount
    if not record.held or not folder.is_alive():
        return False
    try:
        connect(_host(mount).path).close()
    except LostAnswerError:
        return True
    except NoAnswerError:
        pass
    return False


def _host(mount: Mount) -> Folder:
    """The folder of the process that serves a mount."""
    folder, record = mount
    if not record.host:
        raise NoAnswerError(f"the server of {record.target} is of an older version of soci")
    return Hosts(folder.path.parent.parent).folder(record.host)


def _ask(mount: Mount, question: object) -> bool:
    """Whether the server answered. Raises the SociError that it answers with."""
    try:
        ask_server(mount, question, _SHORT)
    except NoAnswerError:
        return False
    except NotFoundError:
        pass  # it is gone just now
    return True
