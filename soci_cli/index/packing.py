"""How the bytes of a layer are packed: its first bytes decide, for media types lie now and then."""

from __future__ import annotations

from typing import IO, Any, Protocol, cast

import zstandard

from soci_cli.errors import InvalidDataError
from soci_cli.oci import Descriptor, media_types
from soci_cli.targets import Source

HEAD = 18
"""Bytes that tell how a layer is packed: as many as a header of a zstd frame may have (RFC 8878, 3.1.1)."""
MAX_WINDOW = 512 << 20
"""Bytes of the largest window of a zstd stream that is read, as containerd has it."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = bytes.fromhex("2a4d18")  # after a byte from 0x50 to 0x5f (RFC 8878, 3.1.2)
_PACKINGS = ("gzip", "zstd", "uncompressed", "unknown")
_READ_SIZE = 1 << 20


class Stream(Protocol):
    """The bytes of a layer."""

    def read(self, size: int, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int: ...


def packing_of_bytes(start: bytes) -> str:
    """ "gzip", "zstd" or "uncompressed", by the first bytes of a layer."""
    if start.startswith(_GZIP):
        return "gzip"
    is_skippable = start[1:4] == _SKIPPABLE and 0x50 <= start[0] <= 0x5F
    return "zstd" if start.startswith(_ZSTD) or is_skippable else "uncompressed"


def packing_of(layer: Descriptor, source: Source) -> str:
    """As `packing_of_bytes`, of a layer that is somewhere."""
    with source.fetch(layer, 0, min(HEAD, layer.size)) as stream:
        return packing_of_bytes(stream.read())


def is_plain_type(layer: Descriptor) -> bool:
    """Whether a layer's type says no more than how it is packed: it is not encrypted, say."""
    return media_types.layer_compression(layer.media_type) in _PACKINGS


def compression_of(layer: Descriptor, source: Source) -> str:
    """ "gzip", "uncompressed", "zstd", or another name that cannot be indexed.

    What cannot be indexed by its type is looked at, too; `build_ztoc`'s caller looks at the rest.
    """
    name = media_types.layer_compression(layer.media_type)
    return packing_of(layer, source) if name in ("unknown", "zstd") else name


class Peeked:
    """A stream whose first bytes, `start`, were looked at."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.start = b""
        while len(self.start) < HEAD and (piece := stream.read(HEAD - len(self.start))):
            self.start += piece
        self._rest = self.start

    def read(self, size: int = -1) -> bytes:
        """As of the stream."""
        if not self._rest:
            return self._stream.read(size)
        if size < 0:
            size = len(self._rest)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def readinto(self, buffer: memoryview, /) -> int:
        """As of the stream."""
        if not self._rest:
            return self._stream.readinto(buffer)
        piece = self.read(memoryview(buffer).nbytes)
        buffer[: len(piece)] = piece
        return len(piece)


def unpack_zstd(stream: Stream) -> Any:
    """The content of a zstd stream, as one. InvalidDataError for one with too large a window."""
    peeked = Peeked(stream)
    if peeked.start.startswith(_ZSTD):
        window = zstandard.get_frame_parameters(peeked.start).window_size
        if window > MAX_WINDOW:
            raise InvalidDataError(
                f"its zstd stream has a window of {window >> 20} MiB, and the limit is "
                f"{MAX_WINDOW >> 20} MiB; compress the layer with a smaller one (zstd --long=29 at most)"
            )
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    return decompressor.stream_reader(
        cast(IO[bytes], peeked), read_size=_READ_SIZE, read_across_frames=True
    )
