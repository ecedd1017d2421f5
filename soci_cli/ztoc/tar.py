"""Reading the headers of a tar archive out of a stream of buffers, as Go's archive/tar reads them.

The reference implementation's zTOC says what Go's reader reports, so its rules decide what a header
means, with the GNU long names and PAX records before it (docs/formats.md, "What a file's metadata is").
The records of a PAX global header are passed over, as in Go. Sparse files are told with
their maps (`sparse.py`).

`TarScanner` never copies file data: `feed` gets each piece of the uncompressed stream once and looks
only at the headers in it. What runs here runs once a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import sparse
from soci_cli.ztoc.tar_fields import (
    BadHeaderError,
    Header,
    HeaderReader,
    Records,
    text_of,
)

BLOCK = 512
MAX_SPECIAL_SIZE = 1 << 20
"""Bytes that a PAX header or a GNU long name may have, as in Go's archive/tar."""

_ZERO_BLOCK = bytes(BLOCK)

REGULAR = b"reg"
_TYPES = {
    ord("0"): REGULAR,
    ord("1"): b"hardlink",
    ord("2"): b"symlink",
    ord("3"): b"char",
    ord("4"): b"block",
    ord("5"): b"dir",
    ord("6"): b"fifo",
}
# Entries that have no data in the archive whatever their size says.
_HEADER_ONLY = frozenset(b"123456")
_META = frozenset(b"xgLK")

_PAX_HEADER = ord("x")
_PAX_MEMO_LIMIT = 256
_REGULAR = ord("0")
_GNU_SPARSE = ord("S")
_DIRECTORY = ord("5")

_Texts = tuple[bytes, bytes, bytes, bytes]


class _Sparse(NamedTuple):
    """A sparse file whose map is read: name, link and owners, time, mode to device numbers, PAX records."""

    reader: sparse.MapReader
    texts: _Texts
    mod_time: bytes
    numbers: tuple[int, int, int, int, int]
    xattrs: list[tuple[bytes, bytes]]


class TarScanner:
    """Scans one archive. Feed it the stream, then call `finish`; `add` is called as `TocWriter.add`.

    `archive_size` is then the position where Go's reader stops: after the second zero block, or at the
    end of the input. Raises InvalidDataError for what is not a tar archive.
    """

    def __init__(self, add: Callable[..., None]) -> None:
        self._add = add
        self._position = 0  # of the next byte in the stream
        self._skip = 0  # bytes of data still to pass over
        self._pad = 0  # bytes of padding after them
        self._partial = bytearray()  # a header or payload that a buffer cut in two
        self._payload = 0  # size of the special payload being gathered; 0 for a header
        self._handler: Callable[[bytes], None] | None = None
        self._zero_blocks = 0
        self._ended = False
        self._pax: Records | None = None
        self._sparse: _Sparse | None = None
        self._held = 0, 0  # its data and padding, while its map is read
        self.has_sparse_files = False
        self._long_name = b""
        self._long_link = b""
        self._fields = HeaderReader()
        self._pax_sizes: dict[bytes, int] = {}
        self.archive_size = 0

    def feed(self, buffer: bytearray, start: int, end: int) -> int:
        """Takes the next bytes of the stream: buffer[start:end]. Where in these the archive ends."""
        if self._ended:
            return start
        position = start
        base = self._position - start
        while True:
            # Pass over file data and padding.
            if self._skip:
                skip = self._skip + self._pad
                if position + skip > end:
                    self._pass_over(end - position)
                    break
                position += skip
                self._skip = self._pad = 0
            elif self._pad:
                if position + self._pad > end:
                    self._pass_over(end - position)
                    break
                position += self._pad
                self._pad = 0
            # Gather a header block, or the payload of a special entry.
            handler = self._handler
            stop = position + (self._payload if handler else BLOCK)
            if self._partial:
                stop -= len(self._partial)
            if stop > end:
                self._partial += buffer[position:end]
                break
            block = bytes(buffer[position:stop])
            if self._partial:
                block = bytes(self._partial) + block
                self._partial.clear()
            position = stop
            self._position = base + position
            try:
                if handler:
                    self._handler = None
                    handler(block)
                else:
                    self._header(block)
            except (BadHeaderError, sparse.BadMapError) as error:
                where = f"near byte {self._position}"
                raise InvalidDataError(f"not a valid tar archive {where}: {error}") from None
            if self._ended:
                return position
        self._position = base + end
        return end

    def _pass_over(self, count: int) -> None:
        data = min(count, self._skip)
        self._skip -= data
        self._pad -= count - data

    def finish(self) -> None:
        """The stream ended. Raises InvalidDataError where the archive was cut off."""
        if self._ended:
            return
        # An end in the padding, or between entries, or after one zero block, ends the archive.
        if self._skip or self._partial or self._handler:
            raise InvalidDataError(
                f"the tar archive is cut off after {self._position} bytes, inside an entry"
            )
        self.archive_size = self._position

    def _header(self, block: bytes) -> None:
        if not block[0] and block == _ZERO_BLOCK:
            self._zero_blocks += 1
            if self._zero_blocks == 2:
                self._ended = True
                self.archive_size = self._position
            return
        if self._zero_blocks:
            raise BadHeaderError("a zero block is followed by something else")
        if block[156] == _PAX_HEADER:
            # Many writers give all their PAX headers the same name and owner.
            known = self._pax_sizes.get(block)
            if known is not None:
                self._special(_PAX_HEADER, known)
                return
        header = self._fields.read(block)
        flag, size = header[0], header[1]
        if size < 0 and flag not in _HEADER_ONLY:
            raise BadHeaderError("a size is negative")
        if flag in _META:
            if flag == _PAX_HEADER and len(self._pax_sizes) < _PAX_MEMO_LIMIT:
                self._pax_sizes[block] = size
            self._special(flag, size)
        else:
            self._file(header, block)

    def _file(self, header: Header, block: bytes) -> None:
        """Adds a file, as its header says and the special entries before that."""
        flag, size, name, link, uname, gname, mod_time, mode, uid, gid, major, minor = header
        xattrs: list[tuple[bytes, bytes]] = []
        map_reader: sparse.MapReader | None = None
        records = self._pax
        if records is not None:
            xattrs = sorted(records.items()) if len(records) > 1 else list(records.items())
            if value := records.get(b"mtime"):
                mod_time = self._fields.pax_time(value)
            if len(records) > 1 or b"mtime" not in records:
                texts, numbers = self._overridden(
                    records, (name, link, uname, gname), (uid, gid, size)
                )
                name, link, uname, gname = texts
                uid, gid, size = numbers
                if sparse.is_sparse(records):
                    map_reader = sparse.reader_of(records, size, self._fields.decimal)
            self._pax = None
        if self._long_name:
            name = self._long_name
        if self._long_link:
            link = self._long_link
        self._long_name = self._long_link = b""
        if not flag:
            flag = _DIRECTORY if name.endswith(b"/") else _REGULAR
        elif flag == _GNU_SPARSE:
            map_reader = sparse.OldMap(block, self._fields.number)
            flag = _REGULAR
        type_ = _TYPES.get(flag)
        if type_ is None:
            raise _unknown_type(flag, name)
        if flag == _REGULAR:
            if size < 0:
                raise BadHeaderError("a size is negative")
            self._skip = size
            self._pad = -size & 511
        if map_reader is not None:
            if flag != _REGULAR:
                raise BadHeaderError("an entry without data has the map of a sparse file")
            texts = map_reader.name or name, link, uname, gname
            self._sparse = _Sparse(
                map_reader, texts, mod_time, (mode, uid, gid, major, minor), xattrs
            )
            self._read_map(None)
            return
        place = self._position, size, mode, uid, gid, major, minor
        self._add(name, type_, link, uname, gname, mod_time, place, xattrs)

    def _read_map(self, block: bytes | None) -> None:
        """Adds a sparse file when its map is whole: this is the next block of it."""
        assert self._sparse is not None
        reader, texts, mod_time, numbers, xattrs = self._sparse
        if block is not None:
            self._skip, self._pad = self._held
            reader.feed(block)
        if reader.needs_more:
            if reader.in_data:
                if self._skip < BLOCK:
                    raise sparse.BadMapError("the map of a sparse file is longer than its data")
                self._skip -= BLOCK
            self._held = self._skip, self._pad
            self._skip = self._pad = 0
            self._payload, self._handler = BLOCK, self._read_map
            return
        pieces = reader.finish()
        if pieces.stored != self._skip:
            raise sparse.BadMapError(
                f"the map of a sparse file has {pieces.stored} bytes, the archive {self._skip}"
            )
        self._sparse = None
        self.has_sparse_files = True
        records = sorted({**dict(xattrs), sparse.MAP: pieces.encode()}.items())
        name, link, uname, gname = texts
        place = self._position, pieces.size, *numbers
        self._add(name, REGULAR, link, uname, gname, mod_time, place, records)

    @property
    def data_size(self) -> int:
        """The bytes of data that follow in the archive, while `add` is called."""
        return self._skip

    def _overridden(
        self, records: Records, texts: _Texts, numbers: tuple[int, int, int]
    ) -> tuple[_Texts, tuple[int, int, int]]:
        """Name, link and names of owners, and uid, gid and size, with PAX records in their place."""
        get, decimal = records.get, self._fields.decimal
        name, link, uname, gname = texts
        uid, gid, size = numbers
        texts = (
            get(b"path") or name,
            get(b"linkpath") or link,
            get(b"uname") or uname,
            get(b"gname") or gname,
        )
        if value := get(b"uid"):
            uid = decimal(value) & 0xFFFFFFFF
        if value := get(b"gid"):
            gid = decimal(value) & 0xFFFFFFFF
        if value := get(b"size"):
            size = decimal(value)
        for key in (b"atime", b"ctime"):
            if value := get(key):
                self._fields.pax_time(value)
        return texts, (uid, gid, size)

    def _special(self, flag: int, size: int) -> None:
        if size > MAX_SPECIAL_SIZE:
            raise BadHeaderError(f"an extended header has {size} bytes")
        self._payload = size
        if flag == _PAX_HEADER:
            handler = self._pax_header
        else:
            handler = {
                ord("g"): self._global_header,
                ord("L"): self._gnu_long_name,
                ord("K"): self._gnu_long_link,
            }[flag]
        if size:
            self._handler = handler
        else:
            handler(b"")

    def _after_payload(self) -> None:
        self._pad = -self._payload & 511

    def _pax_header(self, payload: bytes) -> None:
        self._after_payload()
        self._pax = self._fields.records(payload)

    def _global_header(self, payload: bytes) -> None:
        """Only checked: Go's reader does not apply it, nor do containerd and bsdtar."""
        self._after_payload()
        self._fields.records(payload)

    def _gnu_long_name(self, payload: bytes) -> None:
        self._after_payload()
        self._long_name = text_of(payload)

    def _gnu_long_link(self, payload: bytes) -> None:
        self._after_payload()
        self._long_link = text_of(payload)


def _unknown_type(flag: int, name: bytes) -> InvalidDataError:
    shown = repr(name[:200].decode("utf-8", "replace"))
    return InvalidDataError(
        f"tar entry {shown} has the type {chr(flag)!r}, which cannot be indexed"
    )
