"""What a place that holds images is: a folder, a tar file, the local store, a registry, containerd.

A place is opened with one reference. As a `Source` it says what that reference means and hands out
blobs; as a `Target` it also takes blobs and, as the last step, makes the reference mean a
descriptor. `copy.py` moves any graph between any two of them.

Five methods make a new place: `resolve`, `fetch`, `exists`, `open_writer` and `tag`. All others have
answers that are right for it, and are there for places that can do better.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from soci_cli.closing import Closing
from soci_cli.errors import (
    InvalidDataError,
    LostUploadError,
    NotFoundError,
    StorageError,
    errors_at,
)
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.manifest import parse_index
from soci_cli.oci.media_types import OCI_INDEX, OCI_MANIFEST, is_index
from soci_cli.targets.blobs import BlobReader, ContentCheck, Writer

if TYPE_CHECKING:
    from soci_cli.targets._folder import LayoutFolder
    from soci_cli.targets.registry.repository import Repository
    from soci_cli.targets.store import Store

MANIFEST_LIMIT = 4 << 20
SENDINGS = 3
"""How often a blob is sent whose upload gets lost."""
_CHUNK = 1 << 20


class Source(Closing, ABC):
    """A place to read an image from. Several threads may call `fetch` and `exists`."""

    folder: LayoutFolder | None = None
    """The folder with a file for each blob, in a place that has one: such files can be shared."""

    repository: Repository | None = None
    """The repository, in a registry: blobs are mounted from one into another."""

    store: Store | None = None
    """The local store, in a place that is an image of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The place as the user wrote it, for messages."""
        return self._name

    @abstractmethod
    def resolve(self) -> Descriptor:
        """What the reference this place was opened with means.

        Annotations that only name the entry (org.opencontainers.image.ref.name and the like) are
        left out, the platform is kept. NotFoundError when there is no such image.
        """

    @abstractmethod
    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """The bytes `offset` to `offset + length` of a blob, or to its end.

        NotFoundError names digest and place when the blob is absent; IntegrityError at once when
        the stored size differs from the descriptor's; InvalidDataError when the range leaves the
        blob.
        """

    def fetch_while(
        self,
        check: Callable[[], None],
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
    ) -> BlobReader:
        """As `fetch`, for somebody who may lose interest.

        `check` raises when that is so. It is called before something is tried again.
        """
        return self.fetch(descriptor, offset, length)

    @abstractmethod
    def exists(self, descriptor: Descriptor) -> bool:
        """True when the blob is here and has the descriptor's size."""

    def find(self, digest: str) -> Descriptor:
        """The manifest with this digest, of which nothing else is known. NotFoundError.

        By default the image's own manifest, or one that its index lists.
        """
        root = self.resolve()
        listed = [root]
        if root.digest != digest and is_index(root.media_type):
            data = read_blob(self, root)
            listed += parse_index(data, f"manifest {root.digest}", root.media_type).manifests
        for one in listed:
            if one.digest == digest:
                return one
        raise NotFoundError(f"there is no manifest {digest}", place=self.name)

    def pin(self, *manifests: Descriptor) -> None:
        """Keep, till `close`, what is read for long: an image's manifest, its SOCI index, all they need.

        Whatever is removed from the place, or mounted over it, meanwhile. StorageError.
        """

    def entries(self) -> tuple[Descriptor, ...]:
        """All images of the place, with the annotations that name them; by default the one it was opened
        with."""
        return (replace(self.resolve(), annotations=self.names()),)

    def names(self) -> dict[str, str]:
        """The annotations that name the image in its place, to be kept in a new place."""
        return {}

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """The manifests here that refer to the manifest `subject`, with this artifact type.

        A manifest without an artifact type has that of its config (OCI distribution spec, "Listing
        Referrers"). In the order in which the place lists them.
        """
        return ()

    def origins(self, descriptor: Descriptor) -> Sequence[Source]:
        """Other places, opened, that have a blob which this one knows of and lacks."""
        return ()


class Target(Source):
    """A place that images are written to. Leaving it without `tag` leaves nothing half-written."""

    _closed = False

    @abstractmethod
    def open_writer(self, descriptor: Descriptor) -> Writer:
        """Begin a blob. Several writers may be open at once, in several threads."""

    @abstractmethod
    def tag(self, descriptor: Descriptor) -> None:
        """The last step: the reference this place was opened with now means `descriptor`."""

    def push(self, descriptor: Descriptor, data: bytes) -> None:
        """Write a small blob that is in memory; nothing happens when it is there already.

        A registry and the local store list a manifest with a subject among the referrers of that.
        """
        if self.exists(descriptor):
            return
        for left in reversed(range(SENDINGS)):
            writer = self.open_writer(descriptor)
            try:
                writer.write(data)
                writer.commit()
                return
            except LostUploadError:
                if not left:
                    raise
            finally:
                writer.abort()

    def refer(self, referrer: Descriptor) -> bool:
        """List a manifest, which is here, among what refers to its subject; False without such a list."""
        return False

    def keep(self, manifest: Descriptor) -> None:
        """Gives a manifest, which is here, a name of its own, where what has none may be cleaned up."""

    def link(self, descriptor: Descriptor, source: Source) -> bool:
        """Share a blob of another place without copying it; False when that cannot be done.

        The bytes are not read, so the caller has verified them, as `copy_blob` does.
        """
        return False

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Take a blob from its neighbour without any bytes passing through here; False when that cannot
        be done.
        """
        return False

    def before(self) -> Source | None:
        """The place as it was before anything was written, to read; None when it was not there.

        A caller that opened it closes it, which leaves this target open.
        """
        return None

    def prepare(self, what: str) -> None:
        """Hears, before work whose result is new here, what that is."""

    def close(self) -> None:
        """See `Closing.close`. A thread that was left behind can begin no blob any more."""
        self._closed = True

    def _check_open(self) -> None:
        """StorageError after `close`."""
        if self._closed:
            raise StorageError("nothing is written any more: it was closed", place=self.name)


def read_blob(source: Source, descriptor: Descriptor, limit: int = MANIFEST_LIMIT) -> bytes:
    """All bytes of a small blob, verified.

    Raises InvalidDataError when it is larger than `limit` bytes, IntegrityError when its bytes do
    not have the descriptor's size and digest, and what `Source.fetch` raises.
    """
    if descriptor.size > limit:
        raise InvalidDataError(
            f"blob {descriptor.digest} has {descriptor.size} bytes; at most {limit} are accepted here",
            place=source.name,
        )
    check = ContentCheck(descriptor, source.name)
    whole = io.BytesIO()  # whose bytes are not copied at the end
    with errors_at(place=source.name), source.fetch(descriptor) as stream:
        while piece := stream.read(_CHUNK):
            check.add(piece)
            whole.write(piece)
    check.verify()
    return whole.getvalue()


def describe_manifest(source: Source, digest: str, size: int) -> Descriptor:
    """A manifest that is there, with the type that it says it has."""
    data = read_blob(source, Descriptor("", digest, size))
    return Descriptor(media_type_of(data, f"manifest {digest}"), digest, size)


def media_type_of(data: bytes, what: str) -> str:
    """The media type of a manifest by what stands in it. InvalidDataError."""
    document = loads(data, what)
    if not isinstance(document, dict):
        raise InvalidDataError(f"{what} is no manifest")
    own = document.get("mediaType")
    if isinstance(own, str) and own:
        return own
    return OCI_INDEX if isinstance(document.get("manifests"), list) else OCI_MANIFEST
