"""The threads that fetch spans: what comes next, how much at once, and how long readers wait.

All images of a process share them, and there are some at most, but no layer is in the way of another: one
whose registry hangs has a few of them, and a layer that has none always gets one for what readers wait for.
In a layer one request more than the usual number is kept for that, so nothing that is fetched ahead of time
is in its way.

A reader waits no longer than the deadline after the last byte that came. Then the request that should have
brought its span is given up: its thread ends when it can, and the next reader begins anew.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from soci_cli.closing import Closing
from soci_cli.errors import StorageError, UnreachableError
from soci_cli.lazy.buffers import Buffers, RequestMemory
from soci_cli.lazy.entries import AnyEntry, OpenEntries
from soci_cli.lazy.layer_bytes import Name
from soci_cli.lazy.span_queue import PendingSpan, Priority, Request, SpanQueue
from soci_cli.lazy.ztocs import Ztocs
from soci_cli.parallel import Stopped

_MAX_REQUESTS = 32  # of all layers together; more only for layers that have none
_MAX_MEMORY = 256 << 20  # bytes that these requests need
_LITTLE = 8 << 20  # bytes of a request that a layer without one may always begin
_SPARE = max(2, os.cpu_count() or 1)  # requests of a layer that inflate beside those that receive
_MAX_GIVEN_UP = 16  # requests of a layer that were given up and have not ended
_MOST_GIVEN_UP = 128  # of all layers together; only layers that have some wait then
_DISK_THREADS = 4
_FAREWELL = 1.0  # seconds
_IDLE = 5.0  # seconds until a thread without work ends
_WATCHED_EVERY = 0.25
_KEPT_BUFFERS = 4


class Fetcher(Closing):
    """Fetches spans for all images that are read in one process. Several threads may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.open = OpenEntries()
        self.ztocs = Ztocs()
        self.last_demand = clock()
        """When a reader last had to wait for a span."""
        self._buffers = Buffers(_KEPT_BUFFERS, max(2, os.cpu_count() or 1))
        self._changed = threading.Condition()
        self._queues: set[SpanQueue] = set()
        self._busy: dict[SpanQueue, None] = {}  # where something may wait; the next one first
        self._jobs: deque[Callable[[], None]] = deque()
        self._demanded: dict[PendingSpan, None] = {}
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._starting = 0
        self._reading = 0  # jobs that run
        self._requests = 0  # that have not ended, but for those given up
        self._memory = 0  # bytes that these need
        self._given_up = 0
        self._later: list[
            tuple[float, int, Callable[[], None]]
        ] = []  # a heap of jobs, by their time
        self._numbers = itertools.count()
        self._timer: threading.Thread | None = None
        self._tick = threading.Event()
        self._wakes_at = 0.0  # when the timer looks again, by time.monotonic
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many spans readers wait for now."""
        return len(self._demanded)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being fetched and nothing waits for that, in any layer."""
        with self._changed:
            return not any(queue.spans for queue in self._queues)

    # For layers.

    def add(self, queue: SpanQueue) -> None:
        """A layer begins to be read."""
        with self._changed:
            self._queues.add(queue)
            queue.is_closed = self._closed

    def want(
        self, queue: SpanQueue, numbers: Iterable[int], priority: Priority, name: Name
    ) -> list[PendingSpan]:
        """Spans are wanted; those that are pending already count once. Their futures tell the outcome.

        Raises Stopped when the layer is closed.
        """
        failed: list[PendingSpan] = []
        with self._changed:
            if queue.is_closed:
                raise Stopped("stopped")
            found = [queue.add(number, priority, name) for number in numbers]
            self._busy.setdefault(queue)
            if priority is Priority.DEMAND:
                self._demand(found)
            try:
                self._need_thread()
            except RuntimeError as error:
                problem = _no_thread(error)
                failed = queue.waiting()
                for one in failed:
                    self._remove(one)
        for one in failed:
            one.future.set_exception(problem)
        return found

    def run(self, job: Callable[[], None], after: float = 0.0) -> None:
        """Does something that may wait for the disk in one of a few threads, `after` so many seconds.

        It should not raise. Raises Stopped after the end, and StorageError when no thread can be started.
        """
        with self._changed:
            if self._closed:
                raise Stopped("stopped")
            if after > 0:
                entry = (self.clock() + after, next(self._numbers), job)
                heapq.heappush(self._later, entry)
                self._need_timer(after)
                return
            self._jobs.append(job)
            try:
                self._need_thread()
            except RuntimeError as error:
                self._jobs.pop()
                raise _no_thread(error) from error

    def close_queue(self, queue: SpanQueue) -> None:
        """A layer is read no more: fails what is pending. Requests end at their next step."""
        with self._changed:
            queue.is_closed = True
            self._queues.discard(queue)
            self._busy.pop(queue, None)
            dropped = list(queue.spans.values())
            for one in dropped:
                self._remove(one)
        for one in dropped:
            one.future.set_exception(Stopped("stopped"))

    def close(self) -> None:
        """Ends what is running, at its next step.

        What hangs in the network is left behind after a moment, so that Ctrl-C always works.
        """
        with self._changed:
            self._closed = True
            queues, threads = list(self._queues), list(self._threads)
            self._changed.notify_all()
            self._tick.set()
        for queue in queues:
            self.close_queue(queue)
        deadline = time.monotonic() + _FAREWELL
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.open.clear()
        self._buffers.clear()

    # For the thread that carries out a request.

    def done(self, request: Request, one: PendingSpan, entry: AnyEntry) -> None:
        """A span of a request is here."""
        if self._take_out(request, one):
            one.future.set_result(entry)

    def fail(self, request: Request, one: PendingSpan, error: BaseException) -> None:
        """A span of a request cannot be had."""
        if self._take_out(request, one):
            if not isinstance(error, Stopped):
                one.queue.stats.count_error()
            one.future.set_exception(error)

    def received(self, request: Request) -> None:
        """All has come from the network: the next request may begin while this is inflated."""
        with self._changed:
            self._release_network(request)
            self._need_thread()

    def is_given_up(self, queue: SpanQueue, number: int) -> bool:
        """Whether a request for a span was given up and has not ended."""
        with self._changed:
            return any(number in request.numbers for request in queue.given_up)

    # With the lock.

    def _take_out(self, request: Request, one: PendingSpan) -> bool:
        """Whether a span is still to come by a request; then it is not pending any more."""
        with self._changed:
            if one.request is not request:
                return False
            self._remove(one)
            return True

    def _remove(self, one: PendingSpan) -> None:
        one.queue.remove(one)
        if one in self._demanded:
            del self._demanded[one]
            self.last_demand = self.clock()

    def _demand(self, spans: Iterable[PendingSpan]) -> None:
        now = self.last_demand = self.clock()
        for one in spans:
            if one not in self._demanded:
                one.demanded = now
                self._demanded[one] = None
        self._need_timer(_WATCHED_EVERY)

    def _need_timer(self, pause: float) -> None:
        """Makes sure that the timer looks at the clock within so many seconds."""
        if time.monotonic() + pause < self._wakes_at:
            self._tick.set()
        if self._timer is None:
            timer = threading.Thread(target=self._keep_time, name="soci-timer", daemon=True)
            with suppress(RuntimeError):  # the system allows no more threads
                timer.start()
                self._timer = timer

    def _release_network(self, request: Request) -> None:
        if request.is_receiving:
            request.is_receiving = False
            request.queue.receiving -= 1
            request.queue.image.receiving -= 1

    def _end(self, request: Request) -> None:
        """A request counts no more."""
        self._release_network(request)
        request.queue.running -= 1
        self._requests -= 1
        self._memory -= request.size

    def _next_request(self) -> Request | None:
        """The most urgent request that may begin now."""
        for queue in [queue for queue in self._busy if not queue.has_waiting]:
            del self._busy[queue]
        for priority in Priority:
            for queue in self._busy:
                size = queue.next_size(priority)
                if size is None or not self._may_begin(queue, priority, size):
                    continue
                has_room = queue.receiving < queue.requests
                also = [Priority.READAHEAD] if priority is Priority.DEMAND and has_room else []
                request = queue.take(priority, also)
                request.began = self.clock()
                queue.running += 1
                queue.receiving += 1
                queue.image.receiving += 1
                self._requests += 1
                self._memory += request.size
                # The others come first now.
                del self._busy[queue]
                self._busy[queue] = None
                return request
        return None

    def _may_begin(self, queue: SpanQueue, priority: Priority, size: int) -> bool:
        is_demanded = priority is Priority.DEMAND
        if (
            queue.receiving >= queue.requests + is_demanded
            or queue.running >= queue.requests + _SPARE
            or len(queue.given_up) >= _MAX_GIVEN_UP
            or (queue.given_up and self._given_up >= _MOST_GIVEN_UP)
        ):
            return False
        if is_demanded and not queue.running and size <= _LITTLE:
            return True
        image = queue.image
        if not is_demanded and 0 < image.limit <= image.receiving:
            return False
        most = min(_MAX_REQUESTS, image.in_all or _MAX_REQUESTS)
        return self._requests < most and self._memory + size <= _MAX_MEMORY

    def _next_job(self) -> Callable[[], None] | None:
        """What to do next; None when there is nothing, or only what must wait."""
        if self._jobs and self._reading < _DISK_THREADS:
            self._reading += 1
            return partial(self._run, self._jobs.popleft())
        request = self._next_request()
        return None if request is None else partial(self._fetch, request)

    def _need_thread(self) -> None:
        """Makes sure that a thread looks for work. One that finds some calls this again, so each has one.

        RuntimeError when there is no thread and none can be started.
        """
        if self._idle:
            self._changed.notify()
        elif not self._starting:
            thread = threading.Thread(target=self._work, name="soci-fetch", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
            else:
                self._starting += 1
                self._threads.add(thread)

    # In the threads.

    def _work(self) -> None:
        with self._changed:
            self._starting -= 1
        try:
            while self._do_job():
                pass
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _do_job(self) -> bool:
        """Does what comes next; False when the thread should end. Holds on to nothing while it waits."""
        job = self._wait_for_job()
        if job is not None:
            job()
        return job is not None

    def _wait_for_job(self) -> Callable[[], None] | None:
        """What to do; None when the thread should end."""
        with self._changed:
            expired = False
            while not self._closed:
                job = self._next_job()
                if job is not None:
                    if self._jobs or self._busy:
                        self._need_thread()
                    return job
                if expired:
                    break
                self._idle += 1
                expired = not self._changed.wait(_IDLE)
                self._idle -= 1
            return None

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._changed:
                self._reading -= 1

    def _fetch(self, request: Request) -> None:
        try:
            with RequestMemory(self._buffers) as memory:
                request.queue.fetch(request, memory)
        except BaseException as error:  # noqa: BLE001 - raised again where the spans are used
            for one in request.spans:
                self.fail(request, one, error)
        finally:
            with self._changed:
                if request.is_given_up:
                    request.queue.given_up.discard(request)
                    self._given_up -= 1
                else:
                    self._end(request)

    def _keep_time(self) -> None:
        """Fails what readers waited for too long, and begins jobs whose time has come."""
        is_woken = True
        while True:
            with self._changed:
                self._tick.clear()
                now = self.clock()
                expired = [
                    one for one in self._demanded if now - one.last_byte >= one.queue.deadline
                ]
                for one in expired:
                    self._expire(one)
                # A reader that came late to a request that is silent need not wait for its end.
                for one in tuple(self._demanded):
                    if one.request and now - one.request.silence_began >= one.queue.deadline:
                        self._give_up(one.request)
                while self._later and self._later[0][0] <= now:
                    self._jobs.append(heapq.heappop(self._later)[2])
                if self._jobs:
                    with suppress(RuntimeError):  # tried again in a moment
                        self._need_thread()
                is_needed = bool(is_woken or expired or self._demanded or self._later or self._jobs)
                if self._closed or not is_needed:
                    self._timer = None
                    is_needed = False
                pause = self._later[0][0] - now if self._later else _IDLE
                if self._demanded or self._jobs:
                    pause = min(pause, _WATCHED_EVERY)
                self._wakes_at = time.monotonic() + pause
            for one in expired:
                one.queue.stats.count_error()
                error = UnreachableError(f"nothing came for {one.queue.deadline:g} s")
                one.future.set_exception(error)
            if not is_needed:
                return
            is_woken = self._tick.wait(pause)

    def _expire(self, one: PendingSpan) -> None:
        request = one.request
        self._remove(one)
        if request is not None and not request.is_given_up:
            self._give_up(request)

    def _give_up(self, request: Request) -> None:
        """What is left of a request is requested again; its thread ends when it can."""
        request.is_given_up = True
        request.queue.given_up.add(request)
        self._given_up += 1
        request.queue.put_back(request)
        self._busy.setdefault(request.queue)
        self._end(request)
        self._need_thread()


def _no_thread(error: RuntimeError) -> StorageError:
    return StorageError(f"nothing can be fetched: {error}; see ulimit -u and pids.max")
