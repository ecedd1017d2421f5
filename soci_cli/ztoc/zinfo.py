"""The checkpoints blob of a zTOC, "zinfo" (docs/formats.md, "Checkpoints").

For gzip it is packed little endian: int32 count, int64 span size, then for each checkpoint int64
compressed offset, int64 uncompressed offset, uint8 bits and 32,768 bytes of window. Version 1 leaves out
the first checkpoint; it is read, never written. For a plain tar the blob is a small FlatBuffers table.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.flatbuffer import INT32, INT64, Builder, Table
from soci_cli.ztoc.model import WINDOW_SIZE, Checkpoint

_HEADER = struct.Struct("<iq")
_CHECKPOINT = struct.Struct("<qqB")
_PACKED_SIZE = _CHECKPOINT.size + WINDOW_SIZE
_TAR_KINDS = INT32 + INT64 * 2
_TAR_VERSION = 2
_VERSION_1_OFFSET = 10  # a gzip header without a name

MAX_SPAN = 256 << 20
"""Bytes that a span may have, compressed or not, so that it can be read lazily."""


class Checkpoints(Sequence[Checkpoint]):
    """The checkpoints of a layer, whose windows are taken out of the blob only when they are asked for.

    `offsets` are the compressed offsets, and `bits` as in `Checkpoint`.
    """

    def __init__(
        self, offsets: Sequence[int], starts: Sequence[int], bits: bytes, windows: memoryview
    ) -> None:
        """`windows` has one each `_PACKED_SIZE` bytes, from the last checkpoint's back to the first's."""
        self.offsets = offsets
        self.bits = bits
        self._starts = starts
        self._windows = windows

    def __len__(self) -> int:
        return len(self.offsets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoints) and list(self) == list(other)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Checkpoint]: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | Sequence[Checkpoint]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        end = len(self._windows) - (len(self) - 1 - index) * _PACKED_SIZE
        # The first checkpoint of version 1 is not in the blob.
        window = bytes(self._windows[end - WINDOW_SIZE : end]) if end > 0 else bytes(WINDOW_SIZE)
        return Checkpoint(self.offsets[index], self._starts[index], self.bits[index], window)


_NO_CHECKPOINTS = Checkpoints((), (), b"", memoryview(b""))


@dataclass(frozen=True)
class Spans:
    """Where the spans of a layer lie. Span i begins at checkpoint i and ends where the next begins.

    `starts` are uncompressed offsets and `checkpoints` the places to inflate from, empty for a plain
    tar; `compressed_size` is the layer's size in bytes.
    """

    span_size: int
    compressed_size: int
    starts: Sequence[int]
    checkpoints: Checkpoints

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def is_gzip(self) -> bool:
        """Whether the spans are compressed."""
        return bool(self.checkpoints)

    def compressed_range(self, span: int) -> tuple[int, int]:
        """First and last-plus-one compressed byte of a span; neighbours can share a byte."""
        source = self.checkpoints
        if not source:
            start = self.starts[span]
            return start, min(start + self.span_size, self.compressed_size)
        last = span + 1 == len(source)
        end = self.compressed_size if last else source.offsets[span + 1]
        return source.offsets[span] - (1 if source.bits[span] else 0), end

    def largest(self, archive_size: int) -> int:
        """The bytes, compressed or not, of the largest span of an archive of this size."""
        compressed = (stop - start for start, stop in map(self.compressed_range, range(len(self))))
        ends = [*self.starts[1:], archive_size]
        content = (stop - start for start, stop in zip(self.starts, ends, strict=False))
        return max(chain(compressed, content), default=0)

    def span_of(self, offset: int) -> int:
        """The span that holds the uncompressed byte at `offset`."""
        return max(0, bisect_right(self.starts, offset) - 1)


def encode_gzip(
    span_size: int, checkpoints: Sequence[tuple[int, int, int, bytes | memoryview]]
) -> list[bytes | memoryview]:
    """The blob for gzip as parts to be joined; a checkpoint is (compressed, uncompressed, bits, window)."""
    parts: list[bytes | memoryview] = [_HEADER.pack(len(checkpoints), span_size)]
    for compressed, uncompressed, bits, window in checkpoints:
        parts.append(_CHECKPOINT.pack(compressed, uncompressed, bits))
        parts.append(window)
    return parts


def encode_tar(span_size: int, size: int) -> bytes:
    """The blob for a plain tar."""
    builder = Builder()
    fields = (_TAR_VERSION, span_size or None, size or None)
    return builder.finish(builder.table(_TAR_KINDS, (0, 1, 2), fields))


def decode_gzip(blob: memoryview, compressed_size: int) -> Spans:
    """Reads the blob for gzip, version 1 or 2; raises InvalidDataError when it cannot be right."""
    if len(blob) < _HEADER.size:
        raise _broken("the checkpoints are cut off")
    count, span_size = _HEADER.unpack_from(blob)
    body = len(blob) - _HEADER.size
    if count < 1 or span_size < 0:
        raise _broken(f"it has {count} checkpoints and a span size of {span_size}")
    offsets: list[int] = []
    starts: list[int] = []
    bits = bytearray()
    if body == (count - 1) * _PACKED_SIZE:
        offsets.append(_VERSION_1_OFFSET)
        starts.append(0)
        bits.append(0)
    elif body != count * _PACKED_SIZE:
        raise _broken(f"{count} checkpoints do not fit in {len(blob)} bytes")
    for at in range(_HEADER.size, len(blob), _PACKED_SIZE):
        compressed, uncompressed, some = _CHECKPOINT.unpack_from(blob, at)
        offsets.append(compressed)
        starts.append(uncompressed)
        bits.append(some)
    if starts[0] != 0:
        raise _broken("its first checkpoint is not at the start")
    previous_in, previous_out = 0, 0
    for compressed, uncompressed, some in zip(offsets, starts, bits, strict=True):
        # The smallest block has 10 bits (RFC 1951, 3.2.6), so no two checkpoints share an offset. Blocks
        # without content are checkpoints before the first byte of the archive only.
        if some > 7 or not previous_in < compressed < compressed_size:
            raise _broken("its checkpoints are out of order or out of bounds")
        if uncompressed < previous_out or (uncompressed == previous_out and uncompressed):
            raise _broken("its checkpoints are out of order, or have nothing between them")
        previous_in, previous_out = compressed, uncompressed
    windows = blob[_HEADER.size :]
    return Spans(
        span_size, compressed_size, starts, Checkpoints(offsets, starts, bytes(bits), windows)
    )


def too_large(span: int) -> str:
    """Why a layer cannot be read lazily whose largest span has so many bytes; empty when it can."""
    if span <= MAX_SPAN:
        return ""
    return (
        f"a span of it has {span} bytes, and at most {MAX_SPAN} can be read lazily; its gzip stream has a "
        "block of that size (as zlib-ng at level 1 and igzip at level 0 make it), or the span size is too "
        "large"
    )


def span_size_of_gzip(blob: bytes) -> int:
    """The span size, out of the first bytes of the blob for gzip."""
    if len(blob) < _HEADER.size:
        raise _broken("the checkpoints are cut off")
    size: int = _HEADER.unpack_from(blob)[1]
    return size


def decode_tar(blob: bytes, compressed_size: int) -> Spans:
    """Reads the blob for a plain tar; raises InvalidDataError when it cannot be right."""
    table = Table.root(blob)
    span_size, size = table.integer(1, 8, 0), table.integer(2, 8, 0)
    if span_size <= 0 or size != compressed_size:
        raise _broken(f"it has a span size of {span_size} and a size of {size}")
    return Spans(span_size, size, range(0, size, span_size), _NO_CHECKPOINTS)


def _broken(reason: str) -> InvalidDataError:
    return InvalidDataError(f"not a valid zTOC: {reason}")
