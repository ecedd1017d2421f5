"""Opening an image: which manifest and which SOCI index it is, and its layers when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from soci_cli.errors import InvalidDataError, UsageError, errors_at
from soci_cli.index.discover import IndexSources, find_index
from soci_cli.index.image import diff_ids_of, manifest_of, read_chosen
from soci_cli.index.model import prefetch_by_layer, ztocs_by_layer
from soci_cli.index.prefetch import decode_prefetch
from soci_cli.lazy.blobs import open_blob
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.known import KnownLayer
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage, Origin
from soci_cli.lazy.spans import LayerSpans
from soci_cli.lazy.whole import WholeLayer
from soci_cli.oci import Descriptor, Platform, media_types
from soci_cli.parallel import Stop
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source
from soci_cli.ztoc.layer import LayerFiles
from soci_cli.ztoc.zinfo import too_large

_PREFETCH_LIMIT = 16 << 20


@dataclass(frozen=True)
class OpenOptions:
    """Which platform, by default this machine's, and where SOCI indexes are looked for."""

    platforms: tuple[Platform, ...] = ()
    index: IndexSources = field(default_factory=IndexSources)


def open_image(
    source: Source,
    fetching: Fetching,
    options: OpenOptions | None = None,
    observer: Observer | None = None,
) -> LazyImage:
    """The files of an image, no layer of which is opened yet.

    Images that share a `Fetcher` share the zTOCs of their layers. When a layer without a zTOC is opened, it
    is fetched whole, unless it is in the cache; `observer` hears of that. Close the image before
    `fetching`, and both before `source`. This and opening raise NotFoundError, UsageError,
    InvalidDataError and IntegrityError, and what reading the place raises.
    """
    options, observer = options or OpenOptions(), observer or SilentObserver()
    _, picked = read_chosen(source, options.platforms)
    if len(picked) != 1:
        raise UsageError("the files of one platform can be read; choose one with --platform")
    ((platform, entry),) = picked
    sources = options.index
    if source.store is not None:
        sources = replace(sources, v1=True)  # an index in the store was pulled on purpose
    manifest = manifest_of(entry)
    found = find_index(source, entry, sources, observer)
    ztocs = ztocs_by_layer(found.manifest) if found else {}
    prefetch = prefetch_by_layer(found.manifest) if found else {}
    layers = [
        KnownLayer(one, ztocs.get(one.digest), prefetch.get(one.digest)) for one in manifest.layers
    ]

    def diff_ids() -> Sequence[str | None]:
        return diff_ids_of(source, manifest)

    opened = _lazy_layers(source, fetching, layers, diff_ids, observer)
    return LazyImage(source.name, opened, Origin(entry.descriptor, platform, found))


def open_layers(
    source: Source,
    fetching: Fetching,
    layers: Sequence[KnownLayer],
    observer: Observer | None = None,
) -> LazyImage:
    """As `open_image`, of layers that are known, lowest first; no manifest is read.

    A layer that is fetched whole must have its diff ID, where it has one: what is shared by that cannot be
    replaced by who wrote a config.
    """
    diff_ids = [one.diff_id or None for one in layers]
    observer = observer or SilentObserver()
    found = _lazy_layers(source, fetching, layers, lambda: diff_ids, observer, is_strict=True)
    return LazyImage(source.name, found)


def _lazy_layers(
    source: Source,
    fetching: Fetching,
    layers: Sequence[KnownLayer],
    diff_ids: Callable[[], Sequence[str | None]],
    observer: Observer,
    *,
    is_strict: bool = False,
) -> list[LazyLayer]:
    opener = _Opener(source, fetching, layers, diff_ids, observer, is_strict=is_strict)
    return [
        LazyLayer(one.descriptor, opener, one.ztoc.digest, one.ztoc.size)
        if one.ztoc
        else LazyLayer(one.descriptor, opener, "")
        for one in layers
    ]


class _Opener:
    """Opens layers of an image. Several threads may use it. Implements `Opener`."""

    def __init__(
        self,
        source: Source,
        fetching: Fetching,
        layers: Sequence[KnownLayer],
        diff_ids: Callable[[], Sequence[str | None]],
        observer: Observer,
        *,
        is_strict: bool,
    ) -> None:
        """`diff_ids` gives those of `layers`, where one is needed; see `open_layers` for `is_strict`."""
        self._is_strict = is_strict
        self._source = source
        self._fetching = fetching
        self._observer = observer
        self._layers = layers
        self._find_diff_ids = diff_ids
        self._ztoc_of = {one.descriptor.digest: one.ztoc for one in layers}
        self._prefetch = {one.descriptor.digest: one.prefetch for one in layers}

    def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
        """See `Opener.open`."""
        with errors_at(image=self._source.name, layer=layer.digest):
            if not media_types.is_layer(layer.media_type):
                raise InvalidDataError(f"it is no file system layer ({layer.media_type})")
            blob = self._ztoc_of.get(layer.digest)
            if blob is None:
                return self._open_whole(layer, stop)
            files = self._fetching.fetcher.ztocs.get(self._source, blob, self._fetching.cache)
            if too_large(files.ztoc.largest_span):
                return self._open_whole(layer, stop)
            spans = LayerSpans(
                self._fetching,
                self._source,
                layer,
                files.ztoc,
                blob.digest,
                lambda: self._diff_ids[layer.digest],
            )
            return files, spans

    def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
        """See `Opener.prefetch_ranges`."""
        found = self._prefetch.get(layer.digest)
        if found is None:
            return ()
        with errors_at(image=self._source.name, layer=layer.digest):
            cache = self._fetching.cache
            data, start = open_blob(self._source, found, cache, _PREFETCH_LIMIT)
            ranges = decode_prefetch(data[start:], found.digest).spans
            if any(last >= count for _, last in ranges):
                raise InvalidDataError(
                    f"prefetch artifact {found.digest} names spans that the layer does not have: "
                    f"it has {count}"
                )
        return ranges

    def _open_whole(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
        diff_id = self._diff_ids[layer.digest]
        whole = WholeLayer(
            self._fetching,
            self._source,
            layer,
            diff_id,
            self._observer,
            stop,
            must_match=self._is_strict,
        )
        return LayerFiles(whole.ztoc), whole

    @cached_property
    def _diff_ids(self) -> dict[str, str | None]:
        """The diff ID of each layer, as far as it is known."""
        digests = [one.descriptor.digest for one in self._layers]
        return dict(zip(digests, self._find_diff_ids(), strict=True))
