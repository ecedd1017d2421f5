"""An image as it is found in a place: its index, its manifests and their platforms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from soci_cli.errors import InvalidDataError, NotFoundError, SociError
from soci_cli.index.model import (
    INDEX_DIGEST,
    INDEX_TYPE_V1,
    INDEX_TYPE_V2,
    MANIFEST_DIGEST,
    REFERENCE_DIGEST,
    is_soci_index,
)
from soci_cli.oci import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_config_diff_ids,
    parse_config_platform,
    parse_index,
    parse_manifest,
    platforms,
)
from soci_cli.oci.manifest import CONFIG_LIMIT, MAX_ENTRIES
from soci_cli.oci.media_types import OCI_INDEX, is_index, is_manifest, layer_compression
from soci_cli.targets import Source, Target, read_blob
from soci_cli.targets.copy import DEPTH_LIMIT

_CLEANED = (
    "; it was not copied with the image, or a clean-up of untagged manifests removed it: copy, convert or "
    "push the image again"
)


@dataclass(frozen=True)
class ImageManifest:
    """One entry of an image's index.

    `platform` is that of the descriptor or, where it has none, of the config. `is_image` is false for
    attestations, SOCI indexes and other artifacts. `manifest` is None when the place does not have it.
    """

    descriptor: Descriptor
    manifest: Manifest | None
    platform: Platform | None
    is_image: bool
    is_soci_index: bool

    @property
    def is_manifest(self) -> bool:
        """Whether the entry is a manifest, and no index or other thing."""
        return is_manifest(self.descriptor.media_type)


@dataclass(frozen=True)
class Image:
    """An image in a place. A single manifest appears as an index of one entry with its platform.

    `manifests` has what nested indexes list in place of these; `nested` are their descriptors, each after
    those that it lists.
    """

    root: Descriptor
    index: Index
    manifests: tuple[ImageManifest, ...]
    nested: tuple[Descriptor, ...] = ()

    @property
    def platforms(self) -> list[Platform]:
        """The platforms of the image, each once, in order; attestations have none."""
        return platforms.dedupe(
            entry.platform for entry in self.manifests if entry.is_image and entry.platform
        )

    def get(self, platform: Platform, name: str) -> ImageManifest:
        """As `find`, but NotFoundError, with the platforms there are, when there is none."""
        entry = self.find(platform)
        if entry is None:
            there = ", ".join(platforms.format_platform(p) for p in self.platforms) or "none"
            raise NotFoundError(
                f"{name} has no manifest for {platforms.format_platform(platform)}; it has {there}",
                place=name,
            )
        return entry

    def find(self, platform: Platform) -> ImageManifest | None:
        """The first image manifest that matches a platform strictly, as containerd does.

        Where several match, such as the zstd form of an image beside its gzip form, one with a SOCI index
        goes before others, and one that is here and can be indexed before the rest.
        """
        fitting = (
            entry
            for entry in self.manifests
            if entry.is_image and entry.platform and platforms.matches(platform, entry.platform)
        )
        return min(fitting, key=_unfitness, default=None)

    def only(self, chosen: Sequence[ImageManifest]) -> Image:
        """The image with these manifests only, their SOCI indexes, and what refers to them."""
        digests = {entry.descriptor.digest for entry in chosen}
        bound = {entry.manifest.annotations.get(INDEX_DIGEST) for entry in chosen if entry.manifest}

        def stays(entry: ImageManifest) -> bool:
            notes = entry.descriptor.annotations
            subject = entry.manifest.subject if entry.manifest else None
            return entry.descriptor.digest in digests | bound or not digests.isdisjoint(
                {
                    notes.get(REFERENCE_DIGEST),
                    notes.get(MANIFEST_DIGEST),
                    subject.digest if subject else None,
                }
            )

        return replace(self, manifests=tuple(filter(stays, self.manifests)), nested=())


def read_all(entries: Sequence[Descriptor], descriptor: Descriptor) -> bool:
    """The default of `read_image`: every manifest is read."""
    return True


def needed_for(wanted: Sequence[Platform]) -> Callable[[Sequence[Descriptor], Descriptor], bool]:
    """For `read_image`: the manifests of these platforms; by default the only one, or this machine's."""

    def needed(entries: Sequence[Descriptor], descriptor: Descriptor) -> bool:
        if descriptor.platform is None:
            return True
        if platforms.is_unknown(descriptor.platform):
            return False
        there = platforms.dedupe(
            entry.platform
            for entry in entries
            if entry.platform and not platforms.is_unknown(entry.platform)
        )
        chosen = wanted or (there if len(there) == 1 else [platforms.host_platform()])
        return any(platforms.matches(platform, descriptor.platform) for platform in chosen)

    return needed


def read_image(
    source: Source, needed: Callable[[Sequence[Descriptor], Descriptor], bool] = read_all
) -> Image:
    """Reads the manifests of an image, and configs where a platform is only there.

    Of an index, only those manifests are read for which `needed(entries, entry)` is true. Indexes in it
    are looked into as containerd does: the platform of such an entry limits what is found below it.
    A manifest of an index that the place lacks is allowed: pulling one platform of several leaves such
    images. Raises NotFoundError, IntegrityError and InvalidDataError.
    """
    root = source.resolve()
    what = f"{root.digest} in {source.name}"
    if is_index(root.media_type):
        index = parse_index(read_blob(source, root), f"index {what}", root.media_type)
        reader = _IndexReader(source, needed)
        entries = tuple(reader.read(index, None, 1))
        if reader.missing == len(entries):
            raise NotFoundError(
                f"index {what}: none of its manifests is here{_CLEANED}", place=source.name
            )
        return Image(root, index, entries, tuple(reader.nested))
    if not is_manifest(root.media_type):
        raise InvalidDataError(f"{what} is neither a manifest nor an index: {root.media_type!r}")
    manifest = parse_manifest(read_blob(source, root), f"manifest {what}", root.media_type)
    if is_soci_index(manifest):
        raise InvalidDataError(f"{what} is a SOCI index, not an image")
    platform = platforms.normalize(_config_platform(source, manifest))
    descriptor = replace(root, platform=platform, annotations={})
    entry = ImageManifest(descriptor, manifest, platform, True, False)
    return Image(root, Index(2, OCI_INDEX, "", (descriptor,)), (entry,))


def image_before(before: Source | None) -> list[tuple[Source, Image]]:
    """The image that a target had, with its place; empty when there is none, or a damaged one."""
    if before is not None:
        with suppress(SociError):
            return [(before, read_image(before))]
    return []


class _IndexReader:
    """Reads what an index lists, and the indexes in it."""

    def __init__(
        self, source: Source, needed: Callable[[Sequence[Descriptor], Descriptor], bool]
    ) -> None:
        self.nested: list[Descriptor] = []
        self.missing = 0  # manifests that are needed and not here
        self._source = source
        self._needed = needed
        self._count = 0
        self._parsed: dict[str, Index] = {}

    def read(self, index: Index, within: Platform | None, depth: int) -> Iterator[ImageManifest]:
        """The entries; `within` is the platform of the entry that leads to a nested index, if any."""
        for descriptor in index.manifests:
            self._count += 1
            if self._count > MAX_ENTRIES:
                raise InvalidDataError(
                    f"the indexes of the image in {self._source.name} list more than {MAX_ENTRIES} "
                    "manifests"
                )
            needed = self._needed(index.manifests, descriptor)
            if is_index(descriptor.media_type) and _may_be_image(descriptor):
                below = self._open(descriptor, depth) if needed else None
                if below is not None and (below.artifact_type or below.subject):
                    yield ImageManifest(descriptor, None, descriptor.platform, False, False)
                    continue
                if below is not None:
                    yield from self.read(below, descriptor.platform or within, depth + 1)
                    self.nested.append(descriptor)
                    continue
            entry = _read_entry(self._source, descriptor) if needed else _unread(descriptor)
            self.missing += needed and entry.manifest is None and entry.is_manifest
            if not within or _may_be_below(within, entry):
                yield entry

    def _open(self, descriptor: Descriptor, depth: int) -> Index | None:
        """A nested index; None for one that is not here."""
        name = self._source.name
        if depth > DEPTH_LIMIT:
            raise InvalidDataError(
                f"the image in {name} is nested deeper than {DEPTH_LIMIT}: {descriptor.digest}",
                place=name,
            )
        if descriptor.digest in self._parsed:
            return self._parsed[descriptor.digest]
        try:
            data = read_blob(self._source, descriptor)
        except NotFoundError:
            return None
        what = f"index {descriptor.digest} in {name}"
        index = parse_index(data, what, descriptor.media_type)
        return self._parsed.setdefault(descriptor.digest, index)


def _may_be_below(within: Platform, entry: ImageManifest) -> bool:
    own = entry.platform if entry.is_image else None
    return own is None or platforms.matches(within, own)


def _unfitness(entry: ImageManifest) -> tuple[bool, bool, bool]:
    """How far an entry is from being read lazily, for `min`."""
    manifest = entry.manifest
    notes = {**(manifest.annotations if manifest else {}), **entry.descriptor.annotations}
    packings = (
        [layer_compression(layer.media_type) for layer in manifest.layers] if manifest else []
    )
    indexable = not packings or any(
        packing in ("gzip", "uncompressed", "unknown") for packing in packings
    )
    return INDEX_DIGEST not in notes, manifest is None, not indexable


def _read_entry(source: Source, descriptor: Descriptor) -> ImageManifest:
    platform = descriptor.platform
    if not is_manifest(descriptor.media_type):
        return _unread(descriptor)
    try:
        data = read_blob(source, descriptor)
    except NotFoundError:
        return _unread(descriptor)
    what = f"manifest {descriptor.digest} in {source.name}"
    manifest = parse_manifest(data, what, descriptor.media_type)
    is_soci = is_soci_index(manifest)
    is_image = _may_be_image(descriptor) and not is_soci and not manifest.artifact_type
    if is_image and platform is None:
        platform = platforms.normalize(_config_platform(source, manifest))
        is_image = not platforms.is_unknown(platform)
    return ImageManifest(descriptor, manifest, platform, is_image, is_soci)


def _unread(descriptor: Descriptor) -> ImageManifest:
    """An entry of which nothing is known but its descriptor."""
    is_soci = descriptor.artifact_type in (INDEX_TYPE_V1, INDEX_TYPE_V2)
    # A nested index that is not read is the image for the platform of its entry.
    kind = is_manifest(descriptor.media_type) or (
        is_index(descriptor.media_type) and descriptor.platform is not None
    )
    is_image = kind and _may_be_image(descriptor) and not is_soci
    return ImageManifest(descriptor, None, descriptor.platform, is_image, is_soci)


def _may_be_image(descriptor: Descriptor) -> bool:
    if descriptor.artifact_type or REFERENCE_DIGEST in descriptor.annotations:
        return False
    return descriptor.platform is None or not platforms.is_unknown(descriptor.platform)


def _config_platform(source: Source, manifest: Manifest) -> Platform:
    config = manifest.config
    data = read_blob(source, config, CONFIG_LIMIT)
    return parse_config_platform(data, f"config {config.digest} in {source.name}")


Picks = list[tuple[Platform, ImageManifest]]
"""The platforms to work on, each with its entry."""


def choose(image: Image, wanted: Sequence[Platform], everything: bool, name: str) -> Picks:
    """Which platforms of an image to work on: all, those asked for, or this machine's.

    An image for one platform only is that platform. Raises NotFoundError, with those there are, when a
    platform is not in the image.
    """
    there = image.platforms
    if everything:
        chosen = there
    elif wanted:
        chosen = platforms.dedupe(wanted)
    elif len(there) == 1:
        chosen = there
    else:
        chosen = [platforms.host_platform()]
    picks = [(platform, image.get(platform, name)) for platform in chosen]
    if not picks:
        raise NotFoundError(f"{name} has no platform that could be indexed", place=name)
    return picks


def read_chosen(
    source: Source, wanted: Sequence[Platform], everything: bool = False
) -> tuple[Image, Picks]:
    """`read_image` and `choose` together, which read the manifests of these platforms only."""
    image = read_image(source, read_all if everything else needed_for(wanted))
    return image, choose(image, wanted, everything, source.name)


def manifest_of(entry: ImageManifest) -> Manifest:
    """The manifest of an entry; NotFoundError when its place does not have it."""
    if entry.manifest is None:
        platform = f" for {platforms.format_platform(entry.platform)}" if entry.platform else ""
        raise NotFoundError(
            f"the image lists a manifest{platform} that its place does not have, "
            f"{entry.descriptor.digest}{_CLEANED}"
        )
    return entry.manifest


def missing_platforms(image: Image, target: Target) -> str:
    """The platforms whose manifests neither the image's place nor the target has, for a message."""
    lost = platforms.dedupe(
        entry.platform
        for entry in image.manifests
        if entry.is_image
        and entry.platform
        and entry.manifest is None
        and not target.exists(entry.descriptor)
    )
    return ", ".join(map(platforms.format_platform, lost))


def diff_ids_of(source: Source, manifest: Manifest) -> Sequence[str | None]:
    """What the config of an image says that each of its layers unpacks to.

    All are None where it does not say that of as many layers: there is no telling which is which.
    """
    config = manifest.config
    what = f"config {config.digest} in {source.name}"
    found = parse_config_diff_ids(read_blob(source, config, CONFIG_LIMIT), what)
    count = len(manifest.layers)
    return found if len(found) == count else [None] * count


def chain_ids(diff_ids: Sequence[str | None]) -> list[str | None]:
    """The chain ID of each layer (OCI image spec, config.md); None from the first unknown diff ID on."""
    found: list[str | None] = []
    for one in diff_ids:
        above = found[-1] if found else ""
        if one is None or above is None:
            found.append(None)
        elif not above:
            found.append(one)
        else:
            found.append(f"sha256:{hashlib.sha256(f'{above} {one}'.encode()).hexdigest()}")
    return found
