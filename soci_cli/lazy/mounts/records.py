"""What is written down of mounts and of the processes that serve them, in folders of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError
from soci_cli.kernel.points import MountIdentity, mount_namespace, mount_points
from soci_cli.processes.encoding import decode, encode
from soci_cli.processes.folder import Folder, Folders, OwnFolder
from soci_cli.processes.identity import Process, boot_id
from soci_cli.user_folders import own_folder

_KEPT_CONFIG = "config.json"

PERSON = "person"
"""The owner of what is mounted by `soci mount`; others are programs that mount, such as a snapshotter."""

CONTAINERS = "soci run"
"""The owner of what is mounted for containers."""


def state_root(environ: Mapping[str, str]) -> Path:
    """`$SOCI_STATE`, else `$XDG_STATE_HOME/soci`, else `~/.local/state/soci`. ConfigError without any."""
    return own_folder(environ, "STATE", "SOCI_STATE", "the state of mounts")


@dataclass(frozen=True)
class MountRecord:
    """What a server writes down of its mount.

    `kind` is how it is mounted, `device` and the ids which mount it is; all are empty before it is there.
    `process_started` is in clock ticks after the boot `boot_id`, `started` in seconds since 1970. `host` is
    the folder of the process, `layer_digests` what it reads, `engine` what serves it, `reason` why that is
    not EROFS, and `metadata` the digest of EROFS's metadata in the cache. `restarts` is how many servers
    took the mount over; one that is `held` is taken over when its server ends without a word. One that
    is not `served` needs no process: all of its image is here. Older records lack what has a default.
    """

    image: str
    digest: str
    platform: str
    target: str
    pid: int
    process_started: int
    boot_id: str
    started: float
    layers: int = 0
    indexed: int = 0
    kind: str = ""
    device: str = ""
    writable: bool = False
    mount_id: int = 0
    unique_id: int = 0
    namespace: str = ""
    owner: str = PERSON
    host: str = ""
    layer_digests: tuple[str, ...] = ()
    engine: str = ""
    reason: str = ""
    metadata: str = ""
    restarts: int = 0
    held: bool = False
    served: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidDataError for what no server wrote."""
        if not Path(self.target).is_absolute() or "\0" in self.target or self.pid <= 0:
            raise InvalidDataError("mount.json: no record of a mount")

    @property
    def process(self) -> Process:
        """The server."""
        return Process(self.pid, self.process_started, self.boot_id)

    @property
    def identity(self) -> MountIdentity | None:
        """Which mount it is; None before it is there, and after another boot."""
        if not self.device or self.boot_id != boot_id():
            return None
        return MountIdentity(self.device, self.mount_id, self.unique_id, self.namespace)


@dataclass(frozen=True)
class KeptConfig:
    """An image's config, as text, and the digest that its reference led to when it was mounted."""

    root: str
    config: str

    def write(self, folder: Folder) -> None:
        """Writes it down in a mount's folder. OSError."""
        (folder.path / _KEPT_CONFIG).write_bytes(encode(self))

    @classmethod
    def read(cls, folder: Folder) -> KeptConfig:
        """That of a mount. NotFoundError, InvalidDataError."""
        try:
            return decode(cls, (folder.path / _KEPT_CONFIG).read_bytes(), _KEPT_CONFIG)
        except OSError as error:
            raise NotFoundError(
                f"the config of a mounted image is gone: {error.strerror}"
            ) from error


@dataclass(frozen=True)
class HostRecord:
    """What a process that serves mounts writes down of itself.

    It takes more requests of who has the same `key`; an empty one is nobody's.
    """

    pid: int
    process_started: int
    boot_id: str
    key: str = ""


Mount = tuple[Folder, MountRecord]


class Mounts(Folders[MountRecord]):
    """All mounts whose state is below the folder `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.absolute() / "mounts", "mount.json", MountRecord)

    def claim(self, record: MountRecord) -> OwnFolder:
        """A folder for a mount that is about to be made. StorageError, also when its target has one."""
        with self.turn():
            self.check_free(Path(record.target))
            return self.create(record)

    def add(self, record: MountRecord) -> OwnFolder:
        """As `claim`, for a target of which the caller knows that it is free. StorageError."""
        with self.turn():
            return self.create(record)

    def all(self) -> list[Mount]:
        """See `Folders.all`. What is left of mounts that needed no process, and are gone, is removed."""
        found = []
        for mount in super().all():
            if mount[1].served or is_well(mount):
                found.append(mount)
            else:
                mount[0].remove()
        return found

    def check_free(self, target: Path) -> None:
        """Raises StorageError where a folder has a mount already."""
        other = self.find(target)
        if other is None:
            return
        _, record = other
        if not record.served and record.namespace != mount_namespace():
            return
        if is_well(other):
            raise StorageError(
                f"{record.target} has an image mounted already, {record.image}; soci umount it first"
            )
        raise StorageError(
            f"{record.target} has a mount whose server crashed; soci umount it first"
        )

    def of(self, owner: str | None) -> list[Mount]:
        """Those of an owner, or of all, the oldest first. StorageError."""
        found = [one for one in self.all() if owner in (None, one[1].owner)]
        return sorted(found, key=lambda one: one[1].started)

    def find(self, target: Path) -> Mount | None:
        """The mount at a folder, whose links are resolved; the newest where there are several."""
        found = [one for one in self.of(None) if one[1].target == str(target)]
        return found[-1] if found else None


def is_well(mount: Mount) -> bool:
    """Whether the server of a mount lives, or it needs none and is not gone, as far as can be seen."""
    folder, record = mount
    if record.served:
        return folder.is_alive()
    identity = record.identity
    return identity is not None and (
        identity.namespace != mount_namespace() or any(map(identity.fits, mount_points()))
    )


class Hosts(Folders[HostRecord]):
    """All processes whose state is below the folder `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.absolute() / "hosts", "host.json", HostRecord)

    def folder(self, name: str) -> Folder:
        """The folder of one, which may be gone."""
        return Folder(self.root / name)

    def living(self, key: str) -> list[Folder]:
        """Those that take requests of this key."""
        return [
            folder for folder, record in self.all() if record.key == key != "" and folder.is_alive()
        ]
