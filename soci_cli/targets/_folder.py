"""The files of an OCI image layout in a folder: blobs, oci-layout, index.json.

See "image-layout.md" of the OCI image specification. Inside the folder symbolic links are never
followed, because a layout may come from a stranger. What is being written has a name that begins
with `.ingest-` in the folder itself, where other tools do not look.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError
from soci_cli.new_file import fsync_folder, replacing, unlink_quietly
from soci_cli.oci.digest import algorithm_of, encoded_of
from soci_cli.targets._disk import (
    disk_errors,
    storage_error,
)
from soci_cli.targets._index_json import (
    INDEX_LIMIT,
    MARKER,
    MARKER_LIMIT,
    IndexJson,
    check_marker,
    empty_index,
    parse_index_json,
)
from soci_cli.text import brief

INGEST_PREFIX = ".ingest-"
LEFTOVER_AGE = 24 * 60 * 60
"""Seconds after which an unfinished file is taken for one of a crashed run."""

_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW


class LayoutFolder:
    """One layout on disk. All methods may be called from several threads and processes."""

    def __init__(self, root: Path, name: str, mode: int = 0o755) -> None:
        """`name` is the place in messages, `mode` the permissions of a new folder."""
        self.root = root
        self.name = name
        self._mode = mode
        self._at = root  # from where it is read
        self._held = -1

    def hold(self) -> None:
        """From now on read from the folder that is here now, whatever is mounted over it. StorageError."""
        if self._held < 0:
            with disk_errors("open", self.root):
                self._held = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._at = Path(f"/proc/self/fd/{self._held}")

    def release(self) -> None:
        """Lets go of the folder."""
        if self._held >= 0:
            held, self._held, self._at = self._held, -1, self.root
            os.close(held)

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be. InvalidDataError when `digest` is no digest."""
        return self.root / "blobs" / algorithm_of(digest) / encoded_of(digest)

    def open_blob(self, digest: str) -> tuple[int, os.stat_result] | None:
        """An open file descriptor of a blob and its status; None when the blob is not there.

        InvalidDataError when something other than a regular file has that name.
        """
        path = self.blob_path(digest)
        try:
            with self.blobs_folder(digest) as folder:
                # A FIFO would block the open for ever without O_NONBLOCK.
                fd = os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO):
                raise _not_regular(path) from error
            raise storage_error("read", path, error) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise _not_regular(path)
        return fd, status

    @contextmanager
    def blobs_folder(self, digest: str) -> Iterator[int]:
        """An open descriptor of the folder that holds this blob. Raises OSError."""
        outer = os.open(self._at / "blobs", _FOLDER)
        try:
            inner = os.open(algorithm_of(digest), _FOLDER, dir_fd=outer)
        finally:
            os.close(outer)
        try:
            yield inner
        finally:
            os.close(inner)

    def make_folders(self, digest: str | None = None) -> bool:
        """Create the layout's folders, with that of a blob; True when the root itself is new."""
        with disk_errors("create", self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.root.mkdir(mode=self._mode)
                made = True
            except FileExistsError:
                made = False
            (self.root / "blobs").mkdir(exist_ok=True)
            if digest is not None:
                self.blob_path(digest).parent.mkdir(exist_ok=True)
        return made

    def remove_empty_folders(self) -> None:
        """Undo `make_folders` as far as nothing was put into them."""
        blobs = self.root / "blobs"
        for path in (blobs / "sha256", blobs / "sha512", blobs, self.root):
            with suppress(OSError):
                path.rmdir()

    def check_usable(self) -> None:
        """StorageError unless the folder is absent, empty, a layout, or the start of one."""
        try:
            names = set(os.listdir(self.root))  # noqa: PTH208 - iterdir of 3.10 gives no error early
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise StorageError(
                f"{brief(str(self.root))} cannot be a folder: there is a file in the way"
            ) from error
        except OSError as error:
            raise storage_error("read", self.root, error) from error
        ours = {name for name in names if name == "blobs" or name.startswith(INGEST_PREFIX)}
        if "oci-layout" not in names and names - ours:
            raise StorageError(
                f"{brief(str(self.root))} is neither empty nor an OCI layout; choose another folder"
            )

    def read_index(self) -> IndexJson:
        """index.json of a layout that must exist. NotFoundError, InvalidDataError."""
        if not self._at.is_dir():
            raise NotFoundError(f"there is no folder {brief(str(self.root))}", place=self.name)
        marker = self._read_file("oci-layout", MARKER_LIMIT)
        if marker is None:
            raise InvalidDataError(
                f"{self.name} is no OCI image layout: it has no file oci-layout", place=self.name
            )
        check_marker(marker, self.name)
        data = self._read_file("index.json", INDEX_LIMIT)
        if data is None:
            raise InvalidDataError(
                f"{self.name} is no OCI image layout: it has no file index.json", place=self.name
            )
        return parse_index_json(data, self.name)

    def read_index_or_empty(self) -> IndexJson:
        """index.json, where a layout that is new or was never finished has no entries."""
        marker = self._read_file("oci-layout", MARKER_LIMIT)
        if marker:
            check_marker(marker, self.name)
        data = self._read_file("index.json", INDEX_LIMIT)
        return empty_index() if data is None else parse_index_json(data, self.name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the layout's lock, which guards index.json; waits for other threads and processes.

        The lock is on the file oci-layout, which every layout has and nobody replaces, so that no
        further file is needed. It is created here where it is missing.
        """
        path = self.root / "oci-layout"
        with disk_errors("write", path):
            fd = _lock_file(path)
        try:
            with disk_errors("write", path):
                if os.fstat(fd).st_size == 0:
                    os.write(fd, MARKER)
                    os.fsync(fd)
            yield
        finally:
            os.close(fd)

    def write_index(self, data: bytes) -> None:
        """Replace index.json at once, after every blob so far is durable; the lock must be held."""
        if len(data) > INDEX_LIMIT:
            raise StorageError(
                f"{self.name} holds too many images: index.json would be too large", place=self.name
            )
        path = self.root / "index.json"
        with disk_errors("write", path), replacing(path, 0o644, INGEST_PREFIX) as file:
            file.write(data)
            for algorithm in ("sha256", "sha512"):
                if (self.root / "blobs" / algorithm).is_dir():
                    fsync_folder(self.root / "blobs" / algorithm)

    def new_file(self) -> tuple[int, Path]:
        """A new empty file for writing, under a temporary name."""
        path = self.root / f"{INGEST_PREFIX}{os.urandom(8).hex()}"
        with disk_errors("write", self.root):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
            return os.open(path, flags, 0o644), path

    def place_blob(self, aside: Path, digest: str) -> None:
        """Give a finished temporary file its final name. Raises OSError."""
        with self.blobs_folder(digest) as folder:
            os.replace(aside, encoded_of(digest), dst_dir_fd=folder)

    def clean_leftovers(self) -> None:
        """Remove what crashed runs left more than a day ago."""
        oldest = time.time() - LEFTOVER_AGE
        with suppress(OSError):
            for path in self.root.glob(f"{INGEST_PREFIX}*"):
                if path.lstat().st_mtime < oldest:
                    unlink_quietly(path)

    def _read_file(self, name: str, limit: int) -> bytes | None:
        path = self.root / name
        try:
            fd = os.open(self._at / name, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_regular(path) from error
            raise storage_error("read", path, error) from error
        with os.fdopen(fd, "rb") as file, disk_errors("read", path):
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(path)
            if status.st_size > limit:
                raise InvalidDataError(
                    f"{brief(str(path))} has {status.st_size} bytes; at most {limit} are accepted"
                )
            return file.read(limit)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, which os.write alone does not promise. Raises OSError."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def _lock_file(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever undoes a new layout may have removed the file while we waited for it.
            if _same_file(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _not_regular(path: Path) -> InvalidDataError:
    return InvalidDataError(
        f"{brief(str(path))} is no regular file; links inside a layout are not followed"
    )
