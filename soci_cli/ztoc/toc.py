"""The table of contents of a layer, read from a zTOC file by file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple, TypeAlias, overload

from soci_cli.errors import InvalidDataError, UnsupportedLayerError
from soci_cli.ztoc import sparse
from soci_cli.ztoc.flatbuffer import INT64, REFERENCE, UINT32, FlatBuffer, Table, release
from soci_cli.ztoc.model import OPAQUE_WHITEOUT, XATTR_PREFIX, FileMetadata
from soci_cli.ztoc.toc_writer import FILE_KINDS, XATTR_COST

_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_FIELD_SIZES = {REFERENCE: 4, UINT32: 4, INT64: 8}
_MAX_SHAPES = 4096
_SEARCHED = 1 << 20
_ZERO = (0,)


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
        has_all_maps: bool = False,
    ) -> None:
        """`other` is a part of the buffer that holds no strings of entries: the checkpoints.

        With `has_all_maps` each sparse file has its map in its records.
        """
        self.has_all_maps = has_all_maps
        self._buffer = buffer
        self._archive_size = archive_size
        self._other = other
        self._start, self._count = (0, 0) if table is None else table.offsets(0)
        self._shapes: dict[int, _Shape] = {}  # by where the vtable stands

    def __len__(self) -> int:
        return self._count

    @property
    def buffer(self) -> FlatBuffer:
        """The bytes that entries are read from, the whole zTOC and what may be before it."""
        return self._buffer

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
        """Where a regular file's bytes are in the archive, and its size. Raises InvalidDataError.

        Of a sparse file fewer bytes may be there: see `sparse_map`.
        """
        offset, size = fields.uncompressed_offset, fields.uncompressed_size
        if offset >= 0 and 0 <= size <= self._archive_size - offset:
            return offset, size
        if offset < 0 or size < 0 or not self._may_be_sparse(fields):
            raise self._outside(fields)
        return offset, size

    def _outside(self, fields: Fields) -> InvalidDataError:
        name = self.string(fields.name).decode(errors="replace")
        return InvalidDataError(f"not a valid zTOC: {name!r} lies outside the archive")

    def _may_be_sparse(self, fields: Fields) -> bool:
        return any(key.startswith(sparse.PREFIX) for key, _ in self.xattrs(fields.xattrs))

    def stored(self, fields: Fields) -> tuple[int, int]:
        """Where an entry's bytes are in the archive, and how many, as its numbers say."""
        try:
            pieces = self.sparse_map(fields)
        except UnsupportedLayerError:
            pieces = None
        size = fields.uncompressed_size if pieces is None else pieces.stored
        return fields.uncompressed_offset, size

    def sparse_map(self, fields: Fields) -> sparse.SparseMap | None:
        """Where the bytes of a regular file belong that has holes; None for one in one piece.

        Raises UnsupportedLayerError where the zTOC does not have the map, InvalidDataError for a map that
        does not fit.
        """
        if not fields.xattrs:
            return None
        records = dict(self.xattrs(fields.xattrs))
        size = fields.uncompressed_size
        found = sparse.map_of(records, size, has_all_maps=self.has_all_maps)
        if found is not None and fields.uncompressed_offset + found.stored > self._archive_size:
            raise self._outside(fields)
        return found

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
            budget -= len(pair[0]) + len(pair[1]) + XATTR_COST
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
                + sum(len(k) + len(v) + XATTR_COST for k, v in entry.xattrs)
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

    def release(self) -> None:
        """Gives back the memory of entries that were read, where the buffer is a mapped file."""
        release(self._buffer)

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
        super().__init__(
            contents._buffer, None, contents._archive_size, contents._other, contents.has_all_maps
        )
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
        offsets += (0,) * (len(FILE_KINDS) - len(offsets))
        present = sorted((offset, field) for field, offset in enumerate(offsets) if offset)
        codes = "<"
        position = 0
        order = {}
        for number, (offset, field) in enumerate(present):
            kind = FILE_KINDS[field]
            if offset < max(position, 4):
                raise InvalidDataError("not a valid zTOC: the fields of a table overlap")
            codes += f"{offset - position}x{'I' if kind == REFERENCE else kind}"
            position = offset + _FIELD_SIZES[kind]
            order[field] = number
        self.codes = struct.Struct(codes)
        absent = len(present)  # a zero is put there
        self.pick = itemgetter(*(order.get(field, absent) for field in range(len(FILE_KINDS))))
        self.references = tuple(
            offsets[field] if kind == REFERENCE else 0 for field, kind in enumerate(FILE_KINDS)
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
    return buffer[position : position + min(size, 4 + 2 * len(FILE_KINDS))]


def _outside(what: str) -> InvalidDataError:
    return InvalidDataError(f"not a valid zTOC: {what} lies outside the buffer")
