"""Finding the SOCI index of an image: the one named, the one bound to the image, or a referrer.

The order is that of the reference snapshotter (docs/formats.md, "Which index is taken").
"""

from __future__ import annotations

from dataclasses import dataclass

from soci_cli.errors import InvalidDataError, NotFoundError, SociError, errors_at
from soci_cli.index.image import ImageManifest
from soci_cli.index.model import (
    INDEX_DIGEST,
    INDEX_TYPE_V1,
    INDEX_TYPE_V2,
    is_soci_index,
    ztocs_by_layer,
)
from soci_cli.oci import Descriptor, Manifest, parse_manifest
from soci_cli.progress import Observer
from soci_cli.targets import Source, read_blob


@dataclass(frozen=True)
class IndexSources:
    """Where to look: a `digest` goes before all; then v2, then v1, as far as they are enabled."""

    digest: str | None = None
    v2: bool = True
    v1: bool = False


@dataclass(frozen=True)
class FoundIndex:
    """A SOCI index that was found; `version` is "v1" or "v2"."""

    version: str
    descriptor: Descriptor
    manifest: Manifest


def find_index(
    place: Source, entry: ImageManifest, sources: IndexSources, observer: Observer
) -> FoundIndex | None:
    """The SOCI index of one image manifest; None when there is none that can be used.

    An index that was named but is not there, or belongs to another image, is an error; a bound or
    referring one that cannot be used is told to the observer.
    """
    if sources.digest is not None:
        return _read(place, place.find(sources.digest), entry)
    assert entry.manifest is not None
    bound = entry.manifest.annotations.get(INDEX_DIGEST)
    if sources.v2 and bound:
        try:
            return _read(place, place.find(bound), entry)
        except NotFoundError:
            _note(observer, missing_index(bound, place))
        except InvalidDataError as error:
            _note(observer, f"its SOCI index cannot be used: {error}")
    if sources.v1:
        for referrer in place.referrers(entry.descriptor, INDEX_TYPE_V1):
            try:
                return _read(place, referrer, entry)
            except SociError as error:
                _note(observer, f"a SOCI index cannot be used: {error}")
    return None


def missing_index(digest: str, place: Source) -> str:
    """What to say of an index that a manifest names and its place does not have."""
    return (
        f"its SOCI index {digest} is missing in {place.name}: it was not copied with the image, or a "
        "clean-up of untagged manifests removed it; copy the image with `soci image copy`, bring it back "
        "with `soci index repair`, or convert the image again"
    )


def _note(observer: Observer, message: str) -> None:
    observer.note(message, "a SOCI index cannot be used")


def _read(place: Source, descriptor: Descriptor, entry: ImageManifest) -> FoundIndex:
    assert entry.manifest is not None
    what = f"SOCI index {descriptor.digest} in {place.name}"
    with errors_at(place=place.name):
        manifest = parse_manifest(read_blob(place, descriptor), what, descriptor.media_type)
        if not is_soci_index(manifest):
            raise InvalidDataError(f"{what} is no SOCI index")
        if manifest.subject is not None and manifest.subject.digest != entry.descriptor.digest:
            raise InvalidDataError(
                f"{what} belongs to another image manifest, {manifest.subject.digest}"
            )
        layers = {layer.digest for layer in entry.manifest.layers}
        if not layers & ztocs_by_layer(manifest).keys():
            raise InvalidDataError(f"{what} has no zTOC for a layer of this image")
    version = "v1" if manifest.subject is not None else "v2"
    kind = INDEX_TYPE_V1 if version == "v1" else INDEX_TYPE_V2
    found = Descriptor(
        descriptor.media_type, descriptor.digest, descriptor.size, artifact_type=kind
    )
    return FoundIndex(version, found, manifest)
