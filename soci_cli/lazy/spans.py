"""The uncompressed bytes of a layer that is somewhere else: only the spans that are read are fetched.

Every span's compressed bytes are checked against the digest in the zTOC, then inflated once and kept in
the cache. Spans that are wanted together come with one request, and several requests may be under way.
Two readers of one span cause one request: threads by the lane of what is wanted, processes by the lock on
the cache's entry.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeAlias

from soci_cli.closing import Closing
from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    RegistryError,
    StorageError,
)
from soci_cli.lazy.cache import Claim, span_key
from soci_cli.lazy.entries import MAX_HELD, AnyEntry, HeldEntry
from soci_cli.lazy.fetching import Batch, Fetching, Lane, Priority, Scratch, Wanted
from soci_cli.lazy.stats import Presence
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.targets import BlobReader, Source
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.reader import inflate_span

MAX_SPAN = 256 << 20
"""Bytes that a span may have, compressed or not: it is inflated into memory whole."""

_MAX_GAP = 256 << 10  # compressed bytes that are read through rather than asked around
_MAX_OUTPUT = 32 << 20  # what a request may inflate to
_MAX_SPANS = 32
_HORIZON = 64 << 20  # what is fetched ahead of somebody who goes through known ranges
_HELD_AHEAD = MAX_HELD // 4  # the same where the disk takes nothing
_PIECE = 256 << 10
_RECEIVED_AT_ONCE = 256 << 10
_PATIENCE = 30.0
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05
_STREAMS = 8  # readers in order that are told apart
_SLACK = 2  # spans that a reader in order may be off


Name: TypeAlias = Callable[[], bytes]
"""Gives the name of the file that is read, which is rarely needed."""


def no_name() -> bytes:
    """For a file that nobody knows."""
    return b""


class Archive(Protocol):
    """The uncompressed archive of a layer, of which ranges can be read."""

    def close(self) -> None:
        """Let go of files and connections."""

    def read(self, offset: int, length: int, file: bytes = b"") -> bytes:
        """The bytes [offset, offset + length), waited for. What is fetched is charged to `file`."""

    def ready(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """Fills a buffer from `offset` on, without waiting for a disk or a network.

        False when that is needed: then `read` has the bytes. `name` gives the file that is charged for
        what is fetched ahead now.
        """

    def pieces(self, offset: int, length: int, file: bytes = b"") -> Iterator[memoryview]:
        """As `read`, in pieces, the later ones fetched while the first are used."""

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> Callable[[int], None]:
        """Prepares for reading ranges in ascending order: call the result with each offset."""


class LayerSpans(Closing):
    """Reads ranges of one layer's archive through its zTOC. Several threads may. Implements `Archive`.

    Reading raises IntegrityError, InvalidDataError, and what fetching raises.
    """

    def __init__(
        self, fetching: Fetching, source: Source, layer: Descriptor, ztoc: Ztoc, ztoc_digest: str
    ) -> None:
        self.layer = layer
        self._fetching = fetching
        self._source = source
        self._ztoc = ztoc
        self._spans = ztoc.spans
        self._prefix = span_key(layer.digest, ztoc_digest, 0).removesuffix("0")
        self._in_order = False  # the source ignores Range
        self._seen = bytearray(len(ztoc.spans))  # spans that were counted
        if ztoc.compressed_archive_size != layer.size:
            raise InvalidDataError(
                f"zTOC {ztoc_digest} is for a layer of {ztoc.compressed_archive_size} bytes, but "
                f"{self._what} has {layer.size}"
            )
        self._streams = _Streams(self._spans_in(fetching.readahead))
        self._lane = Lane(fetching, self._fetch, self._cut)
        self._forward = _Forward(source, layer, self._lane.stop)

    @property
    def _what(self) -> str:
        return f"layer {self.layer.digest} of {self._source.name}"

    def close(self) -> None:
        """Ends what is running, and lets go of a connection that was read on."""
        self._lane.close()
        self._forward.close()

    # Reading.

    def read(self, offset: int, length: int, file: bytes = b"") -> bytes:
        """See `Archive.read`."""
        numbers = self._needed(offset, length)
        if not numbers:
            return b""
        self._follow(numbers, lambda: file)
        if len(numbers) > 1:
            self._start(self._absent(numbers), Priority.DEMAND, file)
        start = self._spans.starts[numbers[0]]
        if len(numbers) == 1:
            return self._part(numbers[0], offset - start, length, file)
        return b"".join(
            self._part(number, begin, count, file)
            for number, begin, count in self._parts(numbers, offset, length)
        )

    def ready(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `Archive.ready`."""
        numbers = self._needed(offset, buffer.nbytes)
        if not numbers:
            return True
        self._follow(numbers, name)
        done = 0
        for number, begin, count in self._parts(numbers, offset, buffer.nbytes):
            span = self._fetching.open.get(self._key(number))
            if span is None or span.read_now(begin, buffer[done : done + count]) != count:
                return False
            done += count
        self._fetching.stats.hits += len(numbers)
        return done == buffer.nbytes

    def pieces(self, offset: int, length: int, file: bytes = b"") -> Iterator[memoryview]:
        """See `Archive.pieces`."""
        numbers = self._needed(offset, length)
        reach = self._plan(numbers, file)
        for number, begin, count in self._parts(numbers, offset, length):
            reach(number)
            end = begin + count
            while begin < end:
                piece = self._part(number, begin, min(_PIECE, end - begin), file)
                yield memoryview(piece)
                begin += len(piece)

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> Callable[[int], None]:
        """See `Archive.ahead`."""
        numbers: dict[int, None] = {}
        for offset, length in ranges:
            numbers.update(dict.fromkeys(self._needed(offset, length)))
        reach = self._plan(list(numbers), b"")
        return lambda offset: reach(self._spans.span_of(offset))

    # Fetching before anybody asks.

    def missing(self) -> list[int]:
        """The spans that are not in the cache, in order."""
        here = self._fetching.cache.names(self._prefix)
        return [number for number in range(len(self._spans)) if str(number) not in here]

    def __len__(self) -> int:
        """The number of spans."""
        return len(self._spans)

    def chunks(self, numbers: Iterable[int], limit: int) -> Iterator[list[int]]:
        """Cuts ascending spans into what one request of about `limit` compressed bytes asks for."""
        left = deque(number for number in numbers if self._is_sane(number))
        wanted = set(left)
        while left:
            chunk = self._cut(left[0], wanted.__contains__, limit)
            for _ in chunk:
                left.popleft()
            yield chunk

    def fetch(self, numbers: Iterable[int], priority: Priority) -> list[Wanted]:
        """Begins to fetch those spans that are not in the cache."""
        return self._start(self._absent(numbers), priority, b"")

    def size_of(self, numbers: Iterable[int]) -> int:
        """The uncompressed bytes of spans."""
        return sum(self._sizes(number)[1] for number in numbers)

    def presence(self) -> Presence:
        """How much of the layer is in the cache."""
        missing = self.missing()
        whole = self._ztoc.uncompressed_archive_size
        lacking = sum(end - start for start, end in map(self._output_range, missing))
        count = len(self._spans)
        return Presence(count, count - len(missing), whole, max(0, whole - lacking))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being fetched and nothing waits for that."""
        return self._lane.is_quiet

    # Which spans, and where.

    def _needed(self, offset: int, length: int) -> range:
        """The spans that hold some of these bytes."""
        end = offset + length
        if length <= 0:
            return range(0)
        if offset < 0 or end > self._ztoc.uncompressed_archive_size or not len(self._spans):
            raise InvalidDataError(f"{self._what}: there are no bytes {offset} to {end}")
        first = self._spans.span_of(offset)
        starts = self._spans.starts
        if first + 1 == len(starts) or end <= starts[first + 1]:
            return range(first, first + 1)
        return range(first, self._spans.span_of(end - 1) + 1)

    def _parts(
        self, numbers: Sequence[int], offset: int, length: int
    ) -> Iterator[tuple[int, int, int]]:
        """Of each span what is wanted: its number, where that begins in it, and how much it is."""
        for number in numbers:
            start, end = self._output_range(number)
            begin = max(offset, start)
            count = min(offset + length, end) - begin
            if count > 0:
                yield number, begin - start, count

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

    def _is_sane(self, number: int) -> bool:
        start, end = self._spans.compressed_range(number)
        first, last = self._output_range(number)
        return max(end - start, last - first) <= MAX_SPAN

    def _spans_in(self, size: int) -> int:
        """How many spans hold about `size` uncompressed bytes."""
        whole = self._ztoc.uncompressed_archive_size
        return -(-size * len(self._spans) // whole) if whole else 0

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number}"

    # One span.

    def _part(self, number: int, begin: int, count: int, file: bytes) -> bytes:
        """Bytes of one span, from the cache or fetched now."""
        span = self._find(number)
        if span is not None:
            data = span.read(begin, count)
            if len(data) == count:
                self._fetching.stats.hits += 1
                return data
            self._fetching.open.drop(self._key(number))
            self._fetching.cache.remove(self._key(number))
        wanted = self._start([number], Priority.DEMAND, file)[0]
        data = self._fetching.await_span(wanted).read(begin, count)
        if len(data) != count:
            raise IntegrityError(
                f"{self._what}: the file of span {number} in the cache was cut short; is the disk of "
                f"{self._fetching.cache.root} in order?"
            )
        return data

    def _find(self, number: int) -> AnyEntry | None:
        """A span that is here."""
        key = self._key(number)
        span = self._fetching.open.get(key)
        return self._load(number, key) if span is None else span

    def _load(self, number: int, key: str) -> AnyEntry | None:
        """A span from the disk, which stays open."""
        entry = self._fetching.cache.find(key)
        if entry is None:
            return None
        start, end = self._output_range(number)
        if entry.size != end - start:
            return None
        self._fetching.open.put(key, entry)
        self._count(number, "cache", 0)
        return entry

    def _count(self, number: int, source: str, fetched: int) -> None:
        """Counts a span that was fetched, or is used for the first time."""
        if not self._seen[number] or fetched:
            self._seen[number] = 1
            start, end = self._output_range(number)
            self._fetching.stats.came(source, fetched, end - start)

    # Spans that are wanted.

    def _start(self, numbers: Sequence[int], priority: Priority, file: bytes) -> list[Wanted]:
        for number in numbers:
            self._sizes(number)  # may raise, which it must not do later
        return self._lane.want(numbers, priority, file) if numbers else []

    def _absent(self, numbers: Iterable[int]) -> list[int]:
        """Those that are not here, or that are being fetched."""
        fetching = self._fetching
        return [
            number
            for number in numbers
            if self._lane.is_wanted(number)
            or (
                fetching.open.get(self._key(number)) is None
                and not fetching.cache.has(self._key(number))
            )
        ]

    def _follow(self, numbers: range, name: Name) -> None:
        """Fetches ahead of readers who go through the layer in order."""
        if numbers[-1] != self._streams.latest:
            ahead = self._streams.at(numbers)
            if ahead:
                self._read_ahead(ahead, name())

    def _read_ahead(self, numbers: range, file: bytes) -> None:
        if self._fetching.open.is_holding:
            numbers = numbers[: self._spans_in(_HELD_AHEAD)]
        last = min(numbers.stop, len(self._spans))
        sane = (number for number in range(numbers.start, last) if self._is_sane(number))
        self._start(self._absent(sane), Priority.READAHEAD, file)

    def _plan(self, numbers: Sequence[int], file: bytes) -> Callable[[int], None]:
        """Fetches ascending spans ahead of where a reader is, which it says by calling the result."""
        if len(numbers) < 2:
            return lambda number: None
        fetching = self._fetching
        horizon = max(2, self._spans_in(min(_HORIZON, fetching.cache.limit // 4)))
        held = max(2, self._spans_in(_HELD_AHEAD))
        position = begun = 0  # in `numbers`

        def reach(number: int) -> None:
            nonlocal position, begun
            while position < len(numbers) and numbers[position] < number:
                position += 1
            size = min(horizon, held) if fetching.open.is_holding else horizon
            # In large steps, so that there is something to merge.
            if begun < len(numbers) and begun - position <= size // 2:
                ahead = range(max(begun, position), min(position + size, len(numbers)))
                begun = ahead.stop
                sane = (numbers[at] for at in ahead if self._is_sane(numbers[at]))
                self._start(self._absent(sane), Priority.READAHEAD, file)

        return reach

    def _cut(self, first: int, is_wanted: Callable[[int], bool], limit: int) -> list[int]:
        """`first` and those of the wanted spans after it that come best with the same request.

        A span of `limit` compressed bytes and more comes alone.
        """
        begin, end = self._spans.compressed_range(first)
        output = self._sizes(first)[1]
        numbers = [first]
        for number in range(first + 1, len(self._spans)):
            start, stop = self._spans.compressed_range(number)
            if start - end > _MAX_GAP or stop - begin > limit or len(numbers) == _MAX_SPANS:
                break
            if is_wanted(number):
                output += self._sizes(number)[1]
                if output > _MAX_OUTPUT:
                    break
                numbers.append(number)
                end = stop
        return numbers

    # In the threads of the lane.

    def _fetch(self, batch: Batch, scratch: Scratch) -> None:
        """Fetches ascending spans, all with one request where nobody else has or fetches some."""
        while batch.left:
            self._lane.stop.check()
            with ExitStack() as stack, self._naming(batch):
                in_order = self._in_order
                if in_order:
                    # Before the claims: what passes by is kept where nobody else has claimed it.
                    stack.enter_context(self._forward.turn)
                claims = self._claim(batch)
                for claim in claims.values():
                    stack.enter_context(claim)
                if in_order:
                    self._fetch_in_order(claims, batch, scratch)
                else:
                    self._fetch_range(claims, batch, scratch)

    @contextmanager
    def _naming(self, batch: Batch) -> Iterator[None]:
        """Errors of the place say which span of which layer was wanted."""
        try:
            yield
        except (RegistryError, NotFoundError, StorageError) as error:
            if not batch.left:
                raise
            text = f"{self._what}: span {batch.left[0].number}: {error}"
            if isinstance(error, RegistryError):
                raise RegistryError(text, error.status, error.retry_after) from error
            kind = NotFoundError if isinstance(error, NotFoundError) else StorageError
            raise kind(text) from error

    def _claim(self, batch: Batch) -> dict[int, Claim]:
        """The right to fetch the first span, and those after it that are free; empty when it is here.

        While another process fetches the first one, it is waited for; holding no lock, so nobody can wait
        in a circle.
        """
        cache, first = self._fetching.cache, batch.left[0].number
        key = self._key(first)
        deadline = time.monotonic() + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            claim = cache.claim(key)
            if claim is None and time.monotonic() > deadline:
                claim = cache.no_claim(key)  # fetched twice, kept once
            span = self._load(first, key) if claim is None or claim.is_real else None
            if span is not None:
                if claim is not None:
                    claim.close()
                batch.done(span)
                return {}
            if claim is not None:
                break
            self._lane.stop.check()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        claims = {first: claim}
        for one in list(batch.left)[1:]:
            claim = cache.claim(self._key(one.number))
            if claim is None:
                break
            if cache.has(self._key(one.number)):
                claim.close()
                break
            claims[one.number] = claim
        return claims

    def _fetch_range(self, claims: dict[int, Claim], batch: Batch, scratch: Scratch) -> None:
        """One request for ascending spans, and for what lies between them."""
        numbers = list(claims)
        if not numbers:
            return
        begin, _ = self._spans.compressed_range(numbers[0])
        _, end = self._spans.compressed_range(numbers[-1])
        with self._source.fetch(self.layer, begin, end - begin) as stream:
            if stream.skipped:
                self._in_order = True
            reader = _Reader(stream, begin, self._lane.stop)
            for number in numbers:
                packed = scratch.fit(self._sizes(number)[0])
                size = reader.range(*self._spans.compressed_range(number), packed.view)
                if number == batch.last:
                    batch.received()
                self._finish(number, size, claims[number], batch, scratch)

    def _fetch_in_order(self, claims: dict[int, Claim], batch: Batch, scratch: Scratch) -> None:
        """Reads on through the whole layer, up to what is wanted; what passes by is kept on the disk."""
        cache = self._fetching.cache
        if not claims:
            return
        with self._forward.use(min(claims)) as stream:
            while stream.next <= max(claims):
                number = stream.next
                packed = scratch.fit(self._sizes(number)[0])
                size = stream.take(*self._spans.compressed_range(number), packed.view)
                claim = claims.get(number)
                if claim is not None:
                    self._finish(number, size, claim, batch, scratch)
                elif not cache.has(self._key(number)) and self._is_right(number, size, scratch):
                    with self._inflated(number, size, scratch) as data:
                        self._count(number, batch.left[0].source, size)
                        cache.put(self._key(number), data)

    def _finish(self, number: int, size: int, claim: Claim, batch: Batch, scratch: Scratch) -> None:
        """Checks, inflates and keeps a span. One that is wrong does no harm to those beside it."""
        one = batch.left[0]
        try:
            if not self._is_right(number, size, scratch):
                size = self._fetch_again(number, scratch)
            with self._inflated(number, size, scratch) as data:
                # Counted first: as soon as it is on the disk, somebody may find it there.
                self._count(number, one.source, size)
                span: AnyEntry = claim.put(data) or HeldEntry(bytes(data))
        except (IntegrityError, InvalidDataError) as error:
            batch.fail(error)
            return
        self._fetching.open.put(self._key(number), span)
        if one.file:
            self._fetching.stats.charge(self.layer.digest, one.file, size)
        batch.done(span)

    def _is_right(self, number: int, size: int, scratch: Scratch) -> bool:
        digest = hashlib.sha256(scratch.packed.view[:size]).hexdigest()
        return b"sha256:" + digest.encode() == self._ztoc.span_digests[number]

    def _fetch_again(self, number: int, scratch: Scratch) -> int:
        """A span whose bytes were wrong or too few; its size. IntegrityError when they are so again."""
        start, end = self._spans.compressed_range(number)
        with self._source.fetch(self.layer, start, end - start) as stream:
            size = _Reader(stream, start, self._lane.stop).range(start, end, scratch.packed.view)
        if not self._is_right(number, size, scratch):
            raise IntegrityError(
                f"{self._what}: span {number} (bytes {start} to {end}) does not have the digest that "
                "the zTOC gives, fetched twice; the layer there or its zTOC is damaged"
            )
        return size

    @contextmanager
    def _inflated(self, number: int, size: int, scratch: Scratch) -> Iterator[memoryview]:
        """The content of a span of which `size` compressed bytes are in `scratch`."""
        _, wanted = self._sizes(number)
        packed = scratch.packed
        if not self._spans.is_gzip:
            yield self._complete(number, packed.view[:size][:wanted], wanted)
            return
        with scratch.plain(wanted) as plain:
            try:
                pieces = inflate_span(self._spans, number, packed, size, plain, wanted)
                data = plain.view[: next(pieces, 0)]
            except InvalidDataError as error:
                raise InvalidDataError(f"{self._what}: {error}") from None
            yield self._complete(number, data, wanted)

    def _complete(self, number: int, data: memoryview, wanted: int) -> memoryview:
        if data.nbytes != wanted:
            raise InvalidDataError(f"{self._what}: span {number} holds less than the zTOC says")
        return data


class _Streams:
    """The readers who go through a layer in order, as far as one sees them by the spans they read.

    The first span of one is nothing special. From the second on more and more spans are wanted ahead, up
    to `most`.
    """

    def __init__(self, most: int) -> None:
        self.latest = -1
        """The span of the last call; one that reads on in it changes nothing."""
        self._most = most
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS)
        self._mutex = threading.Lock()
        if not most:
            self.at = _no_readahead  # type: ignore[method-assign]

    def at(self, numbers: range) -> range:
        """Somebody reads these spans; what to fetch ahead."""
        first, last = numbers[0], numbers[-1]
        with self._mutex:
            self.latest = last
            for stream in self._streams:
                if stream.goes_on_at(first):
                    if stream is not self._streams[0]:
                        self._streams.remove(stream)
                        self._streams.appendleft(stream)
                    return stream.advance(last, self._most)
            self._streams.appendleft(_Stream(last))
        return range(0)


class _Stream:
    """One reader: the last span that it read, and those that were wanted ahead of it so far."""

    __slots__ = ("last", "until", "window")

    def __init__(self, last: int) -> None:
        self.last = last
        self.until = last
        self.window = 0

    def goes_on_at(self, first: int) -> bool:
        """Whether a read that begins in this span is of the same reader."""
        # Until it is known to be one, only the next span will do.
        return self.last - _SLACK <= first <= self.last + (_SLACK if self.window else 1)

    def advance(self, last: int, most: int) -> range:
        """Its read ends in the span `last`; the spans to fetch ahead."""
        if last <= self.last:
            return range(0)
        self.last = last
        self.window = min(max(2, 2 * self.window), most)
        self.until = max(self.until, last)
        # In large steps, so that there is something to merge.
        if self.until - last > self.window * 3 // 4:
            return range(0)
        begin, self.until = self.until + 1, last + self.window
        return range(begin, self.until + 1)


def _no_readahead(numbers: range) -> range:
    return range(0)


class _Reader:
    """Takes ascending ranges out of a stream; each may begin with the last byte of the one before."""

    def __init__(self, stream: BlobReader, position: int, stop: Stop) -> None:
        self._stream = stream
        self._position = position
        self._stop = stop
        self._last = b""

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
            self._stop.check()
            count = self._stream.readinto(buffer[filled : filled + _RECEIVED_AT_ONCE])
            if not count:
                break
            filled += count
        self._position += filled
        return filled


class _Forward(Closing):
    """One stream of a whole layer that is read on and on, for a source that ignores Range.

    It is used by who has `turn`.
    """

    def __init__(self, source: Source, layer: Descriptor, stop: Stop) -> None:
        self.turn = threading.Lock()
        self.next = 0
        """The span that comes next."""
        self._source = source
        self._layer = layer
        self._stop = stop
        self._stream: BlobReader | None = None
        self._reader: _Reader | None = None

    @contextmanager
    def use(self, number: int) -> Iterator[_Forward]:
        """The stream; begun anew when `number` is past, or after an error."""
        if self._reader is None or number < self.next:
            self.close()
            self._stream = self._source.fetch(self._layer)
            self._reader = _Reader(self._stream, 0, self._stop)
            self.next = 0
        good = False
        try:
            yield self
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

    def close(self) -> None:
        """Let go of the connection."""
        stream, self._stream, self._reader = self._stream, None, None
        if stream is not None:
            stream.close()
