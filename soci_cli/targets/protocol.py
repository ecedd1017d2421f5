"""What every place that holds images can do: a folder, a tar file, the local store, a registry.

A place is opened with one reference. As a `Source` it says what that reference means and hands out
blobs; as a `Target` it also takes blobs and, as the last step, makes the reference mean a
descriptor. `copy.py` moves any graph between any two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

from soci_cli.oci.descriptor import Descriptor

BytesLike: TypeAlias = bytes | bytearray | memoryview


class BlobReader(Protocol):
    """A stream of one blob, or of a range of it. The bytes are not verified."""

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


class Source(Protocol):
    """A place to read an image from. Several threads may call `fetch` and `exists`."""

    @property
    def name(self) -> str:
        """The place as the user wrote it, for messages."""

    def resolve(self) -> Descriptor:
        """What the reference this place was opened with means.

        Annotations that only name the entry (org.opencontainers.image.ref.name and the like) are
        left out, the platform is kept. NotFoundError when there is no such image.
        """

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """The bytes `offset` to `offset + length` of a blob, or to its end.

        NotFoundError names digest and place when the blob is absent; IntegrityError at once when
        the stored size differs from the descriptor's; InvalidDataError when the range leaves the
        blob.
        """

    def exists(self, descriptor: Descriptor) -> bool:
        """True when the blob is here and has the descriptor's size."""

    def names(self) -> dict[str, str]:
        """The annotations that name the image in its place, to be kept in a new place."""

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """The manifests here that refer to the manifest `subject`, with this artifact type.

        A manifest without an artifact type has that of its config (OCI distribution spec, "Listing
        Referrers"). In the order in which the place lists them.
        """

    def close(self) -> None:
        """Let go of files and connections."""

    def __enter__(self) -> Source: ...

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


class Target(Source, Protocol):
    """A place that images are written to. Leaving it without `tag` leaves nothing half-written."""

    def open_writer(self, descriptor: Descriptor) -> Writer:
        """Begin a blob. Several writers may be open at once, in several threads."""

    def push(self, descriptor: Descriptor, data: bytes) -> None:
        """Write a small blob that is in memory; nothing happens when it is there already.

        A registry and the local store list a manifest with a subject among the referrers of that.
        """

    def link(self, descriptor: Descriptor, source: Source) -> bool:
        """Share a blob of another place without copying it; False when that cannot be done.

        The bytes are not read, so the caller has verified them, as `copy_blob` does.
        """

    def before(self) -> Source | None:
        """The place as it was before anything was written, to read; None when it was not there.

        A caller that opened it closes it, which leaves this target open.
        """

    def tag(self, descriptor: Descriptor) -> None:
        """The last step: the reference this place was opened with now means `descriptor`."""

    def __enter__(self) -> Target: ...


def push_blob(target: Target, descriptor: Descriptor, data: bytes) -> None:
    """`Target.push` by means of a writer."""
    if target.exists(descriptor):
        return
    writer = target.open_writer(descriptor)
    try:
        writer.write(data)
        writer.commit()
    finally:
        writer.abort()


@runtime_checkable
class Mounting(Protocol):
    """A place that can take a blob from its neighbour without any bytes passing through here."""

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Take the blob from `source`; False when that cannot be done."""


@runtime_checkable
class Originating(Protocol):
    """A place that knows other places which have a blob that it lacks."""

    def origins(self, descriptor: Descriptor) -> Sequence[Source]:
        """Those other places, opened."""


@runtime_checkable
class FileBlobs(Protocol):
    """A place that keeps each blob as a file of its own, which `Target.link` may share."""

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
