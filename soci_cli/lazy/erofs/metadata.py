"""Laying out an EROFS image of metadata: directories and inodes to bytes.

The root comes first, as its number has 16 bits. Each directory is followed by the inodes in it that have
no place yet; then come the directories in it, the first by name first. So `find` reads an image from its
beginning to its end.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from soci_cli.errors import UnsupportedLayerError
from soci_cli.lazy.erofs import format as erofs
from soci_cli.lazy.erofs.format import BLOCK, INLINE, PLAIN, SLOT, SLOT_BITS

_INODE_SIZE = erofs.INODE.size
NO_HEAD = bytes(_INODE_SIZE)
"""In place of an inode that is none."""
_PARTS = 10_000  # that are joined at once, as each takes more memory than its bytes
_DIRECTORY = erofs.FILE_TYPES[stat.S_IFDIR]
_FIRST_DEVICE_BLOCK = 1 << 20
"""Behind 4 GiB of metadata, more than there can be."""


@dataclass(frozen=True)
class Attributes:
    """Of a directory: permission bits, owner and group, seconds and nanoseconds, and its xattrs' bytes."""

    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)
    mtime: tuple[int, int] = (0, 0)
    xattrs: bytes = b""


class Directory:
    """A directory: its children by name, numbers of inodes or directories."""

    __slots__ = (
        "attributes",
        "children",
        "names",
        "nid",
        "parent",
        "place",
        "placed",
        "size",
        "starts",
    )

    def __init__(self, parent: Directory | None, attributes: Attributes) -> None:
        self.parent = parent or self
        self.attributes = attributes
        self.children: dict[bytes, int | Directory] = {}
        # Of the layout: where it is, where its blocks are (-1: beside it), and what follows it.
        self.nid = 0
        self.place = -1
        self.size = 0
        self.starts: list[int] = [0]
        self.names: list[bytes] = []
        self.placed: list[int] = []


@dataclass
class Inodes:
    """All inodes that are no directories, by number.

    `heads` are inodes with one link, 64 bytes each, and `NO_HEAD` for what is none; `types` are those of
    directory entries; `xattrs` and `targets` follow some inodes; `shared` may have several names.
    """

    heads: bytearray = field(default_factory=bytearray)
    types: bytearray = field(default_factory=bytearray)
    xattrs: dict[int, bytes] = field(default_factory=dict)
    targets: dict[int, bytes] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)

    def add(self, mode: int, size: int = 0, place: int = 0) -> int:
        """Adds an inode of root's; its number. `mode` is that of stat(2)."""
        number = len(self)
        self.heads.extend(erofs.inode(PLAIN, 0, mode, size, place, number, (0, 0), (0, 0), 1))
        self.types.append(erofs.FILE_TYPES[stat.S_IFMT(mode)])
        return number

    def __len__(self) -> int:
        return len(self.heads) // _INODE_SIZE

    def head(self, number: int) -> tuple[int, ...]:
        """The fields of an inode, as `format.INODE` has them."""
        return erofs.INODE.unpack_from(self.heads, number * _INODE_SIZE)


@dataclass(frozen=True)
class Device:
    """The device of a layer: `tag` says of which, at most 63 bytes; and how many blocks it has."""

    tag: bytes
    blocks: int


def device_starts(devices: Sequence[Device]) -> list[int]:
    """The first block of each device among all blocks. UnsupportedLayerError when there are too many."""
    return [next_start(devices[:number]) for number in range(len(devices) + 1)][:-1]


def next_start(devices: Sequence[Device]) -> int:
    """The block after the last of the devices. UnsupportedLayerError when that is too far."""
    start = _FIRST_DEVICE_BLOCK + sum(device.blocks for device in devices)
    if start > erofs.MAX_BLOCKS:
        raise UnsupportedLayerError("its layers have more bytes than an EROFS image can name")
    return start


class Metadata:
    """Lays a tree out; `size` are the bytes of the image, `inodes` how many inodes it has."""

    def __init__(self, root: Directory, inodes: Inodes, devices: Sequence[Device]) -> None:
        """Raises UnsupportedLayerError for what the format cannot hold."""
        self._inodes = inodes
        self._nids = array("Q", bytes(8 * len(inodes)))
        self._links: dict[int, int] = {}
        self._directories: list[Directory] = []
        self._lone: dict[
            int, int
        ] = {}  # where targets are that are too long to be beside their inodes
        table = erofs.DEVICE_TABLE + erofs.DEVICE_SLOT * len(devices)
        self._start = table + -table % BLOCK
        end = self._place(root)
        size = self._start + end
        size += -size % BLOCK
        if size > _FIRST_DEVICE_BLOCK * BLOCK:
            raise UnsupportedLayerError("it has more files than an EROFS image can name")
        self.inodes = sum(len(one.placed) for one in self._directories) + len(self._directories)
        slots = [
            (device.tag, device.blocks, start)
            for device, start in zip(devices, device_starts(devices), strict=True)
        ]
        self.size = size
        self._head = erofs.head(root.nid, self.inodes, size, self._start, slots)
        self._tail = bytes(size - self._start - end)

    def chunks(self) -> Iterator[bytes]:
        """The image, piece by piece, once: the tree is used up."""
        yield self._head
        yield from self._write()
        yield self._tail

    @property
    def data(self) -> bytes:
        """The image in one piece, once."""
        return b"".join(self.chunks())

    def _place(self, root: Directory) -> int:
        """Gives everything its place; where the last one ends."""
        nids, shared, links = self._nids, self._inodes.shared, self._links
        special = self._inodes.xattrs.keys() | self._inodes.targets.keys()
        position = 0
        stack = [root]
        while stack:
            here = stack.pop()
            position = self._place_directory(here, position)
            children = here.children
            below: list[Directory] = []
            placed = here.placed
            for name in here.names:
                child = children.get(name)
                if not isinstance(child, int):
                    if child is not None:
                        below.append(child)
                    continue
                if child in shared:
                    links[child] = links.get(child, 0) + 1
                    if links[child] > 1:
                        continue
                placed.append(child)
                if child in special:
                    position = self._place_special(child, position)
                else:
                    nids[child] = position >> SLOT_BITS
                    position += _INODE_SIZE
            below.reverse()
            stack += below
        return position

    def _place_directory(self, here: Directory, position: int) -> int:
        here.names = sorted([*here.children, b".", b".."])
        here.size, here.starts = erofs.directory_size(here.names)
        body = _INODE_SIZE + len(here.attributes.xattrs)
        if body + here.size <= BLOCK:
            position = _within_block(position, body, here.size)
            here.nid = position >> SLOT_BITS
            end = position + body + here.size
        else:
            here.nid = position >> SLOT_BITS
            here.place = _aligned(position + body, BLOCK)
            end = here.place + _aligned(here.size, BLOCK)
        self._directories.append(here)
        return _aligned(end, SLOT)

    def _place_special(self, child: int, position: int) -> int:
        """Places an inode that has xattrs, or is a symbolic link."""
        body = _INODE_SIZE + len(self._inodes.xattrs.get(child, b""))
        target = len(self._inodes.targets.get(child, b""))
        if body + target <= BLOCK:
            position = _within_block(position, body, target)
            end = position + body + target
        else:
            end = _aligned(position + body, BLOCK) + target
            self._lone[child] = _aligned(position + body, BLOCK)
        self._nids[child] = position >> SLOT_BITS
        return _aligned(end, SLOT)

    def _write(self) -> Iterator[bytes]:
        heads, size = memoryview(self._inodes.heads), _INODE_SIZE
        parts: list[bytes | memoryview] = []
        special = self._inodes.xattrs.keys() | self._inodes.targets.keys() | self._links.keys()
        position = 0
        for number, here in enumerate(self._directories):
            position = self._write_directory(here, len(self._inodes) + number, position, parts)
            here.children, here.names = {}, []
            if len(parts) > _PARTS:
                yield b"".join(parts)
                parts.clear()
            if special.isdisjoint(here.placed):
                parts += [heads[child * size : child * size + size] for child in here.placed]
                position += _INODE_SIZE * len(here.placed)
                continue
            for child in here.placed:
                if child in special:
                    position = self._write_special(child, position, parts)
                else:
                    parts.append(heads[child * size : child * size + size])
                    position += _INODE_SIZE
        yield b"".join(parts)

    def _write_directory(
        self, here: Directory, number: int, position: int, parts: list[bytes | memoryview]
    ) -> int:
        nids, types = self._nids, self._inodes.types
        children = here.children
        entry_nids, entry_types = [], []
        links = 2
        for name in here.names:
            child = children.get(name)
            if isinstance(child, int):
                entry_nids.append(nids[child])
                entry_types.append(types[child])
                continue
            entry_types.append(_DIRECTORY)
            if child is not None:
                links += 1
                entry_nids.append(child.nid)
            else:
                entry_nids.append(here.nid if name == b"." else here.parent.nid)
        stops = [*here.starts[1:], len(here.names)]
        content = [
            erofs.directory_block(
                here.names[begin:end], entry_nids[begin:end], entry_types[begin:end]
            )
            for begin, end in zip(here.starts, stops, strict=True)
        ]
        about = here.attributes
        lies = here.place >= 0
        place = (self._start + here.place) // BLOCK if lies else 0
        parts += (
            bytes((here.nid << SLOT_BITS) - position),
            erofs.inode(
                PLAIN if lies else INLINE, len(about.xattrs), stat.S_IFDIR | about.mode, here.size,
                place, number, about.owner, about.mtime, links,
            ),
            about.xattrs,
        )  # fmt: skip
        position = (here.nid << SLOT_BITS) + _INODE_SIZE + len(about.xattrs)
        if lies:
            parts.append(bytes(here.place - position))
            parts += [block.ljust(BLOCK, b"\0") for block in content]
            return here.place + BLOCK * len(content)
        parts += (content[0], bytes(-(position + here.size) % SLOT))
        return _aligned(position + here.size, SLOT)

    def _write_special(self, child: int, position: int, parts: list[bytes | memoryview]) -> int:
        xattrs = self._inodes.xattrs.get(child, b"")
        target = self._inodes.targets.get(child, b"")
        lone = self._lone.get(child)
        fields = list(self._inodes.head(child))
        fields[1] = (len(xattrs) - 8) // 4 if xattrs else 0
        fields[-1] = self._links.get(child, 1)
        if target and lone is None:
            fields[0] |= INLINE
        elif lone is not None:
            fields[5] = (self._start + lone) // BLOCK
        at = self._nids[child] << SLOT_BITS
        parts += (bytes(at - position), erofs.INODE.pack(*fields), xattrs)
        position = at + _INODE_SIZE + len(xattrs)
        if lone is not None:
            parts.append(bytes(lone - position))
            position = lone
        parts += (target, bytes(-(position + len(target)) % SLOT))
        return _aligned(position + len(target), SLOT)


def _aligned(position: int, unit: int) -> int:
    return position + -position % unit


def _within_block(position: int, body: int, data: int) -> int:
    """Where an inode of `body` bytes can be so that the data behind it does not cross blocks."""
    if data and (position + body) % BLOCK + data > BLOCK:
        position = _aligned(position, BLOCK)
    return position
