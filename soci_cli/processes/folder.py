"""Folders of what outlives a command: one each, which its process holds locked.

    ROOT/ID/RECORD       what it is
            lock         locked as long as its process lives
            log          what went wrong
            socket       where it answers
            scratch/     what it needs besides

A folder gets its name when it is complete and locked. So a folder that is not locked was left by a process
that crashed. What is in the files is checked when it is read.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.processes.encoding import decode, encode
from soci_cli.processes.tree import remove_tree

_MAX_RECORD = 1 << 17
_LOCK = "lock"
_ID = re.compile(r"[0-9a-f]{12}")
_LEFTOVER_AGE = 24 * 60 * 60
_PAUSE = 0.005
_PATIENCE = 30.0
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW

_R = TypeVar("_R")


class Folder:
    """A folder, as others than its process see it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Its id."""
        return self.path.name

    @property
    def log(self) -> Path:
        """The file of what went wrong."""
        return self.path / "log"

    @property
    def scratch(self) -> Path:
        """The folder for what its process needs besides."""
        return self.path / "scratch"

    def is_alive(self) -> bool:
        """Whether its process lives, in whatever container or namespace."""
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
        """Waits until its process has let go of it; whether it has."""
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def remove(self) -> None:
        """Removes it with all that is in it. What is mounted below it must be gone before."""
        gone = self.path.with_name(f".{self.path.name}.gone")
        try:
            self.path.rename(gone)
        except OSError:
            return
        remove_tree(gone)


class OwnFolder(Folder, Closing):
    """A folder in the hands of its process."""

    def __init__(self, path: Path, record: str, lock: int) -> None:
        super().__init__(path)
        self._record = record
        self._lock = lock
        # Whatever is mounted over it later.
        self._root = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._here = Path(f"/proc/self/fd/{self._root}", path.name)

    @property
    def lock(self) -> int:
        """The descriptor of its lock: as long as anybody has a copy, it counts as alive."""
        return self._lock

    def write(self, record: Any) -> None:
        """Writes down what it is now. StorageError."""
        try:
            _write(self._here, self._record, record)
        except OSError as error:
            raise _refused(self.path, error) from error

    def leave(self) -> None:
        """Lets go of it, and it stays: what it is of needs no process."""
        if self._lock >= 0:
            os.close(self._lock)
            os.close(self._root)
            self._lock = -1

    def close(self) -> None:
        """Removes it."""
        if self._lock >= 0:
            Folder(self._here).remove()
            os.close(self._lock)
            os.close(self._root)
            self._lock = -1


class Folders(Generic[_R]):
    """All folders below `root`, each with a record of the type `kind`, a dataclass, in the file `name`."""

    def __init__(self, root: Path, name: str, kind: type[_R]) -> None:
        self.root = root
        self._name = name
        self._kind = kind

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else looks or creates in a block of this kind meanwhile.

        StorageError, also where somebody else takes too long.
        """
        try:
            self._prepare()
            fd = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
        except OSError as error:
            raise _refused(self.root, error) from error
        try:
            deadline = time.monotonic() + _PATIENCE
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self.root}/.lock is held by another soci command that does not go on; end that"
                    )
                time.sleep(_PAUSE)
            yield
        finally:
            os.close(fd)

    def create(self, record: _R) -> OwnFolder:
        """A new one, in this process's hands; in a `turn`. StorageError."""
        try:
            self._prepare()
            self._sweep()
            name = os.urandom(6).hex()
            path = self.root / f".{name}"
            path.mkdir(mode=0o700)
            (path / "scratch").mkdir(mode=0o700)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(path, self._name, record)
            path.rename(self.root / name)
        except OSError as error:
            raise _refused(self.root, error) from error
        return OwnFolder(self.root / name, self._name, lock)

    def adopt(self, name: str, lock: int) -> OwnFolder:
        """One that another process made and locked; `lock` is a descriptor of its lock."""
        return OwnFolder(self.root / name, self._name, lock)

    def take(self, folder: Folder) -> OwnFolder | None:
        """One whose process has ended, now in this one's hands; None where another one has it."""
        try:
            lock = os.open(folder.path / _LOCK, os.O_RDWR | _OPEN)
        except OSError:
            return None
        if not _try_lock(lock):
            os.close(lock)
            return None
        return OwnFolder(folder.path, self._name, lock)

    def all(self) -> list[tuple[Folder, _R]]:
        """All whose records can be read. StorageError for a root that cannot be trusted."""
        found = ((folder, self.read(folder)) for folder in self._folders())
        return [(folder, record) for folder, record in found if record is not None]

    def damaged(self) -> list[Folder]:
        """Those of processes that ended, of which nothing else is known."""
        return [one for one in self._folders() if self.read(one) is None and not one.is_alive()]

    def read(self, folder: Folder) -> _R | None:
        """What its process wrote down; None when that is gone or damaged."""
        try:
            with (folder.path / self._name).open("rb") as stream:
                return decode(self._kind, stream.read(_MAX_RECORD), self._name)
        except (OSError, InvalidDataError):
            return None

    def _folders(self) -> list[Folder]:
        try:
            names = os.listdir(self.root)  # noqa: PTH208 - iterdir of 3.10 gives no error early
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _refused(self.root, error) from error
        self._check()
        return [Folder(self.root / name) for name in names if _ID.fullmatch(name)]

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


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(folder: Path, name: str, record: Any) -> None:
    aside = folder / f".{name}"
    aside.write_bytes(encode(record))
    aside.replace(folder / name)


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the state of mounts cannot be kept here: {error.strerror}; set SOCI_STATE to another "
        "folder"
    )
