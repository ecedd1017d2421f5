"""Blobs as streams: what reads and writes them, and the check that every byte from outside goes through."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TypeAlias

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of, new_hash

BytesLike: TypeAlias = bytes | bytearray | memoryview


class BlobReader(Protocol):
    """A stream of one blob, or of a range of it. The bytes are not verified."""

    @property
    def skipped(self) -> int:
        """Bytes before the range that had to be read and dropped, because the place knows no ranges."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, all that is left when negative; empty at the end."""

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill the front of `buffer`; the number of bytes, 0 at the end."""

    def close(self) -> None:
        """Let go of the file or the connection; may be called twice."""

    def __enter__(self) -> BlobReader: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Writer(Protocol):
    """One blob that is being written. Nobody sees it before `commit`."""

    def write(self, data: BytesLike, /) -> int:
        """Append `data` and give its length. IntegrityError when the blob grows past its size."""

    def commit(self) -> None:
        """Verify size and digest (IntegrityError), make the bytes durable, show the blob."""

    def abort(self) -> None:
        """Drop what was written. Does nothing when called again or after a successful commit."""


def check_range(descriptor: Descriptor, offset: int, length: int | None) -> int:
    """The number of bytes that a fetch of this range gives. InvalidDataError outside the blob."""
    count = descriptor.size - offset if length is None else length
    if offset < 0 or count < 0 or offset + count > descriptor.size:
        raise InvalidDataError(
            f"bytes {offset} to {offset + count} were asked of blob {descriptor.digest}, "
            f"which has {descriptor.size}"
        )
    return count


class ContentCheck:
    """Counts and hashes the bytes of one blob while they are read or written."""

    def __init__(self, descriptor: Descriptor, place: str) -> None:
        self._descriptor = descriptor
        self._place = place
        self._hash = new_hash(descriptor.digest)
        self._written = 0

    def add(self, data: BytesLike) -> None:
        """Take the next bytes. IntegrityError when the blob grows past its size."""
        length = memoryview(data).nbytes
        if self._written + length > self._descriptor.size:
            raise self._error(f"is longer than the {self._descriptor.size} bytes of its descriptor")
        self._hash.update(data)
        self._written += length

    def verify(self) -> None:
        """IntegrityError unless all bytes came and they have the descriptor's digest."""
        if self._written != self._descriptor.size:
            raise self._error(f"ended after {self._written} of {self._descriptor.size} bytes")
        if self._hash.hexdigest() != encoded_of(self._descriptor.digest):
            raise self._error("does not have that digest; the place it comes from is damaged")

    def _error(self, what: str) -> IntegrityError:
        return IntegrityError(f"blob {self._descriptor.digest} {what}", place=self._place)
