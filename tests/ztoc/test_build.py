"""Building zTOCs from gzip streams of every kind."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import threading
import zlib
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import IntegrityError, InvalidDataError, SociError
from soci_cli.ztoc import Compression, LayerReader, builder, decode_ztoc, memory
from soci_cli.ztoc.inflate import Buffer, backend
from tests.support.layers import (
    build,
    deflate,
    gz,
    gz_member,
    make_tar,
    mixed_data,
    reader_of,
)
from tests.support.scale import examples
from tests.ztoc.samples import ARCHIVE, LAYER, NAMES, mixed_archive, read_back, run_python

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


STORED_EMPTY = b"\0\0\0\xff\xff"


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("span_size", [0, 1, 5000, 1 << 22])
def test_levels_and_span_sizes(level: int, span_size: int) -> None:
    ztoc = read_back(gz(ARCHIVE, level), span_size=span_size)
    assert ztoc.spans.span_size == span_size
    starts = ztoc.spans.starts
    assert all(b - a > span_size for a, b in pairwise(starts))


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize(
    "strategy", [zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FILTERED]
)
def test_strategies(strategy: int) -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31, 8, strategy)
    read_back(deflater.compress(ARCHIVE) + deflater.flush(), span_size=20_000)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("window_bits", [25, 28, 31])
def test_small_windows(window_bits: int) -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, window_bits)
    read_back(deflater.compress(ARCHIVE) + deflater.flush(), span_size=20_000)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("flush", [zlib.Z_FULL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH])
@pytest.mark.parametrize("step", [1000, 50_000])
def test_flushes(flush: int, step: int) -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = []
    for at in range(0, len(ARCHIVE), step):
        parts.append(deflater.compress(ARCHIVE[at : at + step]))
        parts.append(deflater.flush(flush))
    ztoc = read_back(b"".join(parts) + deflater.flush(), span_size=20_000)
    assert len(ztoc.spans) > 5


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("step", [997, 100_000])
def test_members(step: int) -> None:
    pieces = [ARCHIVE[at : at + step] for at in range(0, len(ARCHIVE), step)]
    read_back(b"".join(map(gz, pieces)), span_size=20_000)
    # Empty members in front, between and behind.
    read_back(gz(b"") * 2 + gz(b"").join(map(gz, pieces)) + gz(b"") * 3, span_size=20_000)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize(
    ("flags", "extras"),
    [
        (0x08, b"layer.tar\0"),
        (0x10, b"a comment\0"),
        (0x18, b"n" * 70_000 + b"\0" + b"c" * 70_000 + b"\0"),
        (0x04, struct.pack("<H", 5) + b"extra"),
        (0x04, struct.pack("<H", 65535) + bytes(65535)),
        (0x01, b""),
    ],
)
def test_header_fields(flags: int, extras: bytes) -> None:
    # A text flag, a name, a comment, an extra field.
    member = gz_member(deflate(ARCHIVE), ARCHIVE, flags=flags, extras=extras)
    ztoc = read_back(member, span_size=50_000)
    assert ztoc.spans.checkpoints[0].compressed_offset == 10 + len(extras)
    read_back(gz(b"") + member, span_size=50_000)


@pytest.mark.usefixtures("zlib_choice")
def test_header_checksum() -> None:
    start = b"\x1f\x8b\x08\x0a" + bytes(4) + b"\0\xff" + b"name\0"
    tail = struct.pack("<II", zlib.crc32(ARCHIVE), len(ARCHIVE))
    sound = start + struct.pack("<H", zlib.crc32(start) & 0xFFFF) + deflate(ARCHIVE) + tail
    read_back(sound)
    with pytest.raises(InvalidDataError):
        build(start + struct.pack("<H", (zlib.crc32(start) + 1) & 0xFFFF) + deflate(ARCHIVE) + tail)


@pytest.mark.usefixtures("zlib_choice")
def test_empty_stored_blocks_in_front() -> None:
    # Each boundary before any output is a checkpoint.
    layer = gz_member(STORED_EMPTY * 5 + deflate(ARCHIVE), ARCHIVE)
    ztoc = read_back(layer)
    assert [p.compressed_offset for p in ztoc.spans.checkpoints] == [10, 15, 20, 25, 30, 35]
    assert list(ztoc.spans.starts) == [0] * 6


@pytest.mark.usefixtures("zlib_choice")
def test_empty_blocks_of_other_kinds_in_front() -> None:
    # A fixed block without data has ten bits, so the next begins inside a byte.
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31)
    layer = deflater.flush(zlib.Z_PARTIAL_FLUSH) + deflater.compress(ARCHIVE[:9])
    layer += (
        deflater.flush(zlib.Z_PARTIAL_FLUSH) + deflater.compress(ARCHIVE[9:]) + deflater.flush()
    )
    read_back(layer, span_size=1000)


@pytest.mark.usefixtures("zlib_choice")
def test_blocks_that_end_in_bits_of_an_earlier_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Codes of one bit: the end of a block can lie in bits that were read with the buffer before.
    archive = make_tar([("zeros", bytes(60_000))])
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31, 8, zlib.Z_HUFFMAN_ONLY)
    parts = []
    for at in range(0, len(archive), 1001):
        parts.append(deflater.compress(archive[at : at + 1001]))
        parts.append(deflater.flush(zlib.Z_PARTIAL_FLUSH))
    layer = b"".join(parts) + deflater.flush()
    for span_size in (0, 900, 996, 1000, 5001):
        expected = build(layer, span_size=span_size)
        for span, digest in enumerate(decode_ztoc(expected.data).span_digests):
            start, end = decode_ztoc(expected.data).spans.compressed_range(span)
            assert digest.decode() == f"sha256:{hashlib.sha256(layer[start:end]).hexdigest()}"
        for input_size, output_size in ((1, 4096), (1, 997), (2, 1009), (5, 333)):
            with monkeypatch.context() as patch:
                patch.setattr(builder, "_INPUT_SIZE", input_size)
                patch.setattr(builder, "_OUTPUT_SIZE", output_size)
                assert build(layer, span_size=span_size).data == expected.data


@pytest.mark.usefixtures("zlib_choice")
def test_the_count_of_checkpoints_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_MAX_EMPTY_CHECKPOINTS", 50)
    for count, accepted in ((40, True), (60, False)):
        layer = gz_member(STORED_EMPTY * count + deflate(ARCHIVE), ARCHIVE)
        if accepted:
            read_back(layer)
        else:
            with pytest.raises(InvalidDataError, match="checkpoints"):
                build(layer)


@pytest.mark.usefixtures("zlib_choice")
def test_the_size_of_a_ztoc_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = gz(make_tar(NAMES))
    assert build(layer, span_size=1).spans > 1
    monkeypatch.setattr(builder, "_MAX_CHECKPOINTS", 1)
    with pytest.raises(InvalidDataError, match="checkpoints at this span size"):
        build(layer, span_size=1)


def test_a_checkpoint_bomb_is_refused_early() -> None:
    # 5 bytes a checkpoint: 5 MB would become 32 GB.
    script = """
        import io, sys
        from soci_cli.errors import InvalidDataError
        from soci_cli.ztoc import build_ztoc
        from tests.support.layers import peak_memory
        head = bytes.fromhex("1f8b08000000000000ff")
        try:
            build_ztoc(io.BytesIO(head + bytes.fromhex("000000ffff") * 1_000_000))
        except InvalidDataError as error:
            print(peak_memory())
    """
    assert 0 < run_python(script) < 250


@pytest.mark.usefixtures("zlib_choice")
def test_layer_smaller_than_a_span() -> None:
    layer = gz(make_tar(NAMES))
    assert len(read_back(layer, span_size=1 << 30).spans) == 1


@pytest.mark.usefixtures("zlib_choice")
@examples(120)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60_000),
            st.sampled_from([zlib.Z_NO_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]),
            st.sampled_from([0, 1, 6, 9]),
        ),
        max_size=12,
    ),
    st.integers(0, 100_000),
)
def test_streams_of_any_make(steps: list[tuple[int, int, int]], span_size: int) -> None:
    parts = []
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31)
    position = 0
    for count, flush, level in steps:
        parts.append(deflater.compress(ARCHIVE[position : position + count]))
        position += count
        parts.append(deflater.flush(flush))
        if flush == zlib.Z_FINISH:
            deflater = zlib.compressobj(level, zlib.DEFLATED, 31)
    parts.append(deflater.compress(ARCHIVE[position:]) + deflater.flush())
    read_back(b"".join(parts), span_size=span_size)


@pytest.mark.parametrize(
    "command",
    [
        ["gzip", "-c"],
        ["gzip", "-1", "-c"],
        ["pigz", "-c"],
        ["pigz", "-c", "-i", "-b", "128"],
        ["pigz", "-c", "-p", "4", "-b", "128"],
        ["pigz", "-c", "-0"],
        ["zstd", "--format=gzip", "-c"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("zlib_choice")
def test_layers_of_other_programs(command: list[str], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    source = tmp_path / "layer.tar"
    source.write_bytes(ARCHIVE)
    result = subprocess.run([*command, str(source)], capture_output=True, check=False)
    if result.returncode:
        pytest.skip(f"{command[0]} cannot: {result.stderr.decode()}")
    read_back(result.stdout, span_size=30_000)


@pytest.mark.parametrize("size", [1, 511, 512, 100_000, 10**6])
@pytest.mark.parametrize("span_size", [1000, 65536, 1 << 20])
def test_plain_archives(size: int, span_size: int) -> None:
    data = mixed_data(size)
    archive = make_tar([("file", data)])
    built = build(archive, span_size=span_size, compression=Compression.UNCOMPRESSED)
    ztoc = decode_ztoc(built.data)
    assert built.spans == len(ztoc.spans) == -(-len(archive) // span_size)
    (entry,) = ztoc.files
    reader = LayerReader(ztoc, reader_of(archive))
    assert b"".join(reader.read_file(entry)) == data


def test_both_libraries_make_the_same() -> None:
    layer = gz(mixed_archive())
    answers = []
    for choice in ("zlib-ng", "zlib"):
        backend.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOCI_ZLIB", choice)
            answers.append(build(layer, span_size=100_000).data)
    backend.cache_clear()
    assert answers[0] == answers[1]


def test_unknown_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCI_ZLIB", "other")
    backend.cache_clear()
    with pytest.raises(SociError, match="SOCI_ZLIB"):
        build(LAYER)
    backend.cache_clear()


def test_a_small_layer_is_made_in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread and buffers of megabytes cost more than such a layer."""
    made: list[int] = []

    class Counted(Buffer):
        def __init__(self, size: int) -> None:
            made.append(size)
            super().__init__(size)

    archive = make_tar([("f", b"x" * 1000)])
    expected = [build(layer).data for layer in (gz(archive), gz(archive[:512]) + gz(archive[512:]))]
    monkeypatch.setattr(memory, "Buffer", Counted)
    monkeypatch.setattr(threading, "Thread", None)
    found = [build(layer).data for layer in (gz(archive), gz(archive[:512]) + gz(archive[512:]))]
    assert found == expected
    assert sum(made) <= 256 << 10
    with pytest.raises(InvalidDataError, match="not a valid tar"):
        build(gz(b"x" * 1000))
    with pytest.raises(IntegrityError):
        build(gz(archive), expected_digest="sha256:" + "0" * 64)
