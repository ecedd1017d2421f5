"""The requests that a server has taken and not answered, where a successor finds them.

From Linux 6.9 on the kernel gives them out again (FUSE_NOTIFY_RESEND). On older ones whoever waits for one
that a dead server took would wait for ever, so they are read into memory that a holder keeps: what is read
last is in the buffer at its beginning, reads that wait for their bytes are in slots after it. An answer to
a request that was answered already is refused by the kernel, so what is left there does no harm.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator

from soci_cli.closing import Closing
from soci_cli.lazy.fuse import wire

_SLOT = 128  # a READ has 80 bytes
_SLOTS = 4096
_SIZE = wire.READ_BUFFER + _SLOT * _SLOTS
_NAME = "soci-requests"


def new_file() -> int:
    """The descriptor of an empty journal. OSError."""
    return os.memfd_create(_NAME, os.MFD_CLOEXEC)


class Journal(Closing):
    """A file in memory: an empty one, or one that another process filled."""

    def __init__(self, fd: int) -> None:
        """Owns the descriptor from now on. OSError."""
        self.fd = fd
        try:
            os.ftruncate(self.fd, _SIZE)
            self._map = mmap.mmap(self.fd, _SIZE)
        except (OSError, ValueError) as error:
            os.close(self.fd)
            raise OSError(f"the journal of requests: {error}") from error
        self.buffer = memoryview(self._map)[: wire.READ_BUFFER]
        """What a request is read into."""
        self._mutex = threading.Lock()
        self._slots: dict[int, int] = {}
        self._free = []
        for number in range(_SLOTS - 1, -1, -1):
            request = self._slot(number)
            if _is_request(request):
                self._slots[wire.IN_HEADER.unpack_from(request)[2]] = number
            else:
                self._free.append(number)

    def left(self) -> Iterator[memoryview]:
        """Copies of the requests that are in it, those that wait first."""
        parts = [self._slot(number) for number in sorted(self._slots.values())]
        for part in [bytes(one) for one in (*parts, self.buffer) if _is_request(one)]:
            (length,) = wire.UINT32.unpack_from(part)
            yield memoryview(part)[:length]

    def add(self, unique: int, request: memoryview) -> None:
        """A read waits. When all slots are taken, nothing is written down."""
        with self._mutex:
            if self._free and unique not in self._slots and len(request) <= _SLOT:
                number = self._slots[unique] = self._free.pop()
                start = self._start(number)
                self._map[start : start + len(request)] = bytes(request)

    def remove(self, unique: int) -> None:
        """It is answered."""
        with self._mutex:
            number = self._slots.pop(unique, None)
            if number is not None:
                start = self._start(number)
                self._map[start : start + 4] = bytes(4)
                self._free.append(number)

    def close(self) -> None:
        """Lets go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _start(self, number: int) -> int:
        return wire.READ_BUFFER + number * _SLOT

    def _slot(self, number: int) -> memoryview:
        start = self._start(number)
        return memoryview(self._map)[start : start + _SLOT]


def _is_request(part: memoryview) -> bool:
    """Whether something was written there."""
    length: int = wire.UINT32.unpack_from(part)[0]
    return wire.IN_HEADER.size <= length <= len(part)
