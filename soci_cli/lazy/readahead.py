"""What to fetch before it is asked for: ahead of readers in order, and of known ranges."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

_READERS = 8  # in order, told apart
_SLACK = 2  # spans that a reader in order may be off
_SPARSE_STEPS = 3  # spans that a reader goes on to, before one that skips most bytes is in order


class Readahead:
    """Recognizes readers that go through a layer in order, by the spans that they read.

    The first span of a reader is nothing special. From the second on more and more spans are fetched
    ahead, up to `most`; from the fourth on, where it does not read half of their bytes: a program that
    starts reads pieces of libraries, and now and then of neighbours.
    """

    def __init__(self, most: int, span_size: int) -> None:
        """`most` are spans; `span_size` are the uncompressed bytes of one."""
        self.latest = -1
        """The span of the last call; reading on in it changes nothing."""
        self._most = most
        self._dense = span_size // 2
        self._readers: deque[_Reader] = deque(maxlen=_READERS)
        self._mutex = threading.Lock()

    def after(self, numbers: range, taken: int) -> range:
        """Somebody reads these spans: those to fetch ahead. They may be past the layer's end.

        `taken` bytes were read since the last call, in the span that is `latest` now.
        """
        before, first, self.latest = self.latest, numbers[0], numbers[-1]
        if not self._most:
            return range(0)
        with self._mutex:
            for reader in self._readers:
                if reader.last == before:
                    reader.is_dense = taken >= self._dense
                    break
            for reader in self._readers:
                if reader.goes_on_at(first):
                    if reader is not self._readers[0]:
                        self._readers.remove(reader)
                        self._readers.appendleft(reader)
                    return reader.advance(numbers[-1], self._most)
            self._readers.appendleft(_Reader(numbers[-1]))
        return range(0)


class _Reader:
    """One reader: the last span that it read, and those that were fetched ahead of it so far."""

    __slots__ = ("is_dense", "last", "steps", "until", "window")

    def __init__(self, last: int) -> None:
        self.last = last
        self.until = last
        self.window = 0
        self.steps = 0
        self.is_dense = False
        """Whether it read half of the span that it read last."""

    def goes_on_at(self, first: int) -> bool:
        """Whether a read that begins in this span is of the same reader."""
        # Until it is known to be one, only the next span will do.
        return self.last - _SLACK <= first <= self.last + (_SLACK if self.window else 1)

    def advance(self, last: int, most: int) -> range:
        """Its read ends in the span `last`; the spans to fetch ahead."""
        if last <= self.last:
            return range(0)
        self.last = last
        self.steps += 1
        if not (self.window or self.is_dense or self.steps >= _SPARSE_STEPS):
            return range(0)
        self.window = min(max(2, 2 * self.window), most)
        self.until = max(self.until, last)
        # In large steps, so that neighbours come with one request.
        if self.until - last > self.window * 3 // 4:
            return range(0)
        begin, self.until = self.until + 1, last + self.window
        return range(begin, self.until + 1)


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
