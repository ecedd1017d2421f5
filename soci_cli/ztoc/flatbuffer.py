"""Writing and reading FlatBuffers, as far as a zTOC needs them, and fast.

The writer makes the same bytes as the reference builder when its methods are called in the same order:
a FlatBuffer is built from its end to its start, so every piece is prepended, and offsets count from the
end. The layout of a table depends only on which fields it has and on the alignment at which it starts,
so each such layout is worked out once (`TableLayout`) and then packed by one `struct` call: a layer has one
table a file, often 100,000 of them.

The reader (`Table`) follows offsets that come from strangers: each step checks its bounds and raises
`InvalidDataError`.

Binary layout: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import io
import mmap
import struct
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Protocol, TypeAlias

from soci_cli.errors import InvalidDataError

# Kinds of table fields: the struct code of each. "R" is a reference to a string, vector or table.
REFERENCE = "R"
INT8 = "b"
INT32 = "i"
UINT32 = "I"
INT64 = "q"

FlatBuffer: TypeAlias = bytes | mmap.mmap
"""A buffer to read: in memory, or a mapped file."""

_BATCH = 4096  # pieces that are put together: an object for each would take more than they do
_SIZES = {REFERENCE: 4, INT8: 1, INT32: 4, UINT32: 4, INT64: 8}
_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0", b"\0\0\0\0", b"\0" * 5, b"\0" * 6, b"\0" * 7)


def release(buffer: FlatBuffer) -> None:
    """Gives back the memory of what was read of a mapped file; its pages come again when needed."""
    if isinstance(buffer, mmap.mmap):
        buffer.madvise(mmap.MADV_DONTNEED)


class TableLayout:
    """Where the fields of a table lie, given which it has and the alignment at its end.

    Fields come in the order in which they are added; `ids` gives their numbers in the schema.
    `positions[i]` is the offset of field i from the end of the buffer, less the offset at which the
    table was begun; 0 where the field is absent.
    """

    __slots__ = ("alignment", "order", "pick", "positions", "size", "struct", "vtable")

    def __init__(
        self, kinds: str, ids: tuple[int, ...], present: tuple[bool, ...], begin: int
    ) -> None:
        offset = begin
        self.alignment = 4
        positions: list[int] = []
        # Written from the end: the parts are collected last to first.
        parts: list[str] = []
        order: list[int] = []
        for index, (kind, has) in enumerate(zip(kinds, present, strict=True)):
            if not has:
                positions.append(0)
                continue
            size = _SIZES[kind]
            self.alignment = max(self.alignment, size)
            pad = -offset % size
            if pad:
                parts.append(f"{pad}x")
            parts.append("I" if kind == REFERENCE else kind)
            order.append(index)
            offset += pad + size
            positions.append(offset - begin)
        pad = -offset % 4
        if pad:
            parts.append(f"{pad}x")
        offset += pad + 4
        parts.append("i")
        self.size = offset - begin
        self.struct = struct.Struct("<" + "".join(reversed(parts)))
        self.positions = tuple(positions)
        self.order = tuple(reversed(order))
        # Picks, out of all values, those that are present, in the order of the bytes.
        self.pick = (
            itemgetter(*self.order) if len(order) > 1 else lambda values: (values[order[0]],)
        )
        entries = [0] * (max(ids) + 1)
        for field, position in zip(ids, positions, strict=True):
            entries[field] = self.size - position if position else 0
        while entries and not entries[-1]:
            entries.pop()
        self.vtable = struct.pack(
            f"<{len(entries) + 2}H", 2 * (len(entries) + 2), self.size, *entries
        )


@lru_cache(maxsize=4096)
def table_layout(
    kinds: str, ids: tuple[int, ...], present: tuple[bool, ...], alignment: int
) -> TableLayout:
    """The layout of a table that is begun at an offset with this remainder by eight."""
    return TableLayout(kinds, ids, present, alignment)


class Builder:
    """Builds one FlatBuffer; every method returns the offset, from the end, of what it wrote."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._batches: list[bytes | memoryview] = []  # what was written before these
        self._offset = 0
        self._alignment = 4
        self._vtables: dict[bytes, int] = {}

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._offset

    def string(self, value: bytes) -> int:
        """Writes a string: length, bytes, NUL, padding."""
        self._align(4, len(value) + 1)
        self._push(value + b"\0")
        return self._push(len(value).to_bytes(4, "little"))

    def bytes_vector(self, parts: list[bytes | memoryview]) -> int:
        """Writes a vector of bytes, given as parts in order, and takes the parts out of the list."""
        length = sum(map(len, parts))
        self._align(4, length)
        self._end_batch()
        self._batches.extend(reversed(parts))
        parts.clear()
        self._offset += length
        return self._push(struct.pack("<I", length))

    def offset_vector(self, offsets: Sequence[int]) -> int:
        """Writes a vector of references."""
        count = len(offsets)
        self._align(4, 4 * count)
        # The last element ends where the buffer starts now; element i starts 4 * (count - i) before.
        first = self._offset + 4 * count
        values = array("I", (first - 4 * i - offset for i, offset in enumerate(offsets)))
        if sys.byteorder == "big":
            values.byteswap()
        return self._push(count.to_bytes(4, "little") + values.tobytes())

    def raw(self, piece: bytes) -> int:
        """Prepends bytes that are laid out already; their length must be a multiple of four."""
        return self._push(piece)

    def table(self, kinds: str, ids: tuple[int, ...], values: Sequence[int | None]) -> int:
        """Writes a table, its fields in the order in which they are to be added.

        `kinds` has a code a field, `ids` its number in the schema; a value of None leaves the field
        out. The value of a REFERENCE is the offset of what it refers to.
        """
        begin = self._offset
        layout = table_layout(kinds, ids, tuple([v is not None for v in values]), begin & 7)
        placed = [
            begin + position - value if kind == REFERENCE and value is not None else value
            for kind, value, position in zip(kinds, values, layout.positions, strict=True)
        ]
        return self.packed_table(layout, layout.pick(placed))

    def packed_table(self, layout: TableLayout, values: Sequence[int]) -> int:
        """Writes a table whose values are picked and placed already."""
        table = self._offset + layout.size
        vtable = self._vtables.get(layout.vtable)
        known = vtable is not None
        if vtable is None:
            # A new vtable stands right before the table.
            vtable = self._vtables[layout.vtable] = table + len(layout.vtable)
            self._alignment = max(self._alignment, layout.alignment)
        self._pieces.append(layout.struct.pack(vtable - table, *values))
        self._offset = table
        if not known:
            self._push(layout.vtable)
        if len(self._pieces) > _BATCH:
            self._end_batch()
        return table

    def vtable(self, kinds: str, ids: tuple[int, ...]) -> int | None:
        """The offset of the vtable that tables with all these fields share, if one was written."""
        layout = table_layout(kinds, ids, (True,) * len(ids), 0)
        return self._vtables.get(layout.vtable)

    def finish(self, root: int) -> bytes:
        """Ends the buffer with the reference to its root table. The builder is used up then."""
        self._align(self._alignment, 4)
        self._push(struct.pack("<I", self._offset + 4 - root))
        # Each piece is let go as soon as it is copied, so the buffer is never in memory twice.
        self._end_batch()
        whole = io.BytesIO()
        while self._batches:
            whole.write(self._batches.pop())
        return whole.getvalue()

    def _end_batch(self) -> None:
        self._batches.append(b"".join(reversed(self._pieces)))
        self._pieces.clear()

    def _align(self, size: int, additional: int) -> None:
        pad = -(self._offset + additional) % size
        if pad:
            self._push(_PADDING[pad])

    def _push(self, piece: bytes) -> int:
        self._pieces.append(piece)
        self._offset += len(piece)
        return self._offset


def string_piece(value: bytes) -> bytes:
    """A string as it stands in a buffer whose end is aligned to four bytes."""
    length = len(value)
    return length.to_bytes(4, "little") + value + b"\0\0\0\0"[length & 3 :]


class Slices(Protocol):
    """Bytes of which parts are looked at, such as `bytes`."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class Table:
    """A table inside a buffer from outside. Every read checks its bounds."""

    __slots__ = ("_buffer", "_position", "_vtable", "_vtable_size")

    def __init__(self, buffer: Slices, position: int) -> None:
        self._buffer = buffer
        self._position = position
        if position < 0 or position + 4 > len(buffer):
            raise _broken("a table lies outside the buffer")
        vtable = position - int.from_bytes(buffer[position : position + 4], "little", signed=True)
        if vtable < 0 or vtable + 4 > len(buffer):
            raise _broken("a vtable lies outside the buffer")
        size = int.from_bytes(buffer[vtable : vtable + 2], "little")
        if size < 4 or vtable + size > len(buffer):
            raise _broken("a vtable has an impossible size")
        self._vtable = vtable
        self._vtable_size = size

    @classmethod
    def root(cls, buffer: Slices, start: int = 0) -> Table:
        """The root table of a buffer, which begins at `start`."""
        if len(buffer) - start < 8:
            raise _broken("the buffer is too short")
        return cls(buffer, start + int.from_bytes(buffer[start : start + 4], "little"))

    def _field(self, index: int, size: int) -> int | None:
        entry = 4 + 2 * index
        if entry + 2 > self._vtable_size:
            return None
        at = self._vtable + entry
        offset = int.from_bytes(self._buffer[at : at + 2], "little")
        if not offset:
            return None
        position = self._position + offset
        if position + size > len(self._buffer):
            raise _broken("a field lies outside the buffer")
        return position

    def integer(self, index: int, size: int, default: int, *, signed: bool = True) -> int:
        """The scalar field `index` of `size` bytes, or its default."""
        position = self._field(index, size)
        if position is None:
            return default
        return int.from_bytes(self._buffer[position : position + size], "little", signed=signed)

    def _target(self, index: int) -> int | None:
        position = self._field(index, 4)
        if position is None:
            return None
        return position + int.from_bytes(self._buffer[position : position + 4], "little")

    def _vector(self, index: int, element: int) -> tuple[int, int]:
        start = self._target(index)
        if start is None:
            return 0, 0
        if start + 4 > len(self._buffer):
            raise _broken("a vector lies outside the buffer")
        count = int.from_bytes(self._buffer[start : start + 4], "little")
        if start + 4 + count * element > len(self._buffer):
            raise _broken("a vector is longer than the buffer")
        return start + 4, count

    def string(self, index: int) -> bytes:
        """The string field `index`; empty when it is absent."""
        start, count = self._vector(index, 1)
        return self._buffer[start : start + count]

    def byte_range(self, index: int) -> tuple[int, int]:
        """Start and length, in the buffer, of the byte vector `index`."""
        return self._vector(index, 1)

    def table(self, index: int) -> Table | None:
        """The table that field `index` refers to."""
        position = self._target(index)
        return None if position is None else Table(self._buffer, position)

    def offsets(self, index: int) -> tuple[int, int]:
        """Start and count of the vector of references `index`."""
        return self._vector(index, 4)

    def strings(self, index: int) -> list[bytes]:
        """The strings of the vector `index`. Their sizes together may not exceed the buffer's."""
        start, count = self._vector(index, 4)
        result: list[bytes] = []
        total = 0
        for at in range(start, start + 4 * count, 4):
            position = at + int.from_bytes(self._buffer[at : at + 4], "little")
            if position + 4 > len(self._buffer):
                raise _broken("a string lies outside the buffer")
            length = int.from_bytes(self._buffer[position : position + 4], "little")
            if position + 4 + length > len(self._buffer):
                raise _broken("a string is longer than the buffer")
            total += length
            if total > len(self._buffer):
                raise _broken("strings overlap")
            result.append(self._buffer[position + 4 : position + 4 + length])
        return result


def _broken(reason: str) -> InvalidDataError:
    return InvalidDataError(f"not a valid zTOC: {reason}")
