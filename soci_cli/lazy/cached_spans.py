"""The spans of one layer that are here: in the cache, open, or in memory where the disk takes none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from soci_cli.closing import Closing
from soci_cli.lazy.cache import Claim, device_key, span_key
from soci_cli.lazy.devices.complete import Device, open_device
from soci_cli.lazy.devices.growing import SpanDevice
from soci_cli.lazy.devices.spans import DeviceSpan, SpanClaim
from soci_cli.lazy.entries import AnyEntry
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.span_table import SpanTable

_HERE = 1  # believed to be in the cache
_COUNTED = 2  # by `Stats`
_CHECKED = 4  # its file was right when this process first opened or wrote it


class CachedSpans(Closing):
    """Several threads may use it. Only `find` and `claim` wait for the disk."""

    def __init__(self, fetching: Fetching, table: SpanTable, keys: tuple[str, str]) -> None:
        """`keys` are the digests of the layer and of its zTOC."""
        self._cache = fetching.cache
        self._open = fetching.fetcher.open
        self._stats = fetching.stats
        self._table = table
        self._prefix = span_key(*keys, 0).removesuffix("0")
        self._open_prefix = f"{fetching.cache.root}/{self._prefix}"
        self._state = bytearray(len(table))
        self._device_key = device_key(*keys)
        self._layer = keys[0]
        self._device: Device | None = None
        self._growing: SpanDevice | None = None
        for number in self._present():
            self._state[number] = _HERE

    def close(self) -> None:
        """Lets go of the device, which is not evicted while it is open."""
        self._device = None

    def _present(self) -> set[int]:
        count = len(self._table)
        if self.device() is not None:
            return set(range(count))
        names = self._cache.names(self._prefix)
        present = {int(name) for name in names if name.isdecimal() and int(name) < count}
        if (growing := self._growing) is not None:
            present.update(filter(growing.has, range(count)))
        return present

    def missing(self) -> list[int]:
        """The spans that are not in the cache, in order, as the disk says."""
        present = self._present()
        return [number for number in range(len(self._table)) if number not in present]

    def opened(self, number: int) -> AnyEntry | None:
        """A span that is open, or in memory."""
        device, growing = self._device, self._growing
        if device is not None:
            return DeviceSpan(device, self._table, number)
        if growing is not None and growing.has(number):
            return DeviceSpan(growing, self._table, number)
        return self._open.get(f"{self._open_prefix}{number}")

    def is_here(self, number: int) -> bool:
        """Whether a span is open, in memory, or believed to be in the cache."""
        return bool(self._state[number] & _HERE) or self.opened(number) is not None

    def is_closed(self, number: int) -> bool:
        """Whether a span is believed to be in the cache and is not open."""
        return bool(self._state[number] & _HERE) and self.opened(number) is None

    def find(self, number: int) -> AnyEntry | None:
        """A span that is here, opened now if need be. What another process may have fetched counts."""
        found = self.opened(number)
        if found is not None:
            if isinstance(found, DeviceSpan):
                self.count(number, "cache", 0)
            return found
        # A file can only be damaged before this process began: by a crash of the machine.
        key = f"{self._prefix}{number}"
        is_checked = self._state[number] & _CHECKED
        cache = self._cache
        entry = cache.find_unchecked(key) if is_checked else cache.find(key)
        start, end = self._table.range(number)
        if entry is None or entry.size != end - start:
            self._state[number] &= ~_HERE
            # Another process may have made the device, of which the span is now.
            device = self.device()
            return None if device is None else DeviceSpan(device, self._table, number)
        self._state[number] |= _HERE | _CHECKED
        self._open.put(f"{self._open_prefix}{number}", entry)
        self.count(number, "cache", 0)
        return entry

    def has(self, number: int) -> bool:
        """Whether the cache has a span, good or not."""
        growing = self._growing
        if self._device is not None or (growing is not None and growing.has(number)):
            return True
        return self._cache.has(f"{self._prefix}{number}")

    def claim(self, number: int) -> Claim | SpanClaim | None:
        """See `Cache.claim`."""
        if (growing := self._growing) is not None:
            return SpanClaim(growing, self._table, number)
        return self._cache.claim(f"{self._prefix}{number}")

    def claim_beside(self, number: int) -> Claim | None:
        """See `Cache.claim_beside`."""
        return self._cache.claim_beside(f"{self._prefix}{number}")

    def keep(self, number: int, entry: AnyEntry) -> None:
        """A span was fetched."""
        if isinstance(entry, DeviceSpan):
            return
        if entry.is_kept:
            self._state[number] |= _HERE | _CHECKED
        self._open.put(f"{self._open_prefix}{number}", entry)

    def drop(self, number: int) -> None:
        """A span turned out to be damaged."""
        if self._device is not None:
            self._device = None
            self._cache.remove(self._device_key)
        self._state[number] &= ~(_HERE | _CHECKED)
        self._open.drop(f"{self._open_prefix}{number}")
        self._cache.remove(f"{self._prefix}{number}")

    def count(self, number: int, source: str, fetched: int) -> None:
        """Counts a span that was fetched, or is used for the first time."""
        if fetched or not self._state[number] & _COUNTED:
            self._state[number] |= _COUNTED
            start, end = self._table.range(number)
            self._stats.count_span(source, fetched, end - start)

    # The complete device.

    @property
    def limit(self) -> int:
        """Bytes that the cache may hold."""
        return self._cache.limit

    def device(self) -> Device | None:
        """The complete device, if there is one; opened now if need be."""
        if self._device is None and self._cache.has(self._device_key):
            device = open_device(self._cache, self._device_key)
            if device is not None and device.size == self._table.size:
                self._device = device
        return self._device

    def make_room(self, size: int) -> None:
        """Evicts what is needed for a device of so many bytes, but for the spans that go there."""
        ranges = map(self._table.range, self._present())
        here = sum(end - start for start, end in ranges)
        self._cache.make_room(size - here, self._layer)

    def claim_device(self) -> Claim | None:
        """The right to make it; None while somebody else has it."""
        return self._cache.claim(self._device_key)

    @contextmanager
    def growing(self, device: SpanDevice) -> Iterator[None]:
        """Spans that come meanwhile go into a device that is being made."""
        self._growing = device
        try:
            yield
        finally:
            self._growing = None

    def move(self, number: int, growing: SpanDevice) -> bool:
        """Moves a span that is here into the device; whether it is there. OSError."""
        if growing.has(number):
            return True
        entry = self.find(number)
        data = entry.read(0, entry.size) if entry is not None else b""
        if entry is None or len(data) != entry.size:
            return False
        growing.put(number, memoryview(data))
        self._state[number] &= ~(_HERE | _CHECKED)
        self._open.drop(f"{self._open_prefix}{number}")
        self._cache.remove(f"{self._prefix}{number}")
        return True

    def complete(self, device: Device) -> None:
        """The device is complete. What other processes fetched of it meanwhile goes."""
        self._device = device
        for name in self._cache.names(self._prefix):
            self._cache.remove(f"{self._prefix}{name}")
