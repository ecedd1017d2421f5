"""Reading a device through its archive gives what a device on the disk has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.lazy.erofs.lazy_device import DeviceBytes
from soci_cli.lazy.layer_bytes import LayerBytes, Name, no_name
from tests.lazy.devices.test_layout import archive_of, device_of, gaps_and_sizes, layout_of


class Held(LayerBytes):
    """An archive in memory, which is here or comes a little later."""

    def __init__(self, data: bytes, here: bool) -> None:
        self.data = data
        self.here = here
        self.waiting: list[tuple[Future[bytes], bytes]] = []
        self.told: list[int] = []

    def close(self) -> None:
        self.here = False

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        if self.here:
            buffer[:] = self.data[offset : offset + buffer.nbytes]
        return self.here

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        future: Future[bytes] = Future()
        self.waiting.append((future, self.data[offset : offset + length]))
        return future

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        return self.told.append


@given(gaps_and_sizes, st.data(), st.booleans())
def test_ranges(pieces: list[tuple[int, int]], data: st.DataObject, here: bool) -> None:
    archive, contents = archive_of(pieces, 700)
    layout = layout_of(len(archive), contents)
    device = device_of(layout, archive)
    held = Held(archive, here)
    lazy = DeviceBytes(held, layout)
    offset = data.draw(st.integers(0, layout.size - 1))
    length = data.draw(st.integers(1, layout.size - offset))
    buffer = bytearray(b"\xff" * length)
    assert lazy.read_now(offset, memoryview(buffer)) is here
    if here:
        assert buffer == device[offset : offset + length]
    future = lazy.submit(offset, length)
    ((below, found),) = held.waiting
    below.set_result(found)
    assert future.result(0) == device[offset : offset + length]


def test_errors_and_reading_ahead() -> None:
    archive, contents = archive_of([(512, 100), (512, 9000)], 0)
    held = Held(archive, False)
    lazy = DeviceBytes(held, layout_of(len(archive), contents))
    future = lazy.submit(0, 8192)
    held.waiting[0][0].set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        future.result(0)
    lazy.ahead([(0, 8192)])(4096)
    assert held.told == [512]
    lazy.close()
