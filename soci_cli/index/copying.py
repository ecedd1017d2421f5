"""Copying an image whole: all its manifests, and the SOCI indexes that lie beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from soci_cli.errors import InvalidDataError, NotFoundError, SociError
from soci_cli.index.discover import missing_index
from soci_cli.index.image import Image, missing_platforms, read_image
from soci_cli.index.model import INDEX_DIGEST, INDEX_TYPE_V1, explaining_refusals
from soci_cli.index.push import push_index
from soci_cli.oci import Descriptor, Platform, platforms
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, Target, copy_graph


@dataclass(frozen=True)
class CopiedImage:
    """What DST means now, and the indexes v1 that went along, each with the platform of its image."""

    descriptor: Descriptor
    indexes_v1: tuple[tuple[Platform | None, Descriptor], ...]


@explaining_refusals()
def copy_image(
    source: Source, target: Target, observer: Observer | None = None, concurrency: int = 2
) -> CopiedImage:
    """Copies an image with its exact bytes, and its SOCI indexes: v2, in it or beside it, and v1.

    NotFoundError, before anything is written, where a registry would miss manifests. What the target
    cannot list is told to the observer.
    """
    observer = observer or SilentObserver()
    root = source.resolve()
    image = None
    with suppress(InvalidDataError):  # another artifact is copied all the same
        image = read_image(source)
    if image is not None and target.repository and (lost := missing_platforms(image, target)):
        raise NotFoundError(
            f"the manifests for {lost} are not here, and a registry takes no image without them",
            place=source.name,
        )
    beside = _bound(source, image, observer) if image else []
    listed = _listed(source, image, observer) if image else []
    for part in (*beside, root):
        copy_graph(source, target, part, observer, concurrency, allow_missing_manifests=True)
    for _, index in listed:
        push_index(source, target, index, observer, concurrency)
        if not target.refer(index):
            observer.note(f"{target.name} keeps no list of SOCI indexes v1 for {index.digest}")
    target.tag(root)
    return CopiedImage(root, tuple(listed))


def _bound(source: Source, image: Image, observer: Observer) -> list[Descriptor]:
    """The indexes v2 that manifests name and that are beside the image."""
    known = {entry.descriptor.digest for entry in image.manifests}
    found = []
    for entry in image.manifests:
        digest = entry.manifest.annotations.get(INDEX_DIGEST) if entry.manifest else None
        if digest and digest not in known:
            try:
                found.append(source.find(digest))
            except NotFoundError:
                observer.note(missing_index(digest, source), "a SOCI index is missing")
    return found


def _listed(
    source: Source, image: Image, observer: Observer
) -> Sequence[tuple[Platform | None, Descriptor]]:
    """The indexes v1 that refer to the image's manifests."""
    found: list[tuple[Platform | None, Descriptor]] = []
    for entry in image.manifests:
        if not entry.is_image or entry.manifest is None:
            continue
        try:
            listed = source.referrers(entry.descriptor, INDEX_TYPE_V1)
        except SociError as error:
            name = platforms.format_platform(entry.platform) if entry.platform else "the image"
            observer.note(f"{name}: what refers to it cannot be listed: {error}")
        else:
            found += [(entry.platform, one) for one in listed if source.exists(one)]
    return found
