"""A reader of EROFS images of metadata that believes nothing, after Linux's fs/erofs/erofs_fs.h.

It shares no code with the writer. Whatever the kernel could stumble over is an AssertionError.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

BLOCK = 4096
TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    7: stat.S_IFLNK,
}
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


@dataclass(frozen=True)
class Found:
    """One inode; `place` is the first block of its data, or the number of a device."""

    nid: int
    mode: int
    size: int
    place: int
    owner: tuple[int, int]
    mtime: tuple[int, int]
    links: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    inline: int
    """Where data beside the inode begins; -1 where it is in blocks."""


@dataclass(frozen=True)
class Checked:
    """What an image holds: inodes by path (the root is b""), and the devices' first blocks and sizes."""

    files: dict[bytes, Found]
    targets: dict[bytes, bytes]
    devices: list[tuple[int, int]]


class Checker:
    """Reads a whole image."""

    def __init__(self, data: bytes) -> None:
        assert len(data) % BLOCK == 0
        self._data = data
        magic, checksum, compat, bits, slots, root, inodes = struct.unpack_from(
            "<IIIBBHQ", data, 1024
        )
        epoch, nanoseconds, blocks, meta, shared = struct.unpack_from("<QIIII", data, 1048)
        incompat, algorithms, devices, slot = struct.unpack_from("<IHHH", data, 1024 + 80)
        assert (magic, compat, bits, slots) == (0xE0F5E1E2, 3, 12, 0)
        assert (epoch, nanoseconds, shared, algorithms) == (0, 0, 0, 0)
        assert not any(data[1024 + 90 : 1024 + 128])
        assert not any(data[:1024])
        assert blocks * BLOCK == len(data)
        copy = bytearray(data[1024:BLOCK])
        copy[4:8] = bytes(4)
        assert checksum == crc32c(bytes(copy))
        self._meta = meta * BLOCK
        assert BLOCK <= self._meta <= len(data)
        assert incompat == (8 if devices else 0)
        self._devices = []
        end = len(data)
        for number in range(devices):
            at = slot * 128 + number * 128
            assert 1024 + 128 <= at <= self._meta - 128
            count, first = struct.unpack_from("<II", data, at + 64)
            assert first * BLOCK >= end
            end = (first + count) * BLOCK
            assert end <= BLOCK << 32
            self._devices.append((first, count))
        self._owned: list[tuple[int, int]] = []
        self._names: Counter[int] = Counter()
        self._files: dict[bytes, Found] = {}
        self._targets: dict[bytes, bytes] = {}
        self._walk(root)
        assert len({found.nid for found in self._files.values()}) == inodes
        for found in self._files.values():
            if not stat.S_ISDIR(found.mode):
                assert found.links == self._names[found.nid]
        self._owned.sort()
        for (_, stop), (begin, _) in pairwise(self._owned):
            assert stop <= begin, "two things share bytes"
        self.found = Checked(self._files, self._targets, self._devices)

    def _walk(self, root: int) -> None:
        seen: dict[int, Found] = {}
        stack = [(b"", root, root)]
        while stack:
            path, nid, parent = stack.pop()
            found = seen.get(nid)
            if found is None:
                found = seen[nid] = self._inode(nid)
            else:
                assert not stat.S_ISDIR(found.mode), "a directory has two parents"
            self._files[path] = found
            self._names[nid] += 1
            if stat.S_ISLNK(found.mode):
                self._targets[path] = self._content(found)
                assert b"\0" not in self._targets[path]
            if not stat.S_ISDIR(found.mode):
                continue
            entries = self._entries(found)
            names = [name for name, _, _ in entries]
            assert names == sorted(set(names))
            directories = 0
            for name, child, kind in entries:
                if name in (b".", b".."):
                    assert child == (nid if name == b"." else parent) and kind == 2
                    continue
                assert 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name
                directories += kind == 2
                stack.append((path + b"/" + name if path else name, child, nid))
                assert (
                    stat.S_IFMT(
                        struct.unpack_from("<H", self._data, self._meta + child * 32 + 4)[0]
                    )
                    == TYPES[kind]
                )
            assert {b".", b".."} <= set(names)
            assert found.links == directories + 2

    def _inode(self, nid: int) -> Found:
        at = self._meta + nid * 32
        assert at + 64 <= len(self._data)
        layout, count, mode, zero, size, place, _, uid, gid, seconds, nanoseconds, links = (
            struct.unpack_from("<HHHHQIIIIqII", self._data, at)
        )
        assert layout in (1, 1 | 2 << 1) and zero == 0 and nanoseconds < 10**9
        assert not any(self._data[at + 48 : at + 64])
        body = at + 64
        xattrs = self._xattrs(body, count) if count else ()
        end = body + (12 + 4 * (count - 1) if count else 0)
        inline = -1
        kind = stat.S_IFMT(mode)
        assert kind in TYPES.values()
        if layout != 1:
            inline = end
            assert 0 < size <= BLOCK and inline // BLOCK == (inline + size - 1) // BLOCK
            end += size
        elif kind in (stat.S_IFDIR, stat.S_IFLNK):
            assert size and self._meta <= place * BLOCK <= place * BLOCK + size <= len(self._data)
            self._owned.append((place * BLOCK, place * BLOCK + size))
        elif kind == stat.S_IFREG and size:
            stop = place + -(-size // BLOCK)
            assert any(first <= place < stop <= first + length for first, length in self._devices)
        self._owned.append((at, end))
        return Found(
            nid, mode, size, place, (uid, gid), (seconds, nanoseconds), links, xattrs, inline
        )

    def _xattrs(self, at: int, count: int) -> tuple[tuple[bytes, bytes], ...]:
        end = at + 12 + 4 * (count - 1)
        assert end <= len(self._data) and not any(self._data[at : at + 12])
        at += 12
        found = {}
        while at < end:
            length, prefix, size = struct.unpack_from("<BBH", self._data, at)
            name = PREFIXES[prefix] + self._data[at + 4 : at + 4 + length]
            assert len(name) <= 255 and name not in found
            found[name] = self._data[at + 4 + length : at + 4 + length + size]
            at += 4 + length + size
            at += -at % 4
        assert at == end
        return tuple(sorted(found.items()))

    def _content(self, found: Found) -> bytes:
        at = found.inline if found.inline >= 0 else found.place * BLOCK
        return self._data[at : at + found.size]

    def _entries(self, directory: Found) -> list[tuple[bytes, int, int]]:
        content = self._content(directory)
        entries = []
        for begin in range(0, len(content), BLOCK):
            block = content[begin : begin + BLOCK]
            first = struct.unpack_from("<H", block, 8)[0]
            assert 0 < first < len(block) and first % 12 == 0
            count = first // 12
            heads = [struct.unpack_from("<QHB", block, 12 * number) for number in range(count)]
            at = first
            for number, (nid, offset, kind) in enumerate(heads):
                assert offset == at
                at = heads[number + 1][1] if number + 1 < count else len(block)
                assert offset < at <= len(block)
                name = block[offset:at]
                if number + 1 == count:
                    name = name.rstrip(b"\0")
                entries.append((name, nid, kind))
        return entries


def check(data: bytes) -> Checked:
    """What an image holds; AssertionError where it breaks the format."""
    return Checker(data).found


def crc32c(data: bytes) -> int:
    """Bit by bit, with the seed of all ones and no inversion at the end."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value
