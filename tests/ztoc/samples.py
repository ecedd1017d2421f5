"""Small layers and zTOCs, and what reading them gives."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from soci_cli.errors import SociError
from soci_cli.ztoc import (
    Compression,
    FileMetadata,
    FileTree,
    LayerReader,
    Ztoc,
    builder,
    decode_ztoc,
)
from tests.support.layers import (
    DIGEST as ANY_DIGEST,
)
from tests.support.layers import (
    build,
    entries_of,
    golden_layer,
    gz,
    gzip_ztoc,
    make_tar,
    mixed_data,
    reader_of,
    tar_ztoc,
    uncompressed,
)

NAMES = [
    (f"folder/file-{i}", mixed_data(size, i)) for i, size in enumerate((0, 10, 70_000, 200_000, 5))
]
ARCHIVE = make_tar(NAMES)
LAYER = gz(ARCHIVE)
DIGEST = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"

VALID_TAR = tar_ztoc(
    [
        FileMetadata(b"a/", b"dir", 0, 0, mode=0o755),
        FileMetadata(b"a/file", b"reg", 1024, 5, xattrs=((b"mtime", b"1.5"), (b"x", b"y"))),
        FileMetadata(b"a/link", b"symlink", 2048, 0, b"file", xattrs=((b"x", b"y"),)),
        FileMetadata(b"hard", b"hardlink", 2048, 0, b"a/file"),
    ],
    size=10_240,
    span_size=4096,
)
# Version 1 of the checkpoints: the first is implied, so there is none.
VALID_GZIP = gzip_ztoc(
    [FileMetadata(b"a/file", b"reg", 512, 5, uname=b"root", devmajor=3)],
    [],
    size=100,
    uncompressed_size=2048,
    digests=[ANY_DIGEST],
    blob=[struct.pack("<iq", 1, 4096)],
)


def read_back(layer: bytes, **options: int) -> Ztoc:
    """Builds, decodes and reads every file; returns the zTOC."""
    built = build(layer, **options)
    ztoc = decode_ztoc(built.data)
    assert built.digest == f"sha256:{hashlib.sha256(built.data).hexdigest()}"
    assert built.layer_size == len(layer)
    assert built.files == len(NAMES)
    reader = LayerReader(ztoc, reader_of(layer))
    for entry, (name, data) in zip(ztoc.files, NAMES, strict=True):
        assert entry.name == name.encode()
        assert b"".join(reader.read_file(entry)) == data
    for span, digest in enumerate(ztoc.span_digests):
        start, end = ztoc.spans.compressed_range(span)
        assert digest.decode() == f"sha256:{hashlib.sha256(layer[start:end]).hexdigest()}"
    return ztoc


def mixed_archive() -> bytes:
    return make_tar([(f"f{i}", mixed_data(300_000, i)) for i in range(10)])


def run_python(script: str) -> int:
    """Runs a script that prints its peak memory in bytes; returns it in MiB."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(builder.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout) >> 20


def use(data: bytes) -> None:
    """Does all that a reader does with a zTOC; raises only SociError."""
    ztoc = decode_ztoc(data)
    names = list(ztoc.files.names())
    ztoc.files.needs_xattrs()
    entries = entries_of(ztoc)
    assert names == [entry.name for entry in entries]
    tree = FileTree(ztoc)
    for path in (b"a/file", b"a/link", b"hard", b""):
        try:
            entry = tree.find(path)
        except SociError:
            continue
        reader = LayerReader(ztoc, reader_of(bytes(200)))
        if entry.has_data:
            for _ in reader.read_file(entry):
                break
    for index, entry in enumerate(entries):
        assert (ztoc.files.name_of(index), ztoc.files.type_of(index)) == (entry.name, entry.type)
        assert (
            not entry.has_data or 0 <= entry.uncompressed_offset <= ztoc.uncompressed_archive_size
        )


def use_or_refuse(data: bytes) -> None:
    try:
        use(data)
    except SociError as error:
        assert str(error)
        assert len(str(error)) < 2000


@dataclass(frozen=True)
class Sample:
    """A layer, its zTOC and its uncompressed bytes."""

    layer: bytes
    data: bytes
    ztoc: Ztoc

    def reader(self) -> LayerReader:
        return LayerReader(self.ztoc, reader_of(self.layer), "sample")


@lru_cache(maxsize=64)
def sample(name: str, span_size: int) -> Sample:
    layer = golden_layer(name)
    plain = name.endswith(".tar")
    compression = Compression.UNCOMPRESSED if plain else Compression.GZIP
    built = build(layer, span_size=span_size, compression=compression)
    return Sample(layer, uncompressed(layer), decode_ztoc(built.data))


def content(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)
