"""Files that are written aside and renamed: there whole, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from soci_cli.closing import Closing

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NewFile(Closing):
    """A file under a name of its own beside `path`, which `commit` gives it; `fd` is open till `close`.

    After a crash at any moment the old file is there, or the new one, whole. All raise OSError.
    """

    def __init__(self, path: Path, mode: int = 0o666, prefix: str = ".soci-") -> None:
        """Creates the file; `mode` is cut by the umask, its name until `commit` begins with `prefix`."""
        self._path = path
        self._aside: Path | None = path.with_name(prefix + os.urandom(8).hex())
        self.fd = os.open(self._aside, _FLAGS, mode)

    def commit(self) -> None:
        """Makes what was written durable, and then replaces what is at `path`."""
        os.fsync(self.fd)
        if self._aside is not None:
            self._aside.replace(self._path)
            self._aside = None
        fsync_folder(self._path.parent)

    def close(self) -> None:
        """Closes the file, and removes it unless it was committed."""
        if self._aside is not None:
            unlink_quietly(self._aside)
            self._aside = None
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


@contextmanager
def replacing(path: Path, mode: int = 0o666, prefix: str = ".soci-") -> Iterator[BinaryIO]:
    """A new file to write to, which replaces what is at `path` when the block ends without an error."""
    with NewFile(path, mode, prefix) as new, os.fdopen(new.fd, "wb", closefd=False) as file:
        yield file
        file.flush()
        new.commit()


def fsync_folder(path: Path) -> None:
    """Make renames inside a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the rename itself was done.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(fd)


def unlink_quietly(path: Path) -> None:
    """Remove a temporary file; it does not matter when that cannot be done."""
    with suppress(OSError):
        path.unlink()
