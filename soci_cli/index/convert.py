"""Converting an image into one that can be loaded lazily: an OCI index with SOCI indexes v2 in it.

The rules are those of docs/formats.md, "Index manifest v2". Layers are read once: the pass that builds a
layer's zTOC also copies it. Nothing can be seen in the target before the last step, its tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

from soci_cli.errors import NotFoundError, SociError
from soci_cli.index.build import (
    IndexBuilder,
    IndexOptions,
    Job,
    PlatformReport,
    nothing_indexed,
)
from soci_cli.index.documents import LayerChanges, converted_documents, index_platform, is_index_of
from soci_cli.index.image import (
    Image,
    ImageManifest,
    Picks,
    choose,
    diff_ids_of,
    image_before,
    manifest_of,
    missing_platforms,
    read_image,
)
from soci_cli.index.layers import (
    LayerIndexer,
    LayerReport,
    short,
    skip_reason,
)
from soci_cli.index.memory import ZtocMemory
from soci_cli.index.model import (
    BUILD_TOOL,
    SPAN_SIZE,
    SociIndex,
    explaining_refusals,
    ztocs_by_layer,
)
from soci_cli.index.packing import is_plain_type, packing_of
from soci_cli.index.recompress import recompress_layer
from soci_cli.index.rehearsal import Rehearsal
from soci_cli.oci import (
    Descriptor,
    Manifest,
    Platform,
    media_types,
    platforms,
)
from soci_cli.oci.media_types import is_docker_layer, is_layer
from soci_cli.parallel import Stop, StoppableTask, run_all
from soci_cli.progress import Observer, SilentObserver, Work
from soci_cli.targets import Source, Target, copy_blob, copy_graph
from soci_cli.targets.copy import copy_leaf, two_sizes

_HINT = "; --zstd-layers recompress turns it into gzip"
_ONLY = "--only-platforms leaves them out"


@dataclass(frozen=True)
class ConvertOptions(IndexOptions):
    """How to convert.

    `recompress_zstd` turns zstd layers, which cannot be indexed, into gzip ones. `keep_layer_types` leaves
    layers their Docker media types, as the reference does. With `only_platforms` the result has the
    platforms that are indexed, and no other. With `tag_manifests` each manifest of it gets a tag, against
    clean-ups of registries that do not look into indexes.
    """

    recompress_zstd: bool = False
    keep_layer_types: bool = False
    only_platforms: bool = False
    tag_manifests: bool = False


@dataclass(frozen=True)
class ConvertResult:
    """The converted image's OCI index, and whether anything had to be written."""

    descriptor: Descriptor
    changed: bool
    platforms: tuple[PlatformReport, ...]


@explaining_refusals()
def convert(
    source: Source,
    target: Target,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
) -> ConvertResult:
    """Converts the image that `source` was opened with into the one that `target` was opened with.

    All platforms are copied, the chosen ones get a SOCI index. Converting again changes nothing. The
    same place may be both source and target. Raises SociError when no layer can be indexed, and what
    reading and writing raise; the target's reference is changed only when everything is there.
    """
    options = options or ConvertOptions()
    observer = observer or SilentObserver()
    with ExitStack() as stack:
        before = target.before()
        if before is not None:
            stack.enter_context(before)
        image = read_image(source)
        picked = choose(image, options.platforms, options.all_platforms, source.name)
        if options.only_platforms:
            image = image.only([entry for _, entry in picked])
        image = _without_missing(image, picked, source, target, observer)
        earlier = image_before(before)
        memory = ZtocMemory(
            [*earlier, (source, image)], target, options.ztoc_settings, force=options.force
        )
        made: dict[str, tuple[Descriptor, ...]] = {}
        if earlier and not options.force:
            place, old = earlier[0]
            made = _layers_by_config(old)
            if _may_be_done(picked, old, options):
                # What differs ends the rehearsal; what is wrong will come up again below.
                with suppress(SociError):
                    rehearsal = Rehearsal(place)
                    silent = SilentObserver()
                    root, reports = _Conversion(
                        source, image, picked, rehearsal, options, silent, memory, made
                    ).run()
                    return ConvertResult(root, False, reports)
        root, reports = _Conversion(
            source, image, picked, target, options, observer, memory, made
        ).run()
        return ConvertResult(root, True, reports)


def _without_missing(
    image: Image, picked: Picks, source: Source, target: Target, observer: Observer
) -> Image:
    """The image without artifacts that the target, a registry, would miss.

    NotFoundError for a platform, before anything is written: a registry takes an index only when the
    manifests that it names are there.
    """
    for _, entry in picked:
        manifest_of(entry)
    if target.repository is None:
        return image
    if lost := missing_platforms(image, target):
        raise NotFoundError(
            f"the manifests for {lost} are not here, and a registry takes no image without them; copy "
            f"the whole image first, or {_ONLY}",
            place=source.name,
        )
    missing = [
        entry
        for entry in image.manifests
        if entry.manifest is None and entry.is_manifest and not target.exists(entry.descriptor)
    ]
    for entry in missing:
        observer.note(
            f"manifest {entry.descriptor.digest} is not in {source.name} and left out",
            "a manifest that is missing is left out",
        )
    kept = [entry for entry in image.manifests if entry not in missing]
    return replace(image, manifests=tuple(kept))


def _may_be_done(picked: Picks, old: Image, options: ConvertOptions) -> bool:
    """Whether the target's image has an index as the conversion would make one.

    If not, something will change for certain, and finding that out could mean to build a zTOC in vain.
    """
    return any(
        entry.manifest is not None
        and entry.manifest.annotations.get(BUILD_TOOL) == options.build_tool_identifier
        and any(
            blob.annotations.get(SPAN_SIZE) == str(options.span_size)
            for blob in ztocs_by_layer(entry.manifest).values()
        )
        and any(is_index_of(entry, platform) for platform, _ in picked)
        for entry in old.manifests
    )


def _layers_by_config(image: Image) -> dict[str, tuple[Descriptor, ...]]:
    """The layers of each manifest of an image, by the digest of its config."""
    return {
        entry.manifest.config.digest: entry.manifest.layers
        for entry in image.manifests
        if entry.manifest is not None and entry.is_image
    }


@dataclass
class _Conversion:
    source: Source
    image: Image
    picked: Picks
    target: Target
    options: ConvertOptions
    observer: Observer
    memory: ZtocMemory
    # What an earlier conversion made of the same image: its layers, by the digest of their config.
    made: Mapping[str, tuple[Descriptor, ...]]
    # Blobs of platforms that are not picked, which nobody has.
    absent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.changes = LayerChanges(self.options.keep_layer_types)
        self.indexer = LayerIndexer(
            self.source, self.target, self.options.ztoc_settings, self.memory
        )
        self.builder = IndexBuilder(self.target, self.options, self.observer, self.indexer)

    def run(self) -> tuple[Descriptor, tuple[PlatformReport, ...]]:
        image, options, picked = self.image, self.options, self.picked
        jobs = self._layer_jobs()
        if not jobs:
            skipped = [
                PlatformReport(platform, None, self._reports(manifest_of(entry).layers))
                for platform, entry in picked
            ]
            raise nothing_indexed(self.source.name, skipped, options)
        self._move_blobs(image, jobs)
        whole = replace(image, manifests=tuple(map(self._whole_or_as_it_is, image.manifests)))

        indexes: dict[str, tuple[Platform, SociIndex]] = {}
        results: list[PlatformReport] = []
        for platform, entry in picked:
            layers = self.changes.layers(manifest_of(entry))
            index = self.builder.make(layers)
            found = index.descriptor if index else None
            results.append(PlatformReport(platform, found, self._reports(layers)))
            if index:
                named = index_platform(platform, entry)
                indexes.setdefault(entry.descriptor.digest, (named, index))
        if not indexes:
            raise nothing_indexed(self.source.name, results, options)
        self._move_kept(image, [platform for platform, _ in indexes.values()])

        made = converted_documents(whole, indexes, self.changes)
        for descriptor, data in made:
            self.target.push(descriptor, data)
        root, _ = made[-1]
        if options.tag_manifests:
            made_indexes = [index.descriptor for _, index in indexes.values()]
            for descriptor in (*made_indexes, *(descriptor for descriptor, _ in made[:-1])):
                self.target.keep(descriptor)
        self.target.tag(root)
        return root, tuple(results)

    # Layers and other blobs.

    def _reports(self, layers: Sequence[Descriptor]) -> tuple[LayerReport, ...]:
        return tuple(self.builder.reports[layer.digest] for layer in layers)

    def _layer_jobs(self) -> dict[str, tuple[Descriptor, Job]]:
        """The layers that should be indexed, each with the job that does it, by digest."""
        jobs: dict[str, tuple[Descriptor, Job]] = {}
        for _, entry in self.picked:
            manifest = manifest_of(entry)
            for position, layer in enumerate(manifest.layers):
                with _needed_for(entry):
                    job = None if layer.digest in jobs else self._layer_job(manifest, position)
                if job:
                    jobs[layer.digest] = layer, self._picked_job(entry, layer, job)
        return jobs

    def _picked_job(self, entry: ImageManifest, blob: Descriptor, job: Job) -> Job:
        def run(stop: Stop) -> None:
            with _needed_for(entry):
                job(stop)
                self._look_into(blob)

        return run

    def _look_into(self, layer: Descriptor) -> None:
        """Takes note of how a layer of Docker's types is packed."""
        here = not layer.urls or self.source.exists(layer)
        if is_docker_layer(layer.media_type) and not self.options.keep_layer_types and here:
            self.changes.packings[layer.digest] = packing_of(layer, self.source)

    def _move_blobs(self, image: Image, jobs: dict[str, tuple[Descriptor, Job]]) -> None:
        """Does the jobs and copies everything else, side by side."""
        picked = [entry for _, entry in self.picked]
        # The picked ones first: what they share with others must be here.
        for entry in sorted(image.manifests, key=lambda entry: entry not in picked):
            if entry.manifest is None or entry.is_soci_index:
                continue
            for blob in (entry.manifest.config, *entry.manifest.layers):
                job = self._copy_job(blob)
                if entry in picked:
                    job = self._picked_job(entry, blob, job)
                elif entry.is_image:
                    job = self._spare_job(blob, job)
                known, _ = jobs.setdefault(blob.digest, (blob, job))
                if known.size != blob.size:
                    raise two_sizes(self.source.name, known, blob)

        def work(item: tuple[Descriptor, Job], stop: Stop) -> None:
            item[1](stop)

        # The largest first: with few workers that ends soonest.
        items = sorted(jobs.values(), key=lambda item: -item[0].size)
        run_all(work, items, self.options.concurrency)

    def _layer_job(self, manifest: Manifest, position: int) -> Job | None:
        """The job that indexes a layer; None when it only needs to be copied."""
        layer = manifest.layers[position]
        if self.options.recompress_zstd and self._to_recompress(layer):
            return lambda stop: self._recompress(manifest, position, stop)
        return self.builder.job(layer, self.source, _HINT)

    def _to_recompress(self, layer: Descriptor) -> bool:
        return (
            is_layer(layer.media_type)
            and layer.size >= self.options.min_layer_size
            and (not layer.urls or self.source.exists(layer))
            and is_plain_type(layer)
            and packing_of(layer, self.source) == "zstd"
        )

    def _recompress(self, manifest: Manifest, position: int, stop: Stop) -> None:
        layer = manifest.layers[position]
        known = self._made_before(manifest, position)
        if known is not None and (before := self.target.before()) is not None:
            with before:
                if before.exists(known):
                    self._index_recompressed(layer, known, before, stop)
                    return
        self.target.prepare(f"the gzip form of {layer.digest}")
        diff_id = diff_ids_of(self.source, manifest)[position]
        with Work(self.observer, short(layer.digest), layer.size) as work:
            task = StoppableTask(work, stop)
            new = recompress_layer(self.source, self.target, layer, diff_id, task)
            work.outcome = "recompressed"
        self._index_recompressed(layer, new, self.target, stop)

    def _index_recompressed(
        self, layer: Descriptor, new: Descriptor, place: Source, stop: Stop
    ) -> None:
        """Puts the gzip form of a layer, which is in `place`, in that layer's stead."""
        self.changes.recompressed[layer.digest] = new
        reason = skip_reason(new, place, self.options.min_layer_size)
        if reason:
            copy_blob(place, self.target, new)
            self.builder.reports[new.digest] = LayerReport(new, "skipped", reason)
        else:
            self.builder.index(new, stop, self.indexer.reading(place))

    def _made_before(self, manifest: Manifest, position: int) -> Descriptor | None:
        """The gzip layer that an earlier conversion made of this one.

        An image with the same config has the same uncompressed layers in the same order, if the config
        names them.
        """
        layers = self.made.get(manifest.config.digest, ())
        if (
            len(layers) != len(manifest.layers)
            or diff_ids_of(self.source, manifest)[position] is None
        ):
            return None
        layer = layers[position]
        return layer if media_types.layer_compression(layer.media_type) == "gzip" else None

    def _copy_job(self, blob: Descriptor) -> Job:
        return lambda stop: copy_leaf(self.source, self.target, blob, self.observer, stop)

    def _spare_job(self, blob: Descriptor, job: Job) -> Job:
        """The job for a blob of a platform that is not picked, which may do without it."""

        def run(stop: Stop) -> None:
            try:
                job(stop)
                self._look_into(blob)
            except NotFoundError:
                if self.source.exists(blob):
                    raise
                self.absent.add(blob.digest)

        return run

    def _whole_or_as_it_is(self, entry: ImageManifest) -> ImageManifest:
        """An entry; one that lacks blobs and is in the target already stays as it is there.

        NotFoundError for one that is not there.
        """
        if entry.manifest is None or entry.is_soci_index:
            return entry
        blobs = (entry.manifest.config, *entry.manifest.layers)
        lost = [blob.digest for blob in blobs if blob.digest in self.absent]
        if not lost:
            return entry
        if not self.target.exists(entry.descriptor):
            with _needed_for(entry):
                raise NotFoundError(
                    f"{self.source.name} has no blob {lost[0]}; copy the whole image first; for the other "
                    f"platforms alone, {_ONLY}",
                    place=self.source.name,
                )
        return replace(entry, manifest=None)

    def _move_kept(self, image: Image, replaced: Sequence[Platform]) -> None:
        """Copies what stays: nested indexes, and SOCI indexes of platforms that get no new one."""
        for entry in image.manifests:
            descriptor = entry.descriptor
            if entry.manifest is not None and not entry.is_soci_index:
                continue
            if any(is_index_of(entry, platform) for platform in replaced):
                continue
            try:
                copy_graph(
                    self.source,
                    self.target,
                    descriptor,
                    self.observer,
                    allow_missing_manifests=True,
                )
            except NotFoundError:
                # Only the entry itself may be missing, not what it is made of.
                if entry.is_soci_index or self.source.exists(descriptor):
                    raise
                self.observer.note(
                    f"manifest {descriptor.digest} is not in {self.source.name}; "
                    "the converted image names it all the same",
                    "a manifest that is named is missing",
                )


@contextmanager
def _needed_for(entry: ImageManifest) -> Iterator[None]:
    """A blob that is not found was needed for this platform."""
    try:
        yield
    except NotFoundError as error:
        name = platforms.format_platform(entry.platform) if entry.platform else "an artifact"
        raise error.explained(f"needed for {name}") from error
