"""The zTOC's buffer: the bytes that the FlatBuffers package makes, and an error for those that are bad."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence

import flatbuffers
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from soci_cli.errors import InvalidDataError, SociError
from soci_cli.ztoc import Compression, FileMetadata, FileTree, LayerReader, decode_ztoc
from soci_cli.ztoc.codec import encode_ztoc
from soci_cli.ztoc.model import WINDOW_SIZE
from soci_cli.ztoc.zinfo import encode_gzip, encode_tar
from tests.support.layers import (
    DIGEST,
    GOLDEN,
    build,
    entries_of,
    golden_layer,
    golden_ztoc,
    gzip_ztoc,
    reader_of,
    tar_ztoc,
    toc_of,
    uncompressed,
)
from tests.support.scale import examples

# The oracle: the same calls, in the same order, to the FlatBuffers package.


def oracle_file(builder: flatbuffers.Builder, entry: FileMetadata) -> int:
    strings = [
        builder.CreateString(text)
        for text in (
            entry.name,
            entry.type,
            entry.linkname,
            entry.uname,
            entry.gname,
            entry.mod_time,
        )
    ]
    name, type_, linkname, uname, gname, mod_time = strings
    xattrs = []
    for key_text, value_text in entry.xattrs:
        key, value = builder.CreateString(key_text), builder.CreateString(value_text)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, value, 0)
        xattrs.append(builder.EndObject())
    vector = oracle_vector(builder, xattrs)
    builder.StartObject(14)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUOffsetTRelativeSlot(1, type_, 0)
    builder.PrependInt64Slot(2, entry.uncompressed_offset, 0)
    builder.PrependInt64Slot(3, entry.uncompressed_size, 0)
    builder.PrependUOffsetTRelativeSlot(4, linkname, 0)
    builder.PrependInt64Slot(5, entry.mode, 0)
    builder.PrependUint32Slot(6, entry.uid, 0)
    builder.PrependUint32Slot(7, entry.gid, 0)
    builder.PrependUOffsetTRelativeSlot(8, uname, 0)
    builder.PrependUOffsetTRelativeSlot(9, gname, 0)
    builder.PrependUOffsetTRelativeSlot(10, mod_time, 0)
    builder.PrependInt64Slot(11, entry.devmajor, 0)
    builder.PrependInt64Slot(12, entry.devminor, 0)
    builder.PrependUOffsetTRelativeSlot(13, vector, 0)
    return int(builder.EndObject())


def oracle_vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def oracle_ztoc(
    entries: Sequence[FileMetadata],
    *,
    build_tool_identifier: str,
    compression: int,
    compressed_size: int,
    uncompressed_size: int,
    checkpoints: bytes,
    span_digests: Sequence[bytes],
) -> bytes:
    builder = flatbuffers.Builder(0)
    version = builder.CreateString(b"0.9")
    tool = builder.CreateString(build_tool_identifier.encode())
    files = [oracle_file(builder, entry) for entry in reversed(entries)]
    metadata = oracle_vector(builder, files[::-1])
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, metadata, 0)
    toc = builder.EndObject()
    blob = builder.CreateByteVector(checkpoints)
    digests = oracle_vector(builder, [builder.CreateString(digest) for digest in span_digests])
    builder.StartObject(4)
    builder.PrependInt32Slot(1, len(span_digests) - 1, 0)
    builder.PrependUOffsetTRelativeSlot(2, digests, 0)
    builder.PrependUOffsetTRelativeSlot(3, blob, 0)
    builder.PrependInt8Slot(0, compression, 1)
    info = builder.EndObject()
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(0, version, 0)
    builder.PrependUOffsetTRelativeSlot(1, tool, 0)
    builder.PrependUOffsetTRelativeSlot(4, toc, 0)
    builder.PrependInt64Slot(2, compressed_size, 0)
    builder.PrependInt64Slot(3, uncompressed_size, 0)
    builder.PrependUOffsetTRelativeSlot(5, info, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def same_bytes(
    entries: Sequence[FileMetadata],
    *,
    build_tool_identifier: str = "tool",
    compression: int = Compression.GZIP,
    compressed_size: int = 1,
    uncompressed_size: int = 1,
    checkpoints: Sequence[bytes] = (b"",),
    span_digests: Sequence[bytes] = (DIGEST,),
) -> None:
    """Asserts that the encoder and the oracle agree."""
    actual = encode_ztoc(
        toc_of(entries),
        build_tool_identifier=build_tool_identifier,
        compression=compression,
        compressed_size=compressed_size,
        uncompressed_size=uncompressed_size,
        checkpoints=checkpoints,
        span_digests=span_digests,
    )
    expected = oracle_ztoc(
        entries,
        build_tool_identifier=build_tool_identifier,
        compression=compression,
        compressed_size=compressed_size,
        uncompressed_size=uncompressed_size,
        checkpoints=b"".join(checkpoints),
        span_digests=span_digests,
    )
    assert actual == expected


int64s = st.sampled_from([0, 0, 0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
uint32s = st.sampled_from([0, 0, 0, 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)
texts = st.sampled_from([b"", b"", b"root", b"a/\xff\xfe"]) | st.binary(max_size=40)
pairs = st.tuples(texts, texts)


def files(
    *, offsets: st.SearchStrategy[int] = int64s, sizes: st.SearchStrategy[int] = int64s
) -> st.SearchStrategy[FileMetadata]:
    return st.builds(
        FileMetadata,
        name=texts,
        type=st.sampled_from([b"reg", b"dir", b"symlink", b"hardlink", b"char", b"block", b"fifo"]),
        uncompressed_offset=offsets,
        uncompressed_size=sizes,
        linkname=texts,
        mode=int64s,
        uid=uint32s,
        gid=uint32s,
        uname=texts,
        gname=texts,
        mod_time=texts | st.just(b"2023-11-14T22:13:20Z"),
        devmajor=int64s,
        devminor=int64s,
        xattrs=st.just(()) | st.lists(pairs, max_size=5).map(tuple),
    )


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "ztocs").iterdir()))
def test_the_oracle_is_right(name: str) -> None:
    expected = golden_ztoc(name)
    ztoc = decode_ztoc(expected)
    if ztoc.spans.is_gzip:
        points = [
            (point.compressed_offset, point.uncompressed_offset, point.bits, point.window)
            for point in ztoc.spans.checkpoints
        ]
        blob = b"".join(encode_gzip(ztoc.spans.span_size, points))
    else:
        blob = encode_tar(ztoc.spans.span_size, ztoc.spans.compressed_size)
    assert expected == oracle_ztoc(
        entries_of(ztoc),
        build_tool_identifier=ztoc.build_tool_identifier.decode(),
        compression=ztoc.compression,
        compressed_size=ztoc.compressed_archive_size,
        uncompressed_size=ztoc.uncompressed_archive_size,
        checkpoints=blob,
        span_digests=ztoc.span_digests,
    )


@examples(250)
@given(
    entries=st.lists(files(), max_size=30),
    tool=st.text(st.characters(codec="utf-8"), max_size=20),
    compression=st.sampled_from([Compression.GZIP, Compression.UNCOMPRESSED]),
    sizes=st.tuples(int64s, int64s),
    blob=st.lists(st.binary(max_size=50), max_size=4),
    digests=st.lists(st.just(DIGEST) | st.binary(max_size=80), max_size=12),
)
@example([], "", Compression.UNCOMPRESSED, (0, 0), [], [])
@example([], "", Compression.GZIP, (0, 0), [], [])
def test_same_bytes_as_the_oracle(
    entries: list[FileMetadata],
    tool: str,
    compression: int,
    sizes: tuple[int, int],
    blob: list[bytes],
    digests: list[bytes],
) -> None:
    same_bytes(
        entries,
        build_tool_identifier=tool,
        compression=compression,
        compressed_size=sizes[0],
        uncompressed_size=sizes[1],
        checkpoints=blob,
        span_digests=digests,
    )


@pytest.mark.parametrize("xattrs", range(6))
@pytest.mark.parametrize("length", range(5))
def test_alignment_of_strings_and_xattrs(length: int, xattrs: int) -> None:
    # Each string length, vector length and table position by itself, where a wrong pad would show.
    pair = (b"k" * length, b"v" * (4 - length))
    for count in range(4):
        entry = FileMetadata(
            b"n" * length, b"reg", length, count, b"l" * count, xattrs=(pair,) * xattrs
        )
        plain = FileMetadata(b"p", b"dir", 0, 0)
        same_bytes([plain] * count + [entry, plain, entry] + [plain] * count)


@given(size=st.integers(0, 2**63 - 1), span_size=st.integers(1, 2**63 - 1))
def test_tar_blob_is_the_oracle_s(size: int, span_size: int) -> None:
    builder = flatbuffers.Builder(0)
    builder.StartObject(3)
    builder.PrependInt32Slot(0, 2, 0)
    builder.PrependInt64Slot(1, span_size, 0)
    builder.PrependInt64Slot(2, size, 0)
    builder.Finish(builder.EndObject())
    assert encode_tar(span_size, size) == bytes(builder.Output())


def test_many_files_are_the_oracle_s() -> None:
    entries = [
        FileMetadata(
            name=b"usr/lib/%d/%s" % (i, b"x" * (i % 37)),
            type=b"reg" if i % 5 else b"symlink",
            uncompressed_offset=512 * i,
            uncompressed_size=i % 7 * 100,
            linkname=b"" if i % 5 else b"../%d" % i,
            mode=0o644,
            uid=i % 3,
            gid=i % 2,
            uname=b"root" if i % 3 else b"",
            mod_time=b"2023-11-14T22:13:20Z" if i % 4 else b"2023-11-14T22:13:20.5Z",
            xattrs=((b"mtime", b"1.5"), (b"path", b"p" * i))[: i % 4],
        )
        for i in range(1500)
    ]
    same_bytes(entries)


# Reading back.

regular = st.integers(0, 1000)


@examples(100)
@given(
    entries=st.lists(files(offsets=regular, sizes=regular), max_size=30),
    size=st.integers(2000, 10_000),
    span_size=st.integers(500, 20_000),
)
def test_round_trip_of_a_tar(entries: list[FileMetadata], size: int, span_size: int) -> None:
    data = tar_ztoc(entries, size=size, span_size=span_size)
    ztoc = decode_ztoc(data)
    assert entries_of(ztoc) == entries
    assert list(ztoc.files.names()) == [entry.name for entry in entries]
    assert [ztoc.files[i] for i in range(-len(entries), 0)] == entries
    assert ztoc.files[1:3] == entries[1:3]
    assert (ztoc.spans.span_size, ztoc.spans.compressed_size) == (span_size, size)
    assert not ztoc.spans.is_gzip
    assert ztoc.size == len(data)
    last = len(ztoc.spans) - 1
    assert ztoc.spans.compressed_range(last) == (last * span_size, size)
    ztoc.files.check()


@examples(50)
@given(
    entries=st.lists(files(offsets=regular, sizes=regular), max_size=5),
    steps=st.lists(
        st.tuples(
            st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 7), st.binary(max_size=9)
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_round_trip_of_a_gzip(
    entries: list[FileMetadata], steps: list[tuple[int, int, int, bytes]]
) -> None:
    points = []
    compressed = uncompressed_size = 0
    for ahead, out, bits, seed in steps:
        compressed += ahead
        points.append((compressed, uncompressed_size, bits, seed.ljust(WINDOW_SIZE, b"w")))
        uncompressed_size += out
    data = gzip_ztoc(entries, points, size=compressed + 8, uncompressed_size=10**12)
    ztoc = decode_ztoc(data)
    assert entries_of(ztoc) == entries
    assert points == [
        (point.compressed_offset, point.uncompressed_offset, point.bits, point.window)
        for point in ztoc.spans.checkpoints
    ]
    assert ztoc.spans.span_size == 65536
    assert ztoc.spans.compressed_range(0)[0] == points[0][0] - bool(points[0][2])
    assert ztoc.spans.compressed_range(len(points) - 1)[1] == compressed + 8


def test_index_out_of_range() -> None:
    ztoc = decode_ztoc(tar_ztoc([FileMetadata(b"a", b"reg", 0, 0)]))
    for index in (1, -2):
        with pytest.raises(IndexError):
            ztoc.files[index]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (FileMetadata(b"a", b"reg", 0, 0), False),
        (FileMetadata(b"a", b"reg", 0, 0, xattrs=((b"mtime", b"1"),)), False),
        (FileMetadata(b"a", b"reg", 0, 0, xattrs=((b"SCHILY.xattr.user.x", b""),)), True),
        (FileMetadata(b"a/.wh..wh..opq", b"reg", 0, 0), True),
        (FileMetadata(b"a/.wh.gone", b"reg", 0, 0), False),
    ],
)
def test_needs_xattrs(entry: FileMetadata, expected: bool) -> None:
    plain = FileMetadata(b"b", b"dir", 0, 0)
    assert decode_ztoc(tar_ztoc([plain, entry, plain])).files.needs_xattrs() is expected


# Hostile buffers.

VALID_TAR = tar_ztoc(
    [
        FileMetadata(b"a/", b"dir", 0, 0, mode=0o755),
        FileMetadata(b"a/file", b"reg", 1024, 5, xattrs=((b"mtime", b"1.5"), (b"x", b"y"))),
        FileMetadata(b"a/link", b"symlink", 2048, 0, b"file", xattrs=((b"x", b"y"),)),
        FileMetadata(b"hard", b"hardlink", 2048, 0, b"a/file"),
    ],
    size=10_240,
    span_size=4096,
)
# Version 1 of the checkpoints: the first is implied, so there is none.
VALID_GZIP = gzip_ztoc(
    [FileMetadata(b"a/file", b"reg", 512, 5, uname=b"root", devmajor=3)],
    [],
    size=100,
    uncompressed_size=2048,
    digests=[DIGEST],
    blob=[struct.pack("<iq", 1, 4096)],
)


def use(data: bytes) -> None:
    """Does all that a reader does with a zTOC; raises only SociError."""
    ztoc = decode_ztoc(data)
    names = list(ztoc.files.names())
    ztoc.files.needs_xattrs()
    entries = entries_of(ztoc)
    assert names == [entry.name for entry in entries]
    tree = FileTree(ztoc)
    for path in (b"a/file", b"a/link", b"hard", b""):
        try:
            entry = tree.find(path)
        except SociError:
            continue
        reader = LayerReader(ztoc, reader_of(bytes(200)))
        if entry.has_data:
            for _ in reader.read_file(entry):
                break
    for index, entry in enumerate(entries):
        assert (ztoc.files.name_of(index), ztoc.files.type_of(index)) == (entry.name, entry.type)
        assert (
            not entry.has_data or 0 <= entry.uncompressed_offset <= ztoc.uncompressed_archive_size
        )


def use_or_refuse(data: bytes) -> None:
    try:
        use(data)
    except SociError as error:
        assert str(error)
        assert len(str(error)) < 2000


def test_the_valid_ones_are_valid() -> None:
    for data in (VALID_TAR, VALID_GZIP):
        entries_of(decode_ztoc(data))


valid = st.sampled_from([VALID_TAR, VALID_GZIP])
hostile = examples(1000)


@hostile
@given(
    valid, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_flipped_bytes(data: bytes, flips: list[tuple[int, int]]) -> None:
    buffer = bytearray(data)
    for at, value in flips:
        buffer[at % len(buffer)] = value
    use_or_refuse(bytes(buffer))


@hostile
@given(
    valid,
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x10000])
    | st.integers(0, 0xFFFFFFFF),
)
def test_overwritten_words(data: bytes, at: int, word: int) -> None:
    # Offsets, counts and sizes are words; hit them squarely.
    buffer = bytearray(data)
    at = at % (len(buffer) // 4) * 4
    buffer[at : at + 4] = struct.pack("<I", word)
    use_or_refuse(bytes(buffer))


@hostile
@given(valid, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_spliced(data: bytes, start: int, end: int, to: int) -> None:
    start, end, to = (value % len(data) for value in (start, end, to))
    use_or_refuse(data[:to] + data[start:end] + data[to:])
    use_or_refuse(data[: min(start, end)] + data[max(start, end) :])
    use_or_refuse((data[:to] + data[start:end] + data[to:])[: len(data)])


@pytest.mark.parametrize("data", [VALID_TAR, VALID_GZIP], ids=["tar", "gzip"])
def test_truncated(data: bytes) -> None:
    for length in range(len(data)):
        use_or_refuse(data[:length])
        use_or_refuse(data[length:])


@examples(200)
@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    use_or_refuse(data)


# By hand. A table of the hand-made buffers has its vtable right before it.


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
