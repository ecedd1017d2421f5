"""What is known of the mounts of this user: one folder for each, which its server holds locked.

    mounts/ID/mount.json   what is mounted where, by which process
              lock         locked as long as the server lives
              log          what went wrong
              socket       where the server answers
              scratch/     what a writable mount wrote

A folder gets its name when it is complete and locked. So a folder that is not locked was left by a server
that crashed. What is in the files is checked when it is read.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import StorageError
from soci_cli.kernel.points import MountIdentity
from soci_cli.processes.identity import Process, boot_id
from soci_cli.processes.tree import remove_tree
from soci_cli.user_folders import own_folder

_RECORD = "mount.json"
_MAX_RECORD = 1 << 16
_LOCK = "lock"
_ID = re.compile(r"[0-9a-f]{12}")
_LEFTOVER_AGE = 24 * 60 * 60
_PAUSE = 0.02
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


def state_root(environ: Mapping[str, str]) -> Path:
    """`$SOCI_STATE`, else `$XDG_STATE_HOME/soci`, else `~/.local/state/soci`. ConfigError without any."""
    return own_folder(environ, "STATE", "SOCI_STATE", "the state of mounts")


@dataclass(frozen=True)
class MountRecord:
    """What a server writes down of its mount.

    `kind` is how it is mounted, `device` and the three after `writable` which mount it is; all are empty
    before it is there. `process_started` is in clock ticks after the boot `boot_id`, `started` in seconds
    since 1970. Records of older versions lack what has a default here.
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


class MountFolder:
    """The state of one mount, as others than its server see it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> Path:
        """The file of what went wrong."""
        return self.path / "log"

    @property
    def scratch(self) -> Path:
        """The folder for what the mount itself needs."""
        return self.path / "scratch"

    def read(self) -> MountRecord | None:
        """What the server wrote down; None when that is gone or damaged."""
        try:
            with (self.path / _RECORD).open("rb") as stream:
                value = json.loads(stream.read(_MAX_RECORD))
        except (OSError, ValueError, RecursionError):
            return None
        return _parse(value)

    def is_served(self) -> bool:
        """Whether the server lives, in whatever container or namespace."""
        try:
            fd = os.open(self.path / _LOCK, os.O_RDONLY | _OPEN)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def wait(self, seconds: float) -> bool:
        """Waits until the server has ended; whether it has."""
        deadline = time.monotonic() + seconds
        while self.is_served():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def remove(self) -> None:
        """Removes the folder with all that is in it. What is mounted below it must be gone before."""
        gone = self.path.with_name(f".{self.path.name}.gone")
        try:
            self.path.rename(gone)
        except OSError:
            return
        remove_tree(gone)


class OwnFolder(MountFolder, Closing):
    """The state of a mount, in the hands of its server."""

    def __init__(self, path: Path, lock: int) -> None:
        super().__init__(path)
        self._lock = lock

    def write(self, record: MountRecord) -> None:
        """Writes the record down. StorageError."""
        try:
            _write_record(self.path, record)
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        """Removes the folder: the mount is gone."""
        if self._lock >= 0:
            self.remove()
            os.close(self._lock)
            self._lock = -1


class Mounts:
    """All mounts whose state is below the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute() / "mounts"

    def create(self, record: MountRecord) -> OwnFolder:
        """A folder for a mount that is about to be made. StorageError, also when its target has one."""
        try:
            self._prepare()
            turn = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
        except OSError as error:
            raise _refused(self.root, error) from error
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            self._sweep()
            self.check_free(Path(record.target))
            return self._create(record)
        except OSError as error:
            raise _refused(self.root, error) from error
        finally:
            os.close(turn)

    def check_free(self, target: Path) -> None:
        """Raises StorageError where a folder has a mount already."""
        other = self.find(target)
        if other is not None:
            raise StorageError(_taken(*other))

    def all(self) -> list[tuple[MountFolder, MountRecord]]:
        """All mounts, the oldest first. StorageError for a folder that cannot be trusted."""
        try:
            names = [path.name for path in self.root.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _refused(self.root, error) from error
        self._check()
        folders = [MountFolder(self.root / name) for name in names if _ID.fullmatch(name)]
        found = [(folder, folder.read()) for folder in folders]
        known = [(folder, record) for folder, record in found if record is not None]
        return sorted(known, key=lambda one: one[1].started)

    def damaged(self) -> list[MountFolder]:
        """Folders of servers that ended, of which nothing else is known."""
        self._check()
        with suppress(OSError):
            folders = [
                MountFolder(path) for path in self.root.iterdir() if _ID.fullmatch(path.name)
            ]
            return [one for one in folders if one.read() is None and not one.is_served()]
        return []

    def find(self, target: Path) -> tuple[MountFolder, MountRecord] | None:
        """The mount at a folder, whose links are resolved; the newest where there are several."""
        found = [one for one in self.all() if one[1].target == str(target)]
        return found[-1] if found else None

    def _create(self, record: MountRecord) -> OwnFolder:
        name = secrets.token_hex(6)
        path = self.root / f".{name}"
        path.mkdir(mode=0o700)
        (path / "scratch").mkdir(mode=0o700)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_record(path, record)
        path.rename(self.root / name)
        return OwnFolder(self.root / name, lock)

    def _prepare(self) -> None:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)
        self._check()

    def _check(self) -> None:
        """What others can write there could make us unmount and remove what they like."""
        try:
            status = self.root.lstat()
        except OSError:
            return
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_mode & 0o022
        ):
            raise StorageError(
                f"{self.root} must be a folder of your own that nobody else can write; set SOCI_STATE "
                "to another one"
            )

    def _sweep(self) -> None:
        """Removes what killed processes were about to make or to remove."""
        for path in self.root.iterdir():
            if path.name.startswith(".") and _ID.fullmatch(path.name[1:13]):
                with suppress(OSError):
                    if time.time() - path.lstat().st_mtime > _LEFTOVER_AGE:
                        remove_tree(path)


def _write_record(path: Path, record: MountRecord) -> None:
    aside = path / f".{_RECORD}"
    aside.write_text(json.dumps(dataclasses.asdict(record)), "ascii")
    aside.replace(path / _RECORD)


def _parse(value: object) -> MountRecord | None:
    """A record with a value of the right type in every field, else None."""
    if not isinstance(value, dict):
        return None
    fields: dict[str, object] = {}
    for field in dataclasses.fields(MountRecord):
        one = value.get(field.name, field.default)
        if type(one) not in _TYPES[str(field.type)]:
            return None
        fields[field.name] = one
    record = MountRecord(**fields)  # type: ignore[arg-type]  # looked at one by one
    is_clean = Path(record.target).is_absolute() and "\0" not in record.target
    return record if is_clean and record.pid > 0 else None


def _taken(folder: MountFolder, record: MountRecord) -> str:
    if folder.is_served():
        return f"{record.target} has an image mounted already, {record.image}; soci umount it first"
    return f"{record.target} has a mount whose server crashed; soci umount it first"


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the state of mounts cannot be kept here: {error.strerror}; set SOCI_STATE to another "
        "folder"
    )
