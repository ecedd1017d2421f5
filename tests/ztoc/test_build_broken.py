"""Building from broken layers, and with streams, sinks and observers that fail."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import zlib

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError, SociError, UsageError
from soci_cli.ztoc import Compression, build_ztoc, builder, decode_ztoc
from tests.support.layers import (
    END,
    Pieces,
    build,
    deflate,
    file,
    gz,
    header,
    mixed_data,
)
from tests.ztoc.samples import ARCHIVE, DIGEST, LAYER, NAMES, mixed_archive

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


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
