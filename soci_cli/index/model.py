"""The SOCI index as a document, and the names that it uses (docs/formats.md, "SOCI index")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from soci_cli.errors import InvalidDataError, RegistryError
from soci_cli.oci import Descriptor, Manifest, digest_of, encode
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.ztoc import ZTOC_MEDIA_TYPE

INDEX_TYPE_V1 = "application/vnd.amazon.soci.index.v1+json"
INDEX_TYPE_V2 = "application/vnd.amazon.soci.index.v2+json"
PREFETCH_MEDIA_TYPE = "application/vnd.amazon.soci.prefetch.v1+json"

BUILD_TOOL = "com.amazon.soci.build-tool-identifier"
LAYER_DIGEST = "com.amazon.soci.image-layer-digest"
LAYER_MEDIA_TYPE = "com.amazon.soci.image-layer-mediaType"
SPAN_SIZE = "com.amazon.soci.span-size"
DISABLE_XATTRS = "com.amazon.soci.disable-xattrs"
INDEX_DIGEST = "com.amazon.soci.index-digest"
MANIFEST_DIGEST = "com.amazon.soci.image-manifest-digest"

REFERENCE_DIGEST = "vnd.docker.reference.digest"
"""On a descriptor of an attestation: the manifest that it attests (BuildKit)."""

EMPTY_CONFIG = b"{}"

_REFUSALS = frozenset({"MANIFEST_INVALID", "MANIFEST_UNVERIFIED", "UNSUPPORTED"})
_REFUSED = frozenset({400, 405, 406, 415, 422, 501})


@dataclass(frozen=True)
class SociIndex:
    """A SOCI index: its manifest, the bytes of it, and the descriptor under which it is found."""

    manifest: Manifest
    data: bytes
    descriptor: Descriptor


def make_index(
    blobs: Sequence[Descriptor], build_tool_identifier: str, subject: Descriptor | None = None
) -> SociIndex:
    """The SOCI index over zTOC and prefetch descriptors: v1 with a subject, v2 without."""
    index_type = INDEX_TYPE_V1 if subject else INDEX_TYPE_V2
    if subject:
        subject = Descriptor(subject.media_type, subject.digest, subject.size)
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type="",
        config=Descriptor(index_type, digest_of(EMPTY_CONFIG), len(EMPTY_CONFIG)),
        layers=tuple(blobs),
        subject=subject,
        annotations={BUILD_TOOL: build_tool_identifier},
    )
    data = encode(manifest)
    descriptor = Descriptor(OCI_MANIFEST, digest_of(data), len(data), artifact_type=index_type)
    return SociIndex(manifest, data, descriptor)


def is_soci_index(manifest: Manifest) -> bool:
    """Whether a manifest is a SOCI index of either version."""
    types = (manifest.artifact_type, manifest.config.media_type)
    return INDEX_TYPE_V1 in types or INDEX_TYPE_V2 in types


def ztoc_descriptor(
    ztoc: Descriptor, layer: Descriptor, span_size: int, *, disable_xattrs: bool
) -> Descriptor:
    """The descriptor of a zTOC as an index lists it."""
    annotations = {
        LAYER_DIGEST: layer.digest,
        LAYER_MEDIA_TYPE: layer.media_type,
        SPAN_SIZE: str(span_size),
    }
    if disable_xattrs:
        annotations[DISABLE_XATTRS] = "true"
    return Descriptor(ZTOC_MEDIA_TYPE, ztoc.digest, ztoc.size, annotations=annotations)


def ztocs_by_layer(manifest: Manifest) -> Mapping[str, Descriptor]:
    """The zTOC descriptors of an index by the digest of their layer."""
    return {
        blob.annotations[LAYER_DIGEST]: blob
        for blob in manifest.layers
        if blob.media_type == ZTOC_MEDIA_TYPE and LAYER_DIGEST in blob.annotations
    }


def prefetch_by_layer(manifest: Manifest) -> Mapping[str, Descriptor]:
    """The prefetch descriptors of an index by the digest of their layer."""
    return {
        blob.annotations[LAYER_DIGEST]: blob
        for blob in manifest.layers
        if blob.media_type == PREFETCH_MEDIA_TYPE and LAYER_DIGEST in blob.annotations
    }


def span_size_of(blob: Descriptor) -> int:
    """The span size that a zTOC descriptor gives, in bytes; InvalidDataError when it is no number."""
    text = blob.annotations.get(SPAN_SIZE, "")
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InvalidDataError(f"zTOC {blob.digest} has no valid annotation {SPAN_SIZE}")
    return int(text)


@contextmanager
def explaining_refusals() -> Iterator[None]:
    """A registry's refusal of a document with SOCI's media types says so, and what can be done.

    Such registries keep a list of types. They took the image's other manifests, so their refusal of this
    one is about its types, where it says that the manifest is wrong or nothing of why.
    """
    try:
        yield
    except RegistryError as error:
        kinds = error.media_types & {INDEX_TYPE_V1, INDEX_TYPE_V2}
        codes = set(error.codes)
        if not kinds or not (codes & _REFUSALS if codes else error.status in _REFUSED):
            raise
        raise error.explained(
            "this registry refuses SOCI's media types; use another registry or, on a GitLab of one's own, "
            "set REGISTRY_FF_DYNAMIC_MEDIA_TYPES=true"
        ) from error
