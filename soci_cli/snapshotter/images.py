"""Which image a layer is of, and what its SOCI index knows: found by the labels of a Prepare, or without.

What containerd's content store has is taken from there, all else from the registry. zTOCs are put into the
cache, where whoever serves the layers finds them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeVar

from soci_cli.errors import NotFoundError, SociError, UsageError
from soci_cli.index.discover import FoundIndex, IndexSources, find_index
from soci_cli.index.image import ImageManifest, diff_ids_of
from soci_cli.index.model import prefetch_by_layer, ztocs_by_layer
from soci_cli.lazy.blobs import open_blob
from soci_cli.lazy.cache import Cache, blob_key
from soci_cli.lazy.known import KnownLayer
from soci_cli.oci import Descriptor, Manifest, parse_digest, parse_manifest, parse_reference
from soci_cli.parallel import Stop, run_all
from soci_cli.progress import SilentObserver
from soci_cli.snapshotter.chains import Chains
from soci_cli.snapshotter.turns import Turns
from soci_cli.targets import Source, read_blob
from soci_cli.targets.blobs import BlobReader
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.containerd.place import ContainerdSource
from soci_cli.targets.containerd.snapshots import IMAGE, INDEX, LAYER, MANIFEST, TARGET
from soci_cli.targets.registry.options import RegistryOptions
from soci_cli.targets.registry.registries import Registries
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE

_T = TypeVar("_T")

_KEPT = 64  # images
_FRESH = 300.0  # seconds for which an image without an index is taken to have none
_TRACED = 4096  # chain IDs
_AT_ONCE = 4
_PATIENCE = 10.0  # seconds for a call to containerd

Log = Callable[..., None]
"""Is given a level, a message, and fields."""


@dataclass(frozen=True)
class Image:
    """An image that was found: where its blobs are, and its layers, the lowest first."""

    place: str
    manifest: Descriptor
    layers: tuple[KnownLayer, ...]
    index: FoundIndex | None
    found: float = field(compare=False)

    def layer(self, digest: str) -> KnownLayer:
        """One of its layers. NotFoundError."""
        for one in self.layers:
            if one.descriptor.digest == digest:
                return one
        raise NotFoundError(f"the image has no layer {digest}", image=self.place)


@dataclass(frozen=True)
class Found:
    """A layer that was found, and the image that it is of."""

    image: Image
    layer: KnownLayer


@dataclass(frozen=True)
class _Key:
    """An image: where it is, the digest of its manifest, and that of its SOCI index if it was given."""

    repository: str
    manifest: str
    index: str


@dataclass(frozen=True)
class _Trace:
    """Of which image the layer with a chain ID is, and since when that is known."""

    key: _Key
    layer: str
    found: float


@dataclass(frozen=True)
class ImageSettings:
    """How images are looked for: which indexes, how registries and containerd are talked to.

    Indexes are taken from the repositories `trusted` alone, which are patterns of HOST/REPOSITORY; None is
    all of them.
    """

    v1: bool
    v2: bool
    containerd: str
    registry: RegistryOptions
    environ: Mapping[str, str] = field(repr=False)
    trusted: tuple[str, ...] | None = None

    def trusts(self, repository: str) -> bool:
        """Whether indexes of a repository are taken."""
        return self.trusted is None or any(fnmatchcase(repository, one) for one in self.trusted)


class Images:
    """Finds images. Several threads may use it; those that want the same image wait for each other."""

    def __init__(self, settings: ImageSettings, cache: Cache, log: Log) -> None:
        self._settings = settings
        self._cache = cache
        self._log = log
        self._mutex = threading.Lock()
        self._found: OrderedDict[_Key, Image] = OrderedDict()
        self._turns = Turns()
        self._traced: dict[tuple[str, str], _Trace] = {}
        self._chains = Chains(settings.registry, settings.environ)

    def find(self, labels: Mapping[str, str], namespace: str) -> Found | None:
        """The layer that a Prepare is for, with its image, whose zTOCs are in the cache.

        None where neither labels nor containerd say which that is. What went wrong is not remembered, and
        that there is no index only for minutes. Raises what reading containerd and the registry raises,
        UsageError and InvalidDataError.
        """
        text, manifest = labels.get(IMAGE), labels.get(MANIFEST)
        if text and manifest:
            reference = parse_reference(text)
            self._chains.note(reference.domain)
            digest, given = parse_digest(manifest, UsageError), labels.get(INDEX, "")
            if given:
                parse_digest(given, UsageError)
            image = self._get(_Key(reference.name, digest, given), namespace)
            return Found(image, image.layer(labels.get(LAYER, "")))
        target = labels.get(TARGET)
        return self._trace(target, namespace) if target and namespace else None

    def _trace(self, target: str, namespace: str) -> Found | None:
        """The layer with a chain ID, as containerd's content store knows it."""
        with self._mutex:
            known = self._traced.get((namespace, target))
        if known is not None and time.monotonic() - known.found < _FRESH:
            image = self._get(known.key, namespace)
            return Found(image, image.layer(known.layer))
        with self._containerd(namespace) as client:
            traced = self._chains.find(client, target) if client else None
        if traced is None:
            return None
        for name in traced.repositories:
            key = _Key(name, traced.manifest, "")
            if self._known(key) is None and not self._has_layer(name, traced.layer):
                continue
            image = self._get(key, namespace)
            with self._mutex:
                if len(self._traced) > _TRACED:
                    self._traced.clear()
                for chain_id, layer in traced.chain.items():
                    traces = _Trace(key, layer.digest, time.monotonic())
                    self._traced[namespace, chain_id] = traces
            return Found(image, image.layer(traced.layer.digest))
        raise NotFoundError(
            f"layer {traced.layer.digest} is not at {', '.join(traced.repositories)}; where the registry's "
            "port is missing, a folder for its hosts.toml says it"
        )

    def _has_layer(self, name: str, layer: Descriptor) -> bool:
        settings = self._settings
        with Registries(settings.registry, settings.environ) as registries:
            try:
                return registries.source(parse_reference(name), name).exists(layer)
            except SociError as error:
                self._log("debug", "a registry does not answer", image=name, error=str(error))
                return False

    def _get(self, key: _Key, namespace: str) -> Image:
        with self._turns.of(key):
            known = self._known(key)
            if known is not None:
                return known
            place = f"docker://{key.repository}@{key.manifest}"
            with self._opened(place, namespace) as source:
                image = self._find(source, key.manifest, key.index)
                self._fetch_ztocs(source, image)
            with self._mutex:
                self._found[key] = image
                while len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            return image

    def _known(self, key: _Key) -> Image | None:
        with self._mutex:
            image = self._found.get(key)
            if image is None:
                return None
            if image.index is None and time.monotonic() - image.found > _FRESH:
                del self._found[key]
                return None
        if not all(self._is_here(one.ztoc) for one in image.layers if one.ztoc):
            return None
        return image

    def _is_here(self, blob: Descriptor) -> bool:
        return self._cache.has(blob_key(blob.digest))

    @contextmanager
    def _opened(self, place: str, namespace: str) -> Iterator[Source]:
        settings = self._settings
        reference = parse_reference(place.partition("://")[2])
        with (
            Registries(settings.registry, settings.environ) as registries,
            self._containerd(namespace) as client,
        ):
            registry = registries.source(reference, place)
            if client is None:
                yield registry
                return
            yield ContentFirst(ContainerdSource(client, str(reference), place), registry)

    @contextmanager
    def _containerd(self, namespace: str) -> Iterator[Containerd | None]:
        """A connection to containerd; None where it cannot be meant."""
        try:
            client = Containerd(self._settings.containerd, namespace or "default", _PATIENCE)
        except UsageError as error:
            self._log("warning", "containerd's content store is not asked", error=str(error))
            yield None
            return
        with client:
            yield client

    def _find(self, source: Source, digest: str, given: str) -> Image:
        descriptor = source.find(digest)
        what = f"manifest {digest} of {source.name}"
        manifest = parse_manifest(read_blob(source, descriptor), what, descriptor.media_type)
        entry = ImageManifest(descriptor, manifest, None, True, False)
        sources = IndexSources(given or None, self._settings.v2, self._settings.v1)
        index = None
        if self._settings.trusts(parse_reference(source.name.partition("://")[2]).name):
            index = find_index(source, entry, sources, _Notes(self._log, source.name))
        else:
            self._log("warning", "its repository is none of [soci] trusted", image=source.name)
        layers = _layers_of(source, manifest, index)
        return Image(source.name, descriptor, layers, index, time.monotonic())

    def _fetch_ztocs(self, source: Source, image: Image) -> None:
        """Puts what the index names into the cache. A failure is left to who needs that layer."""
        wanted = [
            blob
            for one in image.layers
            for blob in (one.ztoc, one.prefetch)
            if blob is not None and not self._is_here(blob)
        ]

        def fetch(blob: Descriptor, stop: Stop) -> None:
            stop.check()
            with suppress(SociError):
                open_blob(source, blob, self._cache, MAX_ZTOC_SIZE)

        run_all(fetch, wanted, _AT_ONCE)


def _layers_of(
    source: Source, manifest: Manifest, index: FoundIndex | None
) -> tuple[KnownLayer, ...]:
    ztocs = ztocs_by_layer(index.manifest) if index else {}
    prefetch = prefetch_by_layer(index.manifest) if index else {}
    diff_ids = diff_ids_of(source, manifest)
    return tuple(
        KnownLayer(
            replace(one, annotations={}, data=None),
            ztocs.get(one.digest),
            prefetch.get(one.digest),
            diff_id or "",
        )
        for one, diff_id in zip(manifest.layers, diff_ids, strict=True)
    )


class ContentFirst(Source):
    """An image of a registry, of which containerd may have some blobs already."""

    def __init__(self, content: ContainerdSource, registry: Source) -> None:
        super().__init__(registry.name)
        self._content: ContainerdSource | None = content
        self._registry = registry

    def resolve(self) -> Descriptor:
        """See `Source.resolve`."""
        return self._registry.resolve()

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`."""
        return self._either(lambda source: source.find(digest))

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`."""
        return self._either(lambda source: source.fetch(descriptor, offset, length))

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        return self._either(lambda source: source.exists(descriptor))

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`."""
        return self._registry.referrers(subject, artifact_type)

    def _either(self, ask: Callable[[Source], _T]) -> _T:
        content = self._content
        if content is not None:
            try:
                found = ask(content)
            except NotFoundError:
                pass
            except SociError:
                self._content = None  # it cannot be reached, say: not asked again
            else:
                if found is not False:
                    return found
        return ask(self._registry)


class _Notes(SilentObserver):
    """Logs what is said of an index."""

    def __init__(self, log: Log, image: str) -> None:
        self._log = log
        self._image = image

    def note(self, message: str, kind: str = "") -> None:
        """See `Observer.note`."""
        self._log("warning", message, image=self._image)
