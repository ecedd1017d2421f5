"""SOCI artifacts that were made for images: where they are, for what, and when.

They are listed in a table of the local store. The artifacts themselves are in the local store too, or in
containerd, in which case a label on the image or the image itself keeps them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, NotFoundError, UsageError
from soci_cli.index.build import PlatformReport
from soci_cli.index.image import Image, ImageManifest
from soci_cli.index.memory import KnownZtoc
from soci_cli.index.model import (
    INDEX_DIGEST,
    INDEX_TYPE_V1,
    INDEX_TYPE_V2,
    LAYER_DIGEST,
    PREFETCH_MEDIA_TYPE,
    span_size_of,
)
from soci_cli.oci import (
    Descriptor,
    Manifest,
    parse_digest,
    parse_manifest,
    platforms,
)
from soci_cli.targets import (
    LOCAL_CONTENT,
    Source,
    Store,
    StoredArtifact,
    StoreTarget,
    Sweep,
    Target,
    read_blob,
)
from soci_cli.ztoc import ZTOC_MEDIA_TYPE

if TYPE_CHECKING:
    from soci_cli.targets.containerd.client import Containerd

CONTAINERD_CONTENT = "containerd"
"""The content store of containerd, of which a namespace is one part."""

INDEX = "index"
ZTOC = "ztoc"
PREFETCH = "prefetch"
_NAMES = {INDEX: "SOCI index", ZTOC: "zTOC", PREFETCH: "prefetch artifact"}
_KINDS = {ZTOC_MEDIA_TYPE: ZTOC, PREFETCH_MEDIA_TYPE: PREFETCH}
_VERSIONS = {INDEX_TYPE_V1: "v1", INDEX_TYPE_V2: "v2"}
MANIFEST_LIMIT = 4 << 20
"""Bytes that a SOCI index may have."""


@dataclass(frozen=True)
class BoundIndex:
    """A SOCI index and what it was made for: the digests of the manifest and of the image.

    `platform` is a text such as linux/amd64. What is not known is empty.
    """

    descriptor: Descriptor
    manifest: Manifest
    original_digest: str
    image_digest: str
    platform: str


class Artifacts(Closing):
    """The artifacts in the local store and in one namespace of containerd.

    Places that were opened stay open till `close`. `connect` gives the connection to containerd; it is
    asked for only when something there is wanted.
    """

    def __init__(self, store: Store, namespace: str, connect: Callable[[], Containerd]) -> None:
        self.store = store
        self._namespace = namespace
        self._connect = connect
        self._stack = ExitStack()
        self._local: StoreTarget | None = None

    def close(self) -> None:
        """Let go of the local store."""
        self._local = None
        self._stack.close()

    # What is listed.

    def all(self, kind: str) -> list[StoredArtifact]:
        """The artifacts of a kind, the newest first."""
        return [one for one in self.listed() if one.kind == kind]

    def find(self, digest: str, kind: str) -> StoredArtifact:
        """The artifact with this digest, in the local store if it is there.

        NotFoundError; UsageError when it is of another kind.
        """
        found = [one for one in self.listed() if one.digest == digest]
        found.sort(key=lambda one: one.content_store != LOCAL_CONTENT)
        for one in found:
            if one.kind == kind:
                return one
        if found:
            other = found[0].kind
            raise UsageError(
                f"{digest} is a {_NAMES.get(other, other)}, not a {_NAMES[kind]}; see "
                f"`soci {other} info`"
            )
        raise NotFoundError(
            f"no {_NAMES[kind]} {digest} is listed; see `soci {kind} ls`, or list what is there with "
            "`soci rebuild-db`"
        )

    def of_manifest(self, digest: str) -> list[StoredArtifact]:
        """The SOCI indexes of an image manifest that are still there, the newest first."""
        found = [one for one in self.all(INDEX) if one.original_digest == digest]
        return [one for one in found if self.place(one).exists(one.descriptor)]

    def listed(self) -> list[StoredArtifact]:
        """The artifacts of the local store and of the namespace, the newest first."""
        return [one for one in self.store.artifacts() if self._is_in_scope(one)]

    def _is_in_scope(self, artifact: StoredArtifact) -> bool:
        return artifact.content_store == LOCAL_CONTENT or artifact.namespace == self._namespace

    # What they hold.

    def place(self, artifact: StoredArtifact) -> Source:
        """The place that has an artifact."""
        if artifact.content_store == LOCAL_CONTENT:
            return self.local_place()
        return containerd_place(self._connect())

    def read(self, artifact: StoredArtifact, limit: int = MANIFEST_LIMIT) -> bytes:
        """The bytes of an artifact, verified. NotFoundError when it is gone."""
        return read_blob(self.place(artifact), artifact.descriptor, limit)

    def read_index(self, artifact: StoredArtifact) -> Manifest:
        """The document of an index. Raises what `read` raises, and InvalidDataError."""
        return parse_manifest(self.read(artifact), f"SOCI index {artifact.digest}")

    def layer(self, artifact: StoredArtifact, size: int) -> tuple[Source, Descriptor]:
        """The layer of a zTOC, `size` bytes, and a place that has it. NotFoundError."""
        layer = Descriptor("", artifact.original_digest, size)
        local = self.local_place()
        if local.exists(layer) or self.store.locations(layer.digest):
            return local, layer
        place = containerd_place(self._connect())
        if place.exists(layer):
            return place, layer
        raise NotFoundError(
            f"layer {layer.digest} of zTOC {artifact.digest} is neither in {place.name} nor in "
            f"{local.name}; pull its image first",
            place=place.name,
        )

    def known_ztocs(self) -> dict[str, list[KnownZtoc]]:
        """The zTOCs in containerd by the digest of their layer, the newest first."""
        found: dict[str, list[KnownZtoc]] = {}
        for one in self.all(ZTOC):
            if one.content_store == CONTAINERD_CONTENT:
                known = KnownZtoc(one.descriptor, self.place(one))
                found.setdefault(one.original_digest, []).append(known)
        return found

    def local_place(self) -> StoreTarget:
        """The local store, as a place of blobs, open till `close`."""
        if self._local is None:
            self._local = self._stack.enter_context(self.store.open_unnamed())
            self._local.keep_sweeps_away()
        return self._local

    # Changing the list.

    def record(self, indexes: Iterable[BoundIndex], content_store: str, *, pinned: bool) -> None:
        """List indexes and all that they name. `pinned` ones the local store keeps without an image."""
        now = datetime.now(timezone.utc)
        rows = [
            row for index in indexes for row in self.rows(index, content_store, now, pinned=pinned)
        ]
        if rows:
            self.store.put_artifacts(rows)

    def remove(self, indexes: Sequence[StoredArtifact]) -> Sweep:
        """Remove indexes, and in the local store all that only they needed.

        In containerd their zTOCs go with its next garbage collection. UsageError for an index that an
        image of containerd carries.
        """
        in_containerd = [one for one in indexes if one.content_store == CONTAINERD_CONTENT]
        if in_containerd:
            self._remove_from_containerd(in_containerd)
        self.close()
        self.store.forget_artifacts(indexes)
        return self.store.sweep()

    def _remove_from_containerd(self, indexes: Sequence[StoredArtifact]) -> None:
        from soci_cli.targets.containerd.place import SOCI_INDEX_LABEL

        client = self._connect()
        images = client.images()
        for one in indexes:
            holders = [image.name for image in images if image.target.digest == one.image_digest]
            if one.artifact_type == INDEX_TYPE_V2 and holders:
                raise UsageError(
                    f"SOCI index {one.digest} is a part of the image {holders[0]}; remove that image "
                    "instead"
                )
        for one in indexes:
            for image in images:
                labels = {
                    key: ""
                    for key, value in image.labels.items()
                    if value == one.digest and key.startswith(SOCI_INDEX_LABEL)
                }
                if labels:
                    client.label_image(image.name, labels)
            with suppress(NotFoundError):
                client.delete_content(one.digest)

    def rows(
        self, index: BoundIndex, content_store: str, created: datetime, *, pinned: bool
    ) -> Iterator[StoredArtifact]:
        """What the list has of an index: itself, its zTOCs and its prefetch artifacts."""
        namespace = self._namespace if content_store == CONTAINERD_CONTENT else ""
        descriptor = index.descriptor
        yield StoredArtifact(
            digest=descriptor.digest,
            kind=INDEX,
            size=descriptor.size,
            media_type=descriptor.media_type,
            artifact_type=index.manifest.config.media_type,
            original_digest=index.original_digest,
            image_digest=index.image_digest,
            platform=index.platform,
            span_size=0,
            content_store=content_store,
            namespace=namespace,
            created=created,
            pinned=pinned,
        )
        for blob in index.manifest.layers:
            kind = _KINDS.get(blob.media_type)
            if kind is None:
                continue
            span_size = 0
            with suppress(InvalidDataError):
                span_size = span_size_of(blob) if kind == ZTOC else 0
            yield StoredArtifact(
                digest=blob.digest,
                kind=kind,
                size=blob.size,
                media_type=blob.media_type,
                artifact_type="",
                original_digest=_layer_of(blob),
                image_digest="",
                platform="",
                span_size=span_size,
                content_store=content_store,
                namespace=namespace,
                created=created,
            )


def version_of(artifact: StoredArtifact) -> str:
    """ "v1" or "v2"; empty for what is no index."""
    return _VERSIONS.get(artifact.artifact_type, "")


def carried_indexes(image: Image) -> list[BoundIndex]:
    """The SOCI indexes v2 of an image, each with the manifest that names it."""
    indexes = {one.descriptor.digest: one for one in image.manifests if one.is_soci_index}
    found = []
    for entry in image.manifests:
        named = entry.manifest.annotations.get(INDEX_DIGEST, "") if entry.manifest else ""
        index = indexes.get(named)
        if entry.is_image and index is not None and index.manifest is not None:
            digest = entry.descriptor.digest
            found.append(
                BoundIndex(
                    index.descriptor,
                    index.manifest,
                    digest,
                    image.root.digest,
                    platform_name(entry),
                )
            )
    return found


def made_indexes(
    reports: Iterable[PlatformReport], target: Target, image: Descriptor
) -> list[BoundIndex]:
    """The SOCI indexes v1 that `index_image` made of `image` and wrote to `target`."""
    found = []
    for report in reports:
        if report.index is not None:
            what = f"SOCI index {report.index.digest}"
            manifest = parse_manifest(read_blob(target, report.index), what)
            original = manifest.subject.digest if manifest.subject else ""
            platform = platforms.format_platform(report.platform)
            found.append(BoundIndex(report.index, manifest, original, image.digest, platform))
    return found


def _layer_of(blob: Descriptor) -> str:
    """The digest of the layer that a zTOC or prefetch artifact is for; empty when it is no digest."""
    with suppress(InvalidDataError):
        return parse_digest(blob.annotations.get(LAYER_DIGEST, ""))
    return ""


def platform_name(entry: ImageManifest) -> str:
    """An entry's platform as text; empty where it has none."""
    return platforms.format_platform(entry.platform) if entry.platform else ""


def containerd_place(client: Containerd) -> Source:
    """The namespace that `client` is for, as a place of blobs."""
    from soci_cli.targets.containerd.place import ContainerdSource

    return ContainerdSource(client, "", f"containerd's namespace {client.namespace}")
