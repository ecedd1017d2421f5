"""The directory of the cache, held open: what is mounted over its path later does not come between.

That may be an image that needs the cache to be read. Keys are paths below the directory.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import StorageError

PART = ".part"
"""What the names of files that are being written end in."""

_OTHERS_WRITE = 0o022
_SEARCH: int = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC


class CacheDirectory(Closing):
    """Opens the directory `root`, which is made if it is not there. Several threads may use it.

    Where it cannot be made it is empty and refuses everything. All methods raise OSError.
    """

    def __init__(self, root: Path) -> None:
        """StorageError when it is closed to this user, or when others own it or can write it."""
        self.root = root
        self.fd = self._parent = -1
        try:
            with suppress(OSError):  # if that matters, opening fails
                root.parent.mkdir(parents=True, exist_ok=True)
            self._parent = os.open(root.parent, _SEARCH)
            self.fd = self._make()
        except PermissionError as error:
            raise _refusal(root, f"is closed to this user: {error.strerror}") from error
        except OSError:
            return
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            raise _refusal(root, f"belongs to user {status.st_uid}, who could forge what is in it")
        if status.st_mode & _OTHERS_WRITE:
            raise _refusal(root, "can be written by others, who could forge what is in it")

    def _make(self) -> int:
        with suppress(OSError):
            # Files of private images are for this user only.
            os.mkdir(self.root.name, 0o700, dir_fd=self._parent)
        return os.open(self.root.name, _DIRECTORY, dir_fd=self._parent)

    def close(self) -> None:
        """Close the directory."""
        for fd in (self.fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent = -1

    def __del__(self) -> None:
        self.close()

    def open(self, key: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a file."""
        return os.open(key, flags | _FILE, dir_fd=self.fd)

    def create(self, key: str) -> int:
        """A descriptor of a file, made if it is not there, to read and write."""
        return os.open(key, os.O_RDWR | os.O_CREAT | _FILE, 0o600, dir_fd=self.fd)

    def stat(self, key: str) -> os.stat_result:
        """What is known of a file."""
        return os.stat(key, dir_fd=self.fd, follow_symlinks=False)

    def is_same(self, fd: int, key: str) -> bool:
        """Whether a file that is open still has its name."""
        try:
            return os.path.samestat(os.fstat(fd), self.stat(key))
        except FileNotFoundError:
            return False

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, which replaces what had it."""
        os.replace(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, key: str) -> None:
        """Remove a file, and the directories that it leaves empty."""
        os.unlink(key, dir_fd=self.fd)
        with suppress(OSError):
            while key := key.rpartition("/")[0]:
                os.rmdir(key, dir_fd=self.fd)

    def remove_unused(self, key: str) -> bool:
        """As `remove`, unless somebody has the file open, a mount of the kernel's too; whether it is gone.

        Where the file system has no leases (fcntl(2), F_SETLEASE), it is removed all the same.
        """
        fd = self.open(key)
        try:
            try:
                # Who opens the file meanwhile waits, and this process is told so by a signal.
                fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # which does nothing
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except BlockingIOError:
                return False
            except (OSError, AttributeError):
                pass
            self.remove(key)
        finally:
            os.close(fd)
        return True

    def make_parents(self, key: str) -> None:
        """Make the directories of a key, and the cache's own where it was removed."""
        if not os.fstat(self.fd).st_nlink:
            fd = self._make()
            os.dup2(fd, self.fd, inheritable=False)  # other threads may be using the number
            os.close(fd)
        at = key.find("/")
        while at >= 0:
            with suppress(FileExistsError):
                os.mkdir(key[:at], 0o700, dir_fd=self.fd)
            at = key.find("/", at + 1)

    def names(self, key: str) -> list[str]:
        """What is in a directory."""
        fd = os.open(key, _DIRECTORY, dir_fd=self.fd)
        try:
            return os.listdir(fd)  # noqa: PTH208 - a descriptor
        finally:
            os.close(fd)

    def files(self, top: str = ".") -> Iterator[tuple[str, os.stat_result]]:
        """The key of every file, below the directory `top` of the cache, and what is known of it."""
        if self.fd < 0:
            return
        for folder, _, names, fd in os.fwalk(top, dir_fd=self.fd):
            for name in names:
                with suppress(OSError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    yield f"{folder}/{name}".removeprefix("./"), status


def _refusal(root: Path, why: str) -> StorageError:
    return StorageError(
        f"the cache directory {root} {why}; set SOCI_CACHE to a directory of your own that nobody else "
        "can write"
    )
