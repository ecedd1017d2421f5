"""Layers without a zTOC: read whole once, and unpacked into the cache as one file.

While the archive is written, a zTOC of it as a plain tar is built, so that from then on such a layer is
read like all others: files by their zTOC, each span checked before its first use.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import IO, Any, cast

import zstandard
from zlib_ng import gzip_ng, zlib_ng

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    StorageError,
    errors_at,
)
from soci_cli.index.layers import CountingReader, compression_of, short
from soci_cli.lazy.blobs import contents
from soci_cli.lazy.cache import Claim, archive_key
from soci_cli.lazy.entries import Entry
from soci_cli.lazy.eviction import ZTOC_SUFFIX
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.layer_bytes import LayerBytes, Name, errors_of, no_name
from soci_cli.lazy.stats import Presence
from soci_cli.oci import Descriptor, VerifyingReader
from soci_cli.parallel import Stop, StoppableTask
from soci_cli.progress import Observer, Task, Work
from soci_cli.targets import Source
from soci_cli.ztoc import Compression, Ztoc, build_ztoc, decode_ztoc

_MAX_WINDOW = 128 << 20
_READ_SIZE = 1 << 20
_PIECE = 256 << 10
_PAUSE = 0.05
_ZLIB_ERROR = cast(type[Exception], zlib_ng.error)


class WholeLayer(LayerBytes):
    """A layer's archive as a file of the cache."""

    def __init__(
        self,
        fetching: Fetching,
        source: Source,
        layer: Descriptor,
        diff_id: str | None,
        observer: Observer,
        stop: Stop,
    ) -> None:
        """Unpacks the layer, unless it is in the cache; setting `stop` ends that.

        `diff_id` is the digest of its archive, if known. Raises IntegrityError when the layer is not what
        its digest says, InvalidDataError for what is no archive, is cut off or is too large,
        UnsupportedLayerError for sparse files, StorageError when the cache cannot be written, and what
        fetching raises.
        """
        self._fetcher = fetching.fetcher
        self._cache = fetching.cache
        self._source = source
        self._layer = layer
        self._diff_id = diff_id
        self._observer = observer
        self._mutex = threading.Lock()
        self._checked: set[int] = set()
        self._stop = stop
        with self._located():
            self._file, self.ztoc = self._open()
        self._stop = Stop()

    def close(self) -> None:
        """Ends unpacking once more, where the file was damaged, and tells the cache of the use."""
        self._stop.set()
        self._file.note_use()

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `LayerBytes.read_now`."""
        if any(span not in self._checked for span in self._needed(offset, buffer.nbytes)):
            return False
        return self._file.read_now(offset, buffer) == buffer.nbytes

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """See `LayerBytes.submit`."""
        future: Future[bytes] = Future()

        def read() -> None:
            with errors_of(future), self._located():
                try:
                    future.set_result(self._read(offset, length))
                except _DamagedError:
                    # Making it again may take minutes: too long for the threads that all layers share.
                    threading.Thread(target=make_again, name="soci-unpack", daemon=True).start()

        def make_again() -> None:
            with errors_of(future):
                future.set_result(self.read(offset, length))

        self._fetcher.run(read)
        return future

    def read(self, offset: int, length: int, name: Name = no_name) -> bytes:
        """See `LayerBytes.read`. A file that was damaged is made once more."""
        with self._located():
            try:
                return self._read(offset, length)
            except _DamagedError as error:
                self._make_again(error.file)
            try:
                return self._read(offset, length)
            except _DamagedError as error:
                raise IntegrityError(
                    f"its file in the cache was damaged again; is the disk of {self._cache.root} in "
                    "order?",
                    span=error.span,
                ) from None

    def _located(self) -> AbstractContextManager[None]:
        return errors_at(place=self._source.name, layer=self._layer.digest)

    def presence(self) -> Presence:
        """See `LayerBytes.presence`: all of it, and it has no spans."""
        size = self.ztoc.compressed_archive_size
        return Presence(0, 0, size, size)

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """See `LayerBytes.ahead`: everything is here already."""
        return lambda offset: None

    def _needed(self, offset: int, length: int) -> range:
        """The spans that hold some of these bytes."""
        if length <= 0:
            return range(0)
        end = offset + length
        if offset < 0 or end > self.ztoc.compressed_archive_size:
            raise InvalidDataError(f"there are no bytes {offset} to {end}")
        spans = self.ztoc.spans
        return range(spans.span_of(offset), spans.span_of(end - 1) + 1)

    def _read(self, offset: int, length: int) -> bytes:
        file, spans = self._file, self._needed(offset, length)
        for span in spans:
            if span not in self._checked:
                if not self._is_right(file, span):
                    raise _DamagedError(file, span)
                self._checked.add(span)
        data = file.read(offset, max(0, length))
        if len(data) < length:
            raise _DamagedError(file, spans[0])
        return data

    def _make_again(self, damaged: Entry) -> None:
        with self._mutex:
            if self._file is damaged:  # not when another thread was quicker
                self._cache.remove(archive_key(self._layer.digest))
                self._checked.clear()
                # Other threads may be reading the old file, which stays open for them.
                self._file, _ = self._open()

    def _is_right(self, file: Entry, span: int) -> bool:
        start, end = self.ztoc.spans.compressed_range(span)
        digest = hashlib.sha256()
        while start < end and (piece := file.read(start, min(_PIECE, end - start))):
            digest.update(piece)
            start += len(piece)
        return b"sha256:" + digest.hexdigest().encode() == self.ztoc.span_digests[span]

    def _open(self) -> tuple[Entry, Ztoc]:
        """The file, made now if need be, and its zTOC."""
        key = archive_key(self._layer.digest)
        while True:
            found = self._find(key)
            if found is not None:
                return found
            claim = self._cache.claim(key)
            if claim is None:
                self._stop.check()
                time.sleep(_PAUSE)  # another process is at it
                continue
            with claim:
                if not claim.is_real:
                    raise StorageError(
                        "it has no zTOC, so it must be unpacked into the cache, but "
                        f"{self._cache.root} cannot be written; set SOCI_CACHE to another folder"
                    )
                found = self._find(key)
                if found is not None:
                    return found
                data = self._unpack(claim)
                self._cache.put(key + ZTOC_SUFFIX, data)
                try:
                    file = claim.commit()
                except OSError as error:
                    raise _disk_error(error) from error
                return self._find(key) or (file, decode_ztoc(data))

    def _find(self, key: str) -> tuple[Entry, Ztoc] | None:
        table = self._cache.find(key + ZTOC_SUFFIX)
        file = self._cache.open(key) if table is not None else None
        if table is None or file is None:
            return None
        with suppress(InvalidDataError):
            ztoc = decode_ztoc(*contents(table))
            if file.size == ztoc.compressed_archive_size:
                return file, ztoc
        self._cache.remove(key)
        self._cache.remove(key + ZTOC_SUFFIX)
        return None

    def _unpack(self, claim: Claim) -> bytes:
        """Writes the archive; the zTOC of it as a plain tar. A damaged layer is fetched once more."""
        compression = compression_of(self._layer, self._source)
        if compression not in ("gzip", "zstd", "uncompressed"):
            raise InvalidDataError(
                f"it cannot be read: it is {compression}, not gzip, zstd or plain tar"
            )
        with Work(self._observer, short(self._layer.digest), self._layer.size) as work:
            try:
                try:
                    data = self._unpack_once(compression, claim, work)
                except IntegrityError:
                    claim.restart()
                    data = self._unpack_once(compression, claim, work)
            except OSError as error:
                raise _disk_error(error) from error
            work.outcome = "unpacked"
        return data

    def _unpack_once(self, compression: str, claim: Claim, task: Task) -> bytes:
        with self._source.fetch(self._layer) as stream:
            digest = self._layer.digest
            checked = VerifyingReader(stream, digest, self._layer.size, f"layer {digest}")
            counted = CountingReader(checked, StoppableTask(task, self._stop))
            # Of a zstd stream that was made too short the decompressor says nothing. For the others the
            # layer's own digest is enough, and diff IDs that are wrong do occur.
            diff_id = self._diff_id if compression == "zstd" else None
            try:
                built = build_ztoc(
                    _Plain(counted, compression, self._cache.limit),
                    compression=Compression.UNCOMPRESSED,
                    expected_digest=diff_id,
                    sink=claim.write,
                )
                checked.finish()
                return built.data
            except _TooLargeError:
                raise
            except (
                IntegrityError,
                InvalidDataError,
                gzip.BadGzipFile,
                _ZLIB_ERROR,
                zstandard.ZstdError,
                EOFError,
            ) as error:
                # Was the layer made broken, or did it arrive broken? Its digest tells.
                checked.finish()
                if isinstance(error, InvalidDataError):
                    raise
                if isinstance(error, IntegrityError):
                    # No IntegrityError any more: the layer is what was promised, and its config is wrong.
                    text = f"it is not the archive of its diff ID: {error.message}"
                    raise InvalidDataError(text) from None
                raise InvalidDataError(f"it cannot be unpacked: {error}") from None


class _DamagedError(Exception):
    """The file does not have the bytes of a span any more."""

    def __init__(self, file: Entry, span: int) -> None:
        super().__init__()
        self.file = file
        self.span = span


class _TooLargeError(InvalidDataError):
    """A layer unpacks to more than the cache may hold."""


class _Plain:
    """The uncompressed bytes of a layer as a stream, at most `limit` of them."""

    def __init__(self, stream: CountingReader, compression: str, limit: int) -> None:
        self._left = limit
        self._limit = limit
        self._stream: Any = stream
        if compression == "gzip":
            open_gzip: Any = gzip_ng.GzipNGFile  # it has no types
            self._stream = open_gzip(fileobj=stream, mode="rb")
        elif compression == "zstd":
            self._stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
                cast(IO[bytes], stream), read_size=_READ_SIZE, read_across_frames=True
            )

    def readinto(self, buffer: memoryview, /) -> int:
        count = int(self._stream.readinto(buffer))
        self._left -= count
        if self._left < 0:
            raise _TooLargeError(
                f"it has no zTOC and unpacks to more than the {self._limit} bytes that the "
                "cache may hold; convert the image, or set SOCI_CACHE_SIZE"
            )
        return count


def _disk_error(error: OSError) -> StorageError:
    return StorageError(
        f"it cannot be unpacked into the cache: {error.strerror or error}; free some space or set "
        "SOCI_CACHE to another folder"
    )
