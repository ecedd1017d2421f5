"""The uncompressed archive of a layer, wherever its bytes are: what files and mounts read from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from soci_cli.closing import Closing
from soci_cli.lazy.stats import Presence

if TYPE_CHECKING:
    from soci_cli.lazy.span_queue import PendingSpan, Priority

_PIECE = 256 << 10

Name: TypeAlias = Callable[[], bytes]
"""Gives the name of the file that is read, which is rarely needed."""


def no_name() -> bytes:
    """For a file of unknown name."""
    return b""


def no_advance(_: int) -> None:
    """For work whose progress nobody follows."""


@contextmanager
def errors_of(future: Future[bytes]) -> Iterator[None]:
    """What the block raises is the error of a future."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - raised again where the result is used
        future.set_exception(error)


class LayerBytes(Closing):
    """Reads ranges of one layer's archive; several threads may.

    `name` gives the file that is charged for what is fetched. Reading raises InvalidDataError for bytes
    that there are not, IntegrityError, StorageError, and what fetching raises.
    """

    @abstractmethod
    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """Fills a buffer from `offset` on, without waiting for a disk or a network; False if it must."""

    @abstractmethod
    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """The bytes [offset, offset + length), as soon as they are here; does not wait.

        Callbacks of the future are called by the thread that got the last of them.
        """

    def read(self, offset: int, length: int, name: Name = no_name) -> bytes:
        """The bytes [offset, offset + length), waited for."""
        return self.submit(offset, length, name).result()

    def pieces(self, offset: int, length: int, name: Name = no_name) -> Iterator[memoryview]:
        """As `read`, in pieces, the later ones fetched while the first are used."""
        advance = self.ahead([(offset, length)], name)
        end = offset + length
        while offset < end:
            advance(offset)
            piece = self.read(offset, min(_PIECE, end - offset), name)
            yield memoryview(piece)
            offset += len(piece)

    @abstractmethod
    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """Prepares for reading ranges in ascending order: call the result with each offset."""

    def presence(self) -> Presence:
        """How much of the layer is on this machine, as far as that is known."""
        return Presence(0, 0, 0, 0)

    def complete(self, advance: Callable[[int], None] = no_advance) -> None:
        """Fetches all that is missing, and makes of the layer a complete device, unless it is one.

        `advance` is told of compressed bytes, and raises when there is no more need of it. Raises
        StorageError where the cache takes none, UnsupportedLayerError and InvalidDataError where it cannot
        be one, and what reading raises.
        """

    # What can be fetched before anybody asks: nothing, where a layer is here as a whole.

    @property
    def span_count(self) -> int:
        """The number of spans that can be fetched one by one."""
        return 0

    def missing(self) -> list[int]:
        """The spans that are not in the cache, in order."""
        return []

    def chunks(self, numbers: Iterable[int], limit: int) -> Iterator[list[int]]:
        """Ascending spans, those together that come with one request."""
        return iter(())

    def fetch(
        self, numbers: Iterable[int], priority: Priority, name: Name = no_name
    ) -> list[PendingSpan]:
        """Begins to fetch those spans that are not here."""
        return []

    def size_of(self, numbers: Iterable[int]) -> int:
        """The uncompressed bytes of spans."""
        return 0
