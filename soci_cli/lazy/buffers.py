"""Memory for spans while they are received and inflated."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.ztoc.inflate import Buffer

_KEPT_BUFFER = 16 << 20  # bytes
_ROUNDED = 1 << 20
LARGE = 32 << 20
"""Bytes, compressed or not, of a span that is not held in memory as a whole."""


class SpanBuffer(Buffer):
    """A buffer whose memory goes back to the system with it, as that of bytearrays may not."""

    def __init__(self, size: int, fd: int = -1) -> None:
        """With `fd` it is in that file."""
        memory = mmap.mmap(fd, size)
        self.view = memoryview(memory)
        self._keep = (ctypes.c_char * size).from_buffer(memory)
        self.address = ctypes.addressof(self._keep)
        self._memory = memory
        self._is_file = fd >= 0

    def forget(self) -> None:
        """What is in a file need not be in memory any longer; it comes back when it is looked at."""
        if self._is_file:
            self._memory.madvise(mmap.MADV_DONTNEED)


def file_buffer(size: int, directory: Path) -> SpanBuffer:
    """A buffer in an unnamed file in a directory, or in memory where there can be none."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return SpanBuffer(size, file.fileno())
    except OSError:
        return SpanBuffer(size)


class Buffers:
    """Buffers that threads take and give back; `kept` of them wait for the next one.

    No more than `inflating` are in use for inflated bytes at once: as many as there are processors cost no
    time and save memory.
    """

    def __init__(self, kept: int, inflating: int) -> None:
        self.turns = threading.BoundedSemaphore(inflating)
        self._kept = kept
        self._free: list[SpanBuffer] = []
        self._mutex = threading.Lock()

    def take(self, size: int) -> SpanBuffer:
        """One that has room for `size` bytes."""
        with self._mutex:
            for at, buffer in enumerate(self._free):
                if buffer.view.nbytes >= size:
                    return self._free.pop(at)
            if self._free:
                self._free.pop()  # it will not fit the next one either
        return SpanBuffer(max(1, -(-size // _ROUNDED)) * _ROUNDED)

    def give(self, buffer: SpanBuffer) -> None:
        """It is not used any more."""
        with self._mutex:
            if len(self._free) < self._kept and buffer.view.nbytes <= _KEPT_BUFFER:
                self._free.append(buffer)

    def clear(self) -> None:
        """Keeps none, now and later."""
        with self._mutex:
            self._kept = 0
            self._free.clear()


class RequestMemory(Closing):
    """The memory of one request, for one span after the other."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._packed: SpanBuffer | None = None

    def packed(self, size: int, directory: Path) -> SpanBuffer:
        """Room for so many compressed bytes. What was there is lost where it had less.

        Room for very many is in a file in a directory.
        """
        if self._packed is None or self._packed.view.nbytes < size:
            self.close()
            is_large = size > LARGE
            self._packed = file_buffer(size, directory) if is_large else self._buffers.take(size)
        return self._packed

    def forget(self) -> None:
        """See `SpanBuffer.forget`, of the compressed bytes."""
        if self._packed is not None:
            self._packed.forget()

    @contextmanager
    def plain(self, size: int) -> Iterator[SpanBuffer]:
        """Room for so many inflated bytes, as soon as it is this thread's turn."""
        with self._buffers.turns:
            buffer = self._buffers.take(size)
            try:
                yield buffer
            finally:
                self._buffers.give(buffer)

    def close(self) -> None:
        """Gives the memory back."""
        buffer, self._packed = self._packed, None
        if buffer is not None:
            self._buffers.give(buffer)
