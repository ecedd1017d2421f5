"""The zTOC as a whole: its buffer, written and read (docs/formats.md, "zTOC")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.flatbuffer import (
    INT8,
    INT32,
    INT64,
    REFERENCE,
    Builder,
    FlatBuffer,
    Slices,
    Table,
    release,
)
from soci_cli.ztoc.model import HOLES, ZTOC_VERSION, Compression
from soci_cli.ztoc.toc import TableOfContents
from soci_cli.ztoc.toc_writer import TocWriter
from soci_cli.ztoc.zinfo import Spans, decode_gzip, decode_tar, span_size_of_gzip

MAX_ZTOC_SIZE = 1 << 30
"""Bytes that a zTOC may have. An honest one has about a hundredth of its layer's."""

# Fields in the order in which they are added, and their numbers in the schema.
_INFO_KINDS, _INFO_IDS = INT32 + REFERENCE * 2 + INT8, (1, 2, 3, 0)
_ZTOC_KINDS, _ZTOC_IDS = REFERENCE * 3 + INT64 * 2 + REFERENCE, (0, 1, 4, 2, 3, 5)

_HEAD_OF_BLOB = 256
_SHA256 = re.compile(rb"sha256:[0-9a-f]{64}")


def encode_ztoc(
    toc: TocWriter,
    *,
    build_tool_identifier: str,
    compression: int,
    compressed_size: int,
    uncompressed_size: int,
    checkpoints: list[bytes | memoryview],
    span_digests: Sequence[bytes],
) -> bytes:
    """The bytes of a zTOC. Digests are "sha256:..."; `checkpoints` is the blob in parts, which is emptied.

    `compression` is a number of `Compression`, with HOLES where the layer has sparse files.
    """
    builder = Builder()
    version = builder.string(ZTOC_VERSION)
    tool = builder.string(build_tool_identifier.encode())
    contents = toc.write(builder)
    blob = builder.bytes_vector(checkpoints)
    digests = builder.offset_vector([builder.string(digest) for digest in span_digests])
    info = builder.table(
        _INFO_KINDS,
        _INFO_IDS,
        (
            len(span_digests) - 1 or None,
            digests,
            blob,
            None if compression == Compression.GZIP else compression,
        ),
    )
    root = builder.table(
        _ZTOC_KINDS,
        _ZTOC_IDS,
        (version, tool, contents, compressed_size or None, uncompressed_size or None, info),
    )
    return builder.finish(root)


@dataclass(frozen=True)
class Ztoc:
    """A zTOC that was read. Sizes are in bytes.

    `span_digests[i]` is the sha256 of span i's compressed bytes, as `spans.compressed_range(i)` gives
    them; `files` decodes entries when they are asked for.
    """

    version: bytes
    build_tool_identifier: bytes
    compressed_archive_size: int
    uncompressed_archive_size: int
    compression: int
    span_digests: Sequence[bytes]
    spans: Spans
    files: TableOfContents
    size: int

    @cached_property
    def largest_span(self) -> int:
        """The bytes of the largest span, compressed or not."""
        return self.spans.largest(self.uncompressed_archive_size)


@dataclass(frozen=True)
class ZtocHead:
    """What a zTOC is for, and how much is in it. Sizes are in bytes, `spans` and `files` are numbers."""

    build_tool_identifier: bytes
    compressed_archive_size: int
    uncompressed_archive_size: int
    span_size: int
    spans: int
    files: int


def read_head(buffer: Slices) -> ZtocHead:
    """The head of a zTOC, for which a few places of its buffer are looked at; only those are checked.

    Raises InvalidDataError when one is out of bounds.
    """
    root, info = _tables(buffer)
    compressed_size = root.integer(2, 8, 0)
    start, length = info.byte_range(3)
    blob = buffer[start : start + min(length, _HEAD_OF_BLOB)]
    gzip = info.integer(0, 1, Compression.GZIP) & ~HOLES == Compression.GZIP
    span_size = span_size_of_gzip(blob) if gzip else decode_tar(blob, compressed_size).span_size
    contents = root.table(4)
    files = 0 if contents is None else contents.offsets(0)[1]
    return ZtocHead(
        root.string(1),
        compressed_size,
        root.integer(3, 8, 0),
        span_size,
        info.offsets(2)[1],
        files,
    )


def _tables(buffer: Slices, start: int = 0) -> tuple[Table, Table]:
    """The root of a zTOC of the right version, and its table about compression."""
    size = len(buffer) - start
    if size > MAX_ZTOC_SIZE:
        raise InvalidDataError(f"not a valid zTOC: it has {size} bytes")
    root = Table.root(buffer, start)
    version = root.string(0)
    if version != ZTOC_VERSION:
        shown = version[:20].decode(errors="replace")
        raise InvalidDataError(f"not a zTOC of version 0.9: the version is {shown!r}")
    info = root.table(5)
    if info is None:
        raise InvalidDataError("not a valid zTOC: it has no compression info")
    return root, info


def decode_ztoc(data: FlatBuffer, start: int = 0) -> Ztoc:
    """Reads a zTOC from anyone: `data` from `start` on, of which entries and windows are not copied.

    Spans are checked here, each file's entry when it is read. Raises InvalidDataError when something is
    out of bounds or does not fit together.
    """
    size = len(data) - start
    root, info = _tables(data, start)
    compressed_size, uncompressed_size = root.integer(2, 8, 0), root.integer(3, 8, 0)
    if compressed_size < 0 or uncompressed_size < 0:
        raise InvalidDataError("not a valid zTOC: a size is negative")
    algorithm = info.integer(0, 1, Compression.GZIP)
    compression = algorithm & ~HOLES
    digests = info.strings(2)
    begin, length = info.byte_range(3)
    checkpoints = slice(begin, begin + length)
    if compression == Compression.GZIP:
        spans = decode_gzip(memoryview(data)[checkpoints], compressed_size)
    elif compression == Compression.UNCOMPRESSED:
        spans = decode_tar(data[checkpoints], compressed_size)
    else:
        raise InvalidDataError(f"not a valid zTOC: compression {algorithm} is not known")
    if len(digests) != len(spans) or info.integer(1, 4, 0) != len(spans) - 1:
        raise InvalidDataError(
            f"not a valid zTOC: {len(spans)} spans, {len(digests)} digests, "
            f"and {info.integer(1, 4, 0)} as the last span"
        )
    for digest in digests:
        if not _SHA256.fullmatch(digest):
            raise InvalidDataError("not a valid zTOC: a span digest is malformed")
    ztoc = Ztoc(
        ZTOC_VERSION,
        root.string(1),
        compressed_size,
        uncompressed_size,
        compression,
        digests,
        spans,
        TableOfContents(
            data, root.table(4), uncompressed_size, checkpoints, bool(algorithm & HOLES)
        ),
        size,
    )
    release(data)
    return ztoc
