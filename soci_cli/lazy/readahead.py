"""What to fetch before it is asked for: ahead of readers in order, and of known ranges."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

_READERS = 8  # in order, told apart
_SLACK = 256 << 10  # bytes that the reads of one may be out of order
_REACH = 4 << 20  # bytes that one may leave out at once
_LEAST = 1 << 20  # bytes of a run before anything is fetched ahead
_LONG = 16 << 20  # bytes of a way, most of which was left out, before anything is


class Readahead:
    """Recognizes readers that go through a layer in order, by the bytes that they read.

    As much is fetched ahead as was read on end before, up to `most` bytes; where most bytes are left out,
    only after a long way, and less. So a program that starts, which jumps about, fetches no span that it
    does not read, while a reader of one large file, or of many small ones in the order of the archive, soon
    has many under way.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._readers: deque[_Reader] = deque(maxlen=_READERS)
        self._mutex = threading.Lock()

    def after(self, offset: int, length: int) -> tuple[int, int] | None:
        """Somebody reads these bytes: those to fetch ahead, as two offsets, which may be past the end."""
        if not self._most:
            return None
        end = offset + length
        with self._mutex:
            readers = self._readers
            for reader in readers:
                if reader.last - _SLACK <= offset <= reader.end + _REACH:
                    if reader is not readers[0]:
                        readers.remove(reader)
                        readers.appendleft(reader)
                    return reader.advance(offset, end, self._most)
            readers.appendleft(_Reader(offset, end))
        return None


class _Reader:
    """One reader: its way began at `first`, its run at `begin`; of the run `count` bytes were read.

    The last read began at `last` and ended at `end`; up to `until` was fetched.
    """

    __slots__ = ("begin", "count", "end", "first", "last", "until")

    def __init__(self, begin: int, end: int) -> None:
        self.first = self.begin = self.last = begin
        self.end = self.until = end
        self.count = end - begin

    def advance(self, offset: int, end: int, most: int) -> tuple[int, int] | None:
        """It reads on; what to fetch ahead."""
        self.last = offset
        if end <= self.end:
            return None
        self.count += end - max(offset, self.end)
        self.end = end
        self.until = max(self.until, end)
        run, way = end - self.begin, end - self.first
        if run > 2 * self.count:  # it left most out, so its run begins anew
            self.begin, self.count, run = offset, end - offset, 0
        window = run if run >= _LEAST else way // 4 if way >= _LONG else 0
        # In large steps, so that neighbours come with one request.
        if not window or self.until - end > min(window, most) * 3 // 4:
            return None
        begin, self.until = self.until, end + min(window, most)
        return begin, self.until


class KnownSpans:
    """Spans that one reader will need, in its order; they are fetched some steps ahead of it."""

    def __init__(
        self,
        numbers: Sequence[int],
        horizon: Callable[[], int],
        fetch: Callable[[Sequence[int]], None],
    ) -> None:
        """`horizon` gives how many spans ahead, now; `fetch` begins to fetch some."""
        self._numbers = numbers
        self._places = {number: at for at, number in enumerate(numbers)}
        self._horizon = horizon
        self._fetch = fetch
        self._position = self._begun = 0  # in `numbers`

    def advance(self, number: int) -> None:
        """The reader is at this span."""
        self._position = max(self._position, self._places.get(number, 0))
        size = self._horizon()
        # In large steps, so that neighbours come with one request.
        if self._begun < len(self._numbers) and self._begun - self._position <= size // 2:
            begin = max(self._begun, self._position)
            self._begun = min(self._position + size, len(self._numbers))
            self._fetch(sorted(self._numbers[begin : self._begun]))
