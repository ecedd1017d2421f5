"""Getting spans from the place of a layer: ranged requests, digests, inflating, and into the cache."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.lazy.buffers import LARGE, RequestMemory, SpanBuffer
from soci_cli.lazy.cache import Claim
from soci_cli.lazy.cached_spans import CachedSpans
from soci_cli.lazy.devices.complete import MAX_TAIL
from soci_cli.lazy.devices.spans import SpanClaim
from soci_cli.lazy.entries import AnyEntry, HeldEntry
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.span_queue import PendingSpan, Request
from soci_cli.lazy.span_table import SpanTable
from soci_cli.oci import Descriptor
from soci_cli.targets import BlobReader, Source
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.inflate import Buffer
from soci_cli.ztoc.reader import inflate_span

_LOG = logging.getLogger("soci_cli.lazy")
_RECEIVED_AT_ONCE = 256 << 10
_INFLATED_AT_ONCE = 1 << 20  # of a large span
_HASHED_AT_ONCE = 4 << 20
_SHORT = "it holds less than the zTOC says"
_PATIENCE = 10.0  # seconds that another process may take for a span
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


class LayerReceiver(Closing):
    """Carries out the requests for one layer. Several threads may use it.

    Every span's compressed bytes are checked against the digest in the zTOC before they are inflated. Two
    processes cause one request for a span, by the lock on the cache's entry.
    """

    def __init__(
        self,
        fetching: Fetching,
        source: Source,
        layer: Descriptor,
        ztoc: Ztoc,
        table: SpanTable,
        cached: CachedSpans,
    ) -> None:
        self._fetcher = fetching.fetcher
        self._stats = fetching.stats
        self._cache_root = fetching.cache.root
        self._source = source
        self._layer = layer
        self._digests = ztoc.span_digests
        self._table = table
        self._spans = ztoc.spans
        self._cached = cached
        self._in_order = False  # the source ignores Range
        self._forward = _Forward(source, layer)

    def close(self) -> None:
        """Lets go of a connection that was read on."""
        self._forward.close()

    def tail(self, check: Callable[[], None]) -> Iterator[bytes]:
        """What follows the archive in the layer, fetched and checked as a span is.

        At most a little more than `MAX_TAIL` bytes. Raises as `fetch`.
        """
        last = len(self._table) - 1
        start, end = self._spans.compressed_range(last)
        packed, plain = Buffer(max(1, end - start)), Buffer(_RECEIVED_AT_ONCE)
        with self._source.fetch_while(check, self._layer, start, end - start) as stream:
            size = _Reader(stream, start, check).range(start, end, packed.view)
        if not self._is_right(last, packed.view[:size]):
            raise IntegrityError(
                "its last span does not have the digest that the zTOC gives", span=last
            )
        skip = self._table.sizes(last)[1]
        if not self._spans.is_gzip:
            yield bytes(packed.view[skip:size])
            return
        for count in inflate_span(self._spans, last, packed, size, plain, skip + MAX_TAIL + 1):
            if skip < count:
                yield bytes(plain.view[skip:count])
            skip = max(0, skip - count)

    def fetch(self, request: Request, memory: RequestMemory) -> None:
        """See `Fetch`: all at once, but for spans that another process has or fetches."""
        left = list(request.spans)
        while left:
            request.check()
            with ExitStack() as stack:
                stream = None
                if self._in_order:
                    # Before the claims: the spans that pass by are kept where they are not claimed.
                    stream = stack.enter_context(self._in_turn(request))
                claims = self._claim(request, left)
                for claim in claims.values():
                    stack.enter_context(claim)
                spans, left = left[: len(claims)], left[len(claims) :]
                if not spans:
                    del left[0]  # it was here
                elif stream is None:
                    self._receive(request, spans, claims, memory)
                else:
                    self._receive_on(stream, request, spans, claims, memory)

    @contextmanager
    def _in_turn(self, request: Request) -> Iterator[_Forward]:
        """The one stream of the whole layer, when no other request reads on in it."""
        while True:
            stream = self._forward
            if stream.turn.acquire(timeout=_LONGEST_PAUSE):
                break
            # What comes for others brings this one nearer.
            request.arrived(request.queue.moved)
            user = stream.user
            if user is not None and user.is_given_up and self._forward is stream:
                self._forward = _Forward(self._source, self._layer)
        stream.user = request
        try:
            yield stream
        finally:
            stream.turn.release()

    def _claim(self, request: Request, spans: list[PendingSpan]) -> dict[int, Claim | SpanClaim]:
        """The right to fetch the first span, and those after it that are free; empty when it is here.

        While another process fetches the first one, this waits for it, and holds no lock meanwhile, so
        that processes never wait in a circle.
        """
        first, cached = spans[0], self._cached
        is_stuck = self._fetcher.is_given_up(request.queue, first.number)
        deadline = time.monotonic() + (0 if is_stuck else _PATIENCE)
        pause = _FIRST_PAUSE
        while True:
            claim = cached.claim(first.number)
            if claim is None and time.monotonic() >= deadline:
                claim = cached.claim_beside(first.number)  # fetched twice, which does no harm
            entry = cached.find(first.number)
            if entry is not None:
                if claim is not None:
                    claim.close()
                self._fetcher.done(request, first, entry)
                return {}
            if claim is not None:
                break
            request.check()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        claims = {first.number: claim}
        for one in spans[1:]:
            claim = cached.claim(one.number)
            if claim is None:
                break
            if cached.has(one.number):
                claim.close()
                break
            claims[one.number] = claim
        return claims

    def _receive(
        self,
        request: Request,
        spans: list[PendingSpan],
        claims: dict[int, Claim | SpanClaim],
        memory: RequestMemory,
    ) -> None:
        """One request for ascending spans, and for what lies between them."""
        begin, _ = self._spans.compressed_range(spans[0].number)
        _, end = self._spans.compressed_range(spans[-1].number)
        fetch = self._source.fetch_while
        with (
            self._logged(spans, end - begin),
            fetch(request.check, self._layer, begin, end - begin) as stream,
        ):
            if stream.skipped:
                self._in_order = True
            reader = _Reader(stream, begin, self._arrived(request, memory))
            for one in spans:
                packed = self._packed(one.number, memory)
                size = reader.range(*self._spans.compressed_range(one.number), packed.view)
                if one is request.spans[-1]:
                    self._fetcher.received(request)
                self._finish(request, one, claims[one.number], size, memory)

    def _receive_on(
        self,
        stream: _Forward,
        request: Request,
        spans: list[PendingSpan],
        claims: dict[int, Claim | SpanClaim],
        memory: RequestMemory,
    ) -> None:
        """Reads on through the whole layer, up to what is wanted; what passes by is kept on the disk."""
        wanted = {one.number: one for one in spans}
        size = sum(self._table.packed_size(number) for number in wanted)
        with self._logged(spans, size), stream.begun(min(wanted), self._arrived(request, memory)):
            while stream.next <= max(wanted):
                number = stream.next
                packed = self._packed(number, memory)
                size = stream.take(*self._spans.compressed_range(number), packed.view)
                if number in wanted:
                    self._finish(request, wanted[number], claims[number], size, memory)
                elif not self._cached.has(number) and self._is_right(number, packed.view[:size]):
                    claim = self._cached.claim(number)
                    if claim is not None:
                        with claim, self._inflated(number, size, memory) as data:
                            self._cached.count(number, spans[0].source, size)
                            claim.put(data)

    @contextmanager
    def _logged(self, spans: list[PendingSpan], size: int) -> Iterator[None]:
        """Logs one fetch when it ends; `size` are the compressed bytes that were asked for."""
        started, said = time.monotonic(), "failed"
        try:
            yield
            said = "here"
        finally:
            _LOG.debug(
                "spans %d to %d of layer %s, %d bytes from %s: %s (%s, %.3f s)",
                spans[0].number,
                spans[-1].number,
                self._layer.digest,
                size,
                self._source.name,
                said,
                spans[0].source,
                time.monotonic() - started,
            )

    def _arrived(self, request: Request, memory: RequestMemory) -> Callable[[], None]:
        clock = self._fetcher.clock

        def arrived() -> None:
            request.arrived(clock())
            memory.forget()

        return arrived

    def _packed(self, number: int, memory: RequestMemory) -> SpanBuffer:
        """Room for the compressed bytes of a span, or those bytes."""
        return memory.packed(self._table.packed_size(number), self._cache_root)

    def _finish(
        self,
        request: Request,
        one: PendingSpan,
        claim: Claim | SpanClaim,
        size: int,
        memory: RequestMemory,
    ) -> None:
        """Checks, inflates and keeps a span of which `size` compressed bytes came.

        One that is wrong does no harm to those beside it.
        """
        number = one.number
        packed = self._packed(number, memory)
        try:
            if not self._is_right(number, packed.view[:size], packed.forget):
                size = self._receive_again(request, number, memory)
            entry = self._keep_large(one, claim, size, memory)
            if entry is None:
                with self._inflated(number, size, memory) as data:
                    # Counted first: as soon as it is on the disk, another thread may find it there.
                    self._cached.count(number, one.source, size)
                    entry = claim.put(data) or HeldEntry(bytes(data))
        except (IntegrityError, InvalidDataError) as error:
            self._fetcher.fail(request, one, error)
            return
        self._cached.keep(number, entry)
        name = one.name()
        if name:
            self._stats.charge(self._layer.digest, name, size)
        self._fetcher.done(request, one, entry)

    def _keep_large(
        self, one: PendingSpan, claim: Claim | SpanClaim, size: int, memory: RequestMemory
    ) -> AnyEntry | None:
        """As the rest of `_finish`, of a large span, which is inflated piece by piece into the cache.

        None for one that is not large, and where the disk takes nothing.
        """
        number, wanted = one.number, self._table.sizes(one.number)[1]
        if wanted <= LARGE or not self._spans.is_gzip or not claim.is_real:
            return None
        packed = self._packed(number, memory)
        with memory.plain(_INFLATED_AT_ONCE) as plain:

            def pieces() -> Iterator[memoryview]:
                done = 0
                for count in inflate_span(self._spans, number, packed, size, plain, wanted):
                    done += count
                    packed.forget()
                    yield plain.view[:count]
                if done != wanted:
                    raise InvalidDataError(_SHORT)

            self._cached.count(number, one.source, size)
            try:
                return claim.fill(wanted, pieces())
            except OSError:
                claim.close()  # with what was written
                return None

    def _is_right(
        self, number: int, packed: memoryview, forget: Callable[[], None] = lambda: None
    ) -> bool:
        digest = hashlib.sha256()
        for at in range(0, packed.nbytes, _HASHED_AT_ONCE):
            digest.update(packed[at : at + _HASHED_AT_ONCE])
            forget()
        return b"sha256:" + digest.hexdigest().encode() == self._digests[number]

    def _receive_again(self, request: Request, number: int, memory: RequestMemory) -> int:
        """A span whose bytes were wrong or too few; its size. IntegrityError when they are so again."""
        start, end = self._spans.compressed_range(number)
        packed = self._packed(number, memory)
        fetch = self._source.fetch_while
        with fetch(request.check, self._layer, start, end - start) as stream:
            reader = _Reader(stream, start, self._arrived(request, memory))
            size = reader.range(start, end, packed.view)
        if not self._is_right(number, packed.view[:size], packed.forget):
            raise IntegrityError(
                f"bytes {start} to {end} do not have the digest that the zTOC gives, fetched twice; the "
                "layer there or its zTOC is damaged"
            )
        return size

    @contextmanager
    def _inflated(self, number: int, size: int, memory: RequestMemory) -> Iterator[memoryview]:
        """The content of a span of which `size` compressed bytes are in `memory`."""
        wanted = self._table.sizes(number)[1]
        packed = self._packed(number, memory)
        if not self._spans.is_gzip:
            yield _complete(packed.view[:size][:wanted], wanted)
            return
        with memory.plain(wanted) as plain:
            pieces = inflate_span(self._spans, number, packed, size, plain, wanted)
            yield _complete(plain.view[: next(pieces, 0)], wanted)


def _complete(data: memoryview, wanted: int) -> memoryview:
    if data.nbytes != wanted:
        raise InvalidDataError(_SHORT)
    return data


class _Reader:
    """Takes ascending ranges out of a stream; each may begin with the last byte of the one before."""

    def __init__(self, stream: BlobReader, position: int, arrived: Callable[[], None]) -> None:
        """`arrived` is called when bytes came; what it raises ends reading."""
        self._stream = stream
        self._position = position
        self._last = b""
        self.arrived = arrived

    def range(self, start: int, end: int, buffer: memoryview) -> int:
        """Fills `buffer` with the bytes [start, end); how many came before the stream ended."""
        while self._position < start:
            gap = min(start - self._position, buffer.nbytes)
            if not self._fill(buffer[:gap]):
                return 0
            self._last = bytes(buffer[gap - 1 : gap])
        shared = self._last if start < self._position else b""
        buffer[: len(shared)] = shared
        size = len(shared) + self._fill(buffer[len(shared) : max(end - start, len(shared))])
        if size:
            self._last = bytes(buffer[size - 1 : size])
        return size

    def _fill(self, buffer: memoryview) -> int:
        """Reads until the buffer is full or the stream ends."""
        filled = 0
        while filled < buffer.nbytes:
            count = self._stream.readinto(buffer[filled : filled + _RECEIVED_AT_ONCE])
            if not count:
                break
            filled += count
            self.arrived()
        self._position += filled
        return filled


class _Forward(Closing):
    """One stream of a whole layer that is read on and on, for a source that ignores Range.

    The request that has `turn` uses it.
    """

    def __init__(self, source: Source, layer: Descriptor) -> None:
        self.turn = threading.Lock()
        self.user: Request | None = None
        """The request that has the turn, or had it last."""
        self.next = 0
        """The span that comes next."""
        self._source = source
        self._layer = layer
        self._stream: BlobReader | None = None
        self._reader: _Reader | None = None

    @contextmanager
    def begun(self, number: int, arrived: Callable[[], None]) -> Iterator[None]:
        """The stream is open; begun anew when `number` is past, or after an error."""
        if self._reader is None or number < self.next:
            self.close()
            self._stream = self._source.fetch_while(self._check, self._layer)
            self._reader = _Reader(self._stream, 0, arrived)
            self.next = 0
        self._reader.arrived = arrived
        good = False
        try:
            yield
            good = True
        finally:
            if not good:
                self.close()

    def take(self, start: int, end: int, buffer: memoryview) -> int:
        """The compressed bytes of the next span; how many there were."""
        assert self._reader is not None
        size = self._reader.range(start, end, buffer)
        self.next += 1
        return size

    def _check(self) -> None:
        if self.user is not None:
            self.user.check()

    def close(self) -> None:
        """Let go of the connection."""
        stream, self._stream, self._reader = self._stream, None, None
        if stream is not None:
            stream.close()
