"""A device while it is made: written aside, hashed in the order of the archive, and then given its name."""

from __future__ import annotations

import os
import threading
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress

from zlib_ng import zlib_ng

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.kernel import calls
from soci_cli.lazy.cache import Claim
from soci_cli.lazy.devices.complete import CHUNK, MAX_TAIL, Device, Trailer, read_archive
from soci_cli.lazy.devices.layout import BLOCK, DeviceLayout
from soci_cli.lazy.entries import Entry
from soci_cli.lazy.span_table import SpanTable
from soci_cli.oci.digest import algorithm_of, new_hash

_MOST_PIECES = 1000  # of one write; Linux takes 1,024
_ZEROS = bytes(BLOCK)
_READ_BACK = 1 << 20
_ANY_SIZE = 1 << 62


class TooLargeError(InvalidDataError):
    """A layer unpacks to more than the cache may hold."""


class _Sums:
    """The checksums of an archive and the digest of its stream, of pieces that come in their order."""

    def __init__(self, diff_id: str | None) -> None:
        self.checksums = array("I")
        self._diff_id = diff_id
        self._hash = new_hash(diff_id) if diff_id else None
        self._checksum = 0
        self._left = CHUNK

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the archive."""
        if self._hash is not None:
            self._hash.update(data)
        view = memoryview(data)
        while view.nbytes:
            part, view = view[: self._left], view[self._left :]
            self._checksum = zlib_ng.crc32(part, self._checksum)
            self._left -= part.nbytes
            if not self._left:
                self._end_chunk()

    def finish(self, tail: bytes) -> None:
        """The archive is whole, `tail` follows it. IntegrityError where it is not that of its diff ID."""
        if self._left < CHUNK:
            self._end_chunk()
        if self._hash is None or self._diff_id is None:
            return
        self._hash.update(tail)
        digest = f"{algorithm_of(self._diff_id)}:{self._hash.hexdigest()}"
        if digest != self._diff_id:
            raise IntegrityError(f"its archive has the digest {digest}, not its diff ID")

    def _end_chunk(self) -> None:
        self.checksums.append(self._checksum)
        self._checksum, self._left = 0, CHUNK


class _Growing(Closing):
    """What all devices have in common that are being made."""

    def __init__(self, claim: Claim, layout: DeviceLayout, diff_id: str | None) -> None:
        self.layout = layout
        self._claim = claim
        self._sums = _Sums(diff_id)

    def close(self) -> None:
        """Drops what was not committed."""
        self._claim.close()

    def _write(self, offset: int, data: memoryview) -> None:
        """Puts bytes of the archive where they belong. OSError."""
        pieces: list[bytes | memoryview] = []
        at = -1
        done = 0
        for zeros, size in self.layout.places(offset, data.nbytes):
            if at < 0:
                at = self.layout.device_offset(offset) - zeros
            if zeros:
                pieces.append(_ZEROS[:zeros])
            pieces.append(data[done : done + size])
            done += size
            if len(pieces) >= _MOST_PIECES:
                at = self._put(at, pieces)
                pieces = []
        if pieces:
            self._put(at, pieces)
        # So that syncing it at the end has little left to do.
        begin = self.layout.device_offset(offset)
        calls.begin_writing(
            self._claim.fileno(), begin, self.layout.device_offset(offset + data.nbytes) - begin
        )

    def _put(self, at: int, pieces: list[bytes | memoryview]) -> int:
        """Writes pieces one after the other; where the last one ends."""
        fd = self._claim.fileno()
        end = at + sum(map(len, pieces))
        at += os.pwritev(fd, pieces, at)
        if at < end:  # the disk may be full, which the next attempt tells
            rest = memoryview(b"".join(pieces))
            while at < end:
                at += os.pwrite(fd, rest[rest.nbytes - (end - at) :], at)
        return end

    def _commit(self, tail: bytes) -> Device:
        """Checks the digest, and gives the device its name. IntegrityError, OSError."""
        self._sums.finish(tail)
        changed = int(time.time())
        trailer = Trailer(self.layout, self._sums.checksums, zlib.compress(tail, 1), len(tail))
        fd = self._claim.fileno()
        os.ftruncate(fd, self.layout.size)
        self._put(self.layout.size, [trailer.encode(changed)])
        os.utime(fd, (changed, changed))
        os.fsync(fd)
        return Device(self._claim.commit_written(), trailer, is_checked=True)


class StreamedDevice(_Growing):
    """A device that is written in one pass over a stream whose headers are read meanwhile.

    Implements `ArchiveSink`.
    """

    def __init__(self, claim: Claim, limit: int) -> None:
        """`limit` is how many bytes the device may have. The stream is checked by whoever reads it."""
        super().__init__(claim, DeviceLayout(_ANY_SIZE), None)
        self._limit = limit
        self._position = 0
        self._tail = bytearray()

    def content(self, offset: int, size: int) -> None:
        """See `ArchiveSink.content`."""
        self.layout.add(offset, size)

    def write(self, data: memoryview) -> None:
        """See `ArchiveSink.write`."""
        if self.layout.device_offset(self._position + data.nbytes) > self._limit:
            raise TooLargeError(
                f"it has no zTOC and unpacks to more than the {self._limit} bytes that the "
                "cache may hold; convert the image, or set SOCI_CACHE_SIZE"
            )
        self._write(self._position, data)
        self._sums.update(data)
        self._position += data.nbytes

    def write_tail(self, data: memoryview) -> None:
        """See `ArchiveSink.write_tail`."""
        if len(self._tail) + data.nbytes > MAX_TAIL:
            raise InvalidDataError(f"more than {MAX_TAIL} bytes follow its archive")
        self._tail += data

    def commit(self) -> Device:
        """The stream is whole and checked. IntegrityError, OSError."""
        self.layout.archive_size = self._position
        return self._commit(bytes(self._tail))


class SpanDevice(_Growing):
    """A device that is made of checked spans, in any order, by several threads.

    Whichever thread brings the next span in order hashes it, and those after it that are here, while others
    go on.
    """

    def __init__(self, claim: Claim, layout: DeviceLayout, table: SpanTable, diff_id: str) -> None:
        super().__init__(claim, layout, diff_id)
        self._table = table
        self._here = bytearray(len(table))
        self._next = 0  # span to hash
        self._turn = threading.Lock()  # of who hashes
        # Not the claim's descriptor: this one stays open for readers.
        self._file = Entry(os.dup(claim.fileno()), layout.size, 0)

    @property
    def missing(self) -> list[int]:
        """The spans that are not here."""
        return [number for number, here in enumerate(self._here) if not here]

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.layout.archive_size

    def has(self, number: int) -> bool:
        """Whether a span is here."""
        return bool(self._here[number])

    def put(self, number: int, data: memoryview) -> None:
        """Keeps a span. OSError."""
        start, _ = self._table.range(number)
        self._write(start, data)
        self._here[number] = 1
        if self._turn.acquire(blocking=False):
            try:
                self._hash(number, data)
            finally:
                self._turn.release()

    def fill(self, number: int, pieces: Iterable[memoryview]) -> None:
        """As `put`, of a span that comes in pieces. Raises what they raise, too."""
        start, _ = self._table.range(number)
        for piece in pieces:
            self._write(start, piece)
            start += piece.nbytes
        self._here[number] = 1
        if self._turn.acquire(blocking=False):
            try:
                self._hash(-1, memoryview(b""))
            finally:
                self._turn.release()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the archive, of spans that are here."""
        return read_archive(self._file, self.layout, offset, length)

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """See `Entry.read_now`; it may wait, as for what was written just now it need not."""
        data = self.read(offset, buffer.nbytes)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Drops what was not committed; what was read of it reads short."""
        if self._claim.fileno() >= 0:
            with suppress(OSError):
                os.ftruncate(self._claim.fileno(), 0)
        super().close()

    def commit(self, tail: Iterable[bytes]) -> Device:
        """All spans are here, `tail` follows them. IntegrityError, OSError, and what `tail` raises."""
        with self._turn:
            self._hash(-1, memoryview(b""))
        if self._next < len(self._here):
            raise InvalidDataError("spans of it are missing")
        return self._commit(b"".join(_bounded(tail)))

    def _hash(self, number: int, data: memoryview) -> None:
        """Hashes what comes next in order, as far as it is here; `data` is the span with this number."""
        while self._next < len(self._here) and self._here[self._next]:
            if self._next == number:
                self._sums.update(data)
            else:
                start, end = self._table.range(self._next)
                for offset in range(start, end, _READ_BACK):
                    self._sums.update(self.read(offset, min(_READ_BACK, end - offset)))
            self._next += 1


def _bounded(tail: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in tail:
        size += len(piece)
        if size > MAX_TAIL:
            raise InvalidDataError(f"more than {MAX_TAIL} bytes follow its archive")
        yield piece
