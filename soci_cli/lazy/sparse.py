"""The content of a sparse file: what is stored of it, and zeros between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future

from soci_cli.lazy.layer_bytes import LayerBytes, Name, errors_of, no_name
from soci_cli.ztoc.layer import LayerFiles
from soci_cli.ztoc.sparse import SparseMap


class SparseBytes(LayerBytes):
    """Reads one sparse file; offsets are those in the file. Closing it closes nothing."""

    def __init__(self, archive: LayerBytes, offset: int, pieces: SparseMap) -> None:
        """What is stored begins at `offset` in the archive."""
        self._archive = archive
        self._offset = offset
        self._pieces = pieces

    def close(self) -> None:
        """See the class."""

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `LayerBytes.read_now`."""
        start, count = self._stored(offset, buffer.nbytes)
        data = bytearray(count)
        if count and not self._archive.read_now(start, memoryview(data), name):
            return False
        buffer[:] = self._pieces.spread(offset, buffer.nbytes, data)
        return True

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """See `LayerBytes.submit`."""
        future: Future[bytes] = Future()

        def finish(stored: Future[bytes]) -> None:
            with errors_of(future):
                future.set_result(self._pieces.spread(offset, length, stored.result()))

        start, count = self._stored(offset, length)
        if count:
            self._archive.submit(start, count, name).add_done_callback(finish)
        else:
            future.set_result(bytes(length))
        return future

    def read(self, offset: int, length: int, name: Name = no_name) -> bytes:
        """See `LayerBytes.read`."""
        start, count = self._stored(offset, length)
        data = self._archive.read(start, count, name) if count else b""
        return self._pieces.spread(offset, length, data)

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """See `LayerBytes.ahead`."""
        advance = self._archive.ahead([self._stored(*one) for one in ranges], name)
        return lambda offset: advance(self._stored(offset, 0)[0])

    def _stored(self, offset: int, length: int) -> tuple[int, int]:
        """Where in the archive bytes of the file are, and how many of them."""
        start = self._pieces.before(offset)
        return self._offset + start, self._pieces.before(offset + length) - start


def spread(
    archive: LayerBytes, offset: int, files: LayerFiles, entry: int
) -> tuple[LayerBytes, int]:
    """What a regular file at an offset of its layer's archive is read from, and from where.

    Raises as `TableOfContents.sparse_map`.
    """
    pieces = files.sparse_map(entry)
    return (archive, offset) if pieces is None else (SparseBytes(archive, offset, pieces), 0)
