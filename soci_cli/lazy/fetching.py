"""Who fetches what next: the spans of a layer that are wanted, by urgency, and the threads that get them.

Each layer has a lane of its own, so a registry that hangs holds up reads of its own layers only. In a lane
one thread more than the number of requests is kept for what a reader waits for, so nothing that is fetched
ahead of time is ever in its way. What becomes urgent while it waits moves up.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TypeAlias

from soci_cli.closing import Closing
from soci_cli.errors import StorageError
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.entries import AnyEntry, OpenEntries
from soci_cli.lazy.stats import Stats
from soci_cli.parallel import Stop, Stopped
from soci_cli.ztoc.inflate import Buffer

DEFAULT_REQUESTS = 3
"""Requests for one layer under way at once."""

_MAX_REQUEST = 4 << 20  # compressed bytes of a request: the first of them should come soon
_SMALL_REQUEST = 2 << 20  # of one that nobody waits for
_FAREWELL = 1.0  # seconds
_IDLE = 5.0  # seconds until a thread without work ends
_KEPT_BUFFER = 16 << 20  # bytes
_KEPT_BUFFERS = 4
_ROUNDED = 1 << 20
_SPARE_THREADS = 2  # one for what a reader waits for, one to inflate while others receive


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


class Wanted:
    """A span that waits to be fetched or is being fetched, for `file` (b"" where nobody knows)."""

    __slots__ = ("file", "future", "number", "priority", "running")

    def __init__(self, number: int, priority: Priority, file: bytes) -> None:
        self.number = number
        self.priority = priority
        self.file = file
        self.running = False
        self.future: Future[AnyEntry] = Future()

    @property
    def source(self) -> str:
        """What `Stats` counts it as."""
        return _SOURCES[self.priority]


class SpanBuffer(Buffer):
    """A buffer whose memory goes back to the system with it, as that of bytearrays may not."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size)
        self.view = memoryview(memory)
        self._keep = (ctypes.c_char * size).from_buffer(memory)
        self.address = ctypes.addressof(self._keep)


class Buffers:
    """Memory for spans, which threads take and give back; `kept` buffers wait for the next one."""

    def __init__(self, kept: int) -> None:
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


class Scratch(Closing):
    """The memory of one request at a time: of compressed bytes, and in turns with others of inflated ones.

    No more spans are inflated at once than there are processors, which costs no time and saves memory.
    """

    def __init__(self, buffers: Buffers, turns: threading.Semaphore) -> None:
        self._buffers = buffers
        self._turns = turns
        self._packed: SpanBuffer | None = None

    @property
    def packed(self) -> SpanBuffer:
        """Where the compressed bytes are."""
        assert self._packed is not None
        return self._packed

    def fit(self, size: int) -> SpanBuffer:
        """Makes room for so many compressed bytes. What was there is lost."""
        if self._packed is None or self._packed.view.nbytes < size:
            self.close()
            self._packed = self._buffers.take(size)
        return self._packed

    @contextmanager
    def plain(self, size: int) -> Iterator[SpanBuffer]:
        """Room for so many inflated bytes, as soon as it is this one's turn."""
        with self._turns:
            buffer = self._buffers.take(size)
            try:
                yield buffer
            finally:
                self._buffers.give(buffer)

    def close(self) -> None:
        """Gives the memory back."""
        packed, self._packed = self._packed, None
        if packed is not None:
            self._buffers.give(packed)


class Fetching(Closing):
    """What all layers that are read in one process share: the cache, its open entries, and the counts.

    `requests` are under way for a layer at once. `readahead` uncompressed bytes are fetched ahead of a
    reader who goes through a layer in order; 0 fetches what is asked for.
    """

    def __init__(self, cache: Cache, requests: int = DEFAULT_REQUESTS, readahead: int = 0) -> None:
        self.cache = cache
        self.requests = max(1, requests)
        # What is fetched ahead must still be here when its reader comes to it.
        self.readahead = min(readahead, cache.limit // 4)
        self.open = OpenEntries()
        self.stats = Stats()
        self.last_demand = time.monotonic()
        """When somebody last had to wait for a span."""
        self._buffers = Buffers(_KEPT_BUFFERS)
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
        self._mutex = threading.Lock()
        self._waiting = 0
        self._lanes: set[Lane] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many readers wait for a span now."""
        return self._waiting

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being fetched and nothing waits for that, in any layer."""
        with self._mutex:
            return all(lane.is_quiet for lane in self._lanes)

    def await_span(self, wanted: Wanted) -> AnyEntry:
        """A span as soon as it is here. Raises what fetching it raised."""
        with self._mutex:
            self._waiting += 1
            self.last_demand = time.monotonic()
        self.stats.misses += 1
        try:
            return wanted.future.result()
        finally:
            with self._mutex:
                self._waiting -= 1
                self.last_demand = time.monotonic()

    def scratch(self) -> Scratch:
        """Memory for a request."""
        return Scratch(self._buffers, self._turns)

    def join(self, lane: Lane) -> None:
        """A lane begins."""
        with self._mutex:
            self._lanes.add(lane)
            closed = self._closed
        if closed:
            lane.shut()

    def leave(self, lane: Lane) -> None:
        """A lane has ended."""
        with self._mutex:
            self._lanes.discard(lane)

    def close(self) -> None:
        """Ends what is running, at its next step.

        What hangs in the network is left behind after a moment, so that Ctrl-C always works.
        """
        with self._mutex:
            self._closed = True
            lanes = list(self._lanes)
        for lane in lanes:
            lane.shut()
        deadline = time.monotonic() + _FAREWELL
        for lane in lanes:
            lane.end(deadline)
        self.open.clear()
        self._buffers.clear()


class Batch:
    """Ascending spans that one request should bring; `left` are those not yet done."""

    def __init__(self, lane: Lane, spans: Sequence[Wanted]) -> None:
        self.left = deque(spans)
        self.last = spans[-1].number
        self.is_busy = True
        self._lane = lane

    def received(self) -> None:
        """All has come from the network: the next request may begin while this is inflated."""
        self._lane.release(self)

    def done(self, span: AnyEntry) -> None:
        """The first that is left is here."""
        one = self.left.popleft()
        self._lane.forget(one)
        # It fails already where a lane was closed without waiting for this.
        with suppress(Exception):  # InvalidStateError
            one.future.set_result(span)

    def fail(self, error: BaseException) -> None:
        """The first that is left cannot be had."""
        one = self.left.popleft()
        self._lane.forget(one)
        if not isinstance(error, Stopped):
            self._lane.stats.failed()
        _fail(one, error)


Fetch: TypeAlias = Callable[[Batch, Scratch], None]
"""Gets all spans of a batch: each is done or fails. It may raise, which fails what is left."""
Cut: TypeAlias = Callable[[int, Callable[[int], bool], int], list[int]]
"""`cut(first, is_wanted, limit)`: `first` and wanted spans after it for one request of `limit` bytes."""


class Lane(Closing):
    """The wanted spans of one layer and the threads that fetch them, started when there is work."""

    def __init__(self, fetching: Fetching, fetch: Fetch, cut: Cut) -> None:
        self.stop = Stop()
        self.stats = fetching.stats
        self._fetching = fetching
        self._fetch = fetch
        self._cut = cut
        self._requests = fetching.requests
        self._spans: dict[int, Wanted] = {}
        self._waiting: dict[Priority, dict[int, Wanted]] = {one: {} for one in Priority}
        self._ready = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._busy = 0
        self._closed = False
        fetching.join(self)

    def want(self, numbers: Iterable[int], priority: Priority, file: bytes) -> list[Wanted]:
        """Spans are wanted; those that are waited for or under way already count once."""
        found = []
        dropped: list[Wanted] = []
        with self._ready:
            if self._closed:
                raise Stopped("stopped")
            for number in numbers:
                one = self._spans.get(number)
                if one is None:
                    one = self._spans[number] = Wanted(number, priority, file)
                    self._waiting[priority][number] = one
                elif not one.running and priority < one.priority:
                    del self._waiting[one.priority][number]
                    one.priority, one.file = priority, file
                    self._waiting[priority][number] = one
                found.append(one)
            try:
                self._staff()
            except RuntimeError as error:
                problem = StorageError(
                    f"nothing can be fetched: {error}; see ulimit -u and pids.max"
                )
                dropped = self._drop_waiting()
        for one in dropped:
            _fail(one, problem)
        return found

    def is_wanted(self, number: int) -> bool:
        """Whether a span waits or is under way."""
        return number in self._spans

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._spans

    def forget(self, one: Wanted) -> None:
        """A span is no longer under way."""
        with self._ready:
            if self._spans.get(one.number) is one:
                del self._spans[one.number]

    def release(self, batch: Batch) -> None:
        """A batch needs the network no longer."""
        with self._ready:
            if batch.is_busy:
                batch.is_busy = False
                self._busy -= 1
                self._staff()

    def shut(self) -> None:
        """Begins no more; who waits for what did not begin is told."""
        self.stop.set()
        with self._ready:
            self._closed = True
            dropped = self._drop_waiting()
            self._ready.notify_all()
        for one in dropped:
            _fail(one, Stopped("stopped"))

    def end(self, deadline: float) -> None:
        """Waits for the threads until `deadline` (of time.monotonic), then leaves them behind."""
        with self._ready:
            threads = list(self._threads)
            self._threads.clear()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._ready:
            hanging = list(self._spans.values())
            self._spans.clear()
        for one in hanging:
            _fail(one, Stopped("stopped"))
        self._fetching.leave(self)

    def close(self) -> None:
        """Ends what is running, as `Fetching.close` does for all."""
        self.shut()
        self.end(time.monotonic() + _FAREWELL)

    # With the lock held.

    def _drop_waiting(self) -> list[Wanted]:
        """Takes out the spans that no request was begun for."""
        dropped = [one for one in self._spans.values() if not one.running]
        for one in dropped:
            del self._spans[one.number]
        for waiting in self._waiting.values():
            waiting.clear()
        return dropped

    def _staff(self) -> None:
        """Sees that somebody looks for work. Who finds some calls this again, so there is one for each."""
        if not any(self._waiting.values()):
            return
        if self._idle:
            self._ready.notify()
        elif len(self._threads) < self._requests + _SPARE_THREADS:
            thread = threading.Thread(target=self._work, name="soci-fetch", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system allows no more threads
                if not self._threads:
                    raise
            else:
                self._threads.add(thread)

    def _take(self) -> Batch | None:
        """What should be fetched next; None when there is nothing, or only what must leave room.

        The last request is for what readers wait for and nothing else.
        """
        if self._busy > self._requests:
            return None
        has_room = self._busy < self._requests
        for priority, waiting in self._waiting.items():
            if waiting and (has_room or priority is Priority.DEMAND):
                return self._batch(priority, next(iter(waiting)), has_room)
        return None

    def _batch(self, priority: Priority, first: int, has_room: bool) -> Batch:
        among = [self._waiting[priority]]
        if priority is Priority.DEMAND and has_room:
            among.append(self._waiting[Priority.READAHEAD])
        limit = _MAX_REQUEST if priority <= Priority.READAHEAD else _SMALL_REQUEST
        numbers = self._cut(first, lambda number: any(number in one for one in among), limit)
        spans = [self._spans[number] for number in numbers]
        for one in spans:
            del self._waiting[one.priority][one.number]
            one.running = True
        return Batch(self, spans)

    # In the threads.

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                with self._fetching.scratch() as scratch:
                    self._fetch(batch, scratch)
            except BaseException as error:  # noqa: BLE001 - raised again by who waits for the spans
                while batch.left:
                    batch.fail(error)
            finally:
                self.release(batch)

    def _next(self) -> Batch | None:
        """Waits for work; None when the thread should end."""
        with self._ready:
            expired = False
            while not self._closed:
                batch = self._take()
                if batch is not None:
                    self._busy += 1
                    self._staff()
                    return batch
                if expired:
                    break
                self._idle += 1
                expired = not self._ready.wait(_IDLE)
                self._idle -= 1
            self._threads.discard(threading.current_thread())
            return None


def _fail(one: Wanted, error: BaseException) -> None:
    with suppress(Exception):  # InvalidStateError: it was given up before
        one.future.set_exception(error)
