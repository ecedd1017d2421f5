"""Small pieces for places on disk: errors in one line, readers of a region, writers of a blob."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, StorageError
from soci_cli.targets.blobs import BytesLike, ContentCheck
from soci_cli.text import brief


def storage_error(action: str, path: Path | str, error: OSError) -> StorageError:
    """The StorageError for an OSError: what was tried, where, why, and what may help."""
    advice = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "; free some space or choose another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "; check its owner and permissions"
    return StorageError(f"cannot {action} {brief(str(path))}: {error.strerror or error}{advice}")


@contextmanager
def disk_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn every OSError of the block into a StorageError such as `cannot write PATH: reason`."""
    try:
        yield
    except OSError as error:
        raise storage_error(action, path, error) from error


class RegionReader(Closing):
    """Reads `length` bytes from `start` of an open file, which it owns and closes."""

    skipped = 0

    def __init__(self, fd: int, start: int, length: int, what: str) -> None:
        self._fd = fd
        self._position = start
        self._end = start + length
        self._what = what

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._position
        wanted = left if size < 0 else min(size, left)
        pieces: list[bytes] = []
        while wanted:
            with disk_errors("read", self._what):
                piece = os.pread(self._fd, min(wanted, 1 << 30), self._position)
            self._count(len(piece))
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        view = memoryview(buffer).cast("B")[: self._end - self._position]
        if not view.nbytes:
            return 0
        with disk_errors("read", self._what):
            if hasattr(os, "preadv"):
                count = os.preadv(self._fd, [view], self._position)
            else:
                piece = os.pread(self._fd, view.nbytes, self._position)
                count = len(piece)
                view[:count] = piece
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        if not count:
            raise IntegrityError(f"{self._what} was cut short while it was read")
        self._position += count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class MemoryReader(RegionReader):
    """Reads bytes that are in memory, such as an index that is a blob of no file."""

    def __init__(self, data: bytes) -> None:
        super().__init__(-1, 0, len(data), "memory")
        self._data = data

    def read(self, size: int = -1, /) -> bytes:
        end = self._end if size < 0 else min(self._position + size, self._end)
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        view = memoryview(buffer).cast("B")
        piece = self.read(view.nbytes)
        view[: len(piece)] = piece
        return len(piece)


class FileWriter(ABC):
    """One blob that is written to a file descriptor, which it owns. Implements `Writer`.

    It may be aborted while another thread, which was left behind, is writing: that one gets a StorageError,
    and never writes to a file that was given the same number.
    """

    def __init__(self, fd: int, check: ContentCheck, what: Path | str) -> None:
        self._fd = fd
        self._check = check
        self._what = what
        self._lock = threading.Lock()

    @abstractmethod
    def _put(self, view: memoryview) -> None:
        """Write all of `view` behind what was written before. Raises OSError."""

    @abstractmethod
    def _keep(self) -> None:
        """Show the blob, which is whole. Raises OSError."""

    @abstractmethod
    def _drop(self) -> None:
        """Remove what was written."""

    def write(self, data: BytesLike, /) -> int:
        """See `Writer.write`."""
        view = memoryview(data).cast("B")
        self._check.add(view)
        with self._open():
            self._put(view)
        return view.nbytes

    def commit(self) -> None:
        """See `Writer.commit`."""
        self._check.verify()
        with self._open():
            self._keep()
            self._close()

    def abort(self) -> None:
        """See `Writer.abort`."""
        with self._lock:
            if self._fd >= 0:
                self._drop()
                self._close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock, disk_errors("write", self._what):
            if self._fd < 0:
                raise StorageError(f"cannot write {brief(str(self._what))}: it was aborted")
            yield

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
