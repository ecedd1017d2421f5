"""Files and streams that commands are given by name; - is stdin or stdout."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError, errors_at
from soci_cli.new_file import replacing
from soci_cli.ztoc import Ztoc, decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


class LayerStream:
    """A layer to be read once, from a file or stdin. Looks ahead to tell gzip from plain tar."""

    def __init__(self, name: str) -> None:
        self.name = "stdin" if name == "-" else name
        self._fd = 0 if name == "-" else open_file(name)
        try:
            status = os.fstat(self._fd)
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
            self._ahead = b""
            while len(self._ahead) < 4 and (more := os.read(self._fd, 4 - len(self._ahead))):
                self._ahead += more
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror}") from error
        if self._ahead.startswith(b"\x28\xb5\x2f\xfd"):
            raise InvalidDataError(
                f"{self.name} is a zstd stream; only gzip and tar can be indexed"
            )
        self.is_gzip = self._ahead.startswith(_GZIP_MAGIC)

    def readinto(self, buffer: memoryview, /) -> int:
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        return os.readv(self._fd, [buffer])

    def close(self) -> None:
        if self._fd > 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LayerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LayerRanges:
    """A layer of which ranges are read: anywhere in a file, only forwards in a stream."""

    def __init__(self, name: str) -> None:
        self._name = "stdin" if name == "-" else name
        self._fd = 0 if name == "-" else open_file(name)
        self._seekable = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._position = 0
        self._last = b""

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), or fewer at the end."""
        try:
            if self._seekable:
                return self._from_file(offset, length)
            return self._from_stream(offset, length)
        except OSError as error:
            raise StorageError(f"{self._name}: {error.strerror}") from error

    def _from_file(self, offset: int, length: int) -> bytes:
        parts = []
        while length and (part := os.pread(self._fd, min(length, 64 << 20), offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _from_stream(self, offset: int, length: int) -> bytes:
        # Neighbouring spans may share one byte, which has been read already.
        shared = self._position - offset
        kept = self._last[len(self._last) - shared :] if 0 < shared <= len(self._last) else b""
        while self._position < offset and (
            skipped := os.read(self._fd, min(_CHUNK, offset - self._position))
        ):
            self._position += len(skipped)
        parts = [kept]
        wanted = length - len(kept)
        while wanted and (part := os.read(self._fd, min(_CHUNK, wanted))):
            parts.append(part)
            wanted -= len(part)
            self._position += len(part)
        data = b"".join(parts)
        self._last = data[-1:]
        return data

    def __enter__(self) -> LayerRanges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd > 0:
            os.close(self._fd)


def open_file(name: str) -> int:
    """Opens a file for reading; NotFoundError or StorageError in one line."""
    try:
        fd = os.open(name, os.O_RDONLY)
    except FileNotFoundError:
        raise NotFoundError(f"{name}: no such file") from None
    except OSError as error:
        raise StorageError(f"{name}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError(f"{name} is a folder, not a file")
    return fd


def read_ztoc(name: str) -> Ztoc:
    """Reads a zTOC from a file, or from stdin for -."""
    shown = "stdin" if name == "-" else name
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_ZTOC_SIZE + 1)
        else:
            with os.fdopen(open_file(name), "rb") as file:
                data = file.read(MAX_ZTOC_SIZE + 1)
    except OSError as error:
        raise StorageError(f"{shown}: {error.strerror}") from error
    with errors_at(file=shown):
        return decode_ztoc(data)


def write_aside(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file whole or not at all: aside first, then under its name.

    What is no regular file, such as /dev/null or a named pipe, is written to as it is.
    """
    try:
        odd = path.exists() and not path.is_file()
        with path.open("wb") if odd else replacing(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
