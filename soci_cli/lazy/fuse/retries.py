"""Which reads the kernel only tries again, page by page, after one of them failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW = 0.5  # seconds until the kernel has tried again
_REACH = 512 << 10  # bytes that it reads ahead at once
_MOST = 256  # threads


@dataclass
class _Chain:
    """The reads that followed a failure: from `first` to `last`, the latest page from `offset` to `end`."""

    node: int
    first: int
    offset: int
    end: int
    last: int
    error: BaseException
    when: float
    is_repeated: bool = False


class Retries:
    """Knows the last failed read of each thread, and what the kernel made of it.

    When a page of a device cannot be read, the page cache asks for that page once more, and EROFS then for
    each of those that were to be read ahead, one after the other. Each would wait for a silent registry
    anew: half a minute would become a quarter of an hour. So reads that follow a failure of their own
    thread, at its offset once or behind it, fail at once where they would have to wait. At the end EROFS
    tries the first page by itself; that read waits, and nothing follows it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chains: dict[int, _Chain] = {}

    def failed(self, thread: int, node: int, offset: int, size: int, error: BaseException) -> None:
        """A read by a thread, 0 for one that cannot be seen, failed after it had waited."""
        if not thread:
            return
        before = self._chains.pop(thread, None)
        if before and before.node == node and before.first <= offset <= before.last:
            return
        while len(self._chains) >= _MOST:
            self._chains.pop(next(iter(self._chains)), None)
        self._chains[thread] = _Chain(
            node, offset, offset, offset + size, offset, error, self._clock()
        )

    def error_of(self, thread: int, node: int, offset: int, size: int) -> BaseException | None:
        """Why a read fails at once that would have to wait and is only such a retry; None for others."""
        chain = self._chains.get(thread)
        if chain is None or chain.node != node or self._clock() - chain.when > _WINDOW:
            return None
        if offset == chain.offset:
            if chain.is_repeated:
                return None
            chain.end, chain.is_repeated = offset + size, True
        elif not chain.offset < offset <= chain.last + _REACH:
            return None
        elif offset <= chain.end:
            chain.offset, chain.end, chain.is_repeated = offset, offset + size, False
        # What is further away is read ahead, and those before it come still.
        chain.last = max(chain.last, offset)
        chain.when = self._clock()
        return chain.error
