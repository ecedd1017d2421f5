"""An EROFS image as a file of the cache: the metadata, then the layouts of its devices, then a trailer.

The kernel reads the metadata only, whose superblock says how much there is. The layouts are what answering
for lazy devices needs of the zTOCs, so that mounting an image again reads none of them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zlib_ng import zlib_ng

from soci_cli.errors import InvalidDataError
from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.tree import Tree

VERSION = 1
"""Of what is written here, and so of the names of the files: one for each way in which it ever changed."""

_TRAILER = struct.Struct("<8sIIQ")  # magic, CRC-32 of all before, layouts, bytes of metadata
_MAGIC = b"socierfs"
_LAYOUT = struct.Struct("<qI")  # size of the archive, runs
_MAX_FILE = 8 << 30


@dataclass(frozen=True)
class ErofsImage:
    """What a file of the cache holds besides the metadata: the layouts of the devices, in their order."""

    layouts: tuple[DeviceLayout, ...]


def key_of(kind: str, ztocs: Sequence[str]) -> str:
    """The name of the image of these layers, whose zTOCs have these digests, lowest first.

    `kind` is "merged" or "layer".
    """
    text = "\n".join((f"{kind} {VERSION}", *ztocs))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def encode(tree: Tree) -> Iterator[bytes]:
    """The file of a tree, piece by piece. UnsupportedLayerError for what EROFS cannot hold.

    The tree is used up meanwhile, so that this takes little memory.
    """
    metadata = Metadata(tree.root, tree.inodes, tree.devices)
    checksum = 0
    for piece in itertools.chain(metadata.chunks(), _encoded(tree.layouts)):
        checksum = zlib_ng.crc32(piece, checksum)
        yield piece
    yield _TRAILER.pack(_MAGIC, checksum, len(tree.layouts), metadata.size)


def _encoded(layouts: Sequence[DeviceLayout]) -> Iterator[bytes]:
    for layout in layouts:
        archive, device = layout.runs
        yield _LAYOUT.pack(layout.archive_size, len(archive))
        yield archive.tobytes()
        yield device.tobytes()


def decode(fd: int) -> ErofsImage:
    """Reads and checks a file. InvalidDataError when it is not whole; OSError."""
    size = os.fstat(fd).st_size
    if not _TRAILER.size <= size <= _MAX_FILE:
        raise InvalidDataError("an image of EROFS metadata in the cache is cut short")
    magic, checksum, count, start = _TRAILER.unpack(
        os.pread(fd, _TRAILER.size, size - _TRAILER.size)
    )
    if magic != _MAGIC or start > size or _checksum(fd, size - _TRAILER.size) != checksum:
        raise InvalidDataError("an image of EROFS metadata in the cache is damaged")
    data = memoryview(os.pread(fd, size - _TRAILER.size - start, start))
    layouts = []
    for _ in range(count):
        archive_size, runs = _LAYOUT.unpack_from(data)
        middle, end = _LAYOUT.size + 8 * runs, _LAYOUT.size + 16 * runs
        layouts.append(
            DeviceLayout.of_runs(
                archive_size,
                array("q", bytes(data[_LAYOUT.size : middle])),
                array("q", bytes(data[middle:end])),
            )
        )
        data = data[end:]
    return ErofsImage(tuple(layouts))


def _checksum(fd: int, size: int) -> int:
    found = 0
    for offset in range(0, size, 1 << 20):
        found = zlib_ng.crc32(os.pread(fd, min(1 << 20, size - offset), offset), found)
    return found
