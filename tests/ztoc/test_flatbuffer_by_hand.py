"""Hostile FlatBuffers, made by hand. A table of these has its vtable right before it."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import FileMetadata, FileTree, LayerReader, decode_ztoc
from soci_cli.ztoc.codec import encode_ztoc
from soci_cli.ztoc.model import WINDOW_SIZE
from soci_cli.ztoc.zinfo import encode_gzip, encode_tar
from tests.support.layers import (
    DIGEST,
    build,
    entries_of,
    golden_layer,
    gzip_ztoc,
    reader_of,
    tar_ztoc,
    toc_of,
    uncompressed,
)
from tests.ztoc.samples import VALID_TAR, use, use_or_refuse


def vtable_and_table(fields: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """A table with these fields in order, its vtable before it, and each field's offset."""
    offsets = []
    at = 4
    for field in fields:
        offsets.append(at if field else 0)
        at += len(field)
    vtable = struct.pack(f"<{2 + len(fields)}H", 4 + 2 * len(fields), at, *offsets)
    return vtable + struct.pack("<i", len(vtable)) + b"".join(fields), [
        len(vtable) + offset for offset in offsets
    ]


class Hand:
    """A buffer written front to back; references are filled in later."""

    def __init__(self) -> None:
        self.data = bytearray(4)

    def table(self, fields: Sequence[bytes]) -> tuple[int, list[int]]:
        """Adds a table; returns its position and its fields' positions."""
        base = len(self.data)
        content, offsets = vtable_and_table(fields)
        self.data += content
        return base + 4 + 2 * len(fields), [base + offset for offset in offsets]

    def refer(self, field: int, target: int) -> None:
        self.data[field : field + 4] = struct.pack("<I", target - field)

    def string(self, value: bytes) -> int:
        position = len(self.data)
        self.data += struct.pack("<I", len(value)) + value + b"\0"
        return position

    def references(self, count: int) -> int:
        """Adds a vector of references that are not filled in."""
        position = len(self.data)
        self.data += struct.pack("<I", count) + bytes(4 * count)
        return position


REF = bytes(4)
NONE = b""


def hand_made(
    toc: Callable[[Hand], int], *, uncompressed_size: int = 10**6, last_span: int = 0
) -> bytes:
    """A gzip zTOC with one span; `toc` adds the TOC table and returns its position."""
    hand = Hand()
    root, (version, tool, _, _, toc_field, info_field) = hand.table(
        [REF, REF, struct.pack("<q", 100), struct.pack("<q", uncompressed_size), REF, REF]
    )
    hand.refer(0, root)
    hand.refer(version, hand.string(b"0.9"))
    hand.refer(tool, hand.string(b"hand"))
    hand.refer(toc_field, toc(hand))
    info, (_, _, digests, blob) = hand.table([NONE, struct.pack("<i", last_span), REF, REF])
    hand.refer(info_field, info)
    vector = hand.references(1)
    hand.refer(digests, vector)
    hand.refer(vector + 4, hand.string(DIGEST))
    hand.refer(blob, hand.string(struct.pack("<iq", 1, 4096)))
    return bytes(hand.data)


def toc_with(hand: Hand, count: int) -> tuple[int, int]:
    """Adds a TOC; returns its position and that of its vector's first element."""
    toc, (metadata,) = hand.table([REF])
    vector = hand.references(count)
    hand.refer(metadata, vector)
    return toc, vector + 4


def test_hand_made_is_read() -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, (name, type_, *_) = hand.table([REF, REF])
        hand.refer(first, entry)
        hand.refer(name, hand.string(b"n"))
        hand.refer(type_, hand.string(b"reg"))
        return position

    (entry,) = entries_of(decode_ztoc(hand_made(toc)))
    assert entry == FileMetadata(b"n", b"reg", 0, 0)


@pytest.mark.parametrize("last_span", [1, -1, 2**31 - 1])
def test_last_span_that_does_not_fit(last_span: int) -> None:
    decode_ztoc(hand_made(lambda hand: toc_with(hand, 0)[0]))
    with pytest.raises(InvalidDataError, match="last span"):
        decode_ztoc(hand_made(lambda hand: toc_with(hand, 0)[0], last_span=last_span))


@pytest.mark.parametrize("field", [0, 1, 4, 8, 9, 10])
def test_one_string_shared_by_all_is_refused(field: int) -> None:
    # 2 MB that would become 40 GB.
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 20_000)
        fields = [REF if i in (field, 1) else NONE for i in range(11)]
        entry, at = hand.table(fields)
        for i in range(20_000):
            hand.refer(first + 4 * i, entry)
        type_ = hand.string(b"dir")
        hand.refer(at[1], type_)
        hand.refer(at[field], hand.string(b"s" * 2_000_000))
        return position

    ztoc = decode_ztoc(hand_made(toc))
    started = time.monotonic()
    for use_all in (ztoc.files.check, ztoc.files.needs_xattrs):
        with pytest.raises(InvalidDataError, match="overlap"):
            use_all()
    if field == 0:
        with pytest.raises(InvalidDataError, match="too long"):
            for _ in ztoc.files.names():
                pass
        with pytest.raises(InvalidDataError, match="too long"):
            FileTree(ztoc)
    assert time.monotonic() - started < 3


def test_one_xattr_vector_shared_by_all_is_refused() -> None:
    # A few hundred KB that would become a billion records, all of them empty.
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 30_000)
        entry, (_, type_, *_, xattrs) = hand.table([NONE, REF] + [NONE] * 11 + [REF])
        for i in range(30_000):
            hand.refer(first + 4 * i, entry)
        hand.refer(type_, hand.string(b"dir"))
        vector = hand.references(30_000)
        hand.refer(xattrs, vector)
        record, _ = hand.table([])
        for i in range(30_000):
            hand.refer(vector + 4 + 4 * i, record)
        return position

    ztoc = decode_ztoc(hand_made(toc))
    started = time.monotonic()
    with pytest.raises(InvalidDataError, match="overlap"):
        ztoc.files.check()
    assert time.monotonic() - started < 3


def test_one_xattr_string_shared_is_refused() -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, (_, type_, *_, xattrs) = hand.table([NONE, REF] + [NONE] * 11 + [REF])
        hand.refer(first, entry)
        hand.refer(type_, hand.string(b"dir"))
        vector = hand.references(5000)
        hand.refer(xattrs, vector)
        record, (key, value) = hand.table([REF, REF])
        for i in range(5000):
            hand.refer(vector + 4 + 4 * i, record)
        text = hand.string(b"s" * 1_000_000)
        hand.refer(key, text)
        hand.refer(value, text)
        return position

    ztoc = decode_ztoc(hand_made(toc))
    with pytest.raises(InvalidDataError, match="overlap"):
        _ = ztoc.files[0]


def test_shared_digest_is_refused() -> None:
    hand = Hand()
    root, fields = hand.table([REF, NONE, struct.pack("<q", 10**6), NONE, NONE, REF])
    hand.refer(0, root)
    hand.refer(fields[0], hand.string(b"0.9"))
    info, (_, _, digests, _) = hand.table([NONE, NONE, REF, NONE])
    hand.refer(fields[5], info)
    vector = hand.references(10_000)
    hand.refer(digests, vector)
    text = hand.string(b"d" * 1_000_000)
    for i in range(10_000):
        hand.refer(vector + 4 + 4 * i, text)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataError, match="overlap"):
            decode_ztoc(bytes(hand.data))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [2**31, 2**31 - 1, 2**32 - 1, 2**30, 1000])
def test_vector_longer_than_the_buffer(count: int) -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        hand.data[first - 4 : first] = struct.pack("<I", count)
        return position

    with pytest.raises(InvalidDataError):
        use(hand_made(toc))


@pytest.mark.parametrize("length", [2**31, 2**32 - 1, 10_000, 600, 200])
def test_string_longer_than_the_buffer(length: int) -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, (name,) = hand.table([REF])
        hand.refer(first, entry)
        text = hand.string(b"n")
        hand.data[text : text + 4] = struct.pack("<I", length)
        hand.refer(name, text)
        return position

    ztoc = decode_ztoc(hand_made(toc))
    with pytest.raises(InvalidDataError):
        entries_of(ztoc)
    with pytest.raises(InvalidDataError):
        list(ztoc.files.names())


@pytest.mark.parametrize("distance", [2**31 - 1, -(2**31), -(10**6), 10**6])
def test_vtable_out_of_bounds(distance: int) -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, _ = hand.table([])
        hand.data[entry : entry + 4] = struct.pack("<i", distance)
        hand.refer(first, entry)
        return position

    with pytest.raises(InvalidDataError):
        use(hand_made(toc))


@pytest.mark.parametrize("size", [0, 2, 3, 65535])
def test_vtable_of_an_impossible_size(size: int) -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, _ = hand.table([])
        hand.data[entry - 4 : entry - 2] = struct.pack("<H", size)
        hand.refer(first, entry)
        return position

    with pytest.raises(InvalidDataError):
        use(hand_made(toc))


@pytest.mark.parametrize("offset", [1, 3, 5, 7])
def test_fields_over_each_other(offset: int) -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, (name, _) = hand.table([REF, REF])
        hand.data[entry - 2 : entry] = struct.pack("<H", offset)
        hand.refer(name, hand.string(b"n"))
        hand.refer(first, entry)
        return position

    ztoc = decode_ztoc(hand_made(toc))
    for ask in (ztoc.files.fields, ztoc.files.name_of, ztoc.files.type_of, ztoc.files.__getitem__):
        with pytest.raises(InvalidDataError, match="overlap"):
            ask(0)


def test_field_out_of_bounds() -> None:
    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, 1)
        entry, _ = hand.table([REF, REF])
        hand.data[entry - 4 : entry - 2] = struct.pack("<H", 65000)
        hand.refer(first, entry)
        return position

    with pytest.raises(InvalidDataError):
        use(hand_made(toc))


@pytest.mark.parametrize(
    "entry",
    [
        FileMetadata(b"a", b"reg", -1, 1),
        FileMetadata(b"a", b"reg", 0, -1),
        FileMetadata(b"a", b"reg", 2**63 - 1, 2**63 - 1),
        FileMetadata(b"a", b"reg", 1 << 20, 1),
        FileMetadata(b"a", b"reg", 0, (1 << 20) + 1),
    ],
)
def test_files_outside_the_archive(entry: FileMetadata) -> None:
    ztoc = decode_ztoc(tar_ztoc([entry]))
    for read in (entries_of, lambda z: z.files[0], lambda z: FileTree(z).find(b"a")):
        with pytest.raises(InvalidDataError, match="outside"):
            read(ztoc)


def test_sizes_of_entries_without_data_may_be_anything() -> None:
    entries = [FileMetadata(b"a", type_, -5, -9) for type_ in (b"dir", b"symlink", b"fifo")]
    assert entries_of(decode_ztoc(tar_ztoc(entries))) == entries


def point(compressed: int, out: int, bits: int = 0) -> tuple[int, int, int, bytes]:
    return compressed, out, bits, bytes(WINDOW_SIZE)


@pytest.mark.parametrize(
    "points",
    [
        [point(10, 0), point(9, 70_000)],
        [point(10, 0), point(20, 70_000), point(30, 60_000)],
        [point(10, 0), point(20, 70_000, 8)],
        [point(10, 0), point(20, 70_000, 9)],
        [point(10, 0), point(20, 70_000, 255)],
        [point(0, 0, 1)],
        [point(-1, 0)],
        [point(-(2**63), 0)],
        [point(10, 1)],
        [point(10, -1)],
        [point(10, 0), point(101, 70_000)],
        [point(10, 0), point(2**63 - 1, 70_000)],
    ],
)
def test_checkpoints_that_cannot_be(points: list[tuple[int, int, int, bytes]]) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(gzip_ztoc([], points, size=100))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\1\0\0\0",
        struct.pack("<iq", 0, 4096),
        struct.pack("<iq", -1, 4096),
        struct.pack("<iq", 2**31 - 1, 4096),
        struct.pack("<iq", 1, -1),
        struct.pack("<iq", 2, 4096),
        struct.pack("<iq", 1, 4096) + b"\0",
        struct.pack("<iq", 3, 4096) + bytes(17 + WINDOW_SIZE),
        struct.pack("<iqqqB", 1, 4096, 10, 0, 0) + bytes(WINDOW_SIZE - 1),
        struct.pack("<iqqqB", 1, 4096, 10, 0, 0) + bytes(WINDOW_SIZE + 1),
    ],
)
def test_blobs_that_cannot_be(blob: bytes) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(gzip_ztoc([], [], size=100, digests=[DIGEST], blob=[blob]))


@pytest.mark.parametrize(
    "digest",
    [
        b"",
        b"sha256:",
        b"sha256:" + b"0" * 63,
        b"sha256:" + b"0" * 65,
        b"sha256:" + b"A" * 64,
        b"sha512:" + b"0" * 64,
        DIGEST + b"\n",
        b" " + DIGEST,
        b"\xff" * 71,
    ],
)
def test_malformed_digests(digest: bytes) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(gzip_ztoc([], [point(10, 0)], digests=[digest]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_count_of_digests(count: int) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(gzip_ztoc([], [point(10, 0), point(20, 70_000)], digests=[DIGEST] * count))
    with pytest.raises(InvalidDataError):
        decode_ztoc(tar_ztoc([], size=2000, span_size=1000, digests=[DIGEST] * count))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        bytes(8),
        encode_tar(0, 1 << 20),
        encode_tar(-1, 1 << 20),
        encode_tar(4096, 0),
        encode_tar(4096, 2**63 - 1),
        encode_tar(1, 1 << 20),
    ],
)
def test_tar_blobs_that_cannot_be(blob: bytes) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(tar_ztoc([], blob=blob))


@pytest.mark.parametrize("size", [2**62, 2**63 - 1])
@pytest.mark.parametrize("span_size", [1, 2**62])
def test_tar_of_absurd_size(size: int, span_size: int) -> None:
    data = tar_ztoc([], size=size, span_size=span_size, digests=[DIGEST] * 2)
    use_or_refuse(data)


@pytest.mark.parametrize("sizes", [(-1, 5), (5, -1)])
def test_negative_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidDataError):
        decode_ztoc(gzip_ztoc([], [point(0, 0)], size=sizes[0], uncompressed_size=sizes[1]))


@pytest.mark.parametrize("compression", [0, 3, 127, -1])
def test_unknown_compression(compression: int) -> None:
    data = encode_ztoc(
        toc_of([]),
        build_tool_identifier="test",
        compression=compression,
        compressed_size=100,
        uncompressed_size=100,
        checkpoints=encode_gzip(4096, [point(10, 0)]),
        span_digests=[DIGEST],
    )
    with pytest.raises(InvalidDataError):
        decode_ztoc(data)


def test_another_version() -> None:
    with pytest.raises(InvalidDataError, match="version"):
        decode_ztoc(VALID_TAR.replace(b"0.9", b"1.0"))


def test_parts_may_be_absent() -> None:
    hand = Hand()
    root, fields = hand.table([REF])
    hand.refer(0, root)
    hand.refer(fields[0], hand.string(b"0.9"))
    with pytest.raises(InvalidDataError, match="no compression info"):
        decode_ztoc(bytes(hand.data))


def test_checkpoints_of_version_1_read_files_back() -> None:
    layer = golden_layer("gnu-big-l6.tar.gz")
    data = uncompressed(layer)
    current = decode_ztoc(build(layer, span_size=65536).data)
    points = [
        (p.compressed_offset, p.uncompressed_offset, p.bits, p.window)
        for p in current.spans.checkpoints
    ]
    assert points[0] == (10, 0, 0, bytes(WINDOW_SIZE))
    old = decode_ztoc(
        gzip_ztoc(
            entries_of(current),
            points,
            size=len(layer),
            uncompressed_size=current.uncompressed_archive_size,
            digests=current.span_digests,
            blob=[struct.pack("<iq", len(points), 65536), *encode_gzip(65536, points[1:])[1:]],
        )
    )
    assert old.spans == current.spans
    reader = LayerReader(old, reader_of(layer))
    for entry in old.files:
        if entry.has_data:
            start = entry.uncompressed_offset
            content = b"".join(reader.read_file(entry))
            assert content == data[start : start + entry.uncompressed_size]
