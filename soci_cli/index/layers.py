"""From a layer to its zTOC: which layers get one, found again or built while the layer is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    LostUploadError,
    NotFoundError,
    UnsupportedLayerError,
    errors_at,
)
from soci_cli.index.memory import KnownZtoc, ZtocMemory, ZtocSettings
from soci_cli.index.packing import Peeked, compression_of, packing_of_bytes
from soci_cli.oci import Descriptor, VerifyingReader, encoded_of, media_types
from soci_cli.progress import Task
from soci_cli.targets import Source, Target, Writer, copy_blob, may_link, read_blob
from soci_cli.targets.copy import BlobPages
from soci_cli.ztoc import (
    ZTOC_MEDIA_TYPE,
    BuiltZtoc,
    Compression,
    build_ztoc,
    decode_ztoc,
)
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE, ZtocHead, read_head
from soci_cli.ztoc.zinfo import too_large


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    `outcome` is "built", "reused" or "skipped", with the `reason` for the latter. `ztoc` has digest and
    size only. Sizes are in bytes.
    """

    layer: Descriptor
    outcome: str
    reason: str = ""
    ztoc: Descriptor | None = None
    spans: int = 0
    files: int = 0


def skip_reason(layer: Descriptor, source: Source, min_layer_size: int) -> str:
    """Why a layer gets no zTOC; empty when it should get one."""
    if not media_types.is_layer(layer.media_type):
        return f"not a file system layer ({layer.media_type})"
    if layer.size < min_layer_size:
        return f"{layer.size} bytes, under the minimum of {min_layer_size}"
    if layer.urls and not source.exists(layer):
        return "a foreign layer, which is not here"
    compression = compression_of(layer, source)
    if compression not in ("gzip", "uncompressed"):
        return f"its compression cannot be indexed: {compression}"
    return ""


class LayerIndexer:
    """Builds or finds the zTOCs of layers, and brings layers and zTOCs into the target."""

    def __init__(
        self,
        source: Source,
        target: Target,
        settings: ZtocSettings,
        memory: ZtocMemory,
        *,
        copy_layers: bool = True,
    ) -> None:
        """Without `copy_layers` only zTOCs go to the target."""
        self._source = source
        self._target = target
        self._settings = settings
        self._memory = memory
        self._copy_layers = copy_layers

    def reading(self, source: Source) -> LayerIndexer:
        """The same with another place to read layers from."""
        return LayerIndexer(source, self._target, self._settings, self._memory)

    def index(self, layer: Descriptor, task: Task) -> LayerReport:
        """Makes sure that the target has the zTOC, and the layer. Reads the layer at most once.

        Raises IntegrityError and InvalidDataError with the layer's digest for a broken layer.
        """
        for known in self._memory.recall(layer.digest):
            if head := self._usable(known, layer):
                self._copy(layer, task)
                return LayerReport(layer, "reused", "", known.descriptor, head.spans, head.files)
        try:
            built = self.build(layer, task)
        except UnsupportedLayerError as error:
            self._copy(layer, None)
            return LayerReport(layer, "skipped", str(error))
        problem = too_large(built.largest_span)
        if problem:
            return LayerReport(layer, "skipped", problem)
        ztoc_blob = Descriptor(ZTOC_MEDIA_TYPE, built.digest, len(built.data))
        self._target.push(ztoc_blob, built.data)
        self._memory.remember(layer.digest, ztoc_blob)
        return LayerReport(layer, "built", "", ztoc_blob, built.spans, built.files)

    def _copy(self, layer: Descriptor, task: Task | None) -> None:
        if self._copy_layers:
            copy_blob(self._source, self._target, layer, task)

    def _usable(self, known: KnownZtoc, layer: Descriptor) -> ZtocHead | None:
        """The head of the remembered zTOC, brought into the target; None when it does not fit the layer.

        What the target has was checked when it was written, so only a few places of that are read.
        """
        blob = replace(known.descriptor, media_type=ZTOC_MEDIA_TYPE)
        there = self._target.exists(blob)
        data = b""
        try:
            head = read_head(BlobPages(self._target, blob)) if there else None
            if head is None or _may_have_large_spans(head):
                data = read_blob(known.place, blob, MAX_ZTOC_SIZE)
                head = read_head(data)
                if too_large(decode_ztoc(data).largest_span):
                    return None
        except (NotFoundError, IntegrityError, InvalidDataError):
            return None
        if (
            head.compressed_archive_size != layer.size
            or head.build_tool_identifier != self._settings.build_tool_identifier.encode()
            or head.span_size != self._settings.span_size
        ):
            return None
        if not there:
            self._target.push(blob, data)
        return head

    def build(self, layer: Descriptor, task: Task) -> BuiltZtoc:
        """Builds the zTOC, which is not written yet, while the layer is copied."""
        if not self._copy_layers or self._target.exists(layer):
            return self._build(layer, task, None)
        if may_link(self._source, self._target, layer.digest):
            # Reading verifies the layer; then it is shared instead of copied.
            built = self._build(layer, task, None)
            if not self._target.link(layer, self._source):
                copy_blob(self._source, self._target, layer)
            return built
        if self._target.mount(layer, self._source):
            return self._build(layer, task, None)
        writer = self._target.open_writer(layer)
        try:
            built = self._build(layer, task, partial(_write, self._target.name, writer))
            writer.commit()
        except LostUploadError:
            # The zTOC may be good, only the copy was lost on the way: send the layer again.
            writer.abort()
            copy_blob(self._source, self._target, layer)
        finally:
            writer.abort()
        return built

    def _build(
        self, layer: Descriptor, task: Task, sink: Callable[[memoryview], object] | None
    ) -> BuiltZtoc:
        where = errors_at(place=self._source.name, layer=layer.digest)
        with where, self._source.fetch(layer) as stream:
            peeked = Peeked(stream)
            packing = packing_of_bytes(peeked.start)
            if packing == "zstd":
                raise UnsupportedLayerError("its compression cannot be indexed: zstd")
            return build_ztoc(
                peeked,
                span_size=self._settings.span_size,
                compression=Compression.GZIP if packing == "gzip" else Compression.UNCOMPRESSED,
                build_tool_identifier=self._settings.build_tool_identifier,
                expected_digest=layer.digest,
                expected_size=layer.size,
                sink=sink,
                advance=task.advance,
            )


def _may_have_large_spans(head: ZtocHead) -> bool:
    """Whether there are so few spans that one may be too large: mostly they are of about the span size."""
    expected = head.uncompressed_archive_size // max(1, head.span_size)
    return head.spans < expected and bool(
        too_large((expected - head.spans) * head.span_size + head.span_size)
    )


def _write(place: str, writer: Writer, data: memoryview) -> None:
    with errors_at(place=place):
        writer.write(data)


def short(digest: str) -> str:
    """A digest as progress and messages show it: the first twelve digits."""
    return encoded_of(digest)[:12]


class CountingReader:
    """Reads on and reports progress by that."""

    def __init__(self, stream: VerifyingReader, task: Task) -> None:
        self._stream = stream
        self._task = task

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._task.advance(len(piece))
        return piece

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer)
        self._task.advance(count)
        return count
