"""The bytes of a layer that is somewhere else: only the spans that are read are fetched.

What is here is read at once. What is not is requested, and the thread that gets the last missing span of a
read completes it. Two readers of one span cause one request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from soci_cli.errors import IntegrityError, InvalidDataError, SociError, errors_at
from soci_cli.lazy.cached_spans import CachedSpans
from soci_cli.lazy.devices.making import make_device
from soci_cli.lazy.entries import MAX_HELD, AnyEntry
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.layer_bytes import LayerBytes, Name, no_advance, no_name
from soci_cli.lazy.readahead import KnownSpans, Readahead
from soci_cli.lazy.receiving import LayerReceiver
from soci_cli.lazy.span_queue import PendingSpan, Priority, SpanQueue
from soci_cli.lazy.span_table import SpanTable
from soci_cli.lazy.stats import Presence
from soci_cli.oci import Descriptor
from soci_cli.targets import Source
from soci_cli.ztoc import Ztoc

_HORIZON = 64 << 20  # uncompressed bytes fetched ahead of a reader of known ranges
_HELD_AHEAD = MAX_HELD // 4  # the same where the disk takes nothing


class LayerSpans(LayerBytes):
    """Reads ranges of one layer's archive through its zTOC."""

    def __init__(
        self,
        fetching: Fetching,
        source: Source,
        layer: Descriptor,
        ztoc: Ztoc,
        ztoc_digest: str,
        diff_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`diff_id` gives the digest of the archive. InvalidDataError when the zTOC is of another layer."""
        self.layer = layer
        self._place = source.name
        if ztoc.compressed_archive_size != layer.size:
            raise InvalidDataError(
                f"zTOC {ztoc_digest} is for a layer of {ztoc.compressed_archive_size} bytes, but it has "
                f"{layer.size}",
                place=source.name,
                layer=layer.digest,
            )
        self._fetching = fetching
        self._ztoc = ztoc
        self._diff_id = diff_id
        self._fetcher = fetching.fetcher
        self._table = SpanTable(ztoc)
        keys = layer.digest, ztoc_digest
        self._cached = CachedSpans(fetching, self._table, keys)
        self._readahead = Readahead(fetching.readahead)
        self._receiver = LayerReceiver(fetching, source, layer, ztoc, self._table, self._cached)
        self._queue = SpanQueue(
            self._table,
            self._receiver.fetch,
            fetching.requests,
            fetching.deadline,
            fetching.stats,
            fetching.image,
        )
        # Where the span that was read last begins and ends: most reads are of the same one again.
        self._latest: tuple[int, int, AnyEntry | None] = 0, 0, None
        self._fetcher.add(self._queue)

    def close(self) -> None:
        """Ends what is running, and lets go of a connection that was read on."""
        self._fetcher.close_queue(self._queue)
        self._receiver.close()
        self._cached.close()
        self._latest = 0, 0, None

    # Reading.

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `LayerBytes.read_now`."""
        length = buffer.nbytes
        start, end, latest = self._latest
        if start <= offset and offset + length <= end and latest is not None:
            if latest.read_now(offset - start, buffer) != length:
                return False
            self._fetching.stats.hits += 1
            self._read_ahead(offset, length, name)
            return True
        numbers = self._holding(offset, length)
        if not numbers:
            return True
        self._read_ahead(offset, length, name)
        done = 0
        for number, begin, count in self._table.parts(numbers, offset, length):
            entry = self._cached.opened(number)
            if entry is None or entry.read_now(begin, buffer[done : done + count]) != count:
                return False
            done += count
            if entry.is_kept:
                self._latest = *self._table.range(number), entry
        self._fetching.stats.hits += len(numbers)
        return True

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """See `LayerBytes.submit`."""
        numbers = self._holding(offset, length)
        self._read_ahead(offset, length, name)
        read = _Read(self, numbers, offset, length, name)
        if any(map(self._cached.is_here, numbers)):
            self._fetcher.run(read.run)  # opening and reading a file may wait for the disk
        else:
            read.run()
        return read.future

    def read(self, offset: int, length: int, name: Name = no_name) -> bytes:
        """See `LayerBytes.read`."""
        numbers = self._holding(offset, length)
        self._read_ahead(offset, length, name)
        read = _Read(self, numbers, offset, length, name)
        read.run()
        return read.future.result()

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """See `LayerBytes.ahead`."""
        numbers: dict[int, None] = {}
        for offset, length in ranges:
            numbers.update(dict.fromkeys(self._holding(offset, length)))
        if len(numbers) < 2:
            return lambda offset: None
        horizon = max(2, self._table.count_in(min(_HORIZON, self._fetching.cache.limit // 4)))
        held = max(2, self._table.count_in(_HELD_AHEAD))
        known = KnownSpans(
            list(numbers),
            lambda: min(horizon, held) if self._fetcher.open.is_holding else horizon,
            lambda numbers: self._begin_ahead(numbers, name),
        )
        return lambda offset: known.advance(self._table.spans.span_of(offset))

    def _holding(self, offset: int, length: int) -> range:
        try:
            return self._table.holding(offset, length)
        except InvalidDataError as error:
            raise error.at(place=self._place, layer=self.layer.digest) from None

    def _read_ahead(self, offset: int, length: int, name: Name) -> None:
        """Fetches ahead of readers that go through the layer in order."""
        ahead = self._readahead.after(offset, length)
        if ahead is None or ahead[0] >= self._table.size:
            return
        begin, end = ahead
        if self._fetcher.open.is_holding:
            end = min(end, begin + _HELD_AHEAD)
        self._begin_ahead(self._holding(begin, min(end, self._table.size) - begin), name)

    def _begin_ahead(self, numbers: Sequence[int], name: Name) -> None:
        sane = [number for number in numbers if self._table.is_sane(number)]
        self.fetch(sane, Priority.READAHEAD, name)
        closed = [number for number in sane if self._cached.is_closed(number)]
        if closed:
            with suppress(SociError):  # which shows where it matters
                self._fetcher.run(lambda: self._open_all(closed))

    def _open_all(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._cached.find(number)

    def _demand(self, numbers: Sequence[int], name: Name) -> list[PendingSpan]:
        """Spans that a reader waits for."""
        for number in numbers:
            self._table.sizes(number)  # may raise, which it must not do later
        self._fetching.stats.misses += len(numbers)
        return self._fetcher.want(self._queue, numbers, Priority.DEMAND, name)

    def _drop(self, number: int) -> None:
        """A span turned out to be damaged."""
        self._latest = 0, 0, None
        self._cached.drop(number)

    def _located(self, error: BaseException, span: int | None = None) -> BaseException:
        """An error with the layer's name in it."""
        if not isinstance(error, SociError):
            return error
        return error.at(place=self._place, layer=self.layer.digest, span=span)

    # Fetching before anybody asks.

    def missing(self) -> list[int]:
        """See `LayerBytes.missing`."""
        return self._cached.missing()

    @property
    def span_count(self) -> int:
        """See `LayerBytes.span_count`."""
        return len(self._table)

    def chunks(self, numbers: Iterable[int], limit: int) -> Iterator[list[int]]:
        """See `LayerBytes.chunks`."""
        return self._table.chunks(numbers, limit)

    def fetch(
        self, numbers: Iterable[int], priority: Priority, name: Name = no_name
    ) -> list[PendingSpan]:
        """See `LayerBytes.fetch`."""
        spans, cached = self._queue.spans, self._cached
        absent = [number for number in numbers if number in spans or not cached.is_here(number)]
        return self._fetcher.want(self._queue, absent, priority, name) if absent else []

    def complete(self, advance: Callable[[int], None] = no_advance) -> None:
        """See `LayerBytes.complete`."""
        if self._cached.device() is not None:
            return
        with errors_at(place=self._place, layer=self.layer.digest):
            diff_id = self._diff_id()
            if diff_id is None:
                raise InvalidDataError("its image does not say its diff ID")
            make_device(
                self._cached,
                self._table,
                self._ztoc,
                diff_id,
                lambda numbers: self.fetch(numbers, Priority.READAHEAD),
                lambda: self._receiver.tail(lambda: advance(0)),
                advance,
            )

    def size_of(self, numbers: Iterable[int]) -> int:
        """See `LayerBytes.size_of`."""
        return sum(self._table.sizes(number)[1] for number in numbers)

    def presence(self) -> Presence:
        """See `LayerBytes.presence`."""
        missing = self.missing()
        lacking = sum(end - start for start, end in map(self._table.range, missing))
        count, whole = len(self._table), self._table.size
        return Presence(count, count - len(missing), whole, max(0, whole - lacking))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being fetched and nothing waits for that."""
        return not self._queue.spans


class _Read:
    """One read of a layer, whose future is done when its spans are here."""

    def __init__(
        self, layer: LayerSpans, numbers: range, offset: int, length: int, name: Name
    ) -> None:
        self.future: Future[bytes] = Future()
        self._layer = layer
        self._parts = list(layer._table.parts(numbers, offset, length))
        self._name = name
        self._entries: dict[int, AnyEntry] = {}
        self._fetched: set[int] = set()
        self._tickets: list[int] = []  # one for each span that must come; the last to be taken is 0

    def run(self) -> None:
        """Reads what is here and demands the rest; waits for the disk only."""
        try:
            cached, missing = self._layer._cached, []
            for number, _, _ in self._parts:
                entry = cached.find(number) if cached.is_here(number) else None
                if entry is None:
                    missing.append(number)
                else:
                    self._entries[number] = entry
            self._layer._fetching.stats.hits += len(self._entries)
            self._go_on(missing)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is used
            self._fail(error)

    def _go_on(self, missing: list[int]) -> None:
        if not missing:
            self._finish()
            return
        self._fetched.update(missing)
        pending = self._layer._demand(missing, self._name)
        self._tickets = list(range(len(pending)))
        for one in pending:
            one.future.add_done_callback(partial(self._arrived, one.number))

    def _arrived(self, number: int, future: Future[AnyEntry]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(self._layer._located(error, number))
            return
        self._entries[number] = future.result()
        if self._tickets.pop() == 0:
            try:
                self._finish()
            except BaseException as problem:  # noqa: BLE001 - raised again where the result is used
                self._fail(problem)

    def _finish(self) -> None:
        pieces, damaged = [], []
        for number, begin, count in self._parts:
            piece = self._entries[number].read(begin, count)
            if len(piece) != count:
                self._layer._drop(number)
                damaged.append(number)
            pieces.append(piece)
        if not damaged:
            self.future.set_result(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        elif self._fetched.isdisjoint(damaged):
            self._go_on(damaged)
        else:
            root = self._layer._fetching.cache.root
            raise IntegrityError(
                f"its file in the cache was cut short; is the disk of {root} in order?",
                span=damaged[0],
            )

    def _fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # it has failed already
            self.future.set_exception(self._layer._located(error))
