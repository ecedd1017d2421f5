"""Sparse files in archives: only their pieces are stored, and a map says where each belongs.

There are four forms (GNU tar manual, "Sparse Formats"): type S of GNU's old format, with the map in the
header and in blocks after it, and PAX 0.0, 0.1 and 1.0, with the map in records or before the data. A zTOC
has one: the record `GNU.sparse.map` of an entry says where each piece begins and how long it is
(docs/formats.md, "Sparse files").
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from soci_cli.errors import InvalidDataError, UnsupportedLayerError

PREFIX = b"GNU.sparse."
MAP = b"GNU.sparse.map"
_SIZES = (b"GNU.sparse.size", b"GNU.sparse.realsize")
_VERSION = (b"GNU.sparse.major", b"GNU.sparse.minor")
_NAME = b"GNU.sparse.name"
_BLOCKS = b"GNU.sparse.numblocks"
_MAX_PIECES = 1 << 20
_INT64_MAX = (1 << 63) - 1
_ZEROS = bytes(1 << 20)

# Places in a header of the old format, and in the blocks after it.
_HEADER_ENTRIES, _BLOCK_ENTRIES = slice(386, 482), slice(0, 504)
_HEADER_MORE, _BLOCK_MORE = 482, 504
_REAL_SIZE = slice(483, 495)
_ENTRY, _NUMBER = 24, 12

Parse = Callable[[bytes], int]


class BadMapError(Exception):
    """A map that breaks its format."""


class SparseMap:
    """Where the pieces of a sparse file of `size` bytes belong; `stored` bytes are in the archive."""

    def __init__(self, size: int, offsets: Sequence[int], lengths: Sequence[int]) -> None:
        """Raises BadMapError unless the pieces ascend, do not overlap, and lie in the file."""
        end = 0
        self.size = size
        self._offsets, self._lengths = array("q"), array("q")
        for offset, length in zip(offsets, lengths, strict=True):
            if offset < end or length < 0 or offset + length > size:
                raise BadMapError("the map of a sparse file does not fit it")
            end = offset + length
            if length:
                self._offsets.append(offset)
                self._lengths.append(length)
        if size < 0 or len(self._offsets) > _MAX_PIECES:
            raise BadMapError(f"a sparse file has more than {_MAX_PIECES} pieces")
        self._starts = array("q", accumulate(self._lengths, initial=0))

    @property
    def stored(self) -> int:
        """The bytes that are in the archive."""
        return self._starts[-1]

    def encode(self) -> bytes:
        """The record."""
        pairs = zip(self._offsets, self._lengths, strict=True)
        return b",".join(b"%d,%d" % pair for pair in pairs)

    def before(self, offset: int) -> int:
        """How many of the bytes before an offset of the file are stored."""
        piece = bisect_right(self._offsets, offset) - 1
        if piece < 0:
            return 0
        return self._starts[piece] + min(offset - self._offsets[piece], self._lengths[piece])

    def spread(self, offset: int, length: int, stored: bytes | bytearray) -> bytes:
        """The bytes [offset, offset + length) of the file, which are in it; `stored` are those of them."""
        if len(stored) == length:
            return bytes(stored)
        data = bytearray(length)
        piece = max(0, bisect_right(self._offsets, offset) - 1)
        done = 0
        while done < len(stored):
            begin = max(self._offsets[piece], offset)
            count = self._offsets[piece] + self._lengths[piece] - begin
            if count > 0:
                part = stored[done : done + count]
                data[begin - offset : begin - offset + len(part)] = part
                done += len(part)
            piece += 1
        return bytes(data)

    def fill(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        """The whole file, in pieces: `stored` are the bytes that are in the archive."""
        position, rest = 0, memoryview(b"")
        for begin, left in zip(self._offsets, self._lengths, strict=True):
            yield from _zeros(begin - position)
            position = begin + left
            while left:
                rest = rest if rest.nbytes else memoryview(next(stored))
                piece, rest = rest[:left], rest[left:]
                left -= piece.nbytes
                yield bytes(piece)
        yield from _zeros(self.size - position)


def _zeros(count: int) -> Iterator[bytes]:
    for _ in range(count // len(_ZEROS)):
        yield _ZEROS
    yield _ZEROS[: count % len(_ZEROS)]


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    """Whether the PAX records of an entry make it a sparse file, as Go's reader takes it."""
    version = _version(records)
    if version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
        return True
    return version == (b"", b"") and bool(records.get(MAP))


def map_of(records: Mapping[bytes, bytes], size: int, *, has_all_maps: bool) -> SparseMap | None:
    """The map of an entry of a zTOC, whose size is that of the file; None for ordinary files.

    zTOCs of other tools do not have the maps of all sparse files. Then, UnsupportedLayerError; and
    InvalidDataError for a map that does not fit.
    """
    if has_all_maps:
        if MAP not in records:
            return None
    elif not is_sparse(records):
        return None
    elif _version(records) == (b"1", b"0"):
        raise UnsupportedLayerError(
            "it is a sparse file, whose map the zTOC does not have; convert the image again with "
            "`soci image convert`, or build the zTOC again"
        )
    try:
        return _map_of_text(records.get(MAP, b""), size, _decimal)
    except BadMapError as error:
        raise InvalidDataError(f"not a valid zTOC: {error}") from None


def _version(records: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    return records.get(_VERSION[0], b""), records.get(_VERSION[1], b"")


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) > _INT64_MAX:
        raise BadMapError("a number in the map of a sparse file is malformed")
    return int(text)


def _map_of_text(text: bytes, size: int, decimal: Parse) -> SparseMap:
    if text.count(b",") > 2 * _MAX_PIECES:
        raise BadMapError(f"a sparse file has more than {_MAX_PIECES} pieces")
    numbers = [decimal(number) for number in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise BadMapError("the map of a sparse file is cut off")
    return SparseMap(size, numbers[::2], numbers[1::2])


class MapReader:
    """Reads the map of one sparse file while its archive streams by.

    `name` is the name that its records give, or b"". The map may go on in blocks of 512 bytes: feed them as
    long as `needs_more`; `in_data` tells whether they count as the entry's data. Raises BadMapError.
    """

    needs_more = False
    in_data = False

    def __init__(self, size: int, name: bytes = b"") -> None:
        self.name = name
        self.size = size
        self._numbers = array("q")

    def feed(self, block: bytes) -> None:
        """The next block of the map."""
        raise NotImplementedError

    def finish(self) -> SparseMap:
        """The whole map."""
        return SparseMap(self.size, self._numbers[::2], self._numbers[1::2])

    def _add(self, number: int) -> None:
        self._numbers.append(number)
        if len(self._numbers) > 2 * _MAX_PIECES:
            raise BadMapError(f"a sparse file has more than {_MAX_PIECES} pieces")


class OldMap(MapReader):
    """The map of GNU's old format: four pieces in the header, 21 in each block after it."""

    def __init__(self, header: bytes, number: Parse) -> None:
        if header[257:265] != b"ustar  \0":
            raise BadMapError("a sparse file of the old format needs GNU's header")
        super().__init__(number(header[_REAL_SIZE]))
        self._number = number
        self._take(header[_HEADER_ENTRIES], header[_HEADER_MORE])

    def feed(self, block: bytes) -> None:
        """See `MapReader.feed`."""
        self._take(block[_BLOCK_ENTRIES], block[_BLOCK_MORE])

    def _take(self, entries: bytes, more: int) -> None:
        for at in range(0, len(entries), _ENTRY):
            if not entries[at]:
                break
            self._add(self._number(entries[at : at + _NUMBER]))
            self._add(self._number(entries[at + _NUMBER : at + _ENTRY]))
        self.needs_more = bool(more)


class TextMap(MapReader):
    """The map of PAX 0.0 and 0.1, which is in the records."""

    def __init__(self, records: Mapping[bytes, bytes], size: int, decimal: Parse) -> None:
        super().__init__(size, records.get(_NAME, b""))
        self._map = _map_of_text(records.get(MAP, b""), size, decimal)
        pieces = records.get(_BLOCKS)
        count = records.get(MAP, b"").count(b",") + 1 if records.get(MAP) else 0
        if pieces is not None and 2 * decimal(pieces) != count:
            raise BadMapError("the map of a sparse file has another length than its records say")

    def finish(self) -> SparseMap:
        """See `MapReader.finish`."""
        return self._map


class DataMap(MapReader):
    """The map of PAX 1.0: lines with numbers, how many pieces first, in blocks before the data."""

    needs_more = True
    in_data = True

    def __init__(self, records: Mapping[bytes, bytes], size: int, decimal: Parse) -> None:
        super().__init__(size, records.get(_NAME, b""))
        self._decimal = decimal
        self._rest = b""
        self._left = -1  # numbers to come, once that is known

    def feed(self, block: bytes) -> None:
        """See `MapReader.feed`."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > len(block):
            raise BadMapError("the map of a sparse file is malformed")
        for line in lines:
            if self._left < 0:
                self._left = 2 * self._decimal(line)
                if self._left < 0:
                    raise BadMapError("the map of a sparse file is malformed")
            else:
                self._add(self._decimal(line))
                self._left -= 1
            if not self._left:
                self.needs_more = False
                return


def reader_of(records: Mapping[bytes, bytes], size: int, decimal: Parse) -> MapReader:
    """What reads the map of an entry with PAX records as of `is_sparse`; `size` is what its header says."""
    for key in _SIZES:
        if records.get(key):
            size = decimal(records[key])
            break
    kind = DataMap if _version(records) == (b"1", b"0") else TextMap
    return kind(records, size, decimal)
