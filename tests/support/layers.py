"""Helpers that the tests of soci_cli.ztoc share: golden layers, tar headers made by hand, streams."""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import BuiltZtoc, Compression, FileMetadata, ReadAt, Ztoc, build_ztoc
from soci_cli.ztoc.codec import encode_ztoc
from soci_cli.ztoc.tar import TarScanner
from soci_cli.ztoc.toc_writer import TocWriter
from soci_cli.ztoc.zinfo import encode_gzip, encode_tar

GOLDEN = Path(__file__).parent.parent / "golden"
BUILD_TOOL = "AWS SOCI CLI v0.2"
END = bytes(1024)
"""The two zero blocks that end an archive."""

DIGEST = b"sha256:" + b"0" * 64


def golden_rows() -> list[dict[str, Any]]:
    """The rows of ztocs.json."""
    rows: list[dict[str, Any]] = json.loads((GOLDEN / "ztocs.json").read_text())
    return rows


def golden_layer(name: str) -> bytes:
    """A golden layer as it is stored."""
    return (GOLDEN / "layers" / name).read_bytes()


def golden_ztoc(name: str) -> bytes:
    """A golden zTOC, `LAYER.SPAN.ztoc`."""
    return (GOLDEN / "ztocs" / name).read_bytes()


def uncompressed(layer: bytes) -> bytes:
    """A layer without its compression: all members of a gzip stream, or the layer as it is."""
    if layer[:2] != b"\x1f\x8b":
        return layer
    parts = []
    while layer:
        inflater = zlib.decompressobj(31)
        parts.append(inflater.decompress(layer))
        layer = inflater.unused_data
    return b"".join(parts)


class Pieces:
    """A byte stream that gives at most `step` bytes a call."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self._data = memoryview(data)
        self._step = step

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), self._step, len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def build(layer: bytes, **options: Any) -> BuiltZtoc:
    """Builds the zTOC of a layer in memory."""
    return build_ztoc(io.BytesIO(layer), **options)


def reader_of(layer: bytes) -> ReadAt:
    """Gives ranges of a layer in memory."""
    return lambda offset, length: layer[offset : offset + length]


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux ru_maxrss of a new process begins at that of the process that started it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gz(data: bytes, level: int = 6) -> bytes:
    """One gzip member with the plainest header."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, 31)
    return deflater.compress(data) + deflater.flush()


def gz_member(deflated: bytes, data: bytes, *, flags: int = 0, extras: bytes = b"") -> bytes:
    """A gzip member around a bare DEFLATE stream; `extras` are the optional header fields."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\xff" + extras
    return header + deflated + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def deflate(data: bytes, level: int = 6) -> bytes:
    """A bare DEFLATE stream."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


# Tar archives made by hand.


def octal(value: int, width: int) -> bytes:
    """A number as octal digits and a NUL."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number as GNU writes those that octal digits cannot hold."""
    field = bytearray((value & ((1 << 8 * width) - 1)).to_bytes(width, "big"))
    field[0] |= 0x80
    return bytes(field)


def header(
    name: bytes = b"file",
    *,
    type_: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_700_000_000,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    uname: bytes = b"",
    gname: bytes = b"",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """A header block. A number given as bytes is the field as it stands; `prefix` is all the rest."""

    def number(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else octal(value, width)

    def block(checksum: bytes) -> bytes:
        return struct.pack(
            "100s8s8s8s12s12s8s1s100s8s32s32s8s8s167s",
            name,
            number(mode, 8),
            number(uid, 8),
            number(gid, 8),
            number(size, 12),
            number(mtime, 12),
            checksum,
            type_,
            link,
            magic,
            uname,
            gname,
            number(major, 8),
            number(minor, 8),
            prefix,
        )

    return block(checksum or b"%06o\0 " % sum(block(b" " * 8)))


GNU = b"ustar  \0"
V7 = bytes(8)


def padded(data: bytes) -> bytes:
    """Data and the zeros after it, up to a whole block."""
    return data + bytes(-len(data) % 512)


def file(name: bytes = b"file", data: bytes = b"", **fields: Any) -> bytes:
    """A file's header and data."""
    return header(name, size=len(data), **fields) + padded(data)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One record of an extended header; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d" % length + rest


def pax(records: Sequence[tuple[bytes, bytes]] | bytes, type_: bytes = b"x") -> bytes:
    """An extended header, from records or from a payload as it stands."""
    payload = records if isinstance(records, bytes) else b"".join(pax_record(*r) for r in records)
    return file(b"PaxHeaders/x", payload, type_=type_)


def pax_file(*records: tuple[bytes, bytes], **fields: Any) -> bytes:
    """A file with an extended header before it."""
    return pax(records) + file(b"name", **fields)


def long_name(name: bytes, type_: bytes = b"L") -> bytes:
    """A GNU long name, or a long link with the type K."""
    return file(b"././@LongLink", name + b"\0", type_=type_, magic=GNU)


class Recorder(TocWriter):
    """Keeps each file as it was added."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[FileMetadata] = []

    def add(
        self,
        name: bytes,
        type_: bytes,
        linkname: bytes,
        uname: bytes,
        gname: bytes,
        mod_time: bytes,
        numbers: tuple[int, int, int, int, int, int, int],
        xattrs: Sequence[tuple[bytes, bytes]],
    ) -> None:
        super().add(name, type_, linkname, uname, gname, mod_time, numbers, xattrs)
        offset, size, mode, uid, gid, major, minor = numbers
        self.entries.append(
            FileMetadata(
                name=name,
                type=type_,
                uncompressed_offset=offset,
                uncompressed_size=size,
                linkname=linkname,
                mode=mode,
                uid=uid,
                gid=gid,
                uname=uname,
                gname=gname,
                mod_time=mod_time,
                devmajor=major,
                devminor=minor,
                xattrs=tuple(xattrs),
            )
        )


def scan(archive: bytes, cuts: Iterable[int] = ()) -> tuple[list[FileMetadata], int]:
    """The files of an archive and its size, fed in pieces that end at `cuts`."""
    toc = Recorder()
    scanner = TarScanner(toc.add)
    # The piece never starts where the buffer does.
    buffer = bytearray(b"?" * 7 + archive)
    ends = sorted({min(cut, len(archive)) for cut in cuts} | {len(archive)})
    start = 0
    for end in ends:
        scanner.feed(buffer, 7 + start, 7 + end)
        start = end
    scanner.finish()
    return toc.entries, scanner.archive_size


def refused(archive: bytes) -> None:
    """Fails unless the archive is refused."""
    with pytest.raises(InvalidDataError):
        scan(archive)


def scan_one(archive: bytes) -> FileMetadata:
    """The only file of an archive."""
    entries, _ = scan(archive)
    assert len(entries) == 1
    return entries[0]


def make_tar(
    files: Sequence[tuple[str, bytes]] | Callable[[tarfile.TarFile], None],
    format_: int = tarfile.GNU_FORMAT,
) -> bytes:
    """An archive written by Python's tarfile."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        if callable(files):
            files(archive)
        else:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                info.mtime = 1_700_000_000
                archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def mixed_data(size: int, seed: int = 1) -> bytes:
    """Data that compresses somewhat: words and noise."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(3, 12)) for _ in range(200)]
    result = bytearray()
    while len(result) < size:
        result += source.choice(words) if source.random() < 0.97 else source.randbytes(200)
    return bytes(result[:size])


# zTOCs made by hand.


def toc_of(entries: Iterable[FileMetadata]) -> TocWriter:
    """A writer that holds the entries."""
    toc = TocWriter()
    for entry in entries:
        toc.add(
            entry.name,
            entry.type,
            entry.linkname,
            entry.uname,
            entry.gname,
            entry.mod_time,
            (
                entry.uncompressed_offset,
                entry.uncompressed_size,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.devmajor,
                entry.devminor,
            ),
            entry.xattrs,
        )
    return toc


def tar_ztoc(
    entries: Iterable[FileMetadata],
    *,
    size: int = 1 << 20,
    span_size: int = 1 << 20,
    digests: Sequence[bytes] | None = None,
    blob: bytes | None = None,
) -> bytes:
    """A zTOC for a plain tar, with all parts as given."""
    return encode_ztoc(
        toc_of(entries),
        build_tool_identifier="test",
        compression=Compression.UNCOMPRESSED,
        compressed_size=size,
        uncompressed_size=size,
        checkpoints=[encode_tar(span_size, size) if blob is None else blob],
        span_digests=[DIGEST] * -(-size // span_size) if digests is None else digests,
    )


def gzip_ztoc(
    entries: Iterable[FileMetadata],
    checkpoints: Sequence[tuple[int, int, int, bytes]],
    *,
    size: int = 1 << 20,
    uncompressed_size: int = 1 << 20,
    digests: Sequence[bytes] | None = None,
    blob: Sequence[bytes | memoryview] | None = None,
) -> bytes:
    """A zTOC for a gzip layer, with all parts as given."""
    return encode_ztoc(
        toc_of(entries),
        build_tool_identifier="test",
        compression=Compression.GZIP,
        compressed_size=size,
        uncompressed_size=uncompressed_size,
        checkpoints=encode_gzip(65536, checkpoints) if blob is None else list(blob),
        span_digests=[DIGEST] * len(checkpoints) if digests is None else digests,
    )


def entries_of(ztoc: Ztoc) -> list[FileMetadata]:
    """All files of a zTOC."""
    return list(ztoc.files)


def utc(seconds: float) -> bytes:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=int(seconds))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
