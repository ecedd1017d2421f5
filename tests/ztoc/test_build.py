"""Building: gzip streams of every kind, broken layers, and what goes wrong around them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import IntegrityError, InvalidDataError, SociError, UsageError
from soci_cli.ztoc import Compression, LayerReader, Ztoc, build_ztoc, builder, decode_ztoc
from soci_cli.ztoc.inflate import backend
from tests.support.layers import (
    END,
    Pieces,
    build,
    deflate,
    entries_of,
    file,
    golden_layer,
    gz,
    gz_member,
    header,
    make_tar,
    mixed_data,
    pax,
    reader_of,
)
from tests.support.scale import examples

NAMES = [
    (f"folder/file-{i}", mixed_data(size, i)) for i, size in enumerate((0, 10, 70_000, 200_000, 5))
]
ARCHIVE = make_tar(NAMES)
LAYER = gz(ARCHIVE)
DIGEST = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
STORED_EMPTY = b"\0\0\0\xff\xff"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def read_back(layer: bytes, **options: int) -> Ztoc:
    """Builds, decodes and reads every file; returns the zTOC."""
    built = build(layer, **options)
    ztoc = decode_ztoc(built.data)
    assert built.digest == f"sha256:{hashlib.sha256(built.data).hexdigest()}"
    assert built.layer_size == len(layer)
    assert built.files == len(NAMES)
    reader = LayerReader(ztoc, reader_of(layer))
    for entry, (name, data) in zip(ztoc.files, NAMES, strict=True):
        assert entry.name == name.encode()
        assert b"".join(reader.read_file(entry)) == data
    for span, digest in enumerate(ztoc.span_digests):
        start, end = ztoc.spans.compressed_range(span)
        assert digest.decode() == f"sha256:{hashlib.sha256(layer[start:end]).hexdigest()}"
    return ztoc


# Streams of every kind.


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


def mixed_archive() -> bytes:
    return make_tar([(f"f{i}", mixed_data(300_000, i)) for i in range(10)])


def test_unknown_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCI_ZLIB", "other")
    backend.cache_clear()
    with pytest.raises(SociError, match="SOCI_ZLIB"):
        build(LAYER)
    backend.cache_clear()


# Broken streams.


@pytest.mark.usefixtures("zlib_choice")
def test_truncated_anywhere() -> None:
    for at in {*range(1, 30), *range(0, len(LAYER), len(LAYER) // 40), *range(-9, 0)}:
        with pytest.raises(InvalidDataError):
            build(LAYER[:at])


@pytest.mark.usefixtures("zlib_choice")
def test_flipped_bits() -> None:
    found = 0
    for at in [*range(0, 20), *range(20, len(LAYER), len(LAYER) // 80), *range(-8, 0)]:
        damaged = bytearray(LAYER)
        damaged[at] ^= 1 << (at % 8)
        try:
            build(bytes(damaged))
        except SociError:
            found += 1
    # Only the header has bits that change nothing: flags, time, level, system.
    assert found > 95


def test_a_flipped_bit_is_an_integrity_error_where_the_digest_is_known() -> None:
    for at in (0, 3, 5, 10, 1000, -1):
        damaged = bytearray(LAYER)
        damaged[at] ^= 0x10
        with pytest.raises(IntegrityError):
            build(bytes(damaged), expected_digest=DIGEST)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize(
    "layer",
    [
        b"",
        b"\x1f",
        b"\x1f\x8b",
        b"plain text",
        bytes(1000),
        zlib.compress(ARCHIVE),
        deflate(ARCHIVE),
        ARCHIVE,
        b"\x1f\x8b\x07" + LAYER[3:],
        b"\x1f\x8b\x08\xe0" + LAYER[4:],
        LAYER + b"\0",
        LAYER + bytes(1000),
        LAYER + b"garbage",
        LAYER + zlib.compress(b"more"),
        LAYER + LAYER[:10],
        LAYER[:-8] + bytes(4) + LAYER[-4:],
        LAYER[:-4] + bytes(4),
        gz(b"not a tar archive" * 100),
        gz(ARCHIVE[:-2000]),
        gz(file(b"a") + bytes(512) + file(b"b")),
    ],
    ids=range(20),
)
def test_what_is_no_layer(layer: bytes) -> None:
    with pytest.raises(InvalidDataError):
        build(layer)


def test_a_dictionary_is_refused() -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, 15, zdict=b"words")
    with pytest.raises(InvalidDataError):
        build(deflater.compress(ARCHIVE) + deflater.flush())


@pytest.mark.parametrize(
    "archive",
    [b"not a tar archive" * 100, ARCHIVE[:-20_000], header(type_=b"7") + END],
)
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.UNCOMPRESSED])
def test_broken_archives(archive: bytes, compression: int) -> None:
    layer = gz(archive) if compression == Compression.GZIP else archive
    with pytest.raises(InvalidDataError):
        build(layer, compression=compression)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    # As it was made, so it is the archive that is wrong.
    with pytest.raises(InvalidDataError):
        build(layer, compression=compression, expected_digest=digest, expected_size=len(layer))
    with pytest.raises(IntegrityError):
        build(layer, compression=compression, expected_digest=DIGEST)


def test_a_broken_archive_stops_early() -> None:
    archive = b"x" * 512 + mixed_data(30 << 20)
    source = Pieces(archive)
    counts: list[int] = []
    with pytest.raises(InvalidDataError):
        build_ztoc(source, compression=Compression.UNCOMPRESSED, advance=counts.append)
    assert sum(counts) < 16 << 20


# What the layer should be.


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.UNCOMPRESSED])
def test_expected(compression: int) -> None:
    layer = LAYER if compression == Compression.GZIP else ARCHIVE
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    assert build(layer, compression=compression, expected_digest=digest, expected_size=len(layer))
    other = f"sha256:{'0' * 64}"
    with pytest.raises(IntegrityError, match=digest):
        build(layer, compression=compression, expected_digest=other, expected_size=len(layer))
    with pytest.raises(IntegrityError, match="bytes"):
        build(layer, compression=compression, expected_size=len(layer) - 1)
    with pytest.raises(IntegrityError, match="bytes"):
        build(layer, compression=compression, expected_size=len(layer) + 1)
    with pytest.raises(IntegrityError, match="bytes"):
        build(layer, compression=compression, expected_digest=digest, expected_size=0)


def test_other_digest_algorithms() -> None:
    digest = f"sha512:{hashlib.sha512(LAYER).hexdigest()}"
    assert build(LAYER, expected_digest=digest).layer_size == len(LAYER)
    with pytest.raises(IntegrityError):
        build(LAYER, expected_digest="sha512:" + "0" * 128)


def test_cut_off_where_the_size_is_known() -> None:
    for at in (0, 1, 10, 1000, len(LAYER) - 1):
        with pytest.raises(IntegrityError):
            build(LAYER[:at], expected_digest=DIGEST, expected_size=len(LAYER))
        with pytest.raises(IntegrityError):
            build(LAYER[:at], expected_digest=DIGEST)


def test_an_endless_stream_stops_at_the_expected_size() -> None:
    class Endless:
        count = 0

        def readinto(self, buffer: memoryview, /) -> int:
            self.count += len(buffer)
            return len(buffer)

    for options in ({"expected_digest": DIGEST, "expected_size": 5000}, {"expected_size": 5000}):
        for compression in (Compression.GZIP, Compression.UNCOMPRESSED):
            source = Endless()
            with pytest.raises((IntegrityError, InvalidDataError)):
                build_ztoc(source, compression=compression, **options)
            assert source.count < 8 << 20


@pytest.mark.parametrize(
    "options",
    [
        {"span_size": -1},
        {"span_size": 0, "compression": Compression.UNCOMPRESSED},
        {"build_tool_identifier": "two\nlines"},
    ],
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        build(LAYER, **options)


def test_tool_identifier() -> None:
    ztoc = decode_ztoc(build(LAYER, build_tool_identifier="Ünïcode v1").data)
    assert ztoc.build_tool_identifier.decode() == "Ünïcode v1"
    assert decode_ztoc(build(LAYER).data).build_tool_identifier == b"soci-cli"


# Streams, sinks and observers that fail.


class Failing(io.RawIOBase):
    """A stream that raises after some bytes."""

    def __init__(self, data: bytes, error: BaseException, step: int = 1000) -> None:
        self._source = Pieces(data, step)
        self._error = error
        self._ended = False

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = self._source.readinto(buffer)
        if not count:
            raise self._error
        return count


@pytest.mark.parametrize("error", [OSError("cut"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("count", [0, 5, 1000, 100_000])
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.UNCOMPRESSED])
def test_stream_that_fails(error: BaseException, count: int, compression: int) -> None:
    layer = LAYER if compression == Compression.GZIP else ARCHIVE
    with pytest.raises(type(error)) as raised:
        build_ztoc(Failing(layer[:count], error), compression=compression)
    assert raised.value is error


def test_stream_that_fails_after_megabytes() -> None:
    layer = gz(mixed_data(5 << 20), 1)
    with pytest.raises(KeyboardInterrupt):
        build_ztoc(Failing(gz(mixed_archive(), 0), KeyboardInterrupt(), 1 << 20))
    # The rest is read to check the digest when the stream fails too.
    with pytest.raises(OSError, match="cut"):
        build_ztoc(Failing(b"junk" + layer, OSError("cut")), expected_digest=DIGEST)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("after", [0, 3])
def test_sink_that_fails(error: BaseException, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_INPUT_SIZE", 10_000)
    calls = 0

    def sink(_: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error

    for layer, compression in ((LAYER, Compression.GZIP), (ARCHIVE, Compression.UNCOMPRESSED)):
        calls = 0
        with pytest.raises(type(error)) as raised:
            build(layer, compression=compression, sink=sink)
        assert raised.value is error
        # Once it failed it is left alone.
        assert calls == after + 1


def test_sink_that_fails_at_the_last_piece() -> None:
    def sink(_: memoryview) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(LAYER, sink=sink)


def test_sink_that_fails_beside_a_broken_layer() -> None:
    def sink(_: memoryview) -> None:
        raise OSError("disk full")

    for options in ({}, {"expected_digest": DIGEST}):
        with pytest.raises((OSError, SociError)):
            build(LAYER[:-1], sink=sink, **options)


def test_slow_sink_gets_everything_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_INPUT_SIZE", 5000)
    received = bytearray()

    def sink(piece: memoryview) -> None:
        time.sleep(0.002)
        received.extend(piece)

    build(LAYER, sink=sink, expected_digest=DIGEST)
    assert received == LAYER


def test_sink_gets_a_broken_layer_too() -> None:
    received = bytearray()
    with pytest.raises(InvalidDataError):
        build(gz(b"junk" * 1000), sink=received.extend)
    assert received == gz(b"junk" * 1000)


def test_advance_that_fails() -> None:
    def advance(_: int) -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        build(LAYER, advance=advance)


def test_a_pipe() -> None:
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as target:
            for at in range(0, len(LAYER), 3000):
                target.write(LAYER[at : at + 3000])
                target.flush()

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(reading, "rb", buffering=0) as source:
        built = build_ztoc(source, expected_digest=DIGEST)
    feeder.join()
    assert built.files == len(NAMES)


def test_several_at_once() -> None:
    expected = build(LAYER, span_size=30_000).data
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(build(LAYER, span_size=30_000).data))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6


# Memory.


def run_python(script: str) -> int:
    """Runs a script that prints its peak memory in bytes; returns it in MiB."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(builder.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout) >> 20


def test_memory_does_not_grow_with_the_layer() -> None:
    # 300 MB of zeros in one file, in a stream that is made as it is read.
    script = """
        import io, zlib
        from soci_cli.ztoc import build_ztoc
        from tests.support.layers import END, header, peak_memory

        SIZE = 300 << 20

        class Layer:
            def __init__(self):
                self.deflater = zlib.compressobj(1, zlib.DEFLATED, 31)
                self.ready = bytearray(self.deflater.compress(header(size=SIZE)))
                self.left = SIZE

            def readinto(self, buffer):
                while self.left and len(self.ready) < len(buffer):
                    self.ready += self.deflater.compress(bytes(1 << 20))
                    self.left -= 1 << 20
                    if not self.left:
                        self.ready += self.deflater.compress(END) + self.deflater.flush()
                count = min(len(buffer), len(self.ready))
                buffer[:count] = self.ready[:count]
                del self.ready[:count]
                return count

        built = build_ztoc(Layer())
        assert built.uncompressed_size == SIZE + 1536, built.uncompressed_size
        assert built.files == 1
        print(peak_memory())
    """
    assert run_python(script) < 150


def test_memory_of_a_plain_layer() -> None:
    script = """
        from soci_cli.ztoc import Compression, build_ztoc
        from tests.support.layers import END, header, peak_memory

        SIZE = 300 << 20

        class Layer:
            def __init__(self):
                self.left = SIZE
                self.ready = header(size=SIZE)

            def readinto(self, buffer):
                if not self.ready and self.left:
                    self.ready = bytes(1 << 20)
                    self.left -= 1 << 20
                    if not self.left:
                        self.ready += END
                count = min(len(buffer), len(self.ready))
                buffer[:count] = self.ready[:count]
                self.ready = self.ready[count:]
                return count

        built = build_ztoc(Layer(), compression=Compression.UNCOMPRESSED)
        assert built.uncompressed_size == SIZE + 1536, built.uncompressed_size
        print(peak_memory())
    """
    assert run_python(script) < 150


def test_memory_of_many_files() -> None:
    # 200,000 files, 100 MB of headers: the zTOC has about 40 MB.
    script = """
        import io, zlib
        from soci_cli.ztoc import build_ztoc
        from tests.support.layers import END, header, peak_memory

        deflater = zlib.compressobj(1, zlib.DEFLATED, 31)
        layer = bytearray()
        template = header(b"usr/share/some/folder/000000")
        for i in range(200_000):
            layer += deflater.compress(template)
        layer += deflater.compress(END) + deflater.flush()
        built = build_ztoc(io.BytesIO(layer))
        assert built.files == 200_000
        print(peak_memory())
    """
    assert run_python(script) < 250


def test_a_list_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soci_cli.ztoc.toc.MAX_TOC_SIZE", 1 << 20)
    fits = b"".join(pax([(b"comment", b"c" * 10_000)]) + file(b"a") for _ in range(90))
    too_long = b"".join(pax([(b"comment", b"c" * 10_000)]) + file(b"a") for _ in range(120))
    assert len(entries_of(decode_ztoc(build(gz(fits + END)).data))) == 90
    with pytest.raises(InvalidDataError, match="too much"):
        build(gz(too_long + END))


@pytest.mark.parametrize("name", ["multi-member-empty.tar.gz", "flushed-blocks.tar.gz"])
def test_damage_in_many_places(name: str) -> None:
    layer = golden_layer(name)

    def try_it(change: Callable[[bytearray], None]) -> None:
        damaged = bytearray(layer)
        change(damaged)
        with contextlib.suppress(SociError):
            build(bytes(damaged), span_size=65536)

    for at in range(0, len(layer), len(layer) // 25):

        def flip(data: bytearray, at: int = at) -> None:
            data[at] ^= 0xFF

        def drop(data: bytearray, at: int = at) -> None:
            del data[at : at + 100]

        def repeat(data: bytearray, at: int = at) -> None:
            data[at:at] = data[:100]

        for change in (flip, drop, repeat):
            try_it(change)
