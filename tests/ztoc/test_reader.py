"""Reading files and ranges out of layers, damaged ones and zTOCs that lie too."""

from __future__ import annotations

import hashlib
import tracemalloc
import zlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import IntegrityError, InvalidDataError, SociError
from soci_cli.ztoc import (
    Compression,
    FileMetadata,
    FileTree,
    LayerReader,
    Ztoc,
    decode_ztoc,
)
from soci_cli.ztoc.codec import encode_ztoc
from soci_cli.ztoc.model import WINDOW_SIZE
from soci_cli.ztoc.zinfo import encode_tar
from tests.support.layers import (
    DIGEST,
    build,
    entries_of,
    golden_rows,
    gz,
    gzip_ztoc,
    make_tar,
    mixed_data,
    reader_of,
    tar_ztoc,
    toc_of,
)
from tests.support.scale import examples
from tests.ztoc.samples import content, sample

LAYERS = [
    "gnu-big-l6.tar.gz",
    "multi-member.tar.gz",
    "multi-member-empty.tar.gz",
    "flushed-blocks.tar.gz",
    "stored-l0.tar.gz",
    "fixed-huffman.tar.gz",
    "plain.tar",
]
ALL_LAYERS = sorted({row["layer"] for row in golden_rows() if "refused" not in row})


# Ranges and files.


@pytest.mark.usefixtures("zlib_choice")
@examples(25)
@given(
    st.sampled_from(LAYERS),
    st.sampled_from([4096, 65536, 1 << 20]),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 200_000)), min_size=1, max_size=8),
)
def test_any_range(name: str, span_size: int, ranges: list[tuple[int, int]]) -> None:
    this = sample(name, span_size)
    reader = this.reader()
    for start, length in ranges:
        start %= len(this.data)
        length = min(length, len(this.data) - start)
        assert content(reader.read_range(start, length)) == this.data[start : start + length]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("span_size", [4096, 65536, 4 << 20])
def test_the_whole_layer(name: str, span_size: int) -> None:
    this = sample(name, span_size)
    reader = this.reader()
    size = this.ztoc.uncompressed_archive_size
    pieces = list(reader.read_range(0, size))
    assert b"".join(pieces) == this.data[:size]
    assert max(map(len, pieces)) <= 1 << 20
    # Each span once; neighbours share a byte at most.
    assert len(this.layer) - 20 <= reader.fetched + 20
    assert reader.fetched <= len(this.layer) + len(this.ztoc.spans)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("name", ALL_LAYERS)
@pytest.mark.parametrize("span_size", [4096, 65536, 4 << 20])
def test_every_golden_file(name: str, span_size: int) -> None:
    this = sample(name, span_size)
    reader = this.reader()
    for entry in this.ztoc.files:
        if entry.has_data:
            start = entry.uncompressed_offset
            expected = this.data[start : start + entry.uncompressed_size]
            assert content(reader.read_file(entry)) == expected


def test_around_span_borders() -> None:
    this = sample("flushed-blocks.tar.gz", 65536)
    reader = this.reader()
    for start in this.ztoc.spans.starts[1:]:
        for before, after in ((1, 0), (0, 1), (1, 1), (5000, 0), (0, 5000), (40_000, 40_000)):
            after = min(after, len(this.data) - start)
            expected = this.data[start - before : start + after]
            assert content(reader.read_range(start - before, before + after)) == expected


def test_only_the_spans_needed_are_fetched() -> None:
    this = sample("gnu-big-l6.tar.gz", 65536)
    asked: list[tuple[int, int]] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return this.layer[offset : offset + length]

    reader = LayerReader(this.ztoc, read_at)
    for span in (0, 3, len(this.ztoc.spans) - 1):
        asked.clear()
        start = this.ztoc.spans.starts[span]
        assert content(reader.read_range(start, 100)) == this.data[start : start + 100]
        begin, end = this.ztoc.spans.compressed_range(span)
        assert asked == [(begin, end - begin)]
    asked.clear()
    assert content(reader.read_range(5, 0)) == b""
    assert not asked


def test_nothing_is_fetched_before_it_is_asked_for() -> None:
    this = sample("plain.tar", 4096)
    reader = this.reader()
    pieces = reader.read_range(0, 100_000)
    assert reader.fetched == 0
    next(pieces)
    assert reader.fetched == 4096


def test_what_has_no_data_is_not_read() -> None:
    this = sample("ustar-l6.tar.gz", 65536)
    entry = FileTree(this.ztoc).find(b"run/fifo")
    with pytest.raises(InvalidDataError, match="run/fifo"):
        this.reader().read_file(entry)


def test_past_the_end() -> None:
    for name in ("ustar-l6.tar.gz", "plain.tar"):
        this = sample(name, 65536)
        for start, length in (
            (len(this.data) - 5, 10),
            (len(this.data) + 100, 1),
            (10**15, 10**15),
        ):
            with pytest.raises(SociError):
                content(this.reader().read_range(start, length))


@examples(20)
@given(st.integers(0, 9), st.integers(0, 40_000), st.integers(1, 200_000), st.integers(0, 2**32))
def test_layers_of_any_make(level: int, span_size: int, size: int, seed: int) -> None:
    data = mixed_data(size, seed)
    layer = gz(make_tar([("file", data)]), level)
    ztoc = decode_ztoc(build(layer, span_size=span_size).data)
    (entry,) = ztoc.files
    assert content(LayerReader(ztoc, reader_of(layer)).read_file(entry)) == data


# Damage.


@pytest.mark.parametrize("name", ["gnu-big-l6.tar.gz", "plain.tar"])
def test_a_damaged_span_is_named(name: str) -> None:
    this = sample(name, 65536)
    for span in range(len(this.ztoc.spans)):
        start, end = this.ztoc.spans.compressed_range(span)
        damaged = bytearray(this.layer)
        damaged[(start + end) // 2] ^= 1
        reader = LayerReader(this.ztoc, reader_of(bytes(damaged)), "layer-name")
        with pytest.raises(IntegrityError, match=rf"layer-name: span {span} "):
            content(reader.read_range(this.ztoc.spans.starts[span], 1))
        # Other spans are still sound.
        other = this.ztoc.spans.starts[span - 1]
        assert content(reader.read_range(other, 10)) == this.data[other : other + 10]


def test_nothing_of_a_damaged_span_is_given() -> None:
    this = sample("gnu-big-l6.tar.gz", 65536)
    damaged = bytearray(this.layer)
    damaged[this.ztoc.spans.compressed_range(1)[1] - 10] ^= 1
    given: list[bytes] = []
    reader = LayerReader(this.ztoc, reader_of(bytes(damaged)))
    with pytest.raises(IntegrityError, match="span 1 "):
        for piece in reader.read_range(0, 200_000):
            given.append(piece)
    assert b"".join(given) == this.data[: this.ztoc.spans.starts[1]]


@pytest.mark.parametrize("name", ["gnu-big-l6.tar.gz", "plain.tar"])
def test_a_layer_that_is_cut_off(name: str) -> None:
    this = sample(name, 65536)
    reader = LayerReader(this.ztoc, reader_of(this.layer[:-1]))
    with pytest.raises(IntegrityError, match=f"span {len(this.ztoc.spans) - 1} "):
        content(reader.read_range(len(this.data) - 5, 5))
    reader = LayerReader(this.ztoc, lambda offset, length: this.layer[offset : offset + length + 1])
    with pytest.raises(IntegrityError, match="span 0 "):
        content(reader.read_range(0, 5))
    reader = LayerReader(this.ztoc, lambda offset, length: b"")
    with pytest.raises(IntegrityError, match="span 0 "):
        content(reader.read_range(0, 5))


def test_errors_of_the_source_come_through() -> None:
    this = sample("plain.tar", 65536)

    def read_at(offset: int, length: int) -> bytes:
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        content(LayerReader(this.ztoc, read_at).read_range(0, 5))


# zTOCs that lie. Their digests are right, so only what they say of the stream is wrong.

Point = tuple[int, int, int, bytes]


def points_of(ztoc: Ztoc) -> list[Point]:
    return [
        (p.compressed_offset, p.uncompressed_offset, p.bits, p.window)
        for p in ztoc.spans.checkpoints
    ]


def lying(layer: bytes, points: list[Point], entries: list[FileMetadata], size: int) -> Ztoc:
    """A zTOC with these checkpoints, whose digests fit the layer."""
    digests = []
    for index, (offset, _, bits, _) in enumerate(points):
        end = points[index + 1][0] if index + 1 < len(points) else len(layer)
        piece = layer[offset - (bits > 0) : end]
        digests.append(f"sha256:{hashlib.sha256(piece).hexdigest()}".encode())
    return decode_ztoc(
        gzip_ztoc(entries, points, size=len(layer), uncompressed_size=size, digests=digests)
    )


def try_all(ztoc: Ztoc, layer: bytes) -> None:
    """Reads everything that the zTOC lists; at most a SociError comes of it."""
    reader = LayerReader(ztoc, reader_of(layer))
    for entry in ztoc.files:
        if entry.has_data:
            try:
                for _ in reader.read_file(entry):
                    pass
            except SociError:
                continue


@pytest.mark.usefixtures("zlib_choice")
@examples(80)
@given(st.data())
def test_checkpoints_that_lie(data: st.DataObject) -> None:
    this = sample("gnu-big-l6.tar.gz", 65536)
    points = points_of(this.ztoc)
    changes = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, len(points) - 1),
                st.integers(-2000, 2000),
                st.integers(-2000, 10**12),
                st.integers(0, 7),
                st.binary(max_size=3),
            ),
            min_size=1,
            max_size=3,
        )
    )
    for index, compressed, out, bits, seed in changes:
        offset, start, _, window = points[index]
        new_window = (seed * WINDOW_SIZE)[:WINDOW_SIZE] if seed else window
        points[index] = (offset + compressed, start + out if index else 0, bits, new_window)
    entries = entries_of(this.ztoc)
    try:
        ztoc = lying(this.layer, points, entries, len(this.data))
    except InvalidDataError:
        return
    try_all(ztoc, this.layer)


@examples(80)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**62), st.integers(0, 2**62))
        | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([10**6, 2**63 - 1]),
)
def test_offsets_and_sizes_that_lie(where: list[tuple[int, int]], size: int) -> None:
    this = sample("gnu-big-l6.tar.gz", 65536)
    entries = [FileMetadata(b"f%d" % i, b"reg", *pair) for i, pair in enumerate(where)]
    ztoc = lying(this.layer, points_of(this.ztoc), entries, size)
    try:
        try_all(ztoc, this.layer)
    except InvalidDataError as error:
        assert "outside" in str(error)


@pytest.mark.usefixtures("zlib_choice")
def test_a_window_that_lies_is_no_crash() -> None:
    this = sample("gnu-big-l6.tar.gz", 65536)
    points = [(a, b, c, bytes(WINDOW_SIZE)) for a, b, c, _ in points_of(this.ztoc)]
    ztoc = lying(this.layer, points, entries_of(this.ztoc), len(this.data))
    try_all(ztoc, this.layer)


def test_spans_without_data_are_at_the_start_only() -> None:
    # Empty gzip members before the first byte of the archive are checkpoints too (docs/formats.md).
    data = sample("gnu-big-l6.tar.gz", 65536).data
    layer = gz(b"") * 3 + gz(data)
    ztoc = decode_ztoc(build(layer, span_size=65536).data)
    assert list(ztoc.spans.starts[:4]) == [0, 0, 0, 0]
    assert content(LayerReader(ztoc, reader_of(layer)).read_range(0, len(data))) == data
    points = points_of(ztoc)
    for change in (
        points[5],  # the same place twice
        (points[6][0], points[5][1], *points[6][2:]),  # no content between them
        (points[5][0], points[6][1], *points[6][2:]),  # no compressed bytes
    ):
        with pytest.raises(InvalidDataError, match="not a valid zTOC"):
            lying(layer, [*points[:6], change, *points[7:]], entries_of(ztoc), len(data))


def test_span_beyond_the_data() -> None:
    this = sample("v7.tar.gz", 65536)
    points = [*points_of(this.ztoc), (len(this.layer) - 1, 2**62, 0, bytes(WINDOW_SIZE))]
    entries = [
        FileMetadata(b"near", b"reg", 100_000, 10),
        FileMetadata(b"far", b"reg", 2**62, 10),
        FileMetadata(b"all", b"reg", 0, 2**62 + 5),
    ]
    ztoc = lying(this.layer, points, entries, 2**63 - 1)
    reader = LayerReader(ztoc, reader_of(this.layer))
    for entry in entries:
        with pytest.raises(InvalidDataError, match="holds less"):
            content(reader.read_file(entry))


def test_a_bomb_is_inflated_piece_by_piece() -> None:
    # 200 MB from 200 KB; the file lies at its end, so all of it must be passed over.
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    layer = b"".join(deflater.compress(bytes(10 << 20)) for _ in range(20)) + deflater.flush()
    size = 200 << 20
    ztoc = lying(
        layer,
        [(10, 0, 0, bytes(WINDOW_SIZE))],
        [FileMetadata(b"f", b"reg", size - 5, 5), FileMetadata(b"g", b"reg", 0, 2**62)],
        2**63 - 1,
    )
    reader = LayerReader(ztoc, reader_of(layer))
    tracemalloc.start()
    try:
        assert content(reader.read_file(ztoc.files[0])) == bytes(5)
        with pytest.raises(InvalidDataError, match="holds less"):
            for _ in reader.read_file(ztoc.files[1]):
                pass
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_plain_layer_without_bytes() -> None:
    # No span at all, and yet a file in it.
    data = encode_ztoc(
        toc_of([FileMetadata(b"f", b"reg", 0, 5)]),
        build_tool_identifier="test",
        compression=Compression.UNCOMPRESSED,
        compressed_size=0,
        uncompressed_size=100,
        checkpoints=[encode_tar(4096, 0)],
        span_digests=[],
    )
    ztoc = decode_ztoc(data)
    with pytest.raises(SociError):
        content(LayerReader(ztoc, reader_of(b"")).read_file(ztoc.files[0]))


def test_an_empty_plain_layer() -> None:
    ztoc = decode_ztoc(build(b"", compression=Compression.UNCOMPRESSED).data)
    assert (len(ztoc.spans), len(ztoc.files)) == (0, 0)
    assert content(LayerReader(ztoc, reader_of(b"")).read_range(0, 0)) == b""
    with pytest.raises(SociError):
        content(LayerReader(ztoc, reader_of(b"")).read_range(0, 1))


def test_a_plain_zTOC_of_absurd_size() -> None:
    data = tar_ztoc(
        [FileMetadata(b"f", b"reg", 2**61, 2**61)],
        size=2**62,
        span_size=2**62,
        digests=[DIGEST],
    )
    ztoc = decode_ztoc(data)
    with pytest.raises(IntegrityError):
        content(LayerReader(ztoc, reader_of(bytes(1000))).read_file(ztoc.files[0]))
