"""What the registry must know of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from soci_cli.errors import InvalidDataError
from soci_cli.oci.canonical import DEFAULT_LIMIT, loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.manifest import Index, Manifest, parse_index, parse_manifest
from soci_cli.oci.media_types import OCI_INDEX, OCI_MANIFEST, is_index, is_manifest
from soci_cli.oci.values import as_object, text_field
from soci_cli.text import quote

MANIFEST_LIMIT = DEFAULT_LIMIT
"""The most bytes of a manifest (distribution spec, "Pushing Manifests")."""


@dataclass(frozen=True)
class ManifestFacts:
    """A manifest or index of a repository.

    `blobs` and `children` are the digests that must be there before it. Annotations are kept only
    of what has a subject.
    """

    descriptor: Descriptor
    blobs: frozenset[str]
    children: frozenset[str]
    subject: str | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.descriptor.digest

    def as_referrer(self) -> dict[str, object]:
        """Its descriptor in a list of referrers (distribution spec, "Listing Referrers")."""
        return Descriptor(
            self.descriptor.media_type,
            self.digest,
            self.descriptor.size,
            annotations=self.annotations,
            artifact_type=self.artifact_type,
        ).to_json()


def read_facts(data: bytes, digest: str, content_type: str) -> ManifestFacts:
    """The facts of a manifest; `content_type` is "" when nobody said what it is.

    Raises InvalidDataError for what is neither an OCI or Docker (schema 2) manifest nor an index,
    or for a media type that the document contradicts.
    """
    media_type = _media_type(data, content_type)
    descriptor = Descriptor(media_type, digest, len(data))
    blobs: set[str] = set()
    children: set[str] = set()
    document: Manifest | Index
    if is_index(media_type):
        document = parse_index(data, "manifest", media_type)
        children = {child.digest for child in document.manifests}
        artifact_type = document.artifact_type
    else:
        document = parse_manifest(data, "manifest", media_type)
        # Layers that lie elsewhere need not be here (OCI image spec, "Non-Distributable Layers").
        blobs = {layer.digest for layer in document.layers if not layer.urls}
        blobs.add(document.config.digest)
        artifact_type = document.artifact_type or document.config.media_type
    facts = ManifestFacts(descriptor, frozenset(blobs), frozenset(children))
    if document.subject is None:
        return facts
    return replace(
        facts,
        subject=document.subject.digest,
        artifact_type=artifact_type,
        annotations=document.annotations,
    )


def _media_type(data: bytes, content_type: str) -> str:
    document = as_object(loads(data, "manifest", MANIFEST_LIMIT), "manifest")
    inside = text_field(document, "mediaType", "manifest")
    said = content_type.partition(";")[0].strip()
    if inside and said and inside != said:
        raise InvalidDataError(
            f"manifest: its mediaType is {quote(inside)}, but Content-Type is {quote(said)}"
        )
    media_type = (
        inside or said or (OCI_INDEX if document.get("manifests") is not None else OCI_MANIFEST)
    )
    if not is_index(media_type) and not is_manifest(media_type):
        raise InvalidDataError(f"manifest: {quote(media_type)} is no manifest that is kept here")
    return media_type
