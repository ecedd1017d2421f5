"""The table of contents of a layer, as it is written into a zTOC.

`TocWriter` takes the files first to last, while the archive streams by, and keeps for each the bytes of
its strings, laid out already, and its numbers. The buffer itself is built at the end, from the last file
to the first, as the format wants it (docs/formats.md, "Order of the bytes").
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.flatbuffer import (
    INT64,
    REFERENCE,
    UINT32,
    Builder,
    TableLayout,
    string_piece,
    table_layout,
)

MAX_TOC_SIZE = 512 << 20
"""Bytes that a table of contents may have; a layer that needs more is refused as a bomb."""

FILE_KINDS = (
    REFERENCE * 2
    + INT64 * 2
    + REFERENCE
    + INT64
    + UINT32 * 2
    + REFERENCE * 3
    + INT64 * 2
    + REFERENCE
)
"""The fields of a file, which are added in the order of their numbers."""
_FILE_IDS = tuple(range(14))
_XATTR_KINDS = REFERENCE * 2
_XATTR_IDS = (0, 1)

# A file as `TocWriter` keeps it: its seven numbers, which of them are not zero, the offsets of its six
# strings and of its only xattr table, each counted from the end of its piece, and the piece's length. The
# piece begins with the xattrs vector.
_RECORD = struct.Struct("<qqqIIqqB8I")
_BATCH = 2048  # files whose bytes are put together: an object for each would take more than they do
_XATTR_TABLE = struct.Struct("<iII")
XATTR_COST = 4 + _XATTR_TABLE.size
"""Bytes that each xattr has for itself in a buffer, beside its strings: a reference and a table."""


class TocWriter:
    """Collects the files of one layer, in the order of the archive.

    Each file's piece is laid out as soon as it is known: its strings, its xattrs and the vector over
    them. Only its table waits, because that depends on where in the buffer it comes to lie.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._records: list[bytes] = []
        self._batches: list[tuple[bytes, bytes]] = []  # pieces and records of earlier files
        # Where, in the pieces of which files, several xattr tables await the reference to their vtable.
        self._xattr_tables: dict[int, list[int]] = {}
        self._xattr_vtable: int | None = None
        self._last_xattrs: tuple[bytes, Sequence[tuple[bytes, bytes]]] = b"", ()
        self._middles: dict[tuple[bytes, bytes, bytes], tuple[bytes, int, int, int, int]] = {}
        self._size = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        name: bytes,
        type_: bytes,
        linkname: bytes,
        uname: bytes,
        gname: bytes,
        mod_time: bytes,
        numbers: tuple[int, int, int, int, int, int, int],
        xattrs: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Adds a file. `numbers`: data offset, size, mode, uid, gid, devmajor, devminor.

        `xattrs` are sorted by key. Raises InvalidDataError when the table would become absurdly large.
        """
        middle = None if linkname else self._middles.get((type_, uname, gname))
        if middle is None:
            middle = _middle(type_, linkname, uname, gname)
            if not linkname and len(self._middles) < 1024:
                self._middles[type_, uname, gname] = middle
        strings, to_type, to_link, to_uname, to_gname = middle
        # What is written later stands before what was written: the name comes last.
        length = len(name)
        name_at = length + 8 - (length & 3)
        time_length = len(mod_time)
        piece = b"".join((
            time_length.to_bytes(4, "little"), mod_time, b"\0\0\0\0"[time_length & 3 :],
            strings,
            length.to_bytes(4, "little"), name, b"\0\0\0\0"[length & 3 :],
        ))  # fmt: skip
        time_at = len(piece)
        xattr_at = 0
        if not xattrs:
            piece = b"\0\0\0\0" + piece
        else:
            self._last_xattrs = piece, xattrs
            piece, tables = _with_xattrs(piece, xattrs)
            xattr_at = tables[0]
            if len(tables) > 1:
                self._xattr_tables[self._count] = tables
        offset, size, mode, uid, gid, major, minor = numbers
        present = (
            (offset != 0) | (size != 0) << 1 | (mode != 0) << 2 | (uid != 0) << 3
            | (gid != 0) << 4 | (major != 0) << 5 | (minor != 0) << 6
        )  # fmt: skip
        total = len(piece)
        self._records.append(
            _RECORD.pack(
                *numbers, present, name_at, name_at + to_type, name_at + to_link,
                name_at + to_uname, name_at + to_gname, time_at, xattr_at, total,
            )
        )  # fmt: skip
        self._pieces.append(piece)
        self._count += 1
        if not self._count % _BATCH:
            self._end_batch()
        self._size += total + 80
        if self._size > MAX_TOC_SIZE:
            raise InvalidDataError(
                f"the archive lists too much: over {self._count} files and "
                f"{MAX_TOC_SIZE >> 20} MiB of names and attributes"
            )

    def write(self, builder: Builder) -> int:
        """Writes all files and the table over them; returns the TOC table's offset.

        What is written is let go at once, so this can be done once only.
        """
        index = self._count
        offsets = array("I", bytes(4 * index))
        layouts: dict[tuple[int, int], TableLayout] = {}
        for record, piece in self._backwards():
            index -= 1
            (
                data_at, size, mode, uid, gid, major, minor, present,
                name_at, type_at, link_at, uname_at, gname_at, time_at, xattr_at, total,
            ) = record  # fmt: skip
            if xattr_at:
                tables = self._xattr_tables.get(index) or (xattr_at,)
                total = self._write_xattrs(builder, piece, tables)
            else:
                builder.raw(piece)
            begin = builder.size
            layout = layouts.get((present, begin & 7))
            if layout is None:
                layout = layouts[present, begin & 7] = _file_layout(present, begin)
            at = layout.positions
            offsets[index] = builder.packed_table(
                layout,
                layout.pick((
                    at[0] + total - name_at, at[1] + total - type_at, data_at, size,
                    at[4] + total - link_at, mode, uid, gid,
                    at[8] + total - uname_at, at[9] + total - gname_at, at[10] + total - time_at,
                    major, minor, at[13],
                )),
            )  # fmt: skip
        return builder.table(REFERENCE, (0,), (builder.offset_vector(offsets),))

    def _end_batch(self) -> None:
        self._batches.append((b"".join(self._pieces), b"".join(self._records)))
        self._pieces.clear()
        self._records.clear()

    def _backwards(self) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """The records and the pieces of all files, last to first; each batch is let go."""
        self._end_batch()
        while self._batches:
            pieces, records = self._batches.pop()
            end = len(pieces)
            for at in range(len(records) - _RECORD.size, -1, -_RECORD.size):
                record = _RECORD.unpack_from(records, at)
                begin = end - record[-1]
                yield record, pieces[begin:end]
                end = begin

    def _write_xattrs(self, builder: Builder, piece: bytes, tables: Sequence[int]) -> int:
        """Writes a piece with xattrs; returns its length, to the start of the vector."""
        base = builder.size
        vtable = self._xattr_vtable
        if vtable is None:
            # The first table of its kind to be written carries the vtable with it.
            strings, xattrs = self._last_xattrs
            builder.raw(strings)
            vector = builder.offset_vector(
                [
                    builder.table(
                        _XATTR_KINDS, _XATTR_IDS, (builder.string(key), builder.string(value))
                    )
                    for key, value in xattrs
                ]
            )
            self._xattr_vtable = builder.vtable(_XATTR_KINDS, _XATTR_IDS)
            return vector - base
        total = len(piece)
        for table in tables:
            at = total - table
            reference = (vtable - base - table).to_bytes(4, "little", signed=True)
            piece = piece[:at] + reference + piece[at + 4 :]
        builder.raw(piece)
        return total


def _middle(
    type_: bytes, linkname: bytes, uname: bytes, gname: bytes
) -> tuple[bytes, int, int, int, int]:
    """The strings between a file's name and its time, and how far each begins from the name."""
    pieces = [string_piece(value) for value in (type_, linkname, uname, gname)]
    to_type, to_link, to_uname, to_gname = accumulate(map(len, pieces))
    return b"".join(reversed(pieces)), to_type, to_link, to_uname, to_gname


def _with_xattrs(piece: bytes, xattrs: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, list[int]]:
    """A file's piece with its xattrs before it, and the offsets of their tables from its end."""
    parts = [piece]
    tables = []
    at = len(piece)
    for key, value in xattrs:
        key_size, value_size = len(key), len(value)
        value_span = value_size + 8 - (value_size & 3)
        # The table: vtable, value, key; each reference counts from where it stands.
        parts.append(
            b"".join((
                _XATTR_TABLE.pack(0, 8, 4 + value_span),
                value_size.to_bytes(4, "little"), value, b"\0\0\0\0"[value_size & 3 :],
                key_size.to_bytes(4, "little"), key, b"\0\0\0\0"[key_size & 3 :],
            ))
        )  # fmt: skip
        at += 12 + value_span + key_size + 8 - (key_size & 3)
        tables.append(at)
    if len(tables) == 1:
        return b"\1\0\0\0\4\0\0\0" + parts[1] + piece, tables
    count = len(tables)
    first = at + 4 * count
    references = [first - 4 * i - table for i, table in enumerate(tables)]
    parts.append(struct.pack(f"<{count + 1}I", count, *references))
    parts.reverse()
    return b"".join(parts), tables


def _file_layout(present: int, begin: int) -> TableLayout:
    optional = dict(zip((2, 3, 5, 6, 7, 11, 12), range(7), strict=True))
    has = tuple(i not in optional or bool(present >> optional[i] & 1) for i in _FILE_IDS)
    return table_layout(FILE_KINDS, _FILE_IDS, has, begin & 7)
