"""What a zTOC says, as plain data (docs/formats.md, "zTOC")."""

from __future__ import annotations

from dataclasses import dataclass, field

ZTOC_VERSION = b"0.9"
ZTOC_MEDIA_TYPE = "application/octet-stream"

"""Bytes of uncompressed data after which a new span may begin."""

WINDOW_SIZE = 32768
"""Bytes of history that DEFLATE can refer to (RFC 1951, section 2)."""

XATTR_PREFIX = b"SCHILY.xattr."
"""The PAX records whose key starts so are extended attributes."""

OPAQUE_WHITEOUT = b".wh..wh..opq"
"""The name of a file that hides what lower layers have in its folder (OCI image spec, layer.md)."""


class Compression:
    """The compression algorithms of a zTOC, by their number in the schema."""

    GZIP = 1
    UNCOMPRESSED = 2


HOLES = 64
"""Added to the algorithm's number where the layer has sparse files: who cannot read them refuses it."""


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """One entry of a layer's tar archive. Names are bytes, as the archive has them.

    `uncompressed_offset` is where the data starts in the uncompressed archive and `uncompressed_size`
    the size that the header gives, both in bytes; a link, folder or device has no data whatever its
    size says. Of a sparse file it is the size of the file, of which less is stored: `sparse.py` tells
    where that belongs. `mode` is the number in the header, `mod_time` RFC 3339 text. `xattrs` holds all PAX
    records of the entry, by key.
    """

    name: bytes
    type: bytes
    uncompressed_offset: int
    uncompressed_size: int
    linkname: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    uname: bytes = b""
    gname: bytes = b""
    mod_time: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def has_data(self) -> bool:
        """Whether the entry is a regular file, the only kind with bytes of its own."""
        return self.type == b"reg"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in a gzip stream where inflating can begin.

    `compressed_offset` is that of the first whole byte, `bits` (0-7) how many bits of the byte before
    it are still to be read, and `window` the 32 KiB of output before it.
    """

    compressed_offset: int
    uncompressed_offset: int
    bits: int
    window: bytes = field(repr=False)

    @property
    def first_byte(self) -> int:
        """The offset of the first compressed byte that inflating from here needs."""
        return self.compressed_offset - (1 if self.bits else 0)
