"""Reading files out of a layer through its zTOC: only the spans that hold them are fetched.

The zTOC and the layer may come from strangers. Every span's compressed bytes are checked against the
digest in the zTOC before they are inflated, and no more is inflated than was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.text import brief
from soci_cli.ztoc.codec import Ztoc
from soci_cli.ztoc.inflate import GZIP, RAW, Z_NO_FLUSH, Buffer, Inflater
from soci_cli.ztoc.model import FileMetadata
from soci_cli.ztoc.sparse import map_of
from soci_cli.ztoc.zinfo import Spans

_OUTPUT_SIZE = 1 << 20
_GZIP_TRAILER = 8  # CRC-32 and size (RFC 1952, section 2.3)

ReadAt = Callable[[int, int], bytes]
"""Gives `length` compressed bytes of the layer from `offset`: `read_at(offset, length)`."""


class LayerReader:
    """Reads uncompressed ranges and files of one layer. `fetched` counts compressed bytes."""

    def __init__(self, ztoc: Ztoc, read_at: ReadAt, name: str = "layer") -> None:
        self.ztoc = ztoc
        self.fetched = 0
        self._read_at = read_at
        self._name = name

    def read_range(self, offset: int, length: int) -> Iterator[bytes]:
        """The uncompressed bytes [offset, offset + length), in pieces of at most 1 MiB.

        Raises IntegrityError for a span whose bytes are not those of the zTOC and InvalidDataError for
        one that does not hold what the zTOC says.
        """
        spans = self.ztoc.spans
        end = offset + length
        if length > 0 and not spans:
            raise self._short(0)
        while offset < end:
            span = spans.span_of(offset)
            start = spans.starts[span]
            stop = spans.starts[span + 1] if span + 1 < len(spans) else end
            skip, wanted = offset - start, min(end, stop) - start
            for piece in self._inflate(span, self._fetch(span), wanted):
                if skip < len(piece):
                    yield piece[skip:] if skip else piece
                skip = max(0, skip - len(piece))
            offset = min(end, stop)

    def read_file(self, entry: FileMetadata) -> Iterator[bytes]:
        """The content of a regular file, in pieces of at most 1 MiB.

        UnsupportedLayerError for a sparse file whose map the zTOC does not have.
        """
        if not entry.has_data:
            raise InvalidDataError(f"{brief(entry.name)} is not a regular file")
        offset, size = entry.uncompressed_offset, entry.uncompressed_size
        has_all_maps = self.ztoc.files.has_all_maps
        pieces = map_of(dict(entry.xattrs), size, has_all_maps=has_all_maps)
        if pieces is None:
            return self.read_range(offset, size)
        return pieces.fill(self.read_range(offset, pieces.stored))

    def _fetch(self, span: int) -> bytes:
        start, end = self.ztoc.spans.compressed_range(span)
        data = self._read_at(start, end - start)
        self.fetched += len(data)
        if len(data) != end - start:
            raise IntegrityError(
                f"{self._name}: span {span} is cut off: {len(data)} of {end - start} bytes"
            )
        digest = b"sha256:" + hashlib.sha256(data).hexdigest().encode()
        if digest != self.ztoc.span_digests[span]:
            raise IntegrityError(
                f"{self._name}: span {span} (bytes {start} to {end}) does not have the digest that "
                "the zTOC gives; the layer or its zTOC is damaged"
            )
        return data

    def _inflate(self, span: int, data: bytes, wanted: int) -> Iterator[bytes]:
        if not self.ztoc.spans.is_gzip:
            if wanted > len(data):
                raise self._short(span)
            yield data[:wanted]
            return
        packed, plain = Buffer(max(len(data), 1)), Buffer(min(wanted, _OUTPUT_SIZE) or 1)
        packed.view[: len(data)] = data
        produced = 0
        for count in inflate_span(self.ztoc.spans, span, packed, len(data), plain, wanted):
            produced += count
            yield bytes(plain.view[:count])
        if produced < wanted:
            raise self._short(span)

    def _short(self, span: int) -> InvalidDataError:
        return InvalidDataError(f"{self._name}: span {span} holds less than the zTOC says")


def inflate_span(
    spans: Spans, span: int, packed: Buffer, size: int, plain: Buffer, wanted: int
) -> Iterator[int]:
    """Inflates the first `wanted` bytes of a span, across gzip members.

    The `size` compressed bytes are at the start of `packed`. `plain` is filled from its start, again and
    again; how many bytes came is given each time. A span that `plain` has room for comes at once.
    """
    point = spans.checkpoints[span]
    room = plain.view.nbytes
    position = 1 if point.bits and size else 0
    filled = 0
    with Inflater(RAW) as inflater:
        stream = inflater.stream
        inflater.resume(point.bits, packed.view[0] if position else 0, point.window)
        raw = True
        while wanted and position < size:
            stream.next_in = packed.address + position
            stream.avail_in = size - position
            stream.next_out = plain.address + filled
            stream.avail_out = asked = min(wanted, room - filled)
            try:
                ended = inflater.run(Z_NO_FLUSH)
            except InvalidDataError as error:
                raise InvalidDataError(f"span {span} cannot be inflated: {error}") from None
            produced = asked - stream.avail_out
            moved = size - stream.avail_in - position
            position += moved
            wanted -= produced
            filled += produced
            if filled == room:
                yield filled
                filled = 0
            if ended:
                # A bare stream leaves the member's trailer; later members are read with theirs.
                position += _GZIP_TRAILER if raw else 0
                raw = False
                inflater.reset(GZIP)
            elif not produced and not moved:
                break
    if filled:
        yield filled
