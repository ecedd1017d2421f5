"""The memory that building a zTOC takes: buffers that travel, windows that stay."""

from __future__ import annotations

import mmap
from queue import SimpleQueue

from soci_cli.ztoc.inflate import Buffer
from soci_cli.ztoc.model import WINDOW_SIZE

_WINDOWS = 32  # that are kept in one piece of memory
_FIRST = 64 << 10  # bytes of a pool's first buffer, so that small layers take little time


class Windows:
    """Windows in memory that goes back to the system with them, as that of many small pieces does not."""

    def __init__(self) -> None:
        self._room = memoryview(b"")

    def keep(self, window: bytes | memoryview) -> memoryview:
        """A copy of it."""
        if not self._room.nbytes:
            self._room = memoryview(mmap.mmap(-1, _WINDOWS * WINDOW_SIZE))
        kept, self._room = self._room[:WINDOW_SIZE], self._room[WINDOW_SIZE:]
        kept[:] = window
        return kept


class Pool:
    """Buffers that are made when they are needed; the first one is small, and is not used again."""

    def __init__(self, count: int, size: int) -> None:
        self.is_used = False
        self._unmade = count
        self._size = size
        self._free: SimpleQueue[Buffer] = SimpleQueue()

    def take(self) -> Buffer:
        """A free buffer, waited for."""
        if not self.is_used:
            self.is_used = True
            return Buffer(min(_FIRST, self._size))
        if self._unmade:
            self._unmade -= 1
            return Buffer(self._size)
        return self._free.get()

    def give(self, buffer: Buffer) -> None:
        """It is free again."""
        if buffer.view.nbytes == self._size:
            self._free.put(buffer)
