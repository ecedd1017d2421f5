"""Bringing the list of SOCI artifacts in line with what the content stores have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from soci_cli.errors import SociError
from soci_cli.index.artifacts import (
    CONTAINERD_CONTENT,
    MANIFEST_LIMIT,
    Artifacts,
    BoundIndex,
    carried_indexes,
    containerd_place,
    platform_name,
)
from soci_cli.index.image import Image, read_image
from soci_cli.index.model import INDEX_TYPE_V1, is_soci_index
from soci_cli.oci import Descriptor, Manifest, parse_manifest, parse_reference
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets import LOCAL_CONTENT, Source, Store, StoredArtifact, StoreTarget, read_blob

if TYPE_CHECKING:
    from soci_cli.targets.containerd.client import Containerd


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild changed in the list: how many artifacts came, went and stayed."""

    added: int
    removed: int
    kept: int


def rebuild(artifacts: Artifacts, client: Containerd | None) -> Rebuilt:
    """Bring the list in line with what is there; without `client` in the local store alone.

    What is listed already stays as it is listed. An index v1 of the local store that no image there
    needs is pinned.
    """
    local = artifacts.local_place()
    places: dict[str, Source] = {LOCAL_CONTENT: local}
    if client is not None:
        places[CONTAINERD_CONTENT] = containerd_place(client)
    owners = _Owners()
    for opened in _images(artifacts.store, client):
        with suppress(SociError), opened as source:
            owners.learn(read_image(source))
    found = {
        _key(row): row
        for index, content_store, created in _scan(artifacts.store, local, client)
        for bound in owners.bind(*index)
        for row in artifacts.rows(bound, content_store, created, pinned=False)
        if places[content_store].exists(row.descriptor)
    }
    old = {_key(row): row for row in artifacts.listed() if row.content_store in places}
    new = _pin(artifacts.store, [row for key, row in found.items() if key not in old])
    gone = [row for key, row in old.items() if key not in found]
    if gone:
        artifacts.store.forget_artifacts(gone)
    if new:
        artifacts.store.put_artifacts(new)
    return Rebuilt(len(new), len(gone), len(old) - len(gone))


def _images(store: Store, client: Containerd | None) -> Iterator[Source]:
    for stored in store.images():
        with suppress(SociError):
            yield store.open(parse_reference(stored.name))
    if client is not None:
        from soci_cli.targets.containerd.place import ContainerdSource

        for image in client.images():
            yield ContainerdSource(client, image.name, image.name)


def _scan(
    store: Store, local: StoreTarget, client: Containerd | None
) -> Iterator[tuple[tuple[Descriptor, Manifest], str, datetime]]:
    """Every SOCI index there is, with its content store and when it came there."""
    for digest, size, changed in store.blobs():
        if index := _as_index(local, digest, size):
            created = datetime.fromtimestamp(changed, timezone.utc)
            yield index, LOCAL_CONTENT, created
    if client is not None:
        place = containerd_place(client)
        for info in client.list_content():
            if index := _as_index(place, info.digest, info.size):
                created = info.created or datetime.now(timezone.utc)
                yield index, CONTAINERD_CONTENT, created


def _pin(store: Store, rows: Sequence[StoredArtifact]) -> list[StoredArtifact]:
    """The rows, with those pinned that the next sweep would take away."""
    ours = [
        row
        for row in rows
        if row.content_store == LOCAL_CONTENT and row.artifact_type == INDEX_TYPE_V1
    ]
    for row in ours:
        # Only the digest counts there.
        subject = Descriptor(OCI_MANIFEST, row.original_digest, 0)
        store.remember_referrer(subject, row.descriptor)
    needed: set[str] = set()
    with suppress(SociError):  # while something is damaged, sweeps take nothing away
        needed = store.needed_by_images()
    return [replace(row, pinned=row in ours and row.digest not in needed) for row in rows]


class _Owners:
    """What images say of the SOCI indexes that may belong to them."""

    def __init__(self) -> None:
        self._images: dict[str, tuple[str, str]] = {}  # image and platform by manifest
        self._carried: dict[str, list[BoundIndex]] = {}  # by index

    def learn(self, image: Image) -> None:
        for entry in image.manifests:
            if entry.is_image:
                known = image.root.digest, platform_name(entry)
                self._images.setdefault(entry.descriptor.digest, known)
        for bound in carried_indexes(image):
            self._carried.setdefault(bound.descriptor.digest, []).append(bound)

    def bind(self, descriptor: Descriptor, manifest: Manifest) -> list[BoundIndex]:
        if manifest.subject is None:
            nobody = BoundIndex(descriptor, manifest, "", "", "")
            return self._carried.get(descriptor.digest, [nobody])
        original = manifest.subject.digest
        image, platform = self._images.get(original, (original, ""))
        return [BoundIndex(descriptor, manifest, original, image, platform)]


def _as_index(place: Source, digest: str, size: int) -> tuple[Descriptor, Manifest] | None:
    """The blob as a SOCI index, if it is one."""
    if not 2 < size <= MANIFEST_LIMIT:
        return None
    descriptor = Descriptor(OCI_MANIFEST, digest, size)
    with suppress(SociError):
        # Most blobs are none, and one byte tells.
        with place.fetch(descriptor, 0, 1) as stream:
            if stream.read() != b"{":
                return None
        manifest = parse_manifest(read_blob(place, descriptor), f"blob {digest}")
        if is_soci_index(manifest):
            return replace(descriptor, artifact_type=manifest.config.media_type), manifest
    return None


def _key(artifact: StoredArtifact) -> tuple[str, str, str, str]:
    return (
        artifact.digest,
        artifact.original_digest,
        artifact.content_store,
        artifact.namespace,
    )
