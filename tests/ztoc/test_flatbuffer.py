"""Writing FlatBuffers as the FlatBuffers package does, and reading them back."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from soci_cli.ztoc import Compression, FileMetadata, decode_ztoc
from soci_cli.ztoc.codec import encode_ztoc
from soci_cli.ztoc.model import WINDOW_SIZE
from soci_cli.ztoc.zinfo import encode_gzip, encode_tar
from tests.support.layers import (
    DIGEST,
    GOLDEN,
    entries_of,
    golden_ztoc,
    gzip_ztoc,
    tar_ztoc,
    toc_of,
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
        checkpoints=list(checkpoints),
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
            st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, 7), st.binary(max_size=9)
        ),
        min_size=1,
        max_size=5,
    ),
    empty=st.integers(0, 3),
)
def test_round_trip_of_a_gzip(
    entries: list[FileMetadata], steps: list[tuple[int, int, int, bytes]], empty: int
) -> None:
    points = [(at + 1, 0, 0, bytes(WINDOW_SIZE)) for at in range(empty)]
    compressed, uncompressed_size = empty, 0
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
