"""What an image is made of, and what of it is indexed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from soci_cli.errors import SociError
from soci_cli.index.discover import missing_index
from soci_cli.index.image import ImageManifest, read_image
from soci_cli.index.model import (
    DISABLE_XATTRS,
    INDEX_DIGEST,
    INDEX_TYPE_V1,
    is_soci_index,
    prefetch_by_layer,
    span_size_of,
    ztocs_by_layer,
)
from soci_cli.index.prefetch import decode_prefetch
from soci_cli.oci import Descriptor, Manifest, parse_manifest, platforms
from soci_cli.targets import Source, read_blob
from soci_cli.ztoc import decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE


@dataclass(frozen=True)
class ZtocFacts:
    """What is known of a layer's zTOC. `problem` says why the rest is not known. Sizes are in bytes."""

    digest: str
    size: int
    span_size: int = 0
    spans: int = 0
    files: int = 0
    uncompressed_size: int = 0
    largest_span: int = 0
    disable_xattrs: bool = False
    problem: str = ""


@dataclass(frozen=True)
class LayerFacts:
    """One layer; `prefetch_spans` are ranges of spans, both ends included."""

    digest: str
    media_type: str
    size: int
    ztoc: ZtocFacts | None = None
    prefetch_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class PlatformFacts:
    """One manifest of an image. `soci` is "v1", "v2" or empty; `problem` says what cannot be read.

    `soci_digest` is the digest of the index; where `soci` is empty, of one that is named and not there.
    """

    platform: str
    digest: str
    kind: str
    size: int
    soci: str = ""
    soci_digest: str = ""
    layers: tuple[LayerFacts, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """An image: `soci` is "v1", "v2" or empty, by what any platform has."""

    digest: str
    media_type: str
    soci: str
    size: int
    manifests: tuple[PlatformFacts, ...]


@dataclass(frozen=True)
class Summary:
    """An image in a line: its platforms, "v1", "v2" or empty, and the bytes of its different blobs."""

    platforms: list[str]
    soci: str
    size: int


def inspect(source: Source, *, look_into_ztocs: bool = True) -> ImageFacts:
    """Everything about the image that `source` was opened with; no layer is read.

    Without `look_into_ztocs` the zTOCs are not read either. Damage below the manifests is told as a
    `problem` of the part that has it. Raises what reading the image itself raises.
    """
    image = read_image(source)
    by_digest = {entry.descriptor.digest: entry for entry in image.manifests}
    facts = tuple(
        _platform_facts(source, entry, by_digest, look_into_ztocs)
        for entry in image.manifests
        if not entry.is_soci_index
    )
    sizes: dict[str, int] = {image.root.digest: image.root.size}
    for entry in image.manifests:
        sizes[entry.descriptor.digest] = entry.descriptor.size
        if entry.manifest:
            for blob in (entry.manifest.config, *entry.manifest.layers):
                sizes[blob.digest] = blob.size
    soci = max((fact.soci for fact in facts), default="")
    return ImageFacts(image.root.digest, image.root.media_type, soci, sum(sizes.values()), facts)


def summarize(source: Source) -> Summary:
    """The image in a line; reads manifests only."""
    facts = inspect(source, look_into_ztocs=False)
    names = [fact.platform for fact in facts.manifests if fact.kind == "image"]
    return Summary(names, facts.soci, facts.size)


def _platform_facts(
    source: Source,
    entry: ImageManifest,
    by_digest: Mapping[str, ImageManifest],
    look_into_ztocs: bool,
) -> PlatformFacts:
    platform = platforms.format_platform(entry.platform) if entry.platform else "unknown"
    digest = entry.descriptor.digest
    kind = "image" if entry.is_image else "artifact"
    if entry.manifest is None:
        missing = "not here" if entry.is_image or entry.is_manifest else "not looked into"
        return PlatformFacts(platform, digest, kind, entry.descriptor.size, problem=missing)
    soci, soci_digest, index = _soci_index(source, entry, by_digest)
    ztocs = ztocs_by_layer(index) if index else {}
    prefetch = prefetch_by_layer(index) if index else {}
    layers = tuple(
        LayerFacts(
            layer.digest,
            layer.media_type,
            layer.size,
            _ztoc_facts(source, ztocs[layer.digest], look_into_ztocs)
            if layer.digest in ztocs
            else None,
            _prefetch_spans(source, prefetch.get(layer.digest)),
        )
        for layer in entry.manifest.layers
    )
    size = sum(layer.size for layer in layers)
    problem = missing_index(soci_digest, source) if soci_digest and not index else ""
    return PlatformFacts(platform, digest, kind, size, soci, soci_digest, layers, problem)


def _soci_index(
    source: Source, entry: ImageManifest, by_digest: Mapping[str, ImageManifest]
) -> tuple[str, str, Manifest | None]:
    """Which kind of index a manifest has, its digest, and the index itself.

    An index that the manifest names and that is nowhere is none; its digest is given all the same.
    """
    assert entry.manifest is not None
    bound = entry.manifest.annotations.get(INDEX_DIGEST, "")
    if bound:
        found = by_digest.get(bound)
        if found and found.manifest and found.is_soci_index:
            return "v2", bound, found.manifest
        with suppress(SociError):  # where a pull looks
            beside = source.find(bound)
            manifest = parse_manifest(read_blob(source, beside), f"manifest {bound}")
            if is_soci_index(manifest):
                return "v2", bound, manifest
    if entry.is_image:
        # The list of referrers is a nicety here: an image can be shown without it.
        with suppress(SociError):
            for referrer in source.referrers(entry.descriptor, INDEX_TYPE_V1):
                with suppress(SociError):
                    data = read_blob(source, referrer)
                    manifest = parse_manifest(data, f"manifest {referrer.digest}")
                    return "v1", referrer.digest, manifest
    return "", bound, None


def _ztoc_facts(source: Source, blob: Descriptor, look_into: bool) -> ZtocFacts:
    disable_xattrs = blob.annotations.get(DISABLE_XATTRS) == "true"
    try:
        span_size = span_size_of(blob)
        if not look_into:
            return ZtocFacts(blob.digest, blob.size, span_size, disable_xattrs=disable_xattrs)
        ztoc = decode_ztoc(read_blob(source, blob, MAX_ZTOC_SIZE))
        return ZtocFacts(
            blob.digest,
            blob.size,
            span_size,
            len(ztoc.spans),
            len(ztoc.files),
            ztoc.uncompressed_archive_size,
            ztoc.largest_span,
            disable_xattrs,
        )
    except SociError as error:
        return ZtocFacts(blob.digest, blob.size, problem=str(error))


def _prefetch_spans(source: Source, blob: Descriptor | None) -> tuple[tuple[int, int], ...]:
    if blob is None:
        return ()
    with suppress(SociError):
        return decode_prefetch(read_blob(source, blob), blob.digest).spans
    return ()
