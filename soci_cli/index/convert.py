"""Converting an image into one that can be loaded lazily: an OCI index with SOCI indexes v2 in it.

The rules are those of docs/formats.md, "Index manifest v2". Layers are read once: the pass that builds a
layer's zTOC also copies it. Nothing can be seen in the target before the last step, its tag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from soci_cli.errors import NotFoundError, SociError, UsageError
from soci_cli.index.image import Image, ImageManifest, choose_platforms, read_image
from soci_cli.index.layers import (
    LayerIndexer,
    LayerReport,
    ZtocMemory,
    ZtocSettings,
    compression_of,
    short,
    skip_reason,
)
from soci_cli.index.memory import known_ztocs
from soci_cli.index.model import (
    DEFAULT_MIN_LAYER_SIZE,
    EMPTY_CONFIG,
    INDEX_DIGEST,
    INDEX_TYPE_V2,
    MANIFEST_DIGEST,
    REFERENCE_DIGEST,
    SociIndex,
    make_index,
    ztoc_descriptor,
)
from soci_cli.index.prefetch import plan_prefetch
from soci_cli.index.recompress import recompress_layer
from soci_cli.index.rehearsal import Rehearsal
from soci_cli.oci import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
    encode,
    parse_config_diff_ids,
    platforms,
)
from soci_cli.oci.media_types import DOCKER_CONFIG, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from soci_cli.parallel import Stop, StoppableTask, run_all
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, Target, copy_blob, copy_graph, read_blob
from soci_cli.ztoc import DEFAULT_BUILD_TOOL_IDENTIFIER, DEFAULT_SPAN_SIZE, Ztoc, decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE

_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert. Sizes are in bytes.

    `platforms` are indexed, or all with `all_platforms`, or this machine's when neither is given.
    `recompress_zstd` turns zstd layers into gzip ones. `force` builds zTOCs anew that exist already.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    span_size: int = DEFAULT_SPAN_SIZE
    min_layer_size: int = DEFAULT_MIN_LAYER_SIZE
    build_tool_identifier: str = DEFAULT_BUILD_TOOL_IDENTIFIER
    optimize_xattrs: bool = False
    prefetch_files: tuple[str, ...] = ()
    recompress_zstd: bool = False
    force: bool = False
    concurrency: int = 2

    def __post_init__(self) -> None:
        if self.span_size < 1:
            raise UsageError(f"the span size must be at least 1 byte, not {self.span_size}")
        if self.min_layer_size < 0:
            raise UsageError(f"the minimum layer size cannot be negative: {self.min_layer_size}")


@dataclass(frozen=True)
class PlatformReport:
    """What became of one platform: its SOCI index, or None when no layer got a zTOC."""

    platform: Platform
    index: Descriptor | None
    layers: tuple[LayerReport, ...]


@dataclass(frozen=True)
class ConvertResult:
    """The converted image's OCI index, and whether the target changed."""

    descriptor: Descriptor
    changed: bool
    platforms: tuple[PlatformReport, ...]


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
    settings = ZtocSettings(options.span_size, options.build_tool_identifier)
    with ExitStack() as stack:
        before = target.before()
        if before is not None:
            stack.enter_context(before)
        memory = known_ztocs(source, target, before, settings, force=options.force)
        if before is not None and not options.force:
            with suppress(SociError):
                return _Conversion(
                    source, Rehearsal(before), options, SilentObserver(), memory, rehearsal=True
                ).run()
        return _Conversion(source, target, options, observer or SilentObserver(), memory).run()


@dataclass
class _Conversion:
    source: Source
    target: Target
    options: ConvertOptions
    observer: Observer
    memory: ZtocMemory
    rehearsal: bool = False
    reports: dict[str, LayerReport] = field(default_factory=dict)
    recompressed: dict[str, Descriptor] = field(default_factory=dict)

    def run(self) -> ConvertResult:
        image = read_image(self.source)
        chosen = choose_platforms(
            image, self.options.platforms, self.options.all_platforms, self.source.name
        )
        picked = [(platform, _found(image, platform)) for platform in chosen]
        replaced = _replaced_indexes(image, chosen)
        self._move_layers(image, [entry for _, entry in picked], replaced)

        indexes: dict[str, tuple[Platform, SociIndex]] = {}
        results: list[PlatformReport] = []
        for platform, entry in picked:
            layers = self._new_layers(_manifest(entry))
            index = self._make_index(layers)
            reports = tuple(self.reports[layer.digest] for layer in layers)
            found = index.descriptor if index else None
            results.append(PlatformReport(platform, found, reports))
            if index:
                indexes.setdefault(entry.descriptor.digest, (platform, index))
        if not indexes:
            raise SociError(_nothing_indexed(self.source.name, results, self.options))
        self.target.push(_blob("application/json", EMPTY_CONFIG), EMPTY_CONFIG)
        for _, index in indexes.values():
            self.target.push(index.descriptor, index.data)

        data = encode(self._new_index(image, indexes))
        root = replace(_blob(OCI_INDEX, data), annotations=image.root.annotations)
        self.target.push(root, data)
        self.target.tag(root)
        return ConvertResult(root, not self.rehearsal, tuple(results))

    # Layers and other blobs.

    def _move_layers(
        self,
        image: Image,
        picked: Sequence[ImageManifest],
        replaced: set[str],
    ) -> None:
        """Indexes what should be indexed and copies everything else, side by side."""
        indexer = LayerIndexer(
            self.source,
            self.target,
            ZtocSettings(self.options.span_size, self.options.build_tool_identifier),
            self.memory,
        )
        jobs: dict[str, tuple[Descriptor, Callable[[Stop], None]]] = {}
        for entry in picked:
            manifest = _manifest(entry)
            for position, layer in enumerate(manifest.layers):
                if layer.digest not in jobs:
                    job = self._layer_job(indexer, manifest, position)
                    if job:
                        jobs[layer.digest] = layer, job
        for entry in image.manifests:
            if entry.manifest is None or entry.is_soci_index:
                continue
            for blob in (entry.manifest.config, *entry.manifest.layers):
                if blob.digest not in jobs:
                    jobs[blob.digest] = blob, self._copy_job(blob)

        def work(item: tuple[Descriptor, Callable[[Stop], None]], stop: Stop) -> None:
            item[1](stop)

        # The largest first: with few workers that ends soonest.
        items = sorted(jobs.values(), key=lambda item: -item[0].size)
        run_all(work, items, self.options.concurrency)
        for entry in image.manifests:
            # What is kept as it is: nested indexes, and SOCI indexes of other platforms.
            whole = entry.is_soci_index or entry.manifest is None
            if whole and entry.descriptor.digest not in replaced:
                self._copy_whole(entry)

    def _layer_job(
        self, indexer: LayerIndexer, manifest: Manifest, position: int
    ) -> Callable[[Stop], None] | None:
        """The job that indexes a layer; None when it only needs to be copied."""
        layer = manifest.layers[position]
        reason = skip_reason(layer, self.source, self.options.min_layer_size)
        if not reason:
            return lambda stop: self._index(indexer, layer, stop)
        self.reports[layer.digest] = LayerReport(layer, "skipped", reason)
        large = layer.size >= self.options.min_layer_size
        if large and self._is_zstd(layer):
            if self.options.recompress_zstd:
                return lambda stop: self._recompress(indexer, manifest, position, stop)
            reason += "; --zstd-layers recompress turns it into gzip"
        if large:
            self.observer.note(f"layer {layer.digest} is not indexed: {reason}")
        return None

    def _is_zstd(self, layer: Descriptor) -> bool:
        return compression_of(layer, self.source) == "zstd"

    def _index(self, indexer: LayerIndexer, layer: Descriptor, stop: Stop) -> None:
        task = self.observer.start(short(layer.digest), layer.size)
        outcome = "failed"
        try:
            report = indexer.index(layer, StoppableTask(task, stop))
            outcome = f"{report.spans} spans, {report.files} files" if report.ztoc else "no zTOC"
        finally:
            task.finish(outcome)
        if report.outcome == "skipped":
            self.observer.note(f"layer {layer.digest} is not indexed: {report.reason}")
        self.reports[layer.digest] = report

    def _recompress(
        self, indexer: LayerIndexer, manifest: Manifest, position: int, stop: Stop
    ) -> None:
        layer = manifest.layers[position]
        config = manifest.config
        diff_ids = parse_config_diff_ids(
            read_blob(self.source, config, _CONFIG_LIMIT),
            f"config {config.digest} in {self.source.name}",
        )
        task = self.observer.start(short(layer.digest), layer.size)
        try:
            diff_id = diff_ids[position] if position < len(diff_ids) else None
            new = recompress_layer(
                self.source, self.target, layer, diff_id, StoppableTask(task, stop)
            )
        finally:
            task.finish("recompressed")
        self.recompressed[layer.digest] = new
        reason = skip_reason(new, self.target, self.options.min_layer_size)
        if reason:
            self.reports[new.digest] = LayerReport(new, "skipped", reason)
        else:
            local = indexer.for_target()
            self._index(local, new, stop)

    def _copy_job(self, blob: Descriptor) -> Callable[[Stop], None]:
        def copy(stop: Stop) -> None:
            task = self.observer.start(short(blob.digest), blob.size)
            outcome = "failed"
            try:
                outcome = copy_blob(self.source, self.target, blob, StoppableTask(task, stop))
            except NotFoundError:
                if not blob.urls:
                    raise
                outcome = "a foreign layer, left out"
            finally:
                task.finish(outcome)

        return copy

    def _copy_whole(self, entry: ImageManifest) -> None:
        try:
            copy_graph(self.source, self.target, entry.descriptor, self.observer)
        except NotFoundError:
            if entry.manifest is not None:
                raise
            self.observer.note(
                f"manifest {entry.descriptor.digest} is not in {self.source.name}; "
                "the converted image names it all the same"
            )

    # Documents.

    def _new_layers(self, manifest: Manifest) -> tuple[Descriptor, ...]:
        """A manifest's layers, recompressed ones in place of the old."""
        return tuple(
            replace(
                layer,
                media_type=new.media_type,
                digest=new.digest,
                size=new.size,
            )
            if (new := self.recompressed.get(layer.digest))
            else layer
            for layer in manifest.layers
        )

    def _make_index(self, layers: Sequence[Descriptor]) -> SociIndex | None:
        """The SOCI index over the layers that got a zTOC; None when none did."""
        read = self._read_ztocs(layers)
        blobs = []
        for layer in layers:
            ztoc = self.reports[layer.digest].ztoc
            if ztoc:
                disable = self.options.optimize_xattrs and (
                    not read[layer.digest].files.needs_xattrs()
                )
                blobs.append(
                    ztoc_descriptor(ztoc, layer, self.options.span_size, disable_xattrs=disable)
                )
        if not blobs:
            return None
        if self.options.prefetch_files:
            plan = plan_prefetch(self.options.prefetch_files, layers, read)
            for name in plan.missing:
                self.observer.note(f"prefetch file {name} is in no indexed layer")
            for descriptor, data in plan.artifacts:
                self.target.push(descriptor, data)
                blobs.append(descriptor)
        return make_index(blobs, self.options.build_tool_identifier)

    def _read_ztocs(self, layers: Sequence[Descriptor]) -> Mapping[str, Ztoc]:
        """The zTOCs of layers by layer digest, when something needs to look into them."""
        if not (self.options.prefetch_files or self.options.optimize_xattrs):
            return {}
        return {
            layer.digest: decode_ztoc(read_blob(self.target, ztoc, MAX_ZTOC_SIZE))
            for layer in layers
            if (ztoc := self.reports[layer.digest].ztoc)
        }

    def _new_index(self, image: Image, indexes: Mapping[str, tuple[Platform, SociIndex]]) -> Index:
        """The OCI index of the converted image. Its new manifests are pushed."""
        entries = list(image.manifests)
        descriptors = [entry.descriptor for entry in entries]
        moved: dict[str, Descriptor] = {}
        # A manifest that refers to another (an attestation to its image) comes after it.
        order = sorted(range(len(entries)), key=lambda i: _refers(entries[i]))
        for position in order:
            entry = entries[position]
            if entry.manifest is None or entry.is_soci_index:
                continue
            own = indexes.get(entry.descriptor.digest) if entry.is_image else None
            descriptors[position] = self._new_manifest(entry, own, moved)
            moved[entry.descriptor.digest] = descriptors[position]
        for digest, (platform, index) in indexes.items():
            added = replace(
                index.descriptor,
                platform=platform,
                annotations={MANIFEST_DIGEST: moved[digest].digest},
            )
            for position, old in enumerate(descriptors):
                if _is_index_of(old, platform):
                    descriptors[position] = added
                    break
            else:
                descriptors.append(added)
        return replace(image.index, media_type=OCI_INDEX, manifests=tuple(descriptors))

    def _new_manifest(
        self,
        entry: ImageManifest,
        own: tuple[Platform, SociIndex] | None,
        moved: Mapping[str, Descriptor],
    ) -> Descriptor:
        """Pushes the OCI form of a manifest, with its SOCI index if it has one."""
        manifest = _manifest(entry)
        old = entry.descriptor
        annotations = dict(manifest.annotations)
        if own:
            annotations[INDEX_DIGEST] = own[1].descriptor.digest
        config = manifest.config
        if config.media_type == DOCKER_CONFIG:
            config = replace(config, media_type=OCI_CONFIG)
        subject = manifest.subject
        if subject and subject.digest in moved:
            new = moved[subject.digest]
            subject = replace(subject, media_type=OCI_MANIFEST, digest=new.digest, size=new.size)
        data = encode(
            replace(
                manifest,
                media_type=OCI_MANIFEST,
                config=config,
                layers=self._new_layers(manifest),
                subject=subject,
                annotations=annotations,
            )
        )
        kept = dict(old.annotations)
        if kept.get(REFERENCE_DIGEST) in moved:
            kept[REFERENCE_DIGEST] = moved[kept[REFERENCE_DIGEST]].digest
        new_descriptor = replace(
            old,
            media_type=OCI_MANIFEST,
            digest=digest_of(data),
            size=len(data),
            annotations={**kept, **annotations},
        )
        self.target.push(new_descriptor, data)
        return new_descriptor


def _manifest(entry: ImageManifest) -> Manifest:
    if entry.manifest is None:
        raise NotFoundError(f"manifest {entry.descriptor.digest} is not here; pull it first")
    return entry.manifest


def _found(image: Image, platform: Platform) -> ImageManifest:
    entry = image.find(platform)
    assert entry is not None  # choose_platforms saw to it
    return entry


def _refers(entry: ImageManifest) -> bool:
    subject = entry.manifest is not None and entry.manifest.subject is not None
    return subject or REFERENCE_DIGEST in entry.descriptor.annotations


def _is_index_of(descriptor: Descriptor, platform: Platform) -> bool:
    return (
        descriptor.artifact_type == INDEX_TYPE_V2
        and descriptor.platform is not None
        and platforms.matches(platform, descriptor.platform)
    )


def _replaced_indexes(image: Image, chosen: Sequence[Platform]) -> set[str]:
    """The digests of SOCI indexes in the image that new ones take the place of."""
    return {
        entry.descriptor.digest
        for entry in image.manifests
        if any(_is_index_of(entry.descriptor, platform) for platform in chosen)
    }


def _blob(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, digest_of(data), len(data))


def _nothing_indexed(name: str, results: Sequence[PlatformReport], options: ConvertOptions) -> str:
    sizes = [report.layer.size for result in results for report in result.layers]
    if sizes and max(sizes) < options.min_layer_size:
        return (
            f"{name} has no layer of {options.min_layer_size} bytes or more (the largest has "
            f"{max(sizes)}), so there is nothing to index; lower --min-layer-size to index it anyway"
        )
    return f"{name} has no layer that can be indexed; nothing was converted"
