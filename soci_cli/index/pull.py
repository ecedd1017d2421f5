"""Pulling: an image out of a registry, without the layers that can stay there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from soci_cli.errors import NotFoundError, UsageError
from soci_cli.index.discover import FoundIndex, IndexSources, find_index
from soci_cli.index.image import Image, ImageManifest, manifest_of, read_chosen
from soci_cli.index.model import ztocs_by_layer
from soci_cli.oci import Descriptor, Platform
from soci_cli.parallel import Stop, run_all
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, Target, copy_graph, read_blob
from soci_cli.targets.copy import copy_leaf

Staying = Callable[[ImageManifest, FoundIndex], Sequence[Descriptor]]
"""Gives the layers of a manifest, the lowest ones, that somebody else has fetched or reads lazily."""


@dataclass(frozen=True)
class PullOptions:
    """What to pull. `index` says where SOCI indexes are looked for; None pulls every layer.

    `staying` is asked which layers need not be pulled when all else is there.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    index: IndexSources | None = None
    concurrency: int = 3
    staying: Staying | None = None


@dataclass(frozen=True)
class PulledLayer:
    """A layer and its `outcome`: "copied", "already there", "left out" or "remote"."""

    descriptor: Descriptor
    outcome: str


@dataclass(frozen=True)
class PulledPlatform:
    """One platform of a pulled image, with the SOCI index that was used, if any."""

    platform: Platform
    index: FoundIndex | None
    layers: tuple[PulledLayer, ...]

    @property
    def remote(self) -> tuple[Descriptor, ...]:
        """The layers that stayed in the registry."""
        return tuple(one.descriptor for one in self.layers if one.outcome == "remote")


@dataclass(frozen=True)
class PullResult:
    """The pulled image's manifest or index; `fetched` are the bytes that were copied."""

    descriptor: Descriptor
    platforms: tuple[PulledPlatform, ...]
    fetched: int


def pull(
    place: Source,
    home: str,
    target: Target,
    options: PullOptions,
    observer: Observer | None = None,
) -> PullResult:
    """Pulls the chosen platforms of an image.

    With an index, layers that have a zTOC stay where they are when the target is the local store, which
    remembers `home`, a place such as `docker://HOST/REPO`, to read them from later. Raises NotFoundError
    for a platform that is not in the image, and what reading and writing raise; the name is given when
    everything is there.
    """
    observer = observer or SilentObserver()
    image, parts = read_chosen(place, options.platforms, options.all_platforms)
    if options.index and options.index.digest and len(parts) > 1:
        raise UsageError("a SOCI index belongs to one platform; choose one with --platform")
    work = _Pull(place, home, target, options, observer)
    found = [work.find(entry) for _, entry in parts]
    outcomes = work.blobs([entry for _, entry in parts], found)
    work.manifests(image, [entry for _, entry in parts], found)
    outcomes |= work.layers([entry for _, entry in parts], found)
    target.tag(image.root)
    results = tuple(
        PulledPlatform(
            platform,
            index,
            tuple(
                PulledLayer(layer, outcomes[layer.digest]) for layer in manifest_of(entry).layers
            ),
        )
        for (platform, entry), index in zip(parts, found, strict=True)
    )
    return PullResult(image.root, results, work.fetched)


class _Pull:
    def __init__(
        self,
        place: Source,
        home: str,
        target: Target,
        options: PullOptions,
        observer: Observer,
    ) -> None:
        self.fetched = 0
        self._place = place
        self._home = home
        self._target = target
        self._options = options
        self._observer = observer

    def find(self, entry: ImageManifest) -> FoundIndex | None:
        manifest_of(entry)
        if self._options.index is None:
            return None
        return find_index(self._place, entry, self._options.index, self._observer)

    def blobs(
        self, entries: Sequence[ImageManifest], found: Sequence[FoundIndex | None]
    ) -> dict[str, str]:
        """Fetches what is needed, side by side; the outcome of every blob by digest."""
        store = self._target.store
        wanted: dict[str, Descriptor] = {}
        remote: dict[str, Descriptor] = {}
        for entry, index in zip(entries, found, strict=True):
            manifest = manifest_of(entry)
            indexed = ztocs_by_layer(index.manifest) if index else {}
            wanted[manifest.config.digest] = manifest.config
            for layer in manifest.layers:
                if index and self._options.staying:
                    continue  # until it is known which are needed
                lazy = (
                    store is not None and layer.digest in indexed and not self._target.exists(layer)
                )
                (remote if lazy else wanted)[layer.digest] = layer
            if index:
                for blob in (index.manifest.config, *index.manifest.layers):
                    wanted[blob.digest] = blob
        # A layer may be indexed for one platform only; then it is fetched.
        remote = {digest: layer for digest, layer in remote.items() if digest not in wanted}
        outcomes = self._fetch_all(wanted)
        if store is not None:
            for digest in remote:
                store.remember_location(digest, self._home)
        return outcomes | dict.fromkeys(remote, "remote")

    def layers(
        self, entries: Sequence[ImageManifest], found: Sequence[FoundIndex | None]
    ) -> dict[str, str]:
        """Fetches the layers that are needed, where `staying` says so; the outcome of each by digest."""
        wanted: dict[str, Descriptor] = {}
        remote: dict[str, str] = {}
        for entry, index in zip(entries, found, strict=True):
            if index is None or self._options.staying is None:
                continue
            staying = {layer.digest for layer in self._options.staying(entry, index)}
            remote |= dict.fromkeys(staying, "remote")
            layers = manifest_of(entry).layers
            wanted |= {layer.digest: layer for layer in layers if layer.digest not in staying}
        return remote | self._fetch_all(wanted)

    def _fetch_all(self, wanted: Mapping[str, Descriptor]) -> dict[str, str]:
        """Fetches blobs side by side; the outcome of each by digest."""
        items = sorted(wanted.values(), key=lambda blob: -blob.size)
        done = run_all(self._fetch, items, self._options.concurrency)
        outcomes = {blob.digest: outcome for blob, outcome in zip(items, done, strict=True)}
        self.fetched += sum(blob.size for blob in items if outcomes[blob.digest] == "copied")
        return outcomes

    def manifests(
        self,
        image: Image,
        entries: Sequence[ImageManifest],
        found: Sequence[FoundIndex | None],
    ) -> None:
        """Writes the manifests, each after what it names.

        Whoever pulls all platforms there are gets attestations and whatever else there is, too.
        """
        for entry, index in zip(entries, found, strict=True):
            if index:
                self._copy_manifest(index.descriptor)
            self._copy_manifest(entry.descriptor)
        known = {entry.descriptor.digest for entry in entries}
        if all(entry.descriptor.digest in known for entry in image.manifests if entry.is_image):
            for entry in image.manifests:
                if entry.descriptor.digest not in known and not entry.is_soci_index:
                    self._rest(entry)
        for nested in image.nested:
            self._copy_manifest(nested)
        if image.root.digest != entries[0].descriptor.digest:
            self._copy_manifest(image.root)

    def _rest(self, entry: ImageManifest) -> None:
        """An attestation or another thing that is no image of a platform."""
        try:
            copy_graph(
                self._place,
                self._target,
                entry.descriptor,
                self._observer,
                self._options.concurrency,
                allow_missing_manifests=True,
            )
        except NotFoundError as error:
            self._observer.note(f"left out: {error}", "a part that is missing is left out")

    def _copy_manifest(self, descriptor: Descriptor) -> None:
        self._target.push(descriptor, read_blob(self._place, descriptor))

    def _fetch(self, blob: Descriptor, stop: Stop) -> str:
        return copy_leaf(self._place, self._target, blob, self._observer, stop)
