"""The table of contents of a layer, as it is written into a zTOC and read from one.

`TocWriter` takes the files first to last, while the archive streams by, and keeps for each the bytes of
its strings, laid out already, and its numbers. The buffer itself is built at the end, from the last file
to the first, as the format wants it (docs/formats.md, "Order of the bytes").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, TypeAlias, overload

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.flatbuffer import (
    INT64,
    REFERENCE,
    UINT32,
    Builder,
    FlatBuffer,
    Table,
    TableLayout,
    release,
    string_piece,
    table_layout,
)
from soci_cli.ztoc.model import OPAQUE_WHITEOUT, XATTR_PREFIX, FileMetadata

MAX_TOC_SIZE = 512 << 20
"""Bytes that a table of contents may have; a layer that needs more is refused as a bomb."""

_FILE_KINDS = (
    REFERENCE * 2
    + INT64 * 2
    + REFERENCE
    + INT64
    + UINT32 * 2
    + REFERENCE * 3
    + INT64 * 2
    + REFERENCE
)
_FILE_IDS = tuple(range(14))
_XATTR_KINDS = REFERENCE * 2
_XATTR_IDS = (0, 1)

# A file as `TocWriter` keeps it: its seven numbers, which of them are not zero, the offsets of its six
# strings, each counted from the end of its piece, and the piece's length. The piece begins with the
# xattrs vector.
_RECORD = struct.Struct("<qqqIIqqB7I")
_XATTR_TABLE = struct.Struct("<iII")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_XATTR_COST = 4 + _XATTR_TABLE.size
"""Bytes that each xattr has for itself in a buffer, beside its strings: a reference and a table."""

_FIELD_KINDS = _FILE_KINDS  # they are added in the order of their numbers
_FIELD_SIZES = {REFERENCE: 4, UINT32: 4, INT64: 8}
_MAX_SHAPES = 4096
_SEARCHED = 1 << 20
_ZERO = (0,)


class TocWriter:
    """Collects the files of one layer, in the order of the archive.

    Each file's piece is laid out as soon as it is known: its strings, its xattrs and the vector over
    them. Only its table waits, because that depends on where in the buffer it comes to lie.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._records: list[bytes] = []
        # Where, in the pieces of which files, xattr tables await the reference to their vtable.
        self._xattr_tables: dict[int, int | list[int]] = {}
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
        if not xattrs:
            piece = b"\0\0\0\0" + piece
        else:
            self._last_xattrs = piece, xattrs
            piece, self._xattr_tables[self._count] = _with_xattrs(piece, xattrs)
        offset, size, mode, uid, gid, major, minor = numbers
        present = (
            (offset != 0) | (size != 0) << 1 | (mode != 0) << 2 | (uid != 0) << 3
            | (gid != 0) << 4 | (major != 0) << 5 | (minor != 0) << 6
        )  # fmt: skip
        total = len(piece)
        self._records.append(
            _RECORD.pack(
                *numbers, present, name_at, name_at + to_type, name_at + to_link,
                name_at + to_uname, name_at + to_gname, time_at, total,
            )
        )  # fmt: skip
        self._pieces.append(piece)
        self._count += 1
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
        count = self._count
        offsets = [0] * count
        layouts: dict[tuple[int, int], TableLayout] = {}
        for index in range(count - 1, -1, -1):
            (
                data_at, size, mode, uid, gid, major, minor, present,
                name_at, type_at, link_at, uname_at, gname_at, time_at, total,
            ) = _RECORD.unpack(self._records.pop())  # fmt: skip
            piece = self._pieces.pop()
            tables = self._xattr_tables.get(index)
            if tables:
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

    def _write_xattrs(self, builder: Builder, piece: bytes, tables: int | list[int]) -> int:
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
        for table in (tables,) if isinstance(tables, int) else tables:
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


def _with_xattrs(
    piece: bytes, xattrs: Sequence[tuple[bytes, bytes]]
) -> tuple[bytes, int | list[int]]:
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
        return b"\1\0\0\0\4\0\0\0" + parts[1] + piece, at
    count = len(tables)
    first = at + 4 * count
    references = [first - 4 * i - table for i, table in enumerate(tables)]
    parts.append(struct.pack(f"<{count + 1}I", count, *references))
    parts.reverse()
    return b"".join(parts), tables


def _file_layout(present: int, begin: int) -> TableLayout:
    optional = dict(zip((2, 3, 5, 6, 7, 11, 12), range(7), strict=True))
    has = tuple(i not in optional or bool(present >> optional[i] & 1) for i in _FILE_IDS)
    return table_layout(_FILE_KINDS, _FILE_IDS, has, begin & 7)


class Fields(NamedTuple):
    """An entry's numbers as the buffer has them, and where its strings and its xattrs are.

    A position is taken by `TableOfContents.string`, 0 for a string that is absent.
    """

    name: int
    type: int
    uncompressed_offset: int
    uncompressed_size: int
    linkname: int
    mode: int
    uid: int
    gid: int
    uname: int
    gname: int
    mod_time: int
    devmajor: int
    devminor: int
    xattrs: int


Row: TypeAlias = tuple[bytes, int, int, int, int, int, int, bytes, int, int, int]
"""Type, offset, size, linkname's position, mode, uid, gid, mod_time, device numbers, xattrs' position."""


class TableOfContents(Sequence[FileMetadata]):
    """The files of a zTOC, decoded from its buffer only when they are asked for.

    The buffer may come from a stranger: an entry that is out of bounds raises InvalidDataError when it
    is read. `check()` reads them all.
    """

    def __init__(
        self,
        buffer: FlatBuffer,
        table: Table | None,
        archive_size: int,
        other: slice = slice(0, 0),
    ) -> None:
        """`other` is a part of the buffer that holds no strings of entries: the checkpoints."""
        self._buffer = buffer
        self._archive_size = archive_size
        self._other = other
        self._start, self._count = (0, 0) if table is None else table.offsets(0)
        self._shapes: dict[int, _Shape] = {}  # by where the vtable stands

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> FileMetadata: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FileMetadata]: ...
    def __getitem__(self, index: int | slice) -> FileMetadata | Sequence[FileMetadata]:
        if isinstance(index, slice):
            return [self._decode(i) for i in range(*index.indices(self._count))]
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._decode(index)

    def fields(self, index: int) -> Fields:
        """The entry `index`, which must be one, without its strings. Raises InvalidDataError."""
        table, shape = self._table(index)
        try:
            return shape.read(self._buffer, table)
        except struct.error:
            raise _outside("a file") from None

    def name_of(self, index: int) -> bytes:
        """The name of the entry `index`, which must be one. Raises InvalidDataError."""
        table, shape = self._table(index)
        return self._text(table, shape.name)

    def type_of(self, index: int) -> bytes:
        """The type of the entry `index`, which must be one. Raises InvalidDataError."""
        table, shape = self._table(index)
        return self._text(table, shape.type)

    def string(self, position: int) -> bytes:
        """The string at a position of `Fields`. Raises InvalidDataError."""
        if not position:
            return b""
        buffer = self._buffer
        try:
            start = position + 4
            end = start + _UINT32.unpack_from(buffer, position)[0]
        except struct.error:
            raise _outside("a string") from None
        if end > len(buffer):
            raise _outside("a string")
        return buffer[start:end]

    def string_size(self, position: int) -> int:
        """The length of the string at a position of `Fields`, which may be more than there is."""
        if not position:
            return 0
        try:
            size: int = _UINT32.unpack_from(self._buffer, position)[0]
        except struct.error:
            raise _outside("a string") from None
        return size

    def extent(self, fields: Fields) -> tuple[int, int]:
        """Where a regular file's bytes are in the archive, and how many. Raises InvalidDataError."""
        offset, size = fields.uncompressed_offset, fields.uncompressed_size
        if not (offset >= 0 and size >= 0 and offset + size <= self._archive_size):
            name = self.string(fields.name).decode(errors="replace")
            raise InvalidDataError(f"not a valid zTOC: {name!r} lies outside the archive")
        return offset, size

    def _table(self, index: int) -> tuple[int, _Shape]:
        buffer = self._buffer
        table = self._start + 4 * index
        try:
            table += _UINT32.unpack_from(buffer, table)[0]
            vtable = table - _INT32.unpack_from(buffer, table)[0]
        except struct.error:
            raise _outside("a file") from None
        return table, self._shapes.get(vtable) or self._shape(vtable)

    def _text(self, table: int, field: int) -> bytes:
        """As `string`, of one field of a table."""
        if not field:
            return b""
        buffer = self._buffer
        try:
            start = table + field
            start += _UINT32.unpack_from(buffer, start)[0] + 4
            end = start + _UINT32.unpack_from(buffer, start - 4)[0]
        except struct.error:
            raise _outside("a string") from None
        if end > len(buffer):
            raise _outside("a string")
        return buffer[start:end]

    def _shape(self, vtable: int) -> _Shape:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        shape = self._shapes[vtable] = _shape_of(_vtable(self._buffer, vtable))
        return shape

    def _decode(self, index: int) -> FileMetadata:
        found = self.fields(index)
        string = self.string
        entry = FileMetadata(
            name=string(found.name),
            type=string(found.type),
            uncompressed_offset=found.uncompressed_offset,
            uncompressed_size=found.uncompressed_size,
            linkname=string(found.linkname),
            mode=found.mode,
            uid=found.uid,
            gid=found.gid,
            uname=string(found.uname),
            gname=string(found.gname),
            mod_time=string(found.mod_time),
            devmajor=found.devmajor,
            devminor=found.devminor,
            xattrs=self.xattrs(found.xattrs),
        )
        if entry.has_data:
            self.extent(found)
        return entry

    def xattrs(self, position: int) -> tuple[tuple[bytes, bytes], ...]:
        """The PAX records at a position of `Fields`. Raises InvalidDataError."""
        count = self.string_size(position)
        if not count:
            return ()
        start = position + 4
        if start + 4 * count > len(self._buffer):
            raise _outside("a vector")
        result = []
        budget = len(self._buffer)
        for at in range(start, start + 4 * count, 4):
            record = Table(self._buffer, at + _UINT32.unpack_from(self._buffer, at)[0])
            pair = record.string(0), record.string(1)
            budget -= len(pair[0]) + len(pair[1]) + _XATTR_COST
            if budget < 0:
                raise InvalidDataError("not a valid zTOC: strings overlap")
            result.append(pair)
        return tuple(result)

    def __iter__(self) -> Iterator[FileMetadata]:
        # Entries of an honest zTOC share no bytes, so all strings together are smaller than the buffer.
        budget = len(self._buffer)
        for index in range(self._count):
            entry = self._decode(index)
            budget -= (
                len(entry.name) + len(entry.type) + len(entry.linkname) + len(entry.uname)
                + len(entry.gname) + len(entry.mod_time)
                + sum(len(k) + len(v) + _XATTR_COST for k, v in entry.xattrs)
            )  # fmt: skip
            if budget < 0:
                raise InvalidDataError("not a valid zTOC: strings overlap")
            yield entry

    def check(self) -> None:
        """Reads every entry; raises InvalidDataError at the first that is not valid."""
        for _ in self:
            pass

    def names(self) -> Iterator[bytes]:
        """The names of all entries, in order."""
        # As `string(fields(index).name)` for each, for a fraction of the work.
        buffer, size = self._buffer, len(self._buffer)
        budget = size
        shapes = self._shapes
        uint32, int32 = _UINT32.unpack_from, _INT32.unpack_from
        table = self._start - 4
        vector = memoryview(buffer)[self._start : self._start + 4 * self._count]
        try:
            for (offset,) in _UINT32.iter_unpack(vector):
                table += 4
                start = table + offset
                vtable = start - int32(buffer, start)[0]
                field = (shapes.get(vtable) or self._shape(vtable)).name
                if not field:
                    yield b""
                    continue
                start += field
                start += uint32(buffer, start)[0] + 4
                length = uint32(buffer, start - 4)[0]
                budget -= length
                if start + length > size or budget < 0:
                    raise InvalidDataError("not a valid zTOC: a name is too long")
                yield buffer[start : start + length]
        except struct.error:
            raise _outside("a name") from None
        release(buffer)

    def rows(self) -> Iterator[Row]:
        """All entries in order, as plain tuples, for little more than reading their numbers."""
        buffer, size = self._buffer, len(self._buffer)
        budget = size
        shapes = self._shapes
        uint32, int32 = _UINT32.unpack_from, _INT32.unpack_from
        table = self._start - 4
        vector = memoryview(buffer)[self._start : self._start + 4 * self._count]
        try:
            for (relative,) in _UINT32.iter_unpack(vector):
                table += 4
                at = table + relative
                vtable = at - int32(buffer, at)[0]
                shape = shapes.get(vtable) or self._shape(vtable)
                (
                    _, kind, offset, length, link, mode, uid, gid, _, _, time, major, minor, xattrs
                ) = shape.pick(shape.codes.unpack_from(buffer, at) + _ZERO)  # fmt: skip
                bases = shape.references
                kind_size = time_size = 0
                if kind:
                    kind += at + bases[1] + 4
                    kind_size = uint32(buffer, kind - 4)[0]
                if time:
                    time += at + bases[10] + 4
                    time_size = uint32(buffer, time - 4)[0]
                budget -= kind_size + time_size
                if budget < 0:
                    raise InvalidDataError("not a valid zTOC: a string is too long")
                yield (
                    buffer[kind : kind + kind_size],
                    offset,
                    length,
                    link and link + at + bases[4],
                    mode,
                    uid,
                    gid,
                    buffer[time : time + time_size],
                    major,
                    minor,
                    xattrs and xattrs + at + bases[13],
                )
        except struct.error:
            raise _outside("a file") from None

    def contains(self, part: bytes) -> bool:
        """Whether these bytes are anywhere in the table; each string of an entry is there in one piece."""
        # In steps: other threads stand still while bytes are searched.
        buffer, other = self._buffer, self._other
        parts = ((0, other.start), (other.stop, len(buffer)))
        found = any(
            buffer.find(part, start, min(start + _SEARCHED + len(part), end)) >= 0
            for begin, end in parts
            for start in range(begin, end, _SEARCHED)
        )
        release(buffer)
        return found

    def needs_xattrs(self) -> bool:
        """Whether any entry has an extended attribute or is an opaque whiteout.

        Where none has, a snapshotter need not answer xattr calls for the layer.
        """
        return any(
            entry.name.endswith(OPAQUE_WHITEOUT)
            or any(key.startswith(XATTR_PREFIX) for key, _ in entry.xattrs)
            for entry in self
        )


class LoadedContents(TableOfContents):
    """A table of contents whose names and types are in memory, for who needs them all."""

    def __init__(self, contents: TableOfContents, kinds: Sequence[bytes]) -> None:
        """`kinds` are the types of all entries. Raises InvalidDataError."""
        super().__init__(contents._buffer, None, contents._archive_size)
        self._start, self._count = contents._start, contents._count
        self._names = list(contents.names())
        self._kinds = kinds

    def names(self) -> Iterator[bytes]:
        """See `TableOfContents.names`."""
        return iter(self._names)

    def name_of(self, index: int) -> bytes:
        """See `TableOfContents.name_of`."""
        return self._names[index]

    def type_of(self, index: int) -> bytes:
        """See `TableOfContents.type_of`."""
        return self._kinds[index]


class _Shape:
    """Where the fields of an entry lie, as a vtable says: most entries of a layer share a few.

    `name` and `type` are the offsets of these two fields in the table, 0 where they are absent.
    """

    __slots__ = ("codes", "name", "pick", "references", "type")

    def __init__(self, vtable: bytes) -> None:
        offsets = struct.unpack(f"<{len(vtable) // 2}H", vtable[: len(vtable) & ~1])[2:]
        offsets += (0,) * (len(_FIELD_KINDS) - len(offsets))
        present = sorted((offset, field) for field, offset in enumerate(offsets) if offset)
        codes = "<"
        position = 0
        order = {}
        for number, (offset, field) in enumerate(present):
            kind = _FIELD_KINDS[field]
            if offset < max(position, 4):
                raise InvalidDataError("not a valid zTOC: the fields of a table overlap")
            codes += f"{offset - position}x{'I' if kind == REFERENCE else kind}"
            position = offset + _FIELD_SIZES[kind]
            order[field] = number
        self.codes = struct.Struct(codes)
        absent = len(present)  # a zero is put there
        self.pick = itemgetter(*(order.get(field, absent) for field in range(len(_FIELD_KINDS))))
        self.references = tuple(
            offsets[field] if kind == REFERENCE else 0 for field, kind in enumerate(_FIELD_KINDS)
        )
        self.name = offsets[0]
        self.type = offsets[1]

    def read(self, buffer: FlatBuffer, table: int) -> Fields:
        """The entry at `table`. Raises struct.error when it is out of bounds."""
        (
            name, kind, offset, size, link, mode, uid, gid, uname, gname, time, major, minor, xattrs
        ) = self.pick(self.codes.unpack_from(buffer, table) + _ZERO)  # fmt: skip
        at = self.references
        return _new_fields((
            name and name + table + at[0],
            kind and kind + table + at[1],
            offset, size,
            link and link + table + at[4],
            mode, uid, gid,
            uname and uname + table + at[8],
            gname and gname + table + at[9],
            time and time + table + at[10],
            major, minor,
            xattrs and xattrs + table + at[13],
        ))  # fmt: skip


_new_fields = Fields._make
_shape_of = lru_cache(maxsize=_MAX_SHAPES)(_Shape)


def _vtable(buffer: FlatBuffer, position: int) -> bytes:
    """The bytes of a vtable, as far as it has fields that are known."""
    if position < 0 or position + 4 > len(buffer):
        raise _outside("a vtable")
    size = int.from_bytes(buffer[position : position + 2], "little")
    if size < 4 or position + size > len(buffer):
        raise _outside("a vtable")
    return buffer[position : position + min(size, 4 + 2 * len(_FIELD_KINDS))]


def _outside(what: str) -> InvalidDataError:
    return InvalidDataError(f"not a valid zTOC: {what} lies outside the buffer")
