"""Spans of a layer that are in its device, complete or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.lazy.devices.growing import SpanDevice
from soci_cli.lazy.span_table import SpanTable


class _Readable(Protocol):
    """What a device can do; offsets are those of the archive."""

    def read(self, offset: int, length: int) -> bytes: ...

    def read_now(self, offset: int, buffer: memoryview) -> int: ...


class DeviceSpan:
    """A span in a device. Implements `AnyEntry`."""

    __slots__ = ("_device", "_start", "size")

    is_kept = True
    is_linked = True
    held = 0

    def __init__(self, device: _Readable, table: SpanTable, number: int) -> None:
        self._device = device
        self._start, end = table.range(number)
        self.size = end - self._start

    def read(self, offset: int, length: int) -> bytes:
        """See `Entry.read`."""
        return self._device.read(self._start + offset, length)

    def read_now(self, offset: int, buffer: memoryview) -> int:
        """See `Entry.read_now`."""
        return self._device.read_now(self._start + offset, buffer)

    def note_use(self) -> None:
        """Nothing: the device is told of its use when it is opened."""


class SpanClaim(Closing):
    """The right to put a span into a device that is being made. Implements what `Claim` does for spans."""

    is_real = True

    def __init__(self, device: SpanDevice, table: SpanTable, number: int) -> None:
        self._device = device
        self._table = table
        self._number = number

    def put(self, data: memoryview) -> DeviceSpan | None:
        """See `Claim.put`."""
        try:
            self._device.put(self._number, data)
        except OSError:
            return None
        return DeviceSpan(self._device, self._table, self._number)

    def fill(self, size: int, pieces: Iterable[memoryview]) -> DeviceSpan:
        """See `Claim.fill`. Raises OSError, and what the pieces raise."""
        self._device.fill(self._number, pieces)
        return DeviceSpan(self._device, self._table, self._number)
