"""Reading files out of a layer through its zTOC: only the spans that hold them are fetched.

The zTOC and the layer may come from strangers. Every span's compressed bytes are checked against the
digest in the zTOC before they are inflated, and no more is inflated than was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError
from soci_cli.text import brief
from soci_cli.ztoc.codec import Ztoc
from soci_cli.ztoc.inflate import GZIP, RAW, Z_NO_FLUSH, Buffer, Inflater
from soci_cli.ztoc.model import FileMetadata
from soci_cli.ztoc.zinfo import Spans

_OUTPUT_SIZE = 1 << 20
_GZIP_TRAILER = 8  # CRC-32 and size (RFC 1952, section 2.3)
_LINKS = (b"symlink", b"hardlink")
_MAX_LINKS = 40  # as Linux's ELOOP
_MAX_PATH = 4096  # bytes, as Linux's PATH_MAX

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
        """The content of a regular file, in pieces."""
        if not entry.has_data:
            raise InvalidDataError(f"{brief(entry.name)} is not a regular file")
        return self.read_range(entry.uncompressed_offset, entry.uncompressed_size)

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


class FileTree:
    """Finds files of a layer by path, as a file system would: the last entry of a name counts."""

    def __init__(self, ztoc: Ztoc) -> None:
        self._files = ztoc.files
        self._by_path = {clean_path(name): index for index, name in enumerate(ztoc.files.names())}

    def find(self, path: bytes) -> FileMetadata:
        """The file at `path`, links followed inside the layer.

        Raises NotFoundError where the layer has no such file or a link leads out of it.
        """
        parts = self._parts(clean_path(path), path)
        done: list[bytes] = []
        links = 0
        while parts:
            part = parts.pop()
            if part == b"..":
                del done[-1:]
                continue
            if part in (b"", b"."):
                continue
            done.append(part)
            index = self._by_path.get(b"/".join(done))
            if index is None:
                if parts:
                    continue  # archives need not name parent folders
                raise _missing(path, done)
            entry = self._files[index]
            if entry.type in _LINKS:
                links += 1
                if links > _MAX_LINKS:
                    raise NotFoundError(f"{brief(path)} leads through too many links")
                from_root = entry.type == b"hardlink" or entry.linkname.startswith(b"/")
                done = [] if from_root else done[:-1]
                parts += self._parts(entry.linkname, path)
            elif not parts:
                return entry
        # A link's target may end in a slash or in dots; what it leads to is a folder.
        index = self._by_path.get(b"/".join(done))
        if index is None or self._files[index].type in _LINKS:
            raise _missing(path, done)
        return self._files[index]

    def _parts(self, target: bytes, path: bytes) -> list[bytes]:
        """The parts of a path or of a link's target, last to first."""
        if len(target) > _MAX_PATH:
            raise NotFoundError(f"{brief(path)} leads through a path that is too long")
        return target.split(b"/")[::-1]


def _missing(path: bytes, reached: list[bytes]) -> NotFoundError:
    there = b"/".join(reached)
    if not there or there == clean_path(path):
        return NotFoundError(f"the layer has no file {brief(path)}")
    return NotFoundError(f"{brief(path)} leads to {brief(there)}, which the layer does not have")


def clean_path(name: bytes) -> bytes:
    """A name without leading slash, `.`, `..` and doubled slashes, as it counts from the root."""
    if b"/." not in name and b"//" not in name and name[:1] not in (b".", b"/"):
        return name.rstrip(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
