"""Devices: each file's bytes begin a block, nothing of the archive is lost, and both directions agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import UnsupportedLayerError
from soci_cli.lazy.devices.layout import BLOCK, DeviceLayout

gaps_and_sizes = st.lists(
    st.tuples(st.sampled_from([512, 1024, 1536, 5120]), st.integers(0, 9000)), max_size=12
)


def archive_of(pieces: list[tuple[int, int]], tail: int) -> tuple[bytes, list[tuple[int, int]]]:
    """An archive of no zero bytes, and where its files' contents are."""
    contents = []
    position = 0
    for gap, size in pieces:
        position += gap
        contents.append((position, size))
        position += size + -size % 512
    position += tail
    return bytes(1 + number % 251 for number in range(position)), contents


def layout_of(archive_size: int, contents: list[tuple[int, int]]) -> DeviceLayout:
    layout = DeviceLayout(archive_size)
    for offset, size in contents:
        if size:
            assert layout.add(offset, size) * BLOCK == layout.device_offset(offset)
    return layout


def device_of(layout: DeviceLayout, archive: bytes) -> bytes:
    return b"".join(
        bytes(size) if source < 0 else archive[source : source + size]
        for source, size in layout.segments(0, layout.size)
    )


@given(gaps_and_sizes, st.integers(0, 2000))
def test_device_has_every_byte_and_each_file_begins_a_block(
    pieces: list[tuple[int, int]], tail: int
) -> None:
    archive, contents = archive_of(pieces, tail)
    layout = layout_of(len(archive), contents)
    device = device_of(layout, archive)
    assert len(device) == layout.size
    assert layout.size % BLOCK == 0
    assert device.replace(b"\0", b"") == archive
    for offset, size in contents:
        if size:
            at = layout.device_offset(offset)
            assert at % BLOCK == 0
            assert device[at : at + size] == archive[offset : offset + size]


@given(gaps_and_sizes, st.data())
def test_any_range_of_the_device(pieces: list[tuple[int, int]], data: st.DataObject) -> None:
    archive, contents = archive_of(pieces, 700)
    layout = layout_of(len(archive), contents)
    device = device_of(layout, archive)
    offset = data.draw(st.integers(0, layout.size + 10))
    length = data.draw(st.integers(0, layout.size))
    found = b"".join(
        bytes(size) if source < 0 else archive[source : source + size]
        for source, size in layout.segments(offset, length)
    )
    assert found == device[offset : offset + length]


@given(gaps_and_sizes, st.lists(st.integers(1, 7000), min_size=1, max_size=30))
def test_writing_in_the_order_of_the_archive(
    pieces: list[tuple[int, int]], steps: list[int]
) -> None:
    archive, contents = archive_of(pieces, 700)
    layout = layout_of(len(archive), contents)
    written = bytearray()
    offset = 0
    while offset < len(archive):
        piece = archive[offset : offset + steps[offset % len(steps)]]
        begin = offset
        for zeros, size in layout.places(offset, len(piece)):
            written += bytes(zeros) + archive[begin : begin + size]
            begin += size
        offset += len(piece)
    written += bytes(layout.size - len(written))
    assert written == device_of(layout, archive)


def test_files_that_share_bytes_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="share bytes"):
        layout_of(10_000, [(512, 2000), (1024, 100)])
    with pytest.raises(UnsupportedLayerError, match="no order"):
        layout_of(10_000, [(4096, 100), (512, 100)])
    with pytest.raises(UnsupportedLayerError, match="outside"):
        layout_of(10_000, [(9000, 2000)])


def test_disk_is_that_of_the_unpacked_files() -> None:
    contents = [(512 + number * 3072, 2400) for number in range(1000)]
    layout = layout_of(512 + 1000 * 3072, contents)
    assert layout.size <= 1001 * BLOCK + BLOCK
