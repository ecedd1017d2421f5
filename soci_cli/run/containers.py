"""What is written down of containers, and what is removed of those whose monitor is gone.

Each has a folder as in `processes.folder`, which its monitor holds locked; `scratch` has the bundle for its
runtime, and the layer of what it writes.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from soci_cli.errors import InvalidDataError, MountError, NotFoundError, SociError, UsageError
from soci_cli.kernel.points import mount_at
from soci_cli.processes.folder import Folder, Folders, OwnFolder
from soci_cli.processes.identity import Process
from soci_cli.run.images import RunImages
from soci_cli.run.rootfs import unmount_rootfs
from soci_cli.run.runtime import Runtime
from soci_cli.text import quote

_KILLED = 137
_PATIENCE = 5.0
_PAUSE = 0.01
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


@dataclass(frozen=True)
class ContainerRecord:
    """What is known of a container.

    `mount` is the id of its image's mount, `runtime` how the runtime that started it is called, with its
    options; `pid` to `boot_id` are those of its first process, once it runs. `created` and `finished` are
    in seconds since 1970. One that is to `keep` stays when it has ended, with its `exit_code`.
    """

    image: str
    mount: str
    name: str = ""
    digest: str = ""
    command: tuple[str, ...] = ()
    created: float = 0.0
    runtime: str = ""
    runtime_program: str = ""
    runtime_options: tuple[str, ...] = ()
    pid: int = 0
    process_started: int = 0
    boot_id: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    exit_code: int = -1
    finished: float = 0.0

    def __post_init__(self) -> None:
        """Raises InvalidDataError for what no monitor wrote."""
        if self.name and not _NAME.fullmatch(self.name):
            raise InvalidDataError("container.json: no record of a container")

    @property
    def process(self) -> Process:
        """Its first process."""
        return Process(self.pid, self.process_started, self.boot_id)


Container = tuple[Folder, ContainerRecord]


class Containers(Folders[ContainerRecord]):
    """All containers whose state is below the folder `state`."""

    def __init__(self, state: Path) -> None:
        super().__init__(state / "containers", "container.json", ContainerRecord)
        self.images = RunImages(state)

    def claim(self, record: ContainerRecord) -> OwnFolder:
        """A folder for a container that is about to be made. UsageError where its name is taken."""
        with self.turn():
            if record.name and any(one.name == record.name for _, one in self.all()):
                raise UsageError(f"--name: there is a container {record.name} already")
            return self.create(record)

    def find(self, text: str) -> Container:
        """The container of a name, an id, or the beginning of one. NotFoundError, UsageError."""
        found = self.all()
        exact = [one for one in found if text in (one[1].name, one[0].name)]
        begins = [one for one in found if text and one[0].name.startswith(text)]
        if len(exact or begins) > 1:
            raise UsageError(f"{quote(text)} is the beginning of several containers' ids")
        if not (exact or begins):
            raise NotFoundError(f"there is no container {quote(text)}; soci ps -a lists yours")
        return (exact or begins)[0]

    def finish(self, folder: OwnFolder, record: ContainerRecord, exit_code: int) -> None:
        """A container has ended, or is ended now: takes away what is not kept of it. Raises MountError."""
        self._end(folder, record)
        if record.keep:
            ended = replace(record, mount="", exit_code=exit_code, finished=time.time())
            folder.write(ended)
            folder.leave()
        else:
            folder.close()
        self.images.release(record.mount, lambda: self._uses(record.mount))

    def discard(self, folder: OwnFolder, record: ContainerRecord) -> None:
        """Removes a container that was not started, or has ended. Raises MountError."""
        self.finish(folder, replace(record, keep=False), 0)

    def sweep(self) -> None:
        """Ends what monitors left that were killed: their containers, and images that nobody uses."""
        for folder, record in self.all():
            if record.exit_code < 0 and not folder.is_alive():
                own = self.take(folder)
                if own is not None:
                    with suppress(SociError):  # said to who needs it
                        self.finish(own, record, _KILLED)
        for folder in self.damaged():
            with suppress(MountError):
                _unmount(bundle_of(folder) / "rootfs")
                folder.remove()
        for name in self.images.names():
            if not self._uses(name):
                with suppress(SociError):
                    self.images.release(name, lambda: self._uses(name))  # noqa: B023

    def _end(self, folder: Folder, record: ContainerRecord) -> None:
        if record.pid and record.process.send_signal(signal.SIGKILL):
            wait_for(record.process, _PATIENCE)
        bundle = bundle_of(folder)
        if record.runtime_program:
            runtime = Runtime(record.runtime, record.runtime_program, record.runtime_options)
            runtime.delete(folder.name, bundle)
        _unmount(bundle / "rootfs")

    def _uses(self, mount: str) -> bool:
        return any(record.mount == mount for _, record in self.all())


def output_of(folder: Folder) -> Path:
    """What a container in the background has written; see `logs`."""
    return folder.path / "output"


def bundle_of(folder: Folder) -> Path:
    """What the runtime of a container is given: config.json, and rootfs."""
    return folder.scratch / "bundle"


def check_name(text: str) -> str:
    """The name of a container. UsageError."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"--name: {quote(text)} is no name of a container: letters and digits, then also _.-"
        )
    return text


def wait_for(process: Process, seconds: float) -> bool:
    """Waits until a process has ended; whether it has."""
    deadline = time.monotonic() + seconds
    while process.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _unmount(rootfs: Path) -> None:
    if mount_at(str(rootfs)) is not None:
        unmount_rootfs(rootfs)
