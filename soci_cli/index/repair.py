"""Bringing back what a clean-up of untagged manifests took from a converted image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from soci_cli.errors import NotFoundError
from soci_cli.index.build import IndexBuilder, IndexOptions, Job
from soci_cli.index.image import ImageManifest, read_image
from soci_cli.index.layers import LayerIndexer
from soci_cli.index.memory import ZtocMemory
from soci_cli.index.model import INDEX_DIGEST, explaining_refusals
from soci_cli.oci import Descriptor, parse_index
from soci_cli.oci.media_types import OCI_MANIFEST, is_index
from soci_cli.parallel import run_all
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, StoreTarget, Target, copy_graph, read_blob


@dataclass(frozen=True)
class Repaired:
    """The image, and the manifests and indexes that were brought back: from elsewhere, or made again."""

    descriptor: Descriptor
    found: tuple[Descriptor, ...]
    rebuilt: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]


@explaining_refusals()
def repair(
    target: Target,
    others: Sequence[Source],
    scratch: StoreTarget,
    options: IndexOptions,
    observer: Observer | None = None,
) -> Repaired:
    """Completes the image that `target` was opened with, so that every digest that it names is there.

    What is missing comes from `others`, with all that it is made of. A SOCI index that nobody has is made
    again in `scratch`, and taken if that gives its digest, for which `options` must be those with which it
    was made. NotFoundError for what cannot be had.
    """
    observer = observer or SilentObserver()
    root = target.resolve()
    found: list[Descriptor] = []
    lost: dict[str, Descriptor] = {}
    manifests = _listed(target, root)
    for one in manifests:
        if not target.exists(one):
            place = next((place for place in others if place.exists(one)), None)
            if place is None:
                lost[one.digest] = one
            else:
                copy_graph(place, target, one, observer)
                found.append(one)
    rebuilt = []
    for entry in read_image(target).manifests:
        digest = entry.manifest.annotations.get(INDEX_DIGEST) if entry.manifest else None
        if digest is None or (digest not in lost and _is_there(target, digest)):
            continue
        place = next((place for place in others if _is_there(place, digest)), None)
        if place is None:
            made = _rebuild(entry, target, scratch, options, observer)
            if made is None or made.digest != digest:
                continue
            rebuilt.append(made)
            place = scratch
        else:
            made = place.find(digest)
            found.append(made)
        copy_graph(place, target, made, observer)
        lost.pop(digest, None)
        manifests = (*manifests, made)
    still = [*lost, *_unbound(target, lost)]
    if still:
        raise NotFoundError(
            f"{', '.join(still)} cannot be had again: no other place here has it, and with these flags "
            "another index is made; give the span size, the minimum layer size and the tool with which it "
            "was made, or convert the image again",
            place=target.name,
        )
    return Repaired(root, tuple(found), tuple(rebuilt), manifests)


def _listed(target: Target, root: Descriptor) -> tuple[Descriptor, ...]:
    """The manifests that an index lists; none for a single manifest."""
    if not is_index(root.media_type):
        return ()
    return parse_index(read_blob(target, root), f"index {root.digest}").manifests


def _unbound(target: Target, known: dict[str, Descriptor]) -> list[str]:
    """The SOCI indexes that manifests name and that are not there."""
    named = (
        entry.manifest.annotations.get(INDEX_DIGEST)
        for entry in read_image(target).manifests
        if entry.manifest
    )
    return [one for one in named if one and one not in known and not _is_there(target, one)]


def _is_there(place: Source, digest: str) -> bool:
    try:
        return place.exists(place.find(digest))
    except NotFoundError:
        return False


def _rebuild(
    entry: ImageManifest,
    source: Source,
    scratch: StoreTarget,
    options: IndexOptions,
    observer: Observer,
) -> Descriptor | None:
    """The index v2 of a manifest, made again; None when no layer gets a zTOC."""
    assert entry.manifest is not None
    settings = options.ztoc_settings
    memory = ZtocMemory([], scratch, settings, force=options.force)
    indexer = LayerIndexer(source, scratch, settings, memory, copy_layers=False)
    builder = IndexBuilder(scratch, options, observer, indexer)
    jobs: list[Job] = []
    for layer in entry.manifest.layers:
        if job := builder.job(layer, source):
            jobs.append(job)
    run_all(lambda job, stop: job(stop), jobs, options.concurrency)
    index = builder.make(entry.manifest.layers)
    if index is None:
        return None
    return Descriptor(OCI_MANIFEST, index.descriptor.digest, index.descriptor.size)
