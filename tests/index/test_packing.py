"""How layers are packed: their first bytes decide, whatever their media types say."""

from __future__ import annotations

from pathlib import Path

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.index.packing import MAX_WINDOW, Peeked, packing_of_bytes, unpack_zstd
from soci_cli.oci.media_types import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_NONDISTRIBUTABLE_GZIP,
    OCI_LAYER_ZSTD,
)
from tests.lazy.tools import opened
from tests.support.images import LayoutMaker, Listener, gz, options, run_convert, tar_of, zst
from tests.support.layers import mixed_data

TYPES = [
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_LAYER_NONDISTRIBUTABLE_GZIP,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
]
CONTENT = mixed_data(100_000)
ARCHIVE = tar_of({"file": CONTENT})


def frame(data: bytes, window_log: int) -> bytes:
    """A zstd frame (RFC 8878) of one raw block that declares a window of 2 ** window_log bytes."""
    assert len(data) < 1 << 17
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + block


def skippable(size: int) -> bytes:
    return b"\x55\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize(
    "data, indexed",
    [(ARCHIVE, True), (gz(ARCHIVE), True), (zst(ARCHIVE), False)],
    ids=["tar", "gzip", "zstd"],
)
def test_types_that_lie(tmp_path: Path, type_: str, data: bytes, indexed: bool) -> None:
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(data, type_), maker.blob(gz(tar_of({"other": b"1"})))]))
    with opened(f"oci:{maker.root}", tmp_path / "cache") as image:
        assert image.read(image.find(b"file"), 0, 1 << 20) == CONTENT
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", observer=listener)
    outcomes = [layer.outcome for layer in result.platforms[0].layers]
    assert outcomes == ["built" if indexed else "skipped", "built"]
    assert [note for note in listener.notes if "zstd" not in note] == []
    assert len(listener.notes) == (not indexed)
    with opened(f"oci:{tmp_path / 'd'}", tmp_path / "cache") as image:
        assert image.layers[0].indexed is indexed
        assert image.read(image.find(b"file"), 0, 1 << 20) == CONTENT
    result = run_convert(maker.root, tmp_path / "e", options(recompress_zstd=True))
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built", "built"]
    with opened(f"oci:{tmp_path / 'e'}", tmp_path / "other") as image:
        assert image.layers[0].indexed
        assert image.read(image.find(b"file"), 0, 1 << 20) == CONTENT


@pytest.mark.parametrize("window_log", [17, 27, 28, 29])
def test_large_windows(tmp_path: Path, window_log: int) -> None:
    maker = LayoutMaker(tmp_path / "image")
    data = frame(tar_of({"file": b"f"}), window_log)
    maker.tag(maker.manifest([maker.blob(data, OCI_LAYER_ZSTD)]))
    with opened(f"oci:{maker.root}", tmp_path / "cache") as image:
        assert image.read(image.find(b"file"), 0, 10) == b"f"
    run_convert(maker.root, tmp_path / "d", options(recompress_zstd=True))
    with opened(f"oci:{tmp_path / 'd'}", tmp_path / "other") as image:
        assert image.read(image.find(b"file"), 0, 10) == b"f"


def test_windows_that_are_too_large(tmp_path: Path) -> None:
    assert MAX_WINDOW == 1 << 29
    maker = LayoutMaker(tmp_path / "image")
    data = frame(tar_of({"file": b"f"}), 30)
    maker.tag(maker.manifest([maker.blob(data, OCI_LAYER_ZSTD)]))
    said = r"window of 1024 MiB, and the limit is 512 MiB; compress the layer"
    with (
        opened(f"oci:{maker.root}", tmp_path / "cache") as image,
        pytest.raises(InvalidDataError, match=said),
    ):
        image.find(b"file")
    with pytest.raises(InvalidDataError, match=said):
        run_convert(maker.root, tmp_path / "d", options(recompress_zstd=True))


def test_first_bytes() -> None:
    assert packing_of_bytes(skippable(3) + zst(b"x")) == "zstd"
    assert (
        packing_of_bytes(b"")
        == packing_of_bytes(b"P")
        == packing_of_bytes(b"\x1f")
        == ("uncompressed")
    )


class Slow:
    """A stream that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        piece, self._data = self._data[:1], self._data[1:]
        return piece

    def readinto(self, buffer: memoryview, /) -> int:
        piece = self.read()
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("size", [0, 1, 17, 18, 19, 100])
def test_peeking_takes_nothing_away(size: int) -> None:
    data = bytes(range(size))
    peeked = Peeked(Slow(data))
    assert peeked.start == data[:18]
    found = peeked.read(3)
    buffer = bytearray(5)
    while count := peeked.readinto(memoryview(buffer)):
        found += buffer[:count]
    assert found == data
    packed = skippable(5) + zst(data)
    assert unpack_zstd(Slow(packed)).read() == data
