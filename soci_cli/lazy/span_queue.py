"""The spans of one layer that are wanted, by urgency, and the requests that bring them.

All of this is data that `Fetcher` uses under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from soci_cli.lazy.buffers import RequestMemory
from soci_cli.lazy.entries import AnyEntry
from soci_cli.lazy.layer_bytes import Name
from soci_cli.lazy.span_table import SpanTable
from soci_cli.lazy.stats import Stats
from soci_cli.parallel import Stopped

_MAX_REQUEST = 4 << 20  # compressed bytes of a request: the first of them should come soon
_SMALL_REQUEST = 2 << 20  # of one without a waiting reader


class Priority(IntEnum):
    """How urgent a span is; the lowest number first."""

    DEMAND = 0
    READAHEAD = 1
    PREFETCH = 2
    BACKGROUND = 3


_SOURCES = {
    Priority.DEMAND: "demand",
    Priority.READAHEAD: "demand",
    Priority.PREFETCH: "prefetch",
    Priority.BACKGROUND: "background",
}


class PendingSpan:
    """A span that waits to be fetched or is being fetched, for the file of `name`."""

    __slots__ = ("demanded", "future", "name", "number", "priority", "queue", "request")

    def __init__(self, queue: SpanQueue, number: int, priority: Priority, name: Name) -> None:
        self.queue = queue
        self.number = number
        self.priority = priority
        self.name = name
        self.request: Request | None = None
        """What brings it; None while it waits."""
        self.demanded = 0.0
        """When a reader began to wait for it."""
        self.future: Future[AnyEntry] = Future()

    @property
    def source(self) -> str:
        """What `Stats` counts it as."""
        return _SOURCES[self.priority]

    @property
    def last_byte(self) -> float:
        """When a byte last came for it, or for the spans of its layer that it waits behind."""
        moved = self.queue.moved if self.request is None else self.request.moved
        return max(self.demanded, moved)


class Request:
    """Ascending spans that one request should bring, in the hands of one thread."""

    def __init__(self, queue: SpanQueue, spans: Sequence[PendingSpan], size: int) -> None:
        self.queue = queue
        self.spans = tuple(spans)
        self.numbers = frozenset(one.number for one in spans)
        self.size = size
        """Bytes of memory that it needs: of its largest span, compressed."""
        self.moved = queue.moved
        """When a byte last came."""
        self.began = 0.0
        """When it was taken up."""
        self.is_receiving = True
        self.is_given_up = False

    @property
    def silence_began(self) -> float:
        """When a byte last came by this request, or when it was taken up."""
        return max(self.began, self.moved)

    def check(self) -> None:
        """Raises Stopped when it was given up, or its layer was closed."""
        if self.is_given_up or self.queue.is_closed:
            raise Stopped("stopped")

    def arrived(self, now: float) -> None:
        """Some bytes came from the network; see `check`."""
        self.moved = self.queue.moved = now
        self.check()


@dataclass
class ImageRequests:
    """The requests of one image: how many may need the network at once, beside those readers wait for.

    0 is no limit. Beside what other images have, it begins none where there are `in_all` already. Each is
    of about `chunk_size` compressed bytes, or of as many as suit.
    """

    limit: int = 0
    in_all: int = 0
    chunk_size: int = 0
    receiving: int = 0
    """Those that need the network now."""


Fetch: TypeAlias = Callable[[Request, RequestMemory], None]
"""Gets the spans of a request and says so to `Fetcher`. It may raise: those that are left fail."""


class SpanQueue:
    """The wanted spans of one layer, by number."""

    def __init__(
        self,
        table: SpanTable,
        fetch: Fetch,
        requests: int,
        deadline: float,
        stats: Stats,
        image: ImageRequests,
    ) -> None:
        """See `Fetching` for `requests` and `deadline`."""
        self.fetch = fetch
        self.image = image
        self.requests = requests
        self.deadline = deadline
        self.stats = stats
        self.moved = 0.0
        """When a byte of this layer last came."""
        self.is_closed = False
        self.running = 0
        """Requests that have not ended, but for those given up."""
        self.receiving = 0
        """Those of them that still need the network."""
        self.given_up: set[Request] = set()
        self.spans: dict[int, PendingSpan] = {}
        self._table = table
        self._waiting: dict[Priority, dict[int, PendingSpan]] = {one: {} for one in Priority}

    @property
    def has_waiting(self) -> bool:
        """Whether something waits."""
        return any(self._waiting.values())

    def waiting(self) -> list[PendingSpan]:
        """All that wait."""
        return [one for waiting in self._waiting.values() for one in waiting.values()]

    def add(self, number: int, priority: Priority, name: Name) -> PendingSpan:
        """A span is wanted. One that is pending already counts once, as the more urgent."""
        one = self.spans.get(number)
        if one is None:
            one = self.spans[number] = PendingSpan(self, number, priority, name)
            self._waiting[priority][number] = one
        elif one.request is None and priority < one.priority:
            del self._waiting[one.priority][number]
            one.priority, one.name = priority, name
            self._waiting[priority][number] = one
        return one

    def remove(self, one: PendingSpan) -> None:
        """A span is not wanted any more."""
        one.request = None
        self._waiting[one.priority].pop(one.number, None)
        self.spans.pop(one.number, None)

    def next_size(self, priority: Priority) -> int | None:
        """The memory that the first span of this priority needs; None when none waits."""
        first = next(iter(self._waiting[priority]), None)
        return None if first is None else self._table.packed_size(first)

    def take(self, priority: Priority, also: Sequence[Priority]) -> Request:
        """A request for the first span of this priority, and what comes best with it.

        That is of the same priority, or of those in `also`.
        """
        first = next(iter(self._waiting[priority]))
        among = [self._waiting[one] for one in (priority, *also)]
        suits = _MAX_REQUEST if priority <= Priority.READAHEAD else _SMALL_REQUEST
        limit = self.image.chunk_size or suits
        table = self._table
        numbers = table.together(first, lambda number: any(number in one for one in among), limit)
        spans = [self.spans[number] for number in numbers]
        request = Request(self, spans, max(map(table.packed_size, numbers)))
        for one in spans:
            del self._waiting[one.priority][one.number]
            one.request = request
        return request

    def put_back(self, request: Request) -> None:
        """What is left of a request waits again."""
        for one in request.spans:
            if one.request is request:
                one.request = None
                self._waiting[one.priority][one.number] = one
