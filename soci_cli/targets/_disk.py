"""Small pieces for places on disk: errors in one line, readers of a region, checks of a blob."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, InvalidDataError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of, new_hash
from soci_cli.targets.protocol import BytesLike
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


def check_range(descriptor: Descriptor, offset: int, length: int | None) -> int:
    """The number of bytes that a fetch of this range gives. InvalidDataError outside the blob."""
    count = descriptor.size - offset if length is None else length
    if offset < 0 or count < 0 or offset + count > descriptor.size:
        raise InvalidDataError(
            f"bytes {offset} to {offset + count} were asked of blob {descriptor.digest}, "
            f"which has {descriptor.size}"
        )
    return count


class RegionReader(Closing):
    """Reads `length` bytes from `start` of an open file, which it owns and closes."""

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


class ContentCheck:
    """Counts and hashes the bytes of one blob while they are written."""

    def __init__(self, descriptor: Descriptor, place: str) -> None:
        self._descriptor = descriptor
        self._place = place
        self._hash = new_hash(descriptor.digest)
        self._written = 0

    def add(self, data: BytesLike) -> None:
        """Take the next bytes. IntegrityError when the blob grows past its size."""
        length = memoryview(data).nbytes
        if self._written + length > self._descriptor.size:
            raise IntegrityError(
                f"blob {self._descriptor.digest} for {self._place} is longer than the "
                f"{self._descriptor.size} bytes of its descriptor"
            )
        self._hash.update(data)
        self._written += length

    def verify(self) -> None:
        """IntegrityError unless all bytes came and they have the descriptor's digest."""
        if self._written != self._descriptor.size:
            raise IntegrityError(
                f"blob {self._descriptor.digest} for {self._place} ended after {self._written} of "
                f"{self._descriptor.size} bytes"
            )
        if self._hash.hexdigest() != encoded_of(self._descriptor.digest):
            raise IntegrityError(
                f"blob {self._descriptor.digest} for {self._place} does not have that digest; "
                "the place it comes from is damaged"
            )
