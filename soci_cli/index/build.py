"""Building SOCI indexes: the zTOCs of an image's layers, and the index over them.

`index_image` leaves the image as it is and makes indexes v1, which refer to it; `convert.py` builds
indexes v2 into a new image. Both use `IndexBuilder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import MappingProxyType

from soci_cli import defaults
from soci_cli.errors import SociError, UsageError
from soci_cli.index.image import ImageManifest, choose, image_before, manifest_of, read_image
from soci_cli.index.layers import (
    LayerIndexer,
    LayerReport,
    short,
    skip_reason,
)
from soci_cli.index.memory import KnownZtoc, ZtocMemory, ZtocSettings
from soci_cli.index.model import (
    EMPTY_CONFIG,
    INDEX_TYPE_V1,
    SociIndex,
    make_index,
    ztoc_descriptor,
)
from soci_cli.index.packing import compression_of
from soci_cli.index.prefetch import plan_prefetch
from soci_cli.index.rehearsal import Rehearsal, RehearsedIndexer, WouldChangeError
from soci_cli.oci import Descriptor, Platform, digest_of
from soci_cli.parallel import Stop, StoppableTask, run_all
from soci_cli.progress import Observer, SilentObserver, Work
from soci_cli.targets import Source, Target, read_blob
from soci_cli.ztoc import Ztoc, decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE

Job = Callable[[Stop], object]
"""A piece of work on one blob; it ends early when `Stop` says so."""


@dataclass(frozen=True)
class IndexOptions:
    """How to index an image. Sizes are in bytes.

    `platforms` are indexed, or all with `all_platforms`, or this machine's when neither is given.
    `force` builds zTOCs anew that exist already.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    span_size: int = defaults.SPAN_SIZE
    min_layer_size: int = defaults.MIN_LAYER_SIZE
    build_tool_identifier: str = defaults.BUILD_TOOL_IDENTIFIER
    optimize_xattrs: bool = False
    prefetch_files: tuple[str, ...] = ()
    force: bool = False
    concurrency: int = 2

    def __post_init__(self) -> None:
        if self.span_size < 1:
            raise UsageError(f"the span size must be at least 1 byte, not {self.span_size}")
        if self.min_layer_size < 0:
            raise UsageError(f"the minimum layer size cannot be negative: {self.min_layer_size}")
        if not self.build_tool_identifier.isprintable():
            raise UsageError("the build tool identifier has characters that cannot be printed")

    @property
    def ztoc_settings(self) -> ZtocSettings:
        """What decides the bytes of a zTOC."""
        return ZtocSettings(self.span_size, self.build_tool_identifier)


@dataclass(frozen=True)
class PlatformReport:
    """What became of one platform: its SOCI index, or None when no layer got a zTOC."""

    platform: Platform
    index: Descriptor | None
    layers: tuple[LayerReport, ...]


class NothingToIndexError(SociError):
    """No layer of an image can be indexed, or all are smaller than the minimum."""


class IndexBuilder:
    """Indexes layers, one job a layer, and then makes the index of each platform.

    `reports` says by layer digest what became of each layer.
    """

    def __init__(
        self, target: Target, options: IndexOptions, observer: Observer, indexer: LayerIndexer
    ) -> None:
        self.reports: dict[str, LayerReport] = {}
        self._target = target
        self._options = options
        self._observer = observer
        self._indexer = indexer

    def job(self, layer: Descriptor, source: Source, hint: str = "") -> Job | None:
        """The job that indexes a layer; None, with a report, for one that is not to be indexed.

        `hint` is added to the remark on a zstd layer.
        """
        if layer.digest in self.reports:
            return None
        reason = skip_reason(layer, source, self._options.min_layer_size)
        if not reason:
            return lambda stop: self.index(layer, stop)
        self.reports[layer.digest] = LayerReport(layer, "skipped", reason)
        # Small layers are left out by design; anything else is worth a remark.
        if layer.size >= self._options.min_layer_size:
            if hint and compression_of(layer, source) == "zstd":
                reason += hint
            self._note(layer, reason)
        return None

    def index(self, layer: Descriptor, stop: Stop, indexer: LayerIndexer | None = None) -> None:
        """Indexes a layer now."""
        with Work(self._observer, short(layer.digest), layer.size) as work:
            report = (indexer or self._indexer).index(layer, StoppableTask(work, stop))
            work.outcome = "no zTOC"
            if report.ztoc:
                work.outcome = f"{report.spans} spans, {report.files} files"
        if report.outcome == "skipped":
            self._note(layer, report.reason)
        self.reports[layer.digest] = report

    def make(
        self, layers: Sequence[Descriptor], subject: Descriptor | None = None
    ) -> SociIndex | None:
        """Makes and pushes the SOCI index over the layers that got a zTOC; None when none did.

        With a subject, the image's manifest, it is an index v1.
        """
        read = self._read_ztocs(layers)
        blobs = []
        for layer in layers:
            ztoc = self.reports[layer.digest].ztoc
            if ztoc:
                disable = self._options.optimize_xattrs and (
                    not read[layer.digest].files.needs_xattrs()
                )
                blobs.append(
                    ztoc_descriptor(ztoc, layer, self._options.span_size, disable_xattrs=disable)
                )
        if not blobs:
            return None
        if self._options.prefetch_files:
            plan = plan_prefetch(self._options.prefetch_files, layers, read)
            for name in plan.missing:
                self._observer.note(
                    f"prefetch file {name} is in no indexed layer", "a file is in no indexed layer"
                )
            for descriptor, data in plan.artifacts:
                self._target.push(descriptor, data)
                blobs.append(descriptor)
        index = make_index(blobs, self._options.build_tool_identifier, subject)
        empty = Descriptor("application/json", digest_of(EMPTY_CONFIG), len(EMPTY_CONFIG))
        self._target.push(empty, EMPTY_CONFIG)
        self._target.push(index.descriptor, index.data)
        return index

    def _note(self, layer: Descriptor, reason: str) -> None:
        text = f"is not indexed: {reason}"
        self._observer.note(f"layer {layer.digest} {text}", f"a layer {text}")

    def _read_ztocs(self, layers: Sequence[Descriptor]) -> Mapping[str, Ztoc]:
        """The zTOCs of layers by layer digest, when something needs to look into them."""
        if not (self._options.prefetch_files or self._options.optimize_xattrs):
            return {}
        return {
            layer.digest: decode_ztoc(read_blob(self._target, ztoc, MAX_ZTOC_SIZE))
            for layer in layers
            if (ztoc := self.reports[layer.digest].ztoc)
        }


def index_image(
    source: Source,
    target: Target,
    options: IndexOptions | None = None,
    observer: Observer | None = None,
    known: Mapping[str, Sequence[KnownZtoc]] = MappingProxyType({}),
) -> tuple[PlatformReport, ...]:
    """Makes a SOCI index v1 for each chosen platform of an image, which itself stays as it is.

    zTOCs and indexes go to the target, layers do not. An index v1 is found through its subject, so
    whoever stores it must list it as a referrer of the manifest; where the target does so already,
    nothing is written. `known` are zTOCs that may be taken, by the digest of their layer. Raises SociError
    when no layer can be indexed.
    """
    options = options or IndexOptions()
    observer = observer or SilentObserver()
    image = read_image(source)
    picked = choose(image, options.platforms, options.all_platforms, source.name)
    with ExitStack() as stack:
        before = target.before()
        if before is not None:
            stack.enter_context(before)
        earlier = image_before(before)
        images = [*earlier, (source, image)]
        memory = ZtocMemory(images, target, options.ztoc_settings, known, force=options.force)
        work = _Indexing(source, picked, options, memory)
        if earlier and work.may_be_done():
            # What differs ends the rehearsal; what is wrong will come up again below.
            with suppress(SociError):
                return work.rehearse(earlier[0][0], observer)
        results = work.run(target, observer)
    if not any(result.index for result in results):
        raise nothing_indexed(source.name, results, options)
    return results


@dataclass(frozen=True)
class _Indexing:
    source: Source
    picked: Sequence[tuple[Platform, ImageManifest]]
    options: IndexOptions
    memory: ZtocMemory

    def may_be_done(self) -> bool:
        """Whether each layer has a zTOC already: nothing would be built in vain."""
        return all(
            self.memory.recall(layer.digest)
            or skip_reason(layer, self.source, self.options.min_layer_size)
            for _, entry in self.picked
            for layer in manifest_of(entry).layers
        )

    def rehearse(self, before: Source, observer: Observer) -> tuple[PlatformReport, ...]:
        """The same without writing anything. WouldChangeError."""
        heard = _Heard()
        results = self.run(Rehearsal(before), heard, RehearsedIndexer)
        for (_, entry), result in zip(self.picked, results, strict=True):
            listed = before.referrers(entry.descriptor, INDEX_TYPE_V1) if result.index else ()
            if result.index and result.index.digest not in [one.digest for one in listed]:
                raise WouldChangeError(f"{result.index.digest} is not listed")
        if not any(result.index for result in results):
            raise WouldChangeError("there is no index")
        for note in heard.notes:
            observer.note(*note)
        return results

    def run(
        self, target: Target, observer: Observer, kind: type[LayerIndexer] = LayerIndexer
    ) -> tuple[PlatformReport, ...]:
        settings, concurrency = self.options.ztoc_settings, self.options.concurrency
        indexer = kind(self.source, target, settings, self.memory, copy_layers=False)
        builder = IndexBuilder(target, self.options, observer, indexer)
        jobs: dict[str, Job] = {}
        for _, entry in self.picked:
            for layer in manifest_of(entry).layers:
                if layer.digest not in jobs and (job := builder.job(layer, self.source)):
                    jobs[layer.digest] = job
        run_all(lambda job, stop: job(stop), list(jobs.values()), concurrency)
        results = []
        for platform, entry in self.picked:
            layers = manifest_of(entry).layers
            index = builder.make(layers, entry.descriptor)
            reports = tuple(builder.reports[layer.digest] for layer in layers)
            results.append(PlatformReport(platform, index.descriptor if index else None, reports))
        return tuple(results)


class _Heard(SilentObserver):
    """Keeps remarks, to be made when they turn out to be true."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, message: str, kind: str = "") -> None:
        self.notes.append((message, kind))


def nothing_indexed(
    name: str, results: Sequence[PlatformReport], options: IndexOptions
) -> SociError:
    """The error for an image of which no layer can be indexed."""
    sizes = [report.layer.size for result in results for report in result.layers]
    if sizes and max(sizes) < options.min_layer_size:
        return NothingToIndexError(
            f"{name} has no layer of {options.min_layer_size} bytes or more (the largest has "
            f"{max(sizes)}), so there is nothing to index; lower the minimum layer size to index it "
            "all the same"
        )
    return NothingToIndexError(f"{name} has no layer that can be indexed")
