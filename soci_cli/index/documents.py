"""The documents of a converted image, made of those of the original.

Rules: docs/formats.md, "Index manifest v2".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from soci_cli.index.image import Image, ImageManifest, manifest_of
from soci_cli.index.model import (
    INDEX_DIGEST,
    INDEX_TYPE_V2,
    MANIFEST_DIGEST,
    REFERENCE_DIGEST,
    SociIndex,
)
from soci_cli.oci import Descriptor, Manifest, Platform, digest_of, encode, platforms
from soci_cli.oci.media_types import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    oci_layer_type,
)

Document = tuple[Descriptor, bytes]
Indexes = Mapping[str, tuple[Platform, SociIndex]]
"""The new SOCI index of each platform, by the digest of the manifest that it is for."""

_OF_THE_OLD_BYTES = (
    "containerd.io/distribution.source.",
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)
"""How annotations begin that say where what is in a layer's bytes, or where these are (containers/storage,
pkg/chunked; stargz-snapshotter, estargz)."""

_SAYS_ZSTD = "io.github.containers.compression.zstd"
"""On the entry of a manifest in an index: its layers are zstd (containers/image)."""


@dataclass(frozen=True)
class LayerChanges:
    """What becomes of layers, by the digest of the old one.

    `recompressed` are the gzip layers that take the place of zstd ones. `packings` are "gzip", "zstd" or
    "uncompressed", by the bytes of layers of Docker's types, which get OCI's unless they are kept.
    """

    keep_types: bool
    recompressed: dict[str, Descriptor] = field(default_factory=dict)
    packings: dict[str, str] = field(default_factory=dict)

    def layers(self, manifest: Manifest) -> tuple[Descriptor, ...]:
        """A manifest's layers as the converted image has them."""
        return tuple(map(self._changed, manifest.layers))

    def _changed(self, layer: Descriptor) -> Descriptor:
        packing = self.packings.get(layer.digest, "")
        new = self.recompressed.get(layer.digest)
        if new is not None:
            packing = "gzip"
            kept = {
                key: value
                for key, value in layer.annotations.items()
                if not key.startswith(_OF_THE_OLD_BYTES)
            }
            layer = replace(new, annotations=kept, platform=layer.platform)
        if self.keep_types:
            return layer
        return replace(layer, media_type=oci_layer_type(layer.media_type, packing))


def converted_documents(image: Image, indexes: Indexes, changes: LayerChanges) -> list[Document]:
    """The manifests of the converted image, each after what it refers to; its OCI index is the last."""
    entries = image.manifests
    descriptors = [entry.descriptor for entry in entries]
    moved: dict[str, Descriptor] = {}
    made: list[Document] = []
    # A manifest that refers to another (an attestation to its image) comes after it.
    for position in sorted(range(len(entries)), key=lambda i: _refers(entries[i])):
        entry = entries[position]
        if entry.manifest is None or entry.is_soci_index:
            continue
        own = indexes.get(entry.descriptor.digest) if entry.is_image else None
        document = _new_manifest(entry, own[1] if own else None, moved, changes)
        made.append(document)
        descriptors[position] = moved[entry.descriptor.digest] = document[0]
    stale: set[int] = set()
    for digest, (platform, index) in indexes.items():
        added = replace(
            index.descriptor,
            platform=platform,
            annotations={MANIFEST_DIGEST: moved[digest].digest},
        )
        places = [i for i, entry in enumerate(entries) if is_index_of(entry, platform)]
        if places:
            descriptors[places[0]] = added
            stale.update(places[1:])
        else:
            descriptors.append(added)
    kept = tuple(descriptor for i, descriptor in enumerate(descriptors) if i not in stale)
    data = encode(replace(image.index, media_type=OCI_INDEX, manifests=kept))
    root = Descriptor(OCI_INDEX, digest_of(data), len(data), annotations=image.root.annotations)
    return [*made, (root, data)]


def _new_manifest(
    entry: ImageManifest,
    index: SociIndex | None,
    moved: Mapping[str, Descriptor],
    changes: LayerChanges,
) -> Document:
    """The OCI form of a manifest, with its SOCI index if it has one."""
    manifest = manifest_of(entry)
    annotations = dict(manifest.annotations)
    if index:
        annotations[INDEX_DIGEST] = index.descriptor.digest
    config, subject = manifest.config, manifest.subject
    if config.media_type == DOCKER_CONFIG:
        config = replace(config, media_type=OCI_CONFIG)
    if subject and (new := moved.get(subject.digest)):
        subject = replace(subject, media_type=OCI_MANIFEST, digest=new.digest, size=new.size)
    data = encode(
        replace(
            manifest,
            media_type=OCI_MANIFEST,
            config=config,
            layers=changes.layers(manifest),
            subject=subject,
            annotations=annotations,
        )
    )
    kept = dict(entry.descriptor.annotations)
    if attested := moved.get(kept.get(REFERENCE_DIGEST, "")):
        kept[REFERENCE_DIGEST] = attested.digest
    if any(layer.digest in changes.recompressed for layer in manifest.layers):
        kept.pop(_SAYS_ZSTD, None)
    own = entry.descriptor
    moves = digest_of(data) != own.digest
    descriptor = replace(
        own,
        media_type=OCI_MANIFEST,
        digest=digest_of(data),
        size=len(data),
        annotations={**kept, **annotations},
        platform=own.platform or (entry.platform if entry.is_image else None),
        # They are of the bytes that there were.
        urls=() if moves else own.urls,
        data=None if moves else own.data,
    )
    return descriptor, data


def _refers(entry: ImageManifest) -> bool:
    subject = entry.manifest is not None and entry.manifest.subject is not None
    return subject or REFERENCE_DIGEST in entry.descriptor.annotations


def is_index_of(entry: ImageManifest, platform: Platform) -> bool:
    """Whether an entry is the SOCI index v2 of a platform, which a new one takes the place of.

    Older tools that copy an image drop the artifact type from its entry; the manifest still has it.
    """
    kind = entry.descriptor.artifact_type
    if not kind and entry.manifest is not None:
        kind = entry.manifest.config.media_type
    return (
        kind == INDEX_TYPE_V2
        and entry.platform is not None
        and platforms.matches(platform, entry.platform)
    )


def index_platform(wanted: Platform, entry: ImageManifest) -> Platform:
    """The platform of the entry of a SOCI index: the one asked for, never more exact than the image's.

    Clients look for the exact platform first, and compare what is written; they must find the image.
    """
    own = entry.platform or wanted
    return replace(
        own,
        variant=own.variant if wanted.variant else "",
        os_version=own.os_version if wanted.os_version else "",
        os_features=own.os_features if wanted.os_features else (),
    )
