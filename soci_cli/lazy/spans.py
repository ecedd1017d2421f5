"""The uncompressed bytes of a layer that is somewhere else: only the spans that are read are fetched.

Every span's compressed bytes are checked against the digest in the zTOC, then inflated once and kept in
the caches. Spans that are wanted together come with one request, and several requests may be under way.
Two readers of one span cause one request: threads by a table of what is running, processes by the lock on
the cache's entry.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.lazy.cache import Cache, Claim, MemoryCache, span_key
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.targets import BlobReader, Source
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.reader import inflate_span

DEFAULT_REQUESTS = 3
"""Requests under way at once."""
MAX_SPAN = 256 << 20
"""Bytes that a span may have, compressed or not: it is held in memory whole."""

_MAX_GAP = 256 << 10  # compressed bytes that are read through rather than asked around
_MAX_REQUEST = 4 << 20  # compressed bytes of a request: the first of them should come soon
_MAX_OUTPUT = 12 << 20  # what they may inflate to
_MAX_SPANS = 32
_PATIENCE = 30.0
_FAREWELL = 1.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


@runtime_checkable
class Skipping(Protocol):
    """A stream that says how much came unasked before the range, because Range was ignored."""

    @property
    def skipped(self) -> int:
        """Bytes before the range that were read and dropped."""


class Archive(Protocol):
    """The uncompressed archive of a layer, of which ranges can be read."""

    def close(self) -> None:
        """Let go of files and connections."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length)."""

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """As `read`, in pieces, the later ones fetched while the first are used."""

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> Callable[[int], None]:
        """Prepares for reading ranges in ascending order: call the result with each offset."""


class Fetching(Closing):
    """What all layers that are read in one process share: caches, threads, and what is running."""

    def __init__(
        self, cache: Cache, memory: MemoryCache | None = None, requests: int = DEFAULT_REQUESTS
    ) -> None:
        self.cache = cache
        self.memory = memory or MemoryCache()
        self.requests = requests
        self.running: dict[str, Future[bytes]] = {}
        self.mutex = threading.Lock()
        self.stop = Stop()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Runs a job in another thread, at most `requests` of them at a time."""
        with self.mutex:
            if len(self._threads) < self.requests:
                thread = threading.Thread(target=self._work, name="soci-fetch", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Ends what is running, at its next span.

        What hangs in the network is left behind after a moment, so that Ctrl-C always works.
        """
        self.stop.set()
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _FAREWELL
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class LayerSpans(Closing):
    """Reads ranges of one layer's archive through its zTOC. Several threads may. Implements `Archive`.

    Reading raises IntegrityError, InvalidDataError, and what fetching raises.
    """

    def __init__(
        self, fetching: Fetching, source: Source, layer: Descriptor, ztoc: Ztoc, ztoc_digest: str
    ) -> None:
        self._fetching = fetching
        self._source = source
        self._layer = layer
        self._ztoc = ztoc
        self._spans = ztoc.spans
        self._prefix = span_key(layer.digest, ztoc_digest, 0).removesuffix("0")
        self._forward = _Forward(source, layer)
        self._in_order = False  # the source ignores Range
        if ztoc.compressed_archive_size != layer.size:
            raise InvalidDataError(
                f"zTOC {ztoc_digest} is for a layer of {ztoc.compressed_archive_size} bytes, but "
                f"{self._what} has {layer.size}"
            )

    @property
    def _what(self) -> str:
        return f"layer {self._layer.digest} of {self._source.name}"

    def close(self) -> None:
        """Let go of a connection that was read on; `Fetching` is closed before."""
        self._forward.close()

    def read(self, offset: int, length: int) -> bytes:
        """See `Archive.read`."""
        return b"".join(self.pieces(offset, length))

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `Archive.pieces`."""
        numbers = self._needed(offset, length)
        reach = self._plan(numbers)
        end = offset + length
        for number in numbers:
            reach(number)
            start, _ = self._output_range(number)
            data = memoryview(self._span(number))
            piece = data[max(0, offset - start) : end - start]
            if piece.nbytes:
                yield piece

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> Callable[[int], None]:
        """See `Archive.ahead`."""
        numbers: dict[int, None] = {}
        for offset, length in ranges:
            numbers.update(dict.fromkeys(self._needed(offset, length)))
        reach = self._plan(list(numbers))
        return lambda offset: reach(self._spans.span_of(offset))

    def _needed(self, offset: int, length: int) -> list[int]:
        """The spans that hold some of these bytes."""
        end = offset + length
        if length <= 0:
            return []
        if offset < 0 or end > self._ztoc.uncompressed_archive_size or not len(self._spans):
            raise InvalidDataError(f"{self._what}: there are no bytes {offset} to {end}")
        last = self._spans.span_of(end - 1)
        return list(range(self._spans.span_of(offset), last + 1))

    def _output_range(self, number: int) -> tuple[int, int]:
        """Where a span's uncompressed bytes begin and end."""
        starts = self._spans.starts
        start = starts[number]
        last = number + 1 == len(starts)
        end = max(start, self._ztoc.uncompressed_archive_size) if last else starts[number + 1]
        return start, end

    def _sizes(self, number: int) -> tuple[int, int]:
        """A span's compressed and uncompressed size. InvalidDataError when one is out of all reason."""
        start, end = self._spans.compressed_range(number)
        first, last = self._output_range(number)
        if max(end - start, last - first) > MAX_SPAN:
            raise InvalidDataError(
                f"{self._what}: span {number} has {max(end - start, last - first)} bytes; at most "
                f"{MAX_SPAN} can be read lazily, so build its zTOC with a smaller span size"
            )
        return end - start, last - first

    def _plan(self, numbers: Sequence[int]) -> Callable[[int], None]:
        """Fetches ascending spans ahead of where a reader is, which it says by calling the result."""
        if len(numbers) < 2:
            return lambda number: None
        groups = deque(self._groups(numbers))
        begun: deque[int] = deque()  # the last spans of the groups that were asked for

        def reach(number: int) -> None:
            while begun and begun[0] < number:
                begun.popleft()
            while groups and len(begun) <= self._fetching.requests:
                group = groups.popleft()
                if group[-1] >= number:
                    begun.append(group[-1])
                    self._start([n for n in group if not self._fetching.cache.has(self._key(n))])

        return reach

    def _groups(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """Cuts ascending spans into what one request should ask for."""
        group: list[int] = []
        begin = output = 0
        previous_end = 0
        for number in numbers:
            start, end = self._spans.compressed_range(number)
            _, size = self._sizes(number)
            if group and (
                start - previous_end > _MAX_GAP
                or end - begin > _MAX_REQUEST
                or output + size > _MAX_OUTPUT
                or len(group) == _MAX_SPANS
            ):
                yield group
                group = []
            if not group:
                begin, output = start, 0
            group.append(number)
            output += size
            previous_end = end
        if group:
            yield group

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _span(self, number: int) -> bytes:
        """The uncompressed bytes of one span, from the caches or fetched now."""
        key = self._key(number)
        fetching = self._fetching
        with fetching.mutex:
            data = fetching.memory.get(key)
            future = fetching.running.get(key)
        if data is None and future is None:
            data = self._load(number)
        if data is not None:
            return data
        return (future or self._start([number])[number]).result()

    def _load(self, number: int) -> bytes | None:
        """A span from the disk, into memory too."""
        key = self._key(number)
        data = self._fetching.cache.load(key)
        start, end = self._output_range(number)
        if data is None or len(data) != end - start:
            return None
        self._fetching.memory.put(key, data)
        return data

    def _start(self, numbers: Sequence[int]) -> dict[int, Future[bytes]]:
        """Begins to fetch spans, unless they are being fetched; gives what to wait for."""
        fetching = self._fetching
        futures: dict[int, Future[bytes]] = {}
        new = []
        for number in numbers:
            self._sizes(number)  # may raise, which it must not do later
        with fetching.mutex:
            for number in numbers:
                future = fetching.running.get(self._key(number))
                if future is None:
                    data = fetching.memory.get(self._key(number))
                    future = Future()
                    if data is not None:
                        future.set_result(data)
                    else:
                        fetching.running[self._key(number)] = future
                        new.append(number)
                futures[number] = future
        for group in self._groups(new):
            batch = _Batch(fetching, {number: self._key(number) for number in group}, futures)
            fetching.submit(partial(self._fetch, batch))
        return futures

    # In the threads of `Fetching`.

    def _fetch(self, batch: _Batch) -> None:
        """Fetches ascending spans, all with one request where nobody else has or fetches some."""
        try:
            while batch.left:
                self._fetching.stop.check()
                with ExitStack() as stack:
                    claims = self._claim(batch)
                    for claim in claims.values():
                        stack.enter_context(claim)
                    if self._in_order:
                        self._fetch_in_order(claims, batch)
                    else:
                        self._fetch_range(claims, batch)
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for the spans
            while batch.left:
                batch.fail(batch.left[0], error)

    def _claim(self, batch: _Batch) -> dict[int, Claim]:
        """The right to fetch the first span, and those after it that are free; empty when it is here.

        While another process fetches the first one, it is waited for; holding no lock, so nobody can wait
        in a circle.
        """
        cache, first = self._fetching.cache, batch.left[0]
        deadline = time.monotonic() + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            claim = cache.claim(self._key(first))
            if claim is None and time.monotonic() > deadline:
                claim = Claim(cache, cache.root, -1)  # fetched twice, kept once
            data = self._load(first) if claim is None or claim.is_real else None
            if data is not None:
                if claim is not None:
                    claim.close()
                batch.done(first, data)
                return {}
            if claim is not None:
                break
            self._fetching.stop.check()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        claims = {first: claim}
        for number in list(batch.left)[1:]:
            claim = cache.claim(self._key(number))
            if claim is None:
                break
            if cache.has(self._key(number)):
                claim.close()
                break
            claims[number] = claim
        return claims

    def _fetch_range(self, claims: dict[int, Claim], batch: _Batch) -> None:
        """One request for ascending spans, and for what lies between them."""
        numbers = list(claims)
        if not numbers:
            return
        begin, _ = self._spans.compressed_range(numbers[0])
        _, end = self._spans.compressed_range(numbers[-1])
        with self._source.fetch(self._layer, begin, end - begin) as stream:
            if isinstance(stream, Skipping) and stream.skipped:
                self._in_order = True
            reader = _Reader(stream, begin)
            for number in numbers:
                self._fetching.stop.check()
                packed = reader.range(*self._spans.compressed_range(number))
                self._finish(number, packed, claims[number], batch)

    def _fetch_in_order(self, claims: dict[int, Claim], batch: _Batch) -> None:
        """Reads on through the whole layer, up to what is wanted; what passes by is kept on the disk."""
        cache = self._fetching.cache
        if not claims:
            return
        with self._forward.use(min(claims)) as stream:
            while stream.next <= max(claims):
                self._fetching.stop.check()
                number = stream.next
                self._sizes(number)
                packed = stream.take(*self._spans.compressed_range(number))
                claim = claims.get(number)
                if claim is not None:
                    self._finish(number, packed, claim, batch)
                elif not cache.has(self._key(number)) and self._is_right(number, packed):
                    cache.put(self._key(number), self._inflate(number, packed))

    def _finish(self, number: int, packed: bytes, claim: Claim, batch: _Batch) -> None:
        """Checks, inflates and keeps a span. One that is wrong does no harm to those beside it."""
        try:
            if not self._is_right(number, packed):
                packed = self._fetch_again(number)
            data = self._inflate(number, packed)
        except (IntegrityError, InvalidDataError) as error:
            batch.fail(number, error)
            return
        claim.put(data)
        batch.done(number, data)

    def _is_right(self, number: int, packed: bytes) -> bool:
        digest = b"sha256:" + hashlib.sha256(packed).hexdigest().encode()
        return digest == self._ztoc.span_digests[number]

    def _fetch_again(self, number: int) -> bytes:
        """A span whose bytes were wrong or too few. IntegrityError when they are so again."""
        start, end = self._spans.compressed_range(number)
        with self._source.fetch(self._layer, start, end - start) as stream:
            packed = _Reader(stream, start).range(start, end)
        if not self._is_right(number, packed):
            raise IntegrityError(
                f"{self._what}: span {number} (bytes {start} to {end}) does not have the digest that "
                "the zTOC gives, fetched twice; the layer there or its zTOC is damaged"
            )
        return packed

    def _inflate(self, number: int, packed: bytes) -> bytes:
        _, size = self._sizes(number)
        if not self._spans.is_gzip:
            data = packed[:size]
        else:
            try:
                data = b"".join(inflate_span(self._spans, number, packed, size))
            except InvalidDataError as error:
                raise InvalidDataError(f"{self._what}: {error}") from None
        if len(data) != size:
            raise InvalidDataError(f"{self._what}: span {number} holds less than the zTOC says")
        return data


class _Batch:
    """Ascending spans that one job fetches, by number, with their keys and with who waits for them."""

    def __init__(
        self, fetching: Fetching, keys: dict[int, str], futures: dict[int, Future[bytes]]
    ) -> None:
        self.left = deque(keys)
        self._fetching = fetching
        self._keys = keys
        self._futures = futures

    def done(self, number: int, data: bytes) -> None:
        """The first that is left is here."""
        self._fetching.memory.put(self._keys[number], data)
        self._end(number).set_result(data)

    def fail(self, number: int, error: BaseException) -> None:
        """The first that is left cannot be had."""
        self._end(number).set_exception(error)

    def _end(self, number: int) -> Future[bytes]:
        with self._fetching.mutex:
            del self._fetching.running[self._keys[number]]
        self.left.popleft()
        return self._futures[number]


class _Reader:
    """Takes ascending ranges out of a stream; each may begin with the last byte of the one before."""

    def __init__(self, stream: BlobReader, position: int) -> None:
        self._stream = stream
        self._position = position
        self._last = b""

    def range(self, start: int, end: int) -> bytes:
        """The bytes [start, end), or fewer where the stream ends."""
        while self._position < start and (gap := self._read(start - self._position)):
            self._last = gap[-1:]
        shared = self._last if start < self._position else b""
        parts = [shared]
        while self._position < end and (part := self._read(end - self._position)):
            parts.append(part)
        data = b"".join(parts)
        self._last = data[-1:] or self._last
        return data

    def _read(self, size: int) -> bytes:
        data = self._stream.read(min(size, _MAX_REQUEST))
        self._position += len(data)
        return data


class _Forward(Closing):
    """One stream of a whole layer that is read on and on, for a source that ignores Range."""

    def __init__(self, source: Source, layer: Descriptor) -> None:
        self.next = 0
        """The span that comes next."""
        self._source = source
        self._layer = layer
        self._stream: BlobReader | None = None
        self._reader: _Reader | None = None
        self._mutex = threading.Lock()

    @contextmanager
    def use(self, number: int) -> Iterator[_Forward]:
        """The stream, for one thread at a time; begun anew when `number` is past, or after an error."""
        with self._mutex:
            if self._reader is None or number < self.next:
                self.close()
                self._stream = self._source.fetch(self._layer)
                self._reader = _Reader(self._stream, 0)
                self.next = 0
            good = False
            try:
                yield self
                good = True
            finally:
                if not good:
                    self.close()

    def take(self, start: int, end: int) -> bytes:
        """The compressed bytes of the next span."""
        assert self._reader is not None
        data = self._reader.range(start, end)
        self.next += 1
        return data

    def close(self) -> None:
        """Let go of the connection."""
        stream, self._stream, self._reader = self._stream, None, None
        if stream is not None:
            stream.close()
