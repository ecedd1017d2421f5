"""Entries of the cache that are open, and those that stay in memory where the disk takes none.

Open entries are read from their files, so the kernel's page cache is the cache in memory. They outlive
their eviction: the file is closed with the last reference to the object.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

from zlib_ng import zlib_ng

MAX_HELD = 64 << 20
"""Bytes in memory, where the disk takes none."""
HEADER = struct.Struct("<8sQI")
"""What comes before the data of an entry: magic, length, CRC-32 of the data."""
MAGIC = b"soci-1\0\0"

_MOST_OPEN = 4096
_CHECKED_AT_ONCE = 256 << 10
_SWEPT_EVERY = 64  # entries opened
_NOW: int = getattr(os, "RWF_NOWAIT", 0)  # Linux


class Entry:
    """An entry in a file."""

    __slots__ = ("_fd", "_flags", "_is_used", "size", "start")

    is_kept = True  # on the disk

    def __init__(self, fd: int, size: int, start: int = HEADER.size) -> None:
        """`size` bytes of data, from `start` on; `fd` belongs to this object from now on."""
        self._fd = fd
        self.start = start
        self._flags = _NOW
        self._is_used = False
        self.size = size

    def fileno(self) -> int:
        """The descriptor of the file, in which the data begins at `start`."""
        return self._fd

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return 0

    @property
    def is_linked(self) -> bool:
        """Whether the cache still has it."""
        return os.fstat(self._fd).st_nlink > 0

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer where the file was cut or cannot be read."""
        self._is_used = True
        try:
            return os.pread(self._fd, length, self.start + offset)
        except OSError:
            return b""

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """Fills a buffer as far as that needs no waiting for the disk; how many bytes.

        File systems that cannot tell (tmpfs, overlayfs) are read all the same.
        """
        self._is_used = True
        try:
            return os.preadv(self._fd, [buffer], self.start + offset, self._flags)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self._flags:
                self._flags = 0
                return self.read_now(offset, buffer)
            return 0

    def skip(self, size: int) -> None:
        """Leave out a header of `size` bytes."""
        self.start += size
        self.size -= size

    def checksum(self) -> int | None:
        """The CRC-32 of the data; None where the file is cut off or cannot be read."""
        buffer = memoryview(bytearray(min(self.size, _CHECKED_AT_ONCE) or 1))
        checksum, done = 0, 0
        while done < self.size:
            try:
                count = os.preadv(self._fd, [buffer[: self.size - done]], self.start + done)
            except OSError:
                return None
            if not count:
                return None
            checksum = zlib_ng.crc32(buffer[:count], checksum)
            done += count
        return checksum

    def note_use(self) -> None:
        """Tells the cache when it was read, for the order of eviction."""
        if self._is_used:
            self._is_used = False
            with suppress(OSError):
                os.utime(self._fd)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


class HeldEntry:
    """An entry in memory."""

    __slots__ = ("_data", "size")

    is_kept = False
    is_linked = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length)."""
        return self._data[offset : offset + length]

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """See `Entry.read_now`."""
        data = memoryview(self._data)[offset : offset + buffer.nbytes]
        buffer[: data.nbytes] = data
        return data.nbytes

    def note_use(self) -> None:
        """Nothing: it is not in the cache."""


class AnyEntry(Protocol):
    """The content of a span, wherever it is."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def is_kept(self) -> bool:
        """Whether it is on the disk."""

    @property
    def is_linked(self) -> bool:
        """Whether the cache still has it."""

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""

    def read(self, offset: int, length: int) -> bytes:
        """See `Entry.read`."""

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """See `Entry.read_now`."""

    def note_use(self) -> None:
        """See `Entry.note_use`."""


def _quarter_of_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(soft, 0) // 4 or _MOST_OPEN, _MOST_OPEN)


class OpenEntries:
    """The entries that were used last, by key. Several threads may use it."""

    def __init__(self, count: int | None = None, held: int = MAX_HELD) -> None:
        """At most `count` entries, and `held` bytes in memory or one entry that is larger.

        `count` is by default a quarter of the files that this process may open.
        """
        self._count = _quarter_of_files() if count is None else count
        self._limit = held
        self._held = 0
        self._added = 0
        self._entries: OrderedDict[str, AnyEntry] = OrderedDict()
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_holding(self) -> bool:
        """Whether some are in memory, because the disk takes none."""
        return self._held > 0

    def get(self, key: str) -> AnyEntry | None:
        """An entry, which counts as used now."""
        with self._mutex:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: str, entry: AnyEntry) -> None:
        """Keep an entry."""
        with self._mutex:
            self._take_out(key)
            self._entries[key] = entry
            self._held += entry.held
            # One that is larger than all that may be held stays: each read would fetch it anew.
            while len(self._entries) > max(1, self._count if self._held <= self._limit else 1):
                self._take_out(next(iter(self._entries)))
            self._added += 1
            if self._added % _SWEPT_EVERY == 0:
                # Evicted ones would take room on the disk for as long as they are open.
                for one in [key for key, one in self._entries.items() if not one.is_linked]:
                    self._take_out(one)
                for entry in self._entries.values():
                    entry.note_use()

    def drop(self, key: str) -> None:
        """Keep an entry no longer."""
        with self._mutex:
            self._take_out(key)

    def clear(self) -> None:
        """Keep none."""
        with self._mutex:
            for key in list(self._entries):
                self._take_out(key)

    def _take_out(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.note_use()
            self._held -= entry.held
