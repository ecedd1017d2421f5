"""Fetching what nobody asked for yet: what an image wants prefetched, and then all the rest, slowly.

Both are at hand in small requests, and wait while somebody reads what is not here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.errors import SociError
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.lazy.span_queue import Priority
from soci_cli.parallel import Stopped

_PREFETCHES = 2  # requests under way at once
_CHUNK = 2 << 20  # compressed bytes of a request
_POLITE = 1.0  # seconds that a prefetch waits for readers: one that hangs holds it no longer
_STEP = 0.05
_PATIENCE = 60.0  # seconds after which a request counts as hanging
_ATTEMPTS = 3
_FAREWELL = 1.0


@dataclass(frozen=True)
class BackgroundOptions:
    """When to fetch in the background, as the reference's settings of these names say; times in seconds.

    Every `fetch_period` one request, but only when nobody had to wait for a span in the last
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


class BackgroundFetcher(Closing):
    """Fetches the spans of an image's layers into the cache; closed before `fetching` is.

    What fails is tried again a few times, and left to whoever reads it. Layers that were unpacked whole
    need nothing.
    """

    def __init__(
        self,
        layers: Sequence[ReadLayer],
        fetching: Fetching,
        options: BackgroundOptions | None = None,
    ) -> None:
        self._options = options or BackgroundOptions()
        self._fetching = fetching
        self._layers = layers
        self._ending = threading.Event()
        self._finished = threading.Event()
        self._threads: list[threading.Thread] = []
        self._prefetches: deque[Iterator[_Chunk]] = deque()
        self._prefetching = 0
        self._mutex = threading.Lock()
        if self._options.enabled:
            self._start(self._fetch_rest)
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
            self._prefetches.append(_chunks(archive, sorted(numbers)))
            while self._prefetching < _PREFETCHES:
                self._prefetching += 1
                self._start(self._prefetch)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until no more is fetched in the background; whether that is so.

        That is when all is here, and also when it is disabled, closed, or the cache or the registry takes
        or gives no more: `LayerBytes.missing` says what is left.
        """
        return self._finished.wait(timeout)

    def close(self) -> None:
        """Ends what is running, after its request at the latest."""
        self._ending.set()
        deadline = time.monotonic() + _FAREWELL
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="soci-background", daemon=True)
        self._threads.append(thread)
        thread.start()

    # In the threads.

    def _prefetch(self) -> None:
        while True:
            with self._mutex:
                if not self._prefetches or self._ending.is_set():
                    self._prefetching -= 1
                    return
                chunks = self._prefetches[0]
                chunk = next(chunks, None)
                if chunk is None:
                    self._prefetches.popleft()
                    continue
            begin = time.monotonic()
            while self._fetching.waiting and time.monotonic() - begin < _POLITE:
                if self._ending.wait(_STEP):
                    return
            if self._try(chunk, Priority.PREFETCH) is _Outcome.KEPT:
                continue
            with self._mutex:
                # The registry does not answer, or the disk takes nothing.
                if chunks in self._prefetches:
                    self._prefetches.remove(chunks)

    def _fetch_rest(self) -> None:
        try:
            self._fetch_all()
        finally:
            self._finished.set()

    def _fetch_all(self) -> None:
        budget = self._fetching.cache.limit * 4 // 5  # more would push out what came first
        pause = self._options.fetch_period
        for _ in range(_ATTEMPTS):
            failed = False
            left = deque(self._missing())
            while left:
                chunks = left.popleft()
                chunk = next(chunks, None)
                if chunk is None:
                    continue
                left.append(chunks)
                budget -= chunk.size
                if budget < 0 or not self._wait_for_silence(pause):
                    return
                outcome = self._try(chunk, Priority.BACKGROUND)
                if outcome is _Outcome.LOST:
                    return
                failed = failed or outcome is _Outcome.FAILED
                pause = self._options.fetch_period
                if outcome is _Outcome.FAILED:
                    pause += self._options.silence_period
            if not failed:
                return

    def _missing(self) -> Iterator[Iterator[_Chunk]]:
        """What is missing of each layer."""
        for layer in self._layers[: self._options.max_queue_size]:
            try:
                archive = layer.archive
            except SociError:  # one that is opened when it is needed, and could not be
                continue
            yield _chunks(archive, archive.missing())

    def _wait_for_silence(self, pause: float) -> bool:
        """Waits until nothing else is going on; False when it is time to end."""
        options = self._options
        while not self._ending.wait(pause):
            silence = time.monotonic() - self._fetching.last_demand
            if (
                silence >= options.silence_period
                and not self._fetching.waiting
                and not self._prefetching
                and self._fetching.is_quiet
            ):
                return True
            pause = max(_STEP, min(options.fetch_period, options.silence_period - silence))
        return False

    def _try(self, chunk: _Chunk, priority: Priority) -> _Outcome:
        """Fetches spans and waits for them."""
        try:
            wanted = chunk.layer.fetch(chunk.numbers, priority)
        except SociError:
            return _Outcome.LOST
        futures = [one.future for one in wanted]
        begin = time.monotonic()
        while wait(futures, _STEP).not_done:
            if self._ending.is_set():
                return _Outcome.LOST
            if time.monotonic() - begin > _PATIENCE:
                return _Outcome.FAILED
        for future in futures:
            error = future.exception()
            if isinstance(error, Stopped):
                return _Outcome.LOST
            if error is not None:
                return _Outcome.FAILED
            if not future.result().is_kept:
                return _Outcome.LOST
        return _Outcome.KEPT


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


def _chunks(layer: LayerBytes, numbers: Sequence[int]) -> Iterator[_Chunk]:
    for chunk in layer.chunks(numbers, _CHUNK):
        yield _Chunk(layer, chunk, layer.size_of(chunk))
