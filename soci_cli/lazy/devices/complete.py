"""A complete device: the whole archive of a layer in one file of the cache, which the kernel can mount.

    device     the archive as `DeviceLayout` lays it out, up to a whole block
    trailer    where the runs of the layout begin, a CRC-32 for each `CHUNK` bytes of the archive, and
               what follows the archive in the layer's stream, deflated
    footer     sizes, the time of the file's last change, and a CRC-32 of trailer and footer

The kernel checks nothing of what it reads, so a file is looked at when it is opened: its sizes, its
trailer, and that its time of change (mtime) is the one written down, which every later write moves. When it
was used last is its time of access.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from zlib_ng import zlib_ng

from soci_cli.errors import InvalidDataError
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.entries import Entry

CHUNK = 4 << 20
"""Bytes of an archive that have a checksum of their own."""
MAX_TAIL = 64 << 20
"""Bytes that may follow an archive in its layer; tar programs write some KiB of zeros."""

_MAGIC = b"soci-dv1"
# magic, runs, sizes of archive, tail and trailer, second of the last change, CRC-32 from the trailer on
_FOOTER = struct.Struct("<8sIqqqqI")
_PIECE = 1 << 20
_SECOND = 10**9


@dataclass(frozen=True)
class Trailer:
    """What a device's file has behind the device: `tail` is deflated and was `tail_size` bytes."""

    layout: DeviceLayout
    checksums: array[int]
    tail: bytes
    tail_size: int

    def encode(self, changed: int) -> bytes:
        """The bytes of trailer and footer, of a file whose last change is in this second."""
        archive, device = self.layout.runs
        body = b"".join((archive.tobytes(), device.tobytes(), self.checksums.tobytes(), self.tail))
        facts = self.layout.archive_size, self.tail_size, len(body), changed
        data = body + _FOOTER.pack(_MAGIC, len(archive), *facts, 0)[:-4]
        return data + zlib_ng.crc32(data).to_bytes(4, "little")


class Device:
    """A complete device, open. Offsets are those of the archive. Several threads may read it."""

    def __init__(self, file: Entry, trailer: Trailer, *, is_checked: bool = False) -> None:
        """`is_checked`: its bytes were written by this process just now."""
        self.layout = trailer.layout
        self.size = self.layout.archive_size
        """Bytes of the archive."""
        self._file = file
        self._trailer = trailer
        self._checked = bytearray((b"\1" if is_checked else b"\0") * len(trailer.checksums))

    def fileno(self) -> int:
        """The descriptor of the file, which begins with the device."""
        return self._file.fileno()

    @property
    def stream_size(self) -> int:
        """Bytes of the layer's stream: of the archive and of what follows it."""
        return self.size + self._trailer.tail_size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length); fewer where the file is damaged."""
        for chunk in self._chunks(offset, length):
            if not self._checked[chunk]:
                if not self._is_right(chunk):
                    return b""
                self._checked[chunk] = 1
        return read_archive(self._file, self.layout, offset, length)

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """Fills a buffer as far as that needs neither disk nor checking; how many bytes."""
        length = buffer.nbytes
        if not all(self._checked[chunk] for chunk in self._chunks(offset, length)):
            return 0
        begin = self.layout.device_offset(offset)
        size = self.layout.device_offset(offset + length - 1) + 1 - begin if length else 0
        if size == length:
            return self._file.read_now(begin, buffer)
        data = memoryview(bytearray(size))
        if self._file.read_now(begin, data) != size:
            return 0
        buffer[:] = _without_gaps(self.layout, begin, data)
        return length

    def stream(self) -> Iterator[bytes]:
        """The layer's uncompressed stream, whose digest is its diff ID. InvalidDataError for damage."""
        for offset in range(0, self.size, _PIECE):
            piece = self.read(offset, min(_PIECE, self.size - offset))
            if not piece:
                raise InvalidDataError("its file in the cache is damaged")
            yield piece
        yield zlib.decompress(self._trailer.tail)

    def note_use(self) -> None:
        """Tells the cache that it is used now."""
        touch(self._file)

    def _chunks(self, offset: int, length: int) -> range:
        return range(offset // CHUNK, -(-(offset + length) // CHUNK)) if length > 0 else range(0)

    def _is_right(self, chunk: int) -> bool:
        start = chunk * CHUNK
        data = read_archive(self._file, self.layout, start, min(CHUNK, self.size - start))
        return zlib_ng.crc32(data) == self._trailer.checksums[chunk]


def open_device(cache: Cache, key: str) -> Device | None:
    """A complete device of the cache; None where it is absent. One that is damaged is removed."""
    file = cache.open_unread(key)
    if file is None:
        return None
    trailer = _read_trailer(file)
    if trailer is None:
        cache.remove(key)
        return None
    touch(file)
    return Device(file, trailer)


def touch(file: Entry) -> None:
    """A device is used now, and its time of change stays."""
    with suppress(OSError):
        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))


def read_archive(file: Entry, layout: DeviceLayout, offset: int, length: int) -> bytes:
    """The bytes [offset, offset + length) of the archive in a device; fewer where it was cut."""
    if length <= 0:
        return b""
    begin = layout.device_offset(offset)
    size = layout.device_offset(offset + length - 1) + 1 - begin
    data = file.read(begin, size)
    if len(data) < size:
        return b""
    return data if size == length else _without_gaps(layout, begin, memoryview(data))


def _without_gaps(layout: DeviceLayout, begin: int, data: memoryview) -> bytes:
    """The bytes of the archive among those of a device from `begin` on."""
    pieces = []
    position = 0
    for source, size in layout.segments(begin, data.nbytes):
        if source >= 0:
            pieces.append(data[position : position + size])
        position += size
    return b"".join(pieces)


def _read_trailer(file: Entry) -> Trailer | None:
    """The trailer of a file, if the file is as it was made."""
    end = file.size - _FOOTER.size
    footer = file.read(max(end, 0), _FOOTER.size)
    if len(footer) < _FOOTER.size:
        return None
    magic, runs, archive_size, tail_size, size, changed, checksum = _FOOTER.unpack(footer)
    status = os.fstat(file.fileno())
    if (
        magic != _MAGIC
        or not 0 <= size <= end
        or archive_size < 0
        or status.st_mtime_ns != changed * _SECOND
    ):
        return None
    body = file.read(end - size, size)
    chunks = -(-archive_size // CHUNK)
    tables = 16 * runs + 4 * chunks
    if len(body) < max(size, tables) or not runs or zlib_ng.crc32(body + footer[:-4]) != checksum:
        return None
    archive, device = array("q", body[: 8 * runs]), array("q", body[8 * runs : 16 * runs])
    layout = DeviceLayout.of_runs(archive_size, archive, device)
    if layout.size != end - size:
        return None
    return Trailer(layout, array("I", body[16 * runs : tables]), body[tables:], tail_size)
