"""Fetching before anything is read: what an image wants prefetched, and then all the rest, slowly.

It is done in small requests, which wait while a reader waits for a span. No thread sleeps for it: those of
`Fetcher` run the steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, TypeAlias

from soci_cli.closing import Closing
from soci_cli.errors import SociError
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.lazy.span_queue import PendingSpan, Priority
from soci_cli.parallel import Stopped

_PREFETCHES = 2  # requests under way at once
_CHUNK = 2 << 20  # compressed bytes of a request
_POLITE = 1.0  # seconds that a prefetch waits for readers: one that hangs holds it no longer
_STEP = 0.05
_PATIENCE = 60.0  # seconds after which a request counts as hanging
_ATTEMPTS = 3


@dataclass(frozen=True)
class BackgroundOptions:
    """When to fetch in the background, as the reference's settings of these names say; times in seconds.

    Every `fetch_period` one request, but only when no reader had to wait for a span in the last
    `silence_period`; of `max_queue_size` layers at most, the lowest ones.
    """

    enabled: bool = True
    silence_period: float = 30.0
    fetch_period: float = 0.5
    max_queue_size: int = 300


class ReadLayer(Protocol):
    """A layer of an image that is read."""

    @property
    def archive(self) -> LayerBytes:
        """Its bytes."""


class _Outcome(Enum):
    KEPT = 1  # on the disk
    FAILED = 2
    LOST = 3  # there is no point in going on


@dataclass(frozen=True)
class _Chunk:
    """Spans of a layer that come with one request, and their uncompressed bytes."""

    layer: LayerBytes
    numbers: Sequence[int]
    size: int
    priority: Priority


_Work: TypeAlias = Generator[float | _Chunk, _Outcome | None, None]
"""Yields seconds to wait, or a chunk to fetch, whose outcome it is sent."""


class BackgroundFetcher(Closing):
    """Fetches the spans of an image's layers into the cache.

    What fails is tried again a few times, and left to its readers. Layers that were unpacked whole
    need nothing.
    """

    def __init__(
        self,
        layers: Sequence[ReadLayer],
        fetching: Fetching,
        options: BackgroundOptions | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """`then` is called in a thread of its own when no more is fetched, unless this is closed before."""
        self._then = then
        self._options = options or BackgroundOptions()
        self._cache_limit = fetching.cache.limit
        self._fetcher = fetching.fetcher
        self._layers = layers
        self._ending = False
        self._finished = threading.Event()
        self._prefetches: deque[Iterator[_Chunk]] = deque()
        self._prefetching = 0
        self._mutex = threading.Lock()
        if self._options.enabled:
            self._go_on(self._fetch_all())
        else:
            self._finished.set()

    def prefetch(self, layer: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches ranges of spans, both ends included, of the layer with this number, from now on.

        What the layer does not have is passed over.
        """
        archive = self._layers[layer].archive
        last = archive.span_count - 1
        numbers: set[int] = set()
        for first, end in ranges:
            numbers.update(range(max(0, first), min(end, last) + 1))
        with self._mutex:
            self._prefetches.append(_chunks(archive, sorted(numbers), Priority.PREFETCH))
            begun = _PREFETCHES - self._prefetching
            self._prefetching = _PREFETCHES
        for _ in range(begun):
            self._go_on(self._prefetch())

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until no more is fetched in the background; whether that is so.

        That is when all is here, and also when it is disabled, closed, or the cache or the registry takes
        or gives no more: `LayerBytes.missing` says what is left.
        """
        return self._finished.wait(timeout)

    def close(self) -> None:
        """Begins no more requests."""
        self._ending = True
        self._finished.set()

    # Steps.

    def _go_on(self, work: _Work, outcome: _Outcome | None = None) -> None:
        """Does the next step, and sees to it that the one after it is done."""
        with suppress(StopIteration, SociError):  # SociError: nothing is fetched any more
            if not self._ending:
                wish = work.send(outcome)
                if isinstance(wish, _Chunk):
                    pending = wish.layer.fetch(wish.numbers, wish.priority)
                    under_way = _UnderWay(pending, partial(self._report, work))
                    self._fetcher.run(under_way.end, _PATIENCE)
                else:
                    self._fetcher.run(partial(self._go_on, work), wish)
                return
        work.close()

    def _report(self, work: _Work, outcome: _Outcome) -> None:
        try:
            self._fetcher.run(partial(self._go_on, work, outcome))
        except SociError:
            work.close()

    def _prefetch(self) -> _Work:
        try:
            while True:
                with self._mutex:
                    if not self._prefetches:
                        return
                    chunks = self._prefetches[0]
                    chunk = next(chunks, None)
                    if chunk is None:
                        self._prefetches.popleft()
                        continue
                begin = self._fetcher.clock()
                while self._fetcher.waiting and self._fetcher.clock() - begin < _POLITE:
                    yield _STEP
                if (yield chunk) is _Outcome.KEPT:
                    continue
                with self._mutex:
                    # The registry does not answer, or the disk takes nothing.
                    if chunks in self._prefetches:
                        self._prefetches.remove(chunks)
        finally:
            with self._mutex:
                self._prefetching -= 1

    def _fetch_all(self) -> _Work:
        try:
            yield self._options.fetch_period
            for _ in range(_ATTEMPTS):
                if not (yield from self._fetch_missing()):
                    return
        finally:
            self._finished.set()
            if self._then is not None and not self._ending:
                threading.Thread(target=self._then, name="soci-device", daemon=True).start()

    def _fetch_missing(self) -> Generator[float | _Chunk, _Outcome | None, bool]:
        """Fetches what is missing of all layers in turns; whether some of it is worth another attempt."""
        budget = self._cache_limit * 4 // 5  # more would push out what came first
        failed = False
        left = deque(self._missing())
        while left:
            chunks = left.popleft()
            chunk = next(chunks, None)
            if chunk is None:
                continue
            left.append(chunks)
            budget -= chunk.size
            if budget < 0:
                return False
            while pause := self._until_silence():
                yield pause
            outcome = yield chunk
            if outcome is _Outcome.LOST:
                return False
            yield self._options.fetch_period
            if outcome is _Outcome.FAILED:
                failed = True
                yield self._options.silence_period
        return failed

    def _missing(self) -> Iterator[Iterator[_Chunk]]:
        """What is missing of each layer."""
        for layer in self._layers[: self._options.max_queue_size]:
            try:
                archive = layer.archive
            except SociError:  # one that is opened when it is needed, and could not be
                continue
            yield _chunks(archive, archive.missing(), Priority.BACKGROUND)

    def _until_silence(self) -> float:
        """Seconds to wait before looking again whether nothing else is going on; 0 when nothing is."""
        options, fetcher = self._options, self._fetcher
        silence = fetcher.clock() - fetcher.last_demand
        if (
            silence >= options.silence_period
            and not fetcher.waiting
            and not self._prefetching
            and fetcher.is_quiet
        ):
            return 0
        return max(_STEP, min(options.fetch_period, options.silence_period - silence))


class _UnderWay:
    """Spans that are being fetched. Says once how that ended: when all came, or when it takes too long."""

    def __init__(self, spans: Sequence[PendingSpan], then: Callable[[_Outcome], None]) -> None:
        self._spans = spans
        self._then = [then]  # who takes it calls it
        self._tickets = list(range(len(spans) + 1))  # the last to be taken is 0
        for one in spans:
            one.future.add_done_callback(self._arrived)
        self._arrived(None)

    def _arrived(self, _: object) -> None:
        if self._tickets.pop() == 0:
            self.end()

    def end(self) -> None:
        """It is over, or takes too long."""
        try:
            then = self._then.pop()
        except IndexError:  # it was said before
            return
        spans, self._spans = self._spans, ()  # whose entries are open files
        then(_outcome(spans))


def _outcome(spans: Sequence[PendingSpan]) -> _Outcome:
    if not all(one.future.done() for one in spans):
        return _Outcome.FAILED
    errors = [one.future.exception() for one in spans]
    if any(isinstance(error, Stopped) for error in errors):
        return _Outcome.LOST
    if any(errors):
        return _Outcome.FAILED
    kept = all(one.future.result().is_kept for one in spans)
    return _Outcome.KEPT if kept else _Outcome.LOST


def _chunks(layer: LayerBytes, numbers: Sequence[int], priority: Priority) -> Iterator[_Chunk]:
    for chunk in layer.chunks(numbers, _CHUNK):
        yield _Chunk(layer, chunk, layer.size_of(chunk), priority)
