"""The parts of EROFS's format that are written here: records as bytes (Linux, fs/erofs/erofs_fs.h).

Everything is little endian. An inode's number (nid) counts slots of 32 bytes from where they begin.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct

from soci_cli.lazy.devices import layout as devices

BLOCK = devices.BLOCK
BLOCK_BITS = BLOCK.bit_length() - 1
SLOT_BITS = 5
SLOT = 1 << SLOT_BITS
SUPERBLOCK = 1024
"""Where the superblock is in an image."""
DEVICE_TABLE = SUPERBLOCK + 128
"""Where the table of devices begins: a multiple of a device's slot."""
DEVICE_SLOT = 128
MAX_NAME = 255
MAX_TARGET = 4095
"""Bytes of a symbolic link's target, as Linux's PATH_MAX allows them."""
MAX_BLOCKS = (1 << 32) - 1
PLAIN, INLINE = 0, 2 << 1
"""Data in blocks, or in the block of the inode, after it."""

FILE_TYPES: Mapping[int, int] = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}
"""A directory entry's type by the format of the file's mode."""

_MAGIC = 0xE0F5E1E2
_HAS_CHECKSUM, _HAS_TIMES = 1, 2  # compatible features
_HAS_DEVICES = 8  # an incompatible feature
_EXTENDED = 1
_CRC32C = 0x82F63B78
_ALL = 0xFFFFFFFF

# magic, checksum, compatible features, block bits, more slots, root's nid, inodes, epoch, its nanoseconds,
# blocks, metadata's block, shared xattrs' block, uuid, label, incompatible features, algorithms, devices,
# their slot, directory block bits, prefixes, their start, packed inode's nid
_SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_DEVICE = Struct("<64sII56x")  # tag, blocks, first block among those of all devices
INODE = Struct("<HHHHQIIIIqII16x")
"""format, slots of xattrs, mode, 0, size, block or device number, number, uid, gid, mtime, ns, links."""
INODE_LINKS = 44
"""Where the count of links is in an inode."""
_DIRENT = "QHBx"  # nid, offset of the name in the block, type
_DIRENT_SIZE = 12
_DIRENTS = [Struct("<" + _DIRENT * count) for count in range(BLOCK // (_DIRENT_SIZE + 1) + 1)]
_XATTRS = Struct("<I8x")
_XATTR = Struct("<BBH")


def inode(
    layout: int,
    xattrs: int,
    mode: int,
    size: int,
    place: int,
    number: int,
    owner: tuple[int, int],
    mtime: tuple[int, int],
    links: int,
) -> bytes:
    """An inode of 64 bytes; `xattrs` are the bytes of its xattrs, which follow it."""
    count = (xattrs - 8) // 4 if xattrs else 0
    return INODE.pack(
        layout | _EXTENDED, count, mode, 0, size, place, number, *owner, *mtime, links
    )  # fmt: skip


def directory_size(names: Sequence[bytes]) -> tuple[int, list[int]]:
    """The bytes of a directory with these sorted names, and where each of its blocks begins in them."""
    used = 0
    total = _DIRENT_SIZE * len(names) + sum(map(len, names))
    if total <= BLOCK:
        return total, [0]
    starts = [0]
    for number, name in enumerate(names):
        cost = _DIRENT_SIZE + len(name)
        if used + cost > BLOCK:
            starts.append(number)
            used = 0
        used += cost
    return BLOCK * (len(starts) - 1) + used, starts


def directory_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """One block of a directory, not padded: entries, then names."""
    at = _DIRENT_SIZE * len(names)
    flat: list[int] = []
    for name, nid, kind in zip(names, nids, types, strict=True):
        flat += (nid, at, kind)
        at += len(name)
    return _DIRENTS[len(names)].pack(*flat) + b"".join(names)


def xattr_body(xattrs: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """What follows an inode that has xattrs: prefix (1 user, 2 and 3 ACLs, 4 trusted, 6 security), rest of
    the name, value."""
    parts = [_XATTRS.pack(0)]
    for prefix, name, value in xattrs:
        size = _XATTR.size + len(name) + len(value)
        parts += (_XATTR.pack(len(name), prefix, len(value)), name, value, bytes(-size % 4))
    return b"".join(parts)


def head(
    root: int, inodes: int, size: int, start: int, devices: Sequence[tuple[bytes, int, int]]
) -> bytes:
    """What comes before the inodes: `start` bytes with the superblock and the table of devices.

    `size` are the bytes of the image; of a device, tag, blocks and the first of them among all blocks.
    """
    data = bytearray(start)
    superblock = _SUPERBLOCK.pack(
        _MAGIC, 0, _HAS_CHECKSUM | _HAS_TIMES, BLOCK_BITS, 0, root, inodes, 0, 0,
        size >> BLOCK_BITS, start >> BLOCK_BITS, 0, bytes(16), b"soci", _HAS_DEVICES if devices else 0,
        0, len(devices), DEVICE_TABLE // DEVICE_SLOT if devices else 0, 0, 0, 0, 0,
    )  # fmt: skip
    data[SUPERBLOCK : SUPERBLOCK + len(superblock)] = superblock
    for number, device in enumerate(devices):
        at = DEVICE_TABLE + number * DEVICE_SLOT
        data[at : at + DEVICE_SLOT] = _DEVICE.pack(*device)
    checksum = crc32c(bytes(data[SUPERBLOCK:BLOCK]))
    data[SUPERBLOCK + 4 : SUPERBLOCK + 8] = checksum.to_bytes(4, "little")
    return bytes(data)


def crc32c(data: bytes) -> int:
    """CRC-32C without the last inversion, as the superblock has it over the rest of its block."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CRC32C if value & 1 else 0)
        table.append(value)
    found = _ALL
    for byte in data:
        found = found >> 8 ^ table[(found ^ byte) & 0xFF]
    return found
