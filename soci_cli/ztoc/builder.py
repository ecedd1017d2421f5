"""Building a zTOC in one pass over a layer.

Two threads work side by side, because the heavy parts run in C that releases the GIL:

- the caller's thread reads the stream and inflates it, and marks where checkpoints lie;
- a worker hashes the compressed bytes (the layer's digest and each span's), passes them on to a sink if
  there is one, and reads the tar headers in the inflated data.

Buffers travel from one to the other and back, so memory does not grow with the layer; what grows is the
zTOC itself: names, and 32 KiB a checkpoint.

Where checkpoints lie (docs/formats.md, "Checkpoints"): at a block boundary, when nothing was output yet
or when more than the span size came since the last one. So between checkpoints inflate runs freely up to
the first place where a boundary could count, and stops at boundaries only from there on.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Protocol

from soci_cli import defaults
from soci_cli.errors import IntegrityError, InvalidDataError, UsageError
from soci_cli.oci.digest import algorithm_of, new_hash
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE, encode_ztoc
from soci_cli.ztoc.inflate import (
    EMPTY_WINDOW,
    GZIP,
    Z_BLOCK,
    Z_NO_FLUSH,
    Buffer,
    Inflater,
)
from soci_cli.ztoc.memory import Pool, Windows
from soci_cli.ztoc.model import HOLES, WINDOW_SIZE, Compression
from soci_cli.ztoc.tar import REGULAR, TarScanner
from soci_cli.ztoc.toc_writer import TocWriter
from soci_cli.ztoc.zinfo import encode_gzip, encode_tar

"""Written into every zTOC and index. It carries no version: newer releases make the same bytes."""

_INPUT_SIZE = 1 << 20
_INPUT_COUNT = 4
_OUTPUT_SIZE = 1 << 20
_OUTPUT_COUNT = 3
_MAX_CHECKPOINTS = MAX_ZTOC_SIZE // (WINDOW_SIZE + 17 + 71)
# Every empty block before the first output is a checkpoint, five bytes that cost 32 KiB.
_MAX_EMPTY_CHECKPOINTS = 1024


class ByteStream(Protocol):
    """What a layer is read from: a file, a pipe, a response."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills at most the buffer; returns the count of bytes, 0 at the end."""


class ArchiveSink(Protocol):
    """Takes the uncompressed archive that is read, in order, in another thread."""

    def content(self, offset: int, size: int) -> None:
        """A file's content will be at an offset of the archive; `size` is greater than 0."""

    def write(self, data: memoryview, /) -> None:
        """The next bytes; what content begins in them was told before."""

    def write_tail(self, data: memoryview, /) -> None:
        """The next bytes that follow the archive in its stream."""


@dataclass(frozen=True)
class BuiltZtoc:
    """A zTOC that was built, and what was learned on the way. Sizes are in bytes."""

    data: bytes
    digest: str
    layer_size: int
    uncompressed_size: int
    spans: int
    files: int
    largest_span: int = 0


def build_ztoc(
    stream: ByteStream,
    *,
    span_size: int = defaults.SPAN_SIZE,
    compression: int = Compression.GZIP,
    build_tool_identifier: str = defaults.BUILD_TOOL_IDENTIFIER,
    expected_digest: str | None = None,
    expected_size: int | None = None,
    sink: Callable[[memoryview], object] | None = None,
    archive: ArchiveSink | None = None,
    advance: Callable[[int], None] | None = None,
) -> BuiltZtoc:
    """Builds the zTOC of the layer that `stream` gives, in one pass and without temporary files.

    `sink` is called with each piece of the layer's bytes, in order, in another thread, so that the same
    pass can copy the layer, and `archive` gets the uncompressed bytes; `advance` is called with the count
    of bytes read. With `expected_digest` and
    `expected_size` the layer is checked against them before anything is returned.

    Raises IntegrityError when the layer is not the expected one, InvalidDataError when it is no gzip
    stream or no tar archive, UnsupportedLayerError when it cannot be indexed.
    """
    if span_size < 0 or (span_size == 0 and compression != Compression.GZIP):
        raise UsageError(f"a span size of {span_size} is not possible")
    if not build_tool_identifier.isprintable():
        raise UsageError("the build tool identifier has characters that cannot be printed")
    layer_hash = new_hash(expected_digest) if expected_digest else None
    with _Worker(layer_hash, sink, archive) as worker:
        source = _Source(stream, worker, expected_size, advance)
        try:
            if compression == Compression.GZIP:
                checkpoints = _scan_gzip(source, worker, span_size)
                blob = encode_gzip(span_size, checkpoints)
            else:
                checkpoints = []
                _scan_plain(source, worker, span_size)
                blob = [encode_tar(span_size, source.position)]
            worker.finish()
        except InvalidDataError:
            # Was the layer made broken, or did it arrive broken? Its digest tells.
            if expected_digest:
                source.drain()
                worker.stop()
                _check(source, worker, expected_digest, expected_size)
            raise
    _check(source, worker, expected_digest, expected_size)
    last = source.position, worker.scanner.archive_size
    points = [one[:2] for one in checkpoints] + [last]
    largest = (
        span_size
        if not checkpoints
        else max(max(after[0] - one[0], after[1] - one[1]) for one, after in pairwise(points))
    )
    checkpoints.clear()  # the windows are large
    data = encode_ztoc(
        worker.toc,
        build_tool_identifier=build_tool_identifier,
        compression=compression | (HOLES if worker.scanner.has_sparse_files else 0),
        compressed_size=source.position,
        uncompressed_size=worker.scanner.archive_size,
        checkpoints=blob,
        span_digests=worker.span_digests,
    )
    return BuiltZtoc(
        data,
        f"sha256:{hashlib.sha256(data).hexdigest()}",
        source.position,
        worker.scanner.archive_size,
        len(worker.span_digests),
        len(worker.toc),
        largest,
    )


def _check(
    source: _Source, worker: _Worker, expected_digest: str | None, expected_size: int | None
) -> None:
    if expected_size is not None and source.position != expected_size:
        raise IntegrityError(
            f"it has {source.position} bytes where its descriptor says {expected_size}"
        )
    if expected_digest and worker.layer_hash:
        digest = f"{algorithm_of(expected_digest)}:{worker.layer_hash.hexdigest()}"
        if digest != expected_digest:
            raise IntegrityError(f"its content has the digest {digest}")


class _Source:
    """Reads the stream in chunks and hands each to the worker before the next is read."""

    def __init__(
        self,
        stream: ByteStream,
        worker: _Worker,
        expected_size: int | None,
        advance: Callable[[int], None] | None,
    ) -> None:
        self._stream = stream
        self._worker = worker
        self._limit = expected_size
        self._advance = advance
        self._chunk: Buffer | None = None
        self._cuts: list[tuple[int, int]] = []
        self._ended = False
        self.length = 0
        """Bytes in the current chunk."""
        self.position = 0
        """Offset of the current chunk's end in the stream."""

    def next_chunk(self, *, scan: bool = False) -> Buffer | None:
        """The next chunk, or None at the end. With `scan` the worker reads it as the tar archive."""
        self.release(scan=scan)
        if self._ended:
            return None
        chunk = self._worker.input_buffer()
        # A pipe or socket gives less than a full chunk at a time.
        length, room = 0, chunk.view.nbytes
        while length < room and (got := self._stream.readinto(chunk.view[length:])):
            length += got
        self._ended = length < room
        self._chunk, self.length = chunk, length
        self.position += length
        if self._limit is not None and self.position > self._limit:
            raise IntegrityError(f"it has more than the {self._limit} bytes of its descriptor")
        if self._advance and length:
            self._advance(length)
        return chunk if length else None

    def cut(self, offset: int, bits: int) -> None:
        """A span ends and the next begins at the stream's `offset`, in or around this chunk."""
        self._cuts.append((offset - (self.position - self.length), bits))

    def release(self, *, scan: bool = False) -> None:
        """Hands the current chunk, with the cuts in it, to the worker."""
        if self._chunk is not None:
            self._worker.take_input(self._chunk, self.length, self._cuts, scan)
            self._chunk = None
            self._cuts = []

    def drain(self) -> None:
        """Reads the rest of the stream, only to hash it."""
        while self.next_chunk():
            pass
        self.release()


def _scan_plain(source: _Source, worker: _Worker, span_size: int) -> None:
    next_cut = 0
    while source.next_chunk(scan=True):
        while next_cut < source.position:
            source.cut(next_cut, 0)
            next_cut += span_size
        worker.check_scan()
    source.release(scan=True)


def _scan_gzip(
    source: _Source, worker: _Worker, span_size: int
) -> list[tuple[int, int, int, memoryview]]:
    """Inflates the whole stream; returns its checkpoints."""
    checkpoints: list[tuple[int, int, int, memoryview]] = []
    total = 0  # bytes output so far
    last = 0  # `total` at the last checkpoint
    filled = 0  # bytes in the current output buffer
    ended = False  # after a member, before the next
    windows = Windows()
    output = worker.output_buffer()
    size = output.view.nbytes - WINDOW_SIZE
    with Inflater(GZIP) as inflater:
        stream, run = inflater.stream, inflater.run
        while chunk := source.next_chunk():
            stream.next_in = chunk.address
            stream.avail_in = source.length
            while stream.avail_in:
                if ended:
                    inflater.reset()
                # Up to `span_size` bytes after a checkpoint no boundary counts.
                free = last + span_size - total if total else 0
                room = size - filled
                if 0 < free < room:
                    room = free
                stream.next_out = output.address + WINDOW_SIZE + filled
                stream.avail_out = room
                try:
                    ended = run(Z_NO_FLUSH if free > 0 else Z_BLOCK)
                except InvalidDataError as error:
                    at = source.position - stream.avail_in
                    raise InvalidDataError(
                        f"its gzip stream is broken near byte {at}: {error}"
                    ) from None
                produced = room - stream.avail_out
                total += produced
                filled += produced
                kind = stream.data_type
                # 128: at a block boundary; 64: after the last block (zlib manual, inflate).
                if kind & 192 == 128 and not ended and (not total or total - last > span_size):
                    offset = source.position - stream.avail_in
                    # The window before output byte `filled` lies WINDOW_SIZE further in the buffer.
                    window = output.view[filled : filled + WINDOW_SIZE] if total else EMPTY_WINDOW
                    checkpoints.append((offset, total, kind & 7, windows.keep(window)))
                    limit = _MAX_CHECKPOINTS if total else _MAX_EMPTY_CHECKPOINTS
                    if len(checkpoints) > limit:
                        where = "at this span size" if total else "before its first byte"
                        raise InvalidDataError(f"it needs over {limit} checkpoints {where}")
                    source.cut(offset, kind & 7)
                    last = total
                if filled == size:
                    fresh = worker.output_buffer()
                    fresh.view[:WINDOW_SIZE] = output.view[size:]
                    worker.take_output(output, filled)
                    worker.check_scan()
                    output, filled = fresh, 0
                    size = output.view.nbytes - WINDOW_SIZE
    source.release()
    worker.take_output(output, filled)
    if not source.position:
        raise InvalidDataError("it is empty")
    if not ended:
        raise InvalidDataError(f"its gzip stream is cut off after {source.position} bytes")
    return checkpoints


class _Worker:
    """A thread that hashes, passes on and scans what the reading thread hands over, in order.

    It starts with the second chunk: a layer of one is done with at the end.
    """

    def __init__(
        self,
        layer_hash: hashlib._Hash | None,
        sink: Callable[[memoryview], object] | None,
        archive: ArchiveSink | None,
    ) -> None:
        self.toc = TocWriter()
        self._archive = archive
        add = self.toc.add if archive is None else self._add
        self.scanner = TarScanner(add)
        self.span_digests: list[bytes] = []
        self.layer_hash = layer_hash
        self._span_hash: hashlib._Hash | None = None
        self._last_byte = b""
        self._sink = sink
        self._error: BaseException | None = None
        self._scan_error: InvalidDataError | None = None
        self._inputs = Pool(_INPUT_COUNT, _INPUT_SIZE)
        self._outputs = Pool(_OUTPUT_COUNT, WINDOW_SIZE + _OUTPUT_SIZE)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    # Called by the reading thread.

    def input_buffer(self) -> Buffer:
        """A free buffer for a chunk of the layer. Raises what the worker could not do."""
        return self._free(self._inputs)

    def output_buffer(self) -> Buffer:
        """A free buffer: WINDOW_SIZE bytes of history, then room for output."""
        return self._free(self._outputs)

    def _free(self, pool: Pool) -> Buffer:
        if pool.is_used and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ztoc-worker", daemon=True)
            self._thread.start()
        buffer = pool.take()
        if self._error:
            raise self._error
        return buffer

    def take_input(
        self, chunk: Buffer, length: int, cuts: list[tuple[int, int]], scan: bool
    ) -> None:
        """Hashes a chunk, cut into spans at (offset in it, bits), and passes it on."""

        def job() -> None:
            try:
                if not self._error:
                    self._hash(chunk.view[:length], cuts)
                    if scan:
                        self._scan(chunk, 0, length)
            finally:
                self._inputs.give(chunk)

        self._jobs.put(job)

    def take_output(self, output: Buffer, length: int) -> None:
        """Reads the tar headers in inflated data."""

        def job() -> None:
            try:
                self._scan(output, WINDOW_SIZE, WINDOW_SIZE + length)
            finally:
                self._outputs.give(output)

        self._jobs.put(job)

    def check_scan(self) -> None:
        """Raises what is wrong with the tar archive, as far as it was read."""
        if self._scan_error:
            raise self._scan_error

    def finish(self) -> None:
        """Waits until everything is done. Raises what went wrong with hashing, sink or archive."""
        self.stop()
        if self._error:
            raise self._error
        self.check_scan()
        self.scanner.finish()
        self._end_span()

    def stop(self) -> None:
        """Ends the thread after what was handed over."""
        self._jobs.put(None)
        if self._thread is None:
            self._work()
        else:
            self._thread.join()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # In the worker thread.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised again in the reading thread
                self._error = self._error or error

    def _scan(self, buffer: Buffer, start: int, end: int) -> None:
        if self._scan_error or self._error:
            return
        try:
            taken = self.scanner.feed(buffer.data, start, end)
            if self._archive is not None:
                if taken > start:
                    self._archive.write(buffer.view[start:taken])
                if taken < end:
                    self._archive.write_tail(buffer.view[taken:end])
        except InvalidDataError as error:
            # Hashing goes on: the digest tells whether the layer arrived as it was made.
            self._scan_error = error

    def _add(self, name: bytes, type_: bytes, *rest: Any) -> None:
        """As `TocWriter.add`, and tells where a content is."""
        self.toc.add(name, type_, *rest)
        size = self.scanner.data_size
        if size > 0 and type_ == REGULAR:
            assert self._archive is not None
            self._archive.content(rest[4][0], size)

    def _hash(self, chunk: memoryview, cuts: list[tuple[int, int]]) -> None:
        if self.layer_hash:
            self.layer_hash.update(chunk)
        if self._sink:
            self._sink(chunk)
        position = 0
        for offset, bits in cuts:
            if self._span_hash:
                self._span_hash.update(chunk[position:offset])
                self._end_span()
            self._span_hash = hashlib.sha256()
            if bits:
                # The byte that the two spans share.
                self._span_hash.update(chunk[offset - 1 : offset] if offset else self._last_byte)
            position = offset
        if self._span_hash:
            self._span_hash.update(chunk[position:])
        self._last_byte = bytes(chunk[-1:])

    def _end_span(self) -> None:
        if self._span_hash:
            self.span_digests.append(b"sha256:" + self._span_hash.hexdigest().encode())
            self._span_hash = None
