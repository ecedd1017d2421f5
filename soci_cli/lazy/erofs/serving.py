"""The devices of an image, served to the kernel over a FUSE file system that is mounted nowhere.

It has one file for each device, named "0", "1" and so on. EROFS holds them, so the connection ends when
EROFS is unmounted, whoever does that.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property, partial

from soci_cli.kernel import detached
from soci_cli.kernel.fuse_device import open_device
from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.erofs.lazy_device import DeviceBytes
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.filesystem import ROOT
from soci_cli.lazy.fuse.retries import Retries
from soci_cli.lazy.layer_bytes import Name
from soci_cli.lazy.merged import LazyImage

_FIRST = ROOT + 1
_ROOT_ATTR = wire.attr(ROOT, stat.S_IFDIR | 0o700, 0, 2, (0, 0))


class DeviceContent:
    """The content of the device of a layer."""

    offset = 0

    def __init__(self, image: LazyImage, layer: int, layout: DeviceLayout) -> None:
        self.layer = layer
        self.size = layout.size
        self._image = image
        self._layout = layout

    @cached_property
    def archive(self) -> DeviceBytes:
        """Its bytes. Raises what opening the layer raises."""
        return DeviceBytes(self._image.layers[self.layer].archive, self._layout)

    def entry_at(self, offset: int) -> int:
        """The entry of the file whose content is at an offset of the device, or before it."""
        starts, entries = self._contents
        at = bisect_right(starts, self._layout.archive_offset(offset)) - 1
        return entries[max(at, 0)] if entries else -1

    def name_at(self, offset: int) -> Name:
        """Gives the name of that file."""
        return partial(self._name, offset)

    def _name(self, offset: int) -> bytes:
        entry = self.entry_at(offset)
        return self._image.layers[self.layer].files.path_of(entry) if entry >= 0 else b""

    @cached_property
    def _contents(self) -> tuple[Sequence[int], Sequence[int]]:
        """Where the contents of files begin in the archive, and of which entries they are."""
        return self._image.layers[self.layer].files.contents()


class DevicesTree:
    """The files of the devices. Implements `Tree`."""

    def __init__(
        self, image: LazyImage, layouts: Sequence[DeviceLayout], *, is_direct: bool = False
    ) -> None:
        self.image = image
        self.is_direct = is_direct
        self.retries: Retries | None = Retries()
        self._contents = [
            DeviceContent(image, layer, layout) for layer, layout in enumerate(layouts)
        ]

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        number = int(name) if name.isdigit() and len(name) < 10 else -1
        return _FIRST + number if 0 <= number < len(self._contents) else 0

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        if node == ROOT:
            return _ROOT_ATTR
        return wire.attr(node, stat.S_IFREG | 0o400, self.content(node).size, 1, (0, 0))

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        return [(b"%d" % number, _FIRST + number) for number in range(len(self._contents))]

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        return ROOT

    def link(self, node: int) -> bytes:
        """See `Tree.link`."""
        raise OSError(errno.EINVAL, "no symbolic link")

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        return ()

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`."""
        return None

    def content(self, node: int) -> DeviceContent:
        """See `Tree.content`."""
        if not 0 <= node - _FIRST < len(self._contents):
            raise OSError(errno.ESTALE, "no such node")
        return self._contents[node - _FIRST]


def connect(source: str) -> tuple[int, int]:
    """Mounts a FUSE file system nowhere; the descriptors of its connection and of the mount. MountError.

    Somebody must serve the connection before the mount is used.
    """
    fd = open_device()
    try:
        options = [
            ("source", source),
            ("fd", str(fd)),
            ("rootmode", "40000"),
            ("user_id", str(os.getuid())),
            ("group_id", str(os.getgid())),
            ("subtype", "soci"),
        ]
        attributes = detached.RDONLY | detached.NOSUID | detached.NODEV
        return fd, detached.mount("fuse", options, attributes)
    except BaseException:
        os.close(fd)
        raise


def open_device_file(mounted: int, number: int) -> int:
    """Opens the file of a device. OSError."""
    return os.open(str(number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=mounted)
