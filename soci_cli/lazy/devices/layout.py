"""Where the bytes of a layer's archive lie in its device.

A device is the uncompressed archive with zeros put in before the content of files, so that each begins at
a multiple of `BLOCK`: blocks then have 4,096 bytes, which every kernel and disk takes and by
which programs size their buffers. An archive of two files:

    archive   header | a: 5000 bytes | pad, header | b: 100 bytes | pad, end
    device    header | zeros to 4096 | a | pad, header | zeros to 12288 | b | pad, end | zeros to 16384

All of the archive is there in its order, so a device can be written while the archive is hashed, and be
turned into the archive again. It takes no more disk than the files unpacked: what lies between them mostly
fits into the rest of the block before.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from soci_cli.errors import UnsupportedLayerError
from soci_cli.ztoc import Ztoc

BLOCK = 4096
"""Bytes of a block of a device, as EROFS images over it have them."""
_REGULAR = b"reg"


class DeviceLayout:
    """The places of an archive's bytes in its device; offsets and sizes are in bytes."""

    def __init__(self, archive_size: int) -> None:
        """Tell it of all contents of files by `add`, before anything else."""
        self.archive_size = archive_size
        self._archive = array("q", [0])  # where a run of bytes begins in the archive,
        self._device = array("q", [0])  # and in the device
        self._end = 0
        self._shift = 0

    def add(self, offset: int, size: int) -> int:
        """Makes a file's content begin a block; the number of that block.

        `size` is greater than 0, and each content follows the one before in the archive.
        UnsupportedLayerError where two share bytes, or one lies outside the archive.
        """
        if offset < self._end or size < 0:
            raise UnsupportedLayerError("its files share bytes, or are in no order")
        self._end = offset + size
        if self._end > self.archive_size:
            raise UnsupportedLayerError("a file of it lies outside of it")
        at = offset + self._shift
        missing = -at % BLOCK
        if missing:
            self._shift += missing
            at += missing
            self._archive.append(offset)
            self._device.append(at)
        return at // BLOCK

    @classmethod
    def of_files(cls, ztoc: Ztoc) -> DeviceLayout:
        """The layout of the archive that a zTOC is of. UnsupportedLayerError, InvalidDataError."""
        layout = cls(ztoc.uncompressed_archive_size)
        for kind, offset, size, *_ in ztoc.files.rows():
            if kind == _REGULAR and size:
                layout.add(offset, size)
        return layout

    @classmethod
    def of_runs(cls, archive_size: int, archive: array[int], device: array[int]) -> DeviceLayout:
        """A layout with these `runs`, to which nothing can be added."""
        layout = cls(archive_size)
        layout._archive, layout._device = archive, device
        layout._shift = device[-1] - archive[-1]
        layout._end = archive_size + 1
        return layout

    @property
    def runs(self) -> tuple[array[int], array[int]]:
        """Where runs of bytes begin in the archive, and in the device."""
        return self._archive, self._device

    @property
    def size(self) -> int:
        """Bytes of the device, a multiple of `BLOCK`."""
        tail = self.archive_size + self._shift
        return tail + -tail % BLOCK

    def device_offset(self, offset: int) -> int:
        """Where the byte at an offset of the archive is in the device."""
        run = bisect_right(self._archive, offset) - 1
        return self._device[run] + offset - self._archive[run]

    def archive_offset(self, offset: int) -> int:
        """Where the byte at an offset of the device is in the archive; of zeros, where it goes on."""
        run = bisect_right(self._device, offset) - 1
        at = self._archive[run] + offset - self._device[run]
        return at if run + 1 == len(self._archive) else min(at, self._archive[run + 1])

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What the bytes [offset, offset + length) of the device are: offset in the archive, and size.

        -1 in place of an offset stands for zeros. Beyond the device there is nothing.
        """
        end = min(offset + length, self.size)
        run = bisect_right(self._device, offset) - 1
        runs = len(self._device)
        while offset < end:
            begin, source = self._device[run], self._archive[run]
            is_last = run + 1 == runs
            stop = self.archive_size if is_last else self._archive[run + 1]
            filled = begin + stop - source
            if offset < filled:
                count = min(end, filled) - offset
                yield source + offset - begin, count
                offset += count
            limit = min(end, self.size if is_last else self._device[run + 1])
            if offset < limit:
                yield -1, limit - offset
                offset = limit
            run += 1

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The bytes [offset, offset + length) of the archive: zeros to write before, and size."""
        end = offset + length
        run = bisect_right(self._archive, offset) - 1
        while offset < end:
            is_last = run + 1 == len(self._archive)
            stop = end if is_last else min(end, self._archive[run + 1])
            zeros = 0
            if run and offset == self._archive[run]:
                filled = self._device[run - 1] + offset - self._archive[run - 1]
                zeros = self._device[run] - filled
            yield zeros, stop - offset
            offset = stop
            run += 1
