"""The bytes of a layer's device while its archive is somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future

from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.layer_bytes import LayerBytes, Name, no_name


class DeviceBytes(LayerBytes):
    """A device of `archive`, which is read by offsets of the device and ends with it."""

    def __init__(self, archive: LayerBytes, layout: DeviceLayout) -> None:
        self._archive = archive
        self._layout = layout

    def close(self) -> None:
        """Closes the archive."""
        self._archive.close()

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `LayerBytes.read_now`."""
        part = _Part(self._layout, offset, buffer.nbytes)
        if part.is_whole:
            return self._archive.read_now(part.start, buffer, name)
        data = bytearray(part.length)
        if not self._archive.read_now(part.start, memoryview(data), name):
            return False
        part.spread(data, buffer)
        return True

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """See `LayerBytes.submit`."""
        part = _Part(self._layout, offset, length)
        below = self._archive.submit(part.start, part.length, name)
        if part.is_whole:
            return below
        future: Future[bytes] = Future()

        def finish(done: Future[bytes]) -> None:
            error = done.exception()
            if error is not None:
                future.set_exception(error)
                return
            data = bytearray(length)
            part.spread(done.result(), memoryview(data))
            future.set_result(bytes(data))

        below.add_done_callback(finish)
        return future

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """See `LayerBytes.ahead`."""
        parts = (_Part(self._layout, *one) for one in ranges)
        advance = self._archive.ahead([(part.start, part.length) for part in parts], name)
        return lambda offset: advance(_Part(self._layout, offset, 1).start)


class _Part:
    """What of the archive the bytes [offset, offset + length) of a device are: one range, and zeros."""

    def __init__(self, layout: DeviceLayout, offset: int, length: int) -> None:
        self._segments = list(layout.segments(offset, length))
        sources = [one for one in self._segments if one[0] >= 0]
        self.start = sources[0][0] if sources else 0
        self.length = sources[-1][0] + sources[-1][1] - self.start if sources else 0
        self.is_whole = len(self._segments) == 1 and bool(sources)

    def spread(self, data: bytes | bytearray, buffer: memoryview) -> None:
        """Puts the range of the archive where it belongs, with zeros in between."""
        view = memoryview(data)
        position = taken = 0
        for source, size in self._segments:
            end = position + size
            if source < 0:
                buffer[position:end] = bytes(size)
            else:
                buffer[position:end] = view[taken : taken + size]
                taken += size
            position = end
        buffer[position:] = bytes(buffer.nbytes - position)
