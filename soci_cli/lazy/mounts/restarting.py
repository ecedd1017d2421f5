"""Replacing the process that serves mounts by a new one, such as of a newer version, without unmounting."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import MountError, SociError, StorageError
from soci_cli.lazy.mounts.keeping import this_program
from soci_cli.lazy.mounts.records import Mount, MountRecord, Mounts
from soci_cli.lazy.mounts.request import RestartQuestion, StatisticsQuestion
from soci_cli.lazy.mounts.unmounting import ask_server
from soci_cli.processes.control import NoAnswerError
from soci_cli.processes.folder import Folder

_PATIENCE = 60.0
_FAREWELL = 10.0
_PAUSE = 0.02


@dataclass(frozen=True)
class Restarted:
    """A mount as it is now, the process that served it before, and why nothing changed, if that is so."""

    record: MountRecord
    before: int
    error: SociError | None = None


def restart(state: Path, mounts: Sequence[Mount]) -> list[Restarted]:
    """Lets successors, which run the code of this process, take over mounts whose state is below `state`.

    A process serves several mounts, which are all taken over with one of them. Readers wait for some
    hundredths of a second. StorageError where `state` cannot be read; what else goes wrong is an answer.
    """
    hosts = {
        record.host or folder.name: (folder, record) for folder, record in mounts if record.served
    }
    found = []
    for host, mount in hosts.items():
        error = None
        try:
            _restart(state, mount)
        except SociError as problem:
            error = problem
        found += [
            Restarted(record, mount[1].pid, error)
            for folder, record in Mounts(state).of(None)
            if host == (record.host or folder.name)
        ]
    return found


def _restart(state: Path, mount: Mount) -> None:
    folder, record = mount
    if not folder.is_alive():
        raise MountError(f"the server of {record.target} crashed; soci umount takes the mount away")
    if not record.held:
        raise MountError(
            f"the server of {record.target}, process {record.pid}, cannot be replaced: it serves in the "
            "foreground, or is of an older version of soci; unmount and mount again"
        )
    try:
        ask_server(mount, StatisticsQuestion(folder.name))  # whether it is well
        ask_server(mount, RestartQuestion(this_program()), _PATIENCE)
        deadline = time.monotonic() + _FAREWELL
        while record.process.is_alive() and time.monotonic() < deadline:
            time.sleep(_PAUSE)
    except NoAnswerError:
        pass  # it hangs
    record.process.send_signal(signal.SIGKILL)
    _wait(state, folder, record)


def _wait(state: Path, folder: Folder, before: MountRecord) -> None:
    """Waits for the successor."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        record = Mounts(state).read(folder)
        if record is None or record.process != before.process:
            return
        if not folder.is_alive():
            raise MountError(
                f"the server of {before.target} ended, and no other one could be started"
            )
        time.sleep(_PAUSE)
    raise StorageError(f"the server of {before.target}, process {before.pid}, does not end")
