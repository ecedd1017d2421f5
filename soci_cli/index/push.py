"""Pushing: an image of the local store into a registry, with a SOCI index v1 for each platform."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from soci_cli.errors import NotFoundError, SociError
from soci_cli.index.artifacts import Artifacts
from soci_cli.index.build import (
    IndexOptions,
    NothingToIndexError,
    PlatformReport,
    index_image,
)
from soci_cli.index.discover import missing_index
from soci_cli.index.image import Image, ImageManifest, choose, manifest_of, read_image
from soci_cli.index.model import (
    INDEX_DIGEST,
    INDEX_TYPE_V1,
    INDEX_TYPE_V2,
    explaining_refusals,
)
from soci_cli.oci import Descriptor, Platform, digest_of, encode, parse_manifest, platforms
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, StoreTarget, Target, copy_blobs, copy_graph, read_blob

_LOOKS = (0.0, 0.5, 1.0)
"""After how many seconds it is looked whether an index is listed."""


@dataclass(frozen=True)
class PushOptions(IndexOptions):
    """How to push. Without `soci` no index is made.

    `existing_index` says what to do when the registry has an index v1 for a manifest already: push ours
    too and say so ("warn"), make none ("skip"), or push ours too ("allow").
    """

    soci: bool = True
    existing_index: str = "warn"
    uploads: int = 5


@dataclass(frozen=True)
class PushedIndex:
    """The SOCI index v1 of a platform, pushed; `report` is None for one that existed before."""

    platform: Platform
    index: Descriptor
    report: PlatformReport | None = None


@dataclass(frozen=True)
class PushResult:
    """What the name means in the registry now, and which indexes v1 went with it.

    `left_out` are platforms that the store does not have, so that the pushed image lacks them.
    """

    descriptor: Descriptor
    indexes: tuple[PushedIndex, ...]
    left_out: tuple[Platform, ...]


@explaining_refusals()
def push(
    source: StoreTarget,
    target: Target,
    options: PushOptions,
    observer: Observer | None = None,
) -> PushResult:
    """Pushes an image and, unless it is converted (v2) already, its SOCI indexes v1.

    An index v2 that the image's manifest names and the store has beside it goes along. Indexes are made
    first, then everything is pushed, and the tag moves at the end. An image for several
    platforms goes as it is when the store has all of it; with `platforms`, or when parts are missing, an
    index of fewer entries goes in its stead. Raises what reading, indexing and writing raise.
    """
    observer = observer or SilentObserver()
    image = read_image(source)
    kept, left_out = _parts(image, options, source.name)
    root, data = _root(source, image, kept)
    indexes: list[PushedIndex] = []
    beside, lacking = _bound_indexes(source, kept, observer)
    if options.soci and lacking:
        indexes = _make_indexes(source, target, image, lacking, options, observer)
    whole = root.digest == image.root.digest
    parts = [root] if whole else [entry.descriptor for entry in kept]
    for part in [*beside, *parts]:
        copy_graph(source, target, part, observer, options.uploads, allow_missing_manifests=True)
    if not whole:
        target.push(root, data)
    for made in indexes:
        push_index(source, target, made.index, observer, options.uploads)
    target.tag(root)
    return PushResult(root, tuple(indexes), left_out)


def push_index(
    source: Source, target: Target, index: Descriptor, observer: Observer, uploads: int
) -> None:
    """Pushes an index v1 even when it is there: a list of referrers may have lost it.

    The observer hears of one that is not listed afterwards.
    """
    data = read_blob(source, index)
    manifest = parse_manifest(data, f"SOCI index {index.digest}")
    blobs = (manifest.config, *manifest.layers)
    copy_blobs(source, target, blobs, observer, uploads)
    target.push(index, data)
    subject = manifest.subject
    if subject is not None and not _is_listed(target, subject, index):
        observer.note(
            f"{target.name} does not list SOCI index {index.digest} among what refers to {subject.digest}, "
            "so it cannot be found; convert the image instead, with `soci image convert --soci`"
        )


def _is_listed(target: Target, subject: Descriptor, index: Descriptor) -> bool:
    """Whether a pushed index v1 is found; the lists of some registries are a moment late."""
    for pause in _LOOKS:
        time.sleep(pause)
        with suppress(SociError):
            if index.digest in [one.digest for one in target.referrers(subject, INDEX_TYPE_V1)]:
                return True
    return False


def _parts(
    image: Image, options: PushOptions, name: str
) -> tuple[list[ImageManifest], tuple[Platform, ...]]:
    """The entries to push, and the platforms that are asked for by nobody but missing."""
    if options.platforms and not options.all_platforms:
        picked = [entry for _, entry in choose(image, options.platforms, False, name)]
    else:
        picked = [entry for entry in image.manifests if entry.is_image]
        if not options.all_platforms:
            picked = [entry for entry in picked if entry.manifest is not None]
    for entry in picked:
        manifest_of(entry)
    if not picked:
        raise NotFoundError(
            f"{name} has no manifest of a platform; pull or convert it again", place=name
        )
    whole = all(entry.manifest is not None for entry in image.manifests if entry.is_image)
    everything = whole and len(picked) == sum(entry.is_image for entry in image.manifests)
    goes = image.manifests if everything else image.only(picked).manifests
    kept = [entry for entry in goes if entry.manifest is not None or not entry.is_manifest]
    gone = tuple(
        entry.platform
        for entry in image.manifests
        if entry.is_image and entry.platform and entry.manifest is None
    )
    return kept, () if options.platforms else gone


def _root(source: Source, image: Image, kept: Sequence[ImageManifest]) -> tuple[Descriptor, bytes]:
    """What the tag will mean: the image as it is, or an index of fewer entries."""
    if len(kept) == len(image.manifests):
        return image.root, read_blob(source, image.root)
    index = replace(image.index, manifests=tuple(entry.descriptor for entry in kept))
    data = encode(index)
    return replace(image.root, digest=digest_of(data), size=len(data)), data


def _bound_indexes(
    source: Source, kept: Sequence[ImageManifest], observer: Observer
) -> tuple[list[Descriptor], list[ImageManifest]]:
    """The indexes v2 that manifests name and that are not in the image but beside it, and the manifests
    that lack one: those whose own is nowhere or, where no manifest has one, all."""
    carried = {entry.descriptor.digest for entry in kept if entry.is_soci_index and entry.manifest}
    beside: list[Descriptor] = []
    lost: list[ImageManifest] = []
    converted = False
    for entry in kept:
        digest = entry.manifest.annotations.get(INDEX_DIGEST) if entry.manifest else None
        try:
            if digest and digest not in carried:
                beside.append(source.find(digest))
            converted = converted or bool(digest)
        except NotFoundError:
            lost.append(entry)
            name = platforms.format_platform(entry.platform) if entry.platform else "an artifact"
            observer.note(f"{name}: {missing_index(digest or '', source)}")
    return beside, lost if converted else list(kept)


def _make_indexes(
    source: StoreTarget,
    target: Target,
    image: Image,
    lacking: Sequence[ImageManifest],
    options: PushOptions,
    observer: Observer,
) -> list[PushedIndex]:
    """The indexes to push, made in the store. An image that has nothing to index gets none."""
    wanted_digests = {entry.descriptor.digest for entry in lacking}
    chosen = choose(image, options.platforms, options.all_platforms, source.name)
    made: list[PushedIndex] = []
    to_build: list[Platform] = []
    there: dict[Platform, tuple[str, ...]] = {}
    for platform, entry in chosen:
        if entry.descriptor.digest not in wanted_digests:
            continue
        there[platform] = _existing(target, entry, options)
        if there[platform] and options.existing_index == "skip":
            name = platforms.format_platform(platform)
            observer.note(f"{name}: no SOCI index pushed, it has {there[platform][0]} already")
            continue
        own = _index_it_came_with(source, entry, options)
        if own is not None:
            made.append(PushedIndex(platform, own))
        else:
            to_build.append(platform)
    if to_build:
        wanted = replace(options, platforms=tuple(to_build), all_platforms=False)
        try:
            for report in index_image(source, source, wanted, observer):
                if report.index is not None:
                    made.append(PushedIndex(report.platform, report.index, report))
        except NothingToIndexError as error:
            observer.note(f"pushed without a SOCI index: {error}")
    for one in made:
        others = there.get(one.platform, ())
        if others and one.index.digest not in others:
            observer.note(
                f"{platforms.format_platform(one.platform)}: it has another SOCI index already, "
                f"{others[0]}; which of the two is used is up to the one who pulls"
            )
    return made


def _existing(target: Target, entry: ImageManifest, options: PushOptions) -> tuple[str, ...]:
    """The digests of the indexes v1 that the registry has for a manifest, where they matter."""
    if options.existing_index == "allow":
        return ()
    return tuple(one.digest for one in target.referrers(entry.descriptor, INDEX_TYPE_V1))


def _index_it_came_with(
    source: StoreTarget, entry: ImageManifest, options: PushOptions
) -> Descriptor | None:
    """The index v1 of an image that was pulled without its layers: making one would fetch them all."""
    if options.force or all(source.exists(layer) for layer in manifest_of(entry).layers):
        return None
    known = source.referrers(entry.descriptor, INDEX_TYPE_V1)
    return known[0] if known else None


@dataclass(frozen=True)
class PushedArtifacts:
    """What became of a platform: the index v1 that was pushed, or None, and `existing` ones.

    `has_v2` says whether the image has an index v2 too, which is pushed with the image itself.
    """

    platform: Platform
    index: Descriptor | None
    existing: tuple[str, ...]
    has_v2: bool


@explaining_refusals()
def push_artifacts(
    artifacts: Artifacts,
    image: Source,
    target: Target,
    options: PushOptions,
    observer: Observer,
) -> list[PushedArtifacts]:
    """Pushes the newest index v1 of each chosen platform, and no image, to the registry of `target`.

    Raises NotFoundError for a platform that has none, before anything is pushed.
    """
    work = []
    picks = choose(read_image(image), options.platforms, options.all_platforms, image.name)
    for platform, entry in picks:
        listed = artifacts.of_manifest(entry.descriptor.digest)
        v1 = [one for one in listed if one.artifact_type == INDEX_TYPE_V1]
        has_v2 = any(one.artifact_type == INDEX_TYPE_V2 for one in listed)
        if not v1:
            hint = " (its index v2 is pushed with the image itself)" if has_v2 else ""
            raise NotFoundError(
                f"{image.name} has no SOCI index v1 for {platforms.format_platform(platform)} to "
                f"push{hint}; make one with `soci create`",
                place=image.name,
            )
        work.append((platform, entry, v1[0], has_v2))
    pushed = []
    for platform, entry, one, has_v2 in work:
        existing = _existing(target, entry, options)
        if existing and options.existing_index == "skip":
            pushed.append(PushedArtifacts(platform, None, existing, has_v2))
            continue
        push_index(artifacts.place(one), target, one.descriptor, observer, options.uploads)
        pushed.append(PushedArtifacts(platform, one.descriptor, existing, has_v2))
    return pushed
