"""What a Prepare for a layer of an image becomes: a mount, in a process that outlives this one.

A layer with a zTOC is mounted without being fetched. One without is fetched whole into the cache and
mounted from there, so that the layers above it need not be fetched by containerd. What cannot be had is
left to containerd, with a line that says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, SociError, UnavailableError
from soci_cli.kernel.unmount import detach_all
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.known import KnownLayer
from soci_cli.lazy.mounts.client import HostFinder
from soci_cli.lazy.mounts.records import Mounts, is_well
from soci_cli.lazy.mounts.request import ImageRequest, MountRequest
from soci_cli.lazy.mounts.sharing import host_key
from soci_cli.processes import encoding
from soci_cli.processes.control import RemoteError
from soci_cli.processes.folder import Folder
from soci_cli.progress import SilentObserver
from soci_cli.snapshotter.images import Image, Images
from soci_cli.snapshotter.metadata import Snapshot, Usage
from soci_cli.snapshotter.metrics import (
    MOUNT,
    MOUNT_FAILURES,
    WHOLE_FAILURES,
    Metrics,
    Sample,
    mount_samples,
)
from soci_cli.snapshotter.snapshots import REMOTE, Provided
from soci_cli.snapshotter.turns import Turns
from soci_cli.targets.containerd.snapshots import HAS_INDEX, NAMESPACE, TARGET
from soci_cli.targets.registry.options import RegistryOptions

OWNER = "snapshotter"
_RESTORED_AT_ONCE = 8
_FAREWELL = 2.0  # seconds

Log = Callable[..., None]
"""Is given a level, a message, and fields."""


@dataclass(frozen=True)
class LayerRecord:
    """What a lazy layer is served from; it needs no more to be mounted again. No secrets are in it.

    `place` is where its blobs are. `user` and `group` own its root. `metadata` is the digest of its
    metadata for EROFS in the cache, "" where FUSE serves it.
    """

    place: str
    layer: KnownLayer
    user: int = 0
    group: int = 0
    metadata: str = ""


@dataclass(frozen=True)
class LayerSettings:
    """Where everything is, and how layers are fetched; times in seconds, sizes in bytes.

    What is fetched whole are `layers` without a zTOC of images with a SOCI index, all `images`' without one
    besides, or `always` all layers; `downloads` of them at once.
    """

    state: Path
    store: Path
    cache: Path
    environ: Mapping[str, str] = field(repr=False)
    registry: RegistryOptions
    cache_limit: int | None = None
    requests: int = 3
    reader_deadline: float = 30.0
    mount_timeout: float = 30.0
    background: bool = True
    silence_period: float = 30.0
    fetch_period: float = 0.5
    max_queue_size: int = 300
    prefetch: bool = True
    min_layer_size: int = 0
    engine: str = "auto"
    whole: str = "layers"
    downloads: int = 3


class LazyLayers(Closing):
    """Mounts layers, and mounts them again when their server died. Implements `Layers`."""

    def __init__(
        self, settings: LayerSettings, images: Images, cache: Cache, metrics: Metrics, log: Log
    ) -> None:
        self._metrics = metrics
        self._settings = settings
        self._cache = cache
        self._images = images
        self._log = log
        self._key = host_key(settings.environ, f"{OWNER}:{settings.state}")
        self._mounts = Mounts(settings.state)
        self._mutex = threading.Lock()
        self._served: dict[Path, str] = {}  # the folder of each mount, by its target
        self._restoring = ThreadPoolExecutor(_RESTORED_AT_ONCE, "soci-restore")
        self._turns = Turns()
        self._fetchers = ThreadPoolExecutor(max(1, settings.downloads), "soci-fetch")
        self._fetching: dict[tuple[str, str], Future[None]] = {}
        for folder, record in self._mounts.of(OWNER):
            self._served[Path(record.target)] = folder.name
        # The process starts while nobody waits for it.
        is_there = any(map(self._is_served, list(self._served)))
        self._ahead: HostFinder | None = None if is_there else self._finder()

    def close(self) -> None:
        """Ends what is done in the background; what is mounted stays."""
        self._restoring.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()

    # Calls.

    def provide(
        self, snapshot: Snapshot, files: Path, below: Sequence[Snapshot], namespace: str
    ) -> Provided | None:
        """See `Layers.provide`."""
        labels, target = snapshot.labels, snapshot.labels.get(TARGET, "")
        about = {"key": snapshot.name, "parent": snapshot.parent}
        try:
            namespace = namespace or labels.get(NAMESPACE, "")
            found = self._images.find(labels, namespace)
            if found is None:
                self._defer("the request names no image", about)
                return None
            image, known = found.image, found.layer
            if image.index is None and self._settings.whole == "layers":
                self._defer("no valid SOCI index found", {**about, "image": image.place})
                return None
        except SociError as error:
            self._defer(str(error), about)
            return None
        self._fetch_ahead(image, known)
        for one in self._ways(known):
            begin = time.monotonic()
            record = LayerRecord(image.place, one)
            try:
                if one.ztoc is None:
                    self._fetch(record)
                    # From here on it is known that the layer has its diff ID.
                    record = replace(record, layer=replace(one, diff_id=""))
                self._mount(record, files, below)
                record = self._complete(record, files)
            except (SociError, RemoteError) as error:
                about["remote-snapshot-prepared"] = "false"
                self._log("warning", "failed to prepare remote snapshot", error=str(error), **about)
                failures = MOUNT_FAILURES if one.ztoc else WHOLE_FAILURES
                self._metrics.count(failures, one.descriptor.digest)
                self.release(files)
                continue
            seconds = time.monotonic() - begin
            self._metrics.observe(MOUNT, one.descriptor.digest, seconds)
            about["remote-snapshot-prepared"] = "true"
            self._log(
                "info",
                "remote snapshot successfully prepared.",
                **about,
                target=target,
                layerDigest=one.descriptor.digest,
                seconds=round(seconds, 3),
                ztoc=one.ztoc.digest if one.ztoc else "",
            )
            added = {REMOTE: "remote snapshot", HAS_INDEX: "true"}
            if namespace:
                added[NAMESPACE] = namespace
            return Provided(encoding.encode(record).decode(), added, Usage())
        self._defer("the layer cannot be had", {**about, "image": image.place})
        return None

    def check(self, chain: Sequence[Snapshot], files: Callable[[Snapshot], Path]) -> None:
        """See `Layers.check`."""
        lost = [
            (number, one)
            for number, one in enumerate(chain)
            if one.layer and not self._is_served(files(one))
        ]
        if not lost:
            return
        work = [
            self._restoring.submit(self._restore, one, files(one), chain[number + 1 :])
            for number, one in lost
        ]
        deadline = time.monotonic() + self._settings.mount_timeout
        for one in work:
            try:
                one.result(max(0.0, deadline - time.monotonic()))
            except (SociError, RemoteError) as error:
                raise UnavailableError(f"a layer is unavailable: {error}") from error
            except FutureTimeoutError:
                raise UnavailableError(
                    "a layer is unavailable: it is being mounted again"
                ) from None

    def restore(
        self, chains: Sequence[Sequence[Snapshot]], files: Callable[[Snapshot], Path]
    ) -> None:
        """Mounts again what is not served, in the background; each chain begins with the snapshot."""
        for chain in chains:
            if not self._is_served(files(chain[0])):
                self._restoring.submit(self._try_to_restore, chain, files)

    def release(self, files: Path) -> None:
        """See `Layers.release`."""
        detach_all(files)
        with self._mutex:
            name = self._served.pop(files, None)
        if name is not None:
            # Its server lets go of it when the kernel has.
            folder = Folder(self._mounts.root / name)
            if folder.wait(_FAREWELL):
                folder.remove()

    def usage(self, snapshot: Snapshot) -> Usage:
        """See `Layers.usage`."""
        return Usage(*self._cache.occupied(_record_of(snapshot).layer.descriptor.digest))

    def owner(self, snapshot: Snapshot) -> tuple[int, int]:
        """See `Layers.owner`."""
        record = _record_of(snapshot)
        return record.user, record.group

    def samples(self) -> list[Sample]:
        """What can be measured of the layers that are mounted."""
        return mount_samples(self._mounts.of(OWNER), self._cache)

    def forget(self, snapshot: Snapshot, left: Sequence[Snapshot]) -> None:
        """See `Layers.forget`."""
        try:
            used = {digest for one in left if one.layer for digest in _digests(_record_of(one))}
            self._cache.forget(_digests(_record_of(snapshot)) - used)
        except SociError as error:
            self._log("warning", "the cache keeps a layer", key=snapshot.name, error=str(error))

    def sweep(self, left: Sequence[Snapshot]) -> None:
        """Removes what the cache has of layers that no snapshot is served from; before a pull begins."""
        used = {digest for one in left if one.layer for digest in _digests(_record_of(one))}
        there = {one.digest for one in self._cache.entries()}
        if there - used:
            self._cache.forget(there - used)

    # How.

    def _ways(self, known: KnownLayer) -> list[KnownLayer]:
        """The layer as it may be had, the best first."""
        whole = replace(known, ztoc=None, prefetch=None)
        if self._is_whole(known):
            return [whole]
        return [known, whole]

    def _is_whole(self, layer: KnownLayer) -> bool:
        settings = self._settings
        is_small = layer.descriptor.size < settings.min_layer_size
        return settings.whole == "always" or layer.ztoc is None or is_small

    def _fetch_ahead(self, image: Image, first: KnownLayer) -> None:
        """Begins to fetch what must be had whole of a layer and those above it, side by side."""
        layers = image.layers[image.layers.index(first) :]
        for one in layers:
            if self._is_whole(one):
                self._begin_to_fetch(
                    LayerRecord(image.place, replace(one, ztoc=None, prefetch=None))
                )

    def _begin_to_fetch(self, record: LayerRecord) -> Future[None]:
        key = record.place, record.layer.descriptor.digest

        def fetch() -> None:
            try:
                with self._finder() as finder:
                    finder.fetch(self._image_request(record, ()))
            finally:
                with self._mutex:
                    self._fetching.pop(key, None)

        with self._mutex:
            known = self._fetching.get(key)
            if known is None:
                known = self._fetching[key] = self._fetchers.submit(fetch)
        return known

    def _fetch(self, record: LayerRecord) -> None:
        """Waits until a layer is in the cache whole, and has its diff ID. Raises what fetching raises."""
        self._begin_to_fetch(record).result()

    def _defer(self, reason: str, about: Mapping[str, str]) -> None:
        message = "no valid SOCI index found; deferring to container runtime"
        if not reason.startswith("no valid SOCI index"):
            message = f"deferring to container runtime: {reason}"
        self._log("info", message, **{**about, "defer-snapshot-runtime": "true"})

    def _mount(self, record: LayerRecord, files: Path, below: Sequence[Snapshot]) -> None:
        request = self._request(record, files, below)
        with self._mutex:
            finder, self._ahead = self._ahead or self._finder(), None
        with finder:
            name = finder.mount(request, SilentObserver(), lambda line: None)
        with self._mutex:
            self._served[files] = name

    def _finder(self) -> HostFinder:
        return HostFinder(self._settings.state, self._key)

    def _request(self, record: LayerRecord, files: Path, below: Sequence[Snapshot]) -> MountRequest:
        settings = self._settings
        lowers = [_record_of(one).layer for one in reversed(below) if one.layer]
        image = self._image_request(record, lowers)
        return MountRequest(
            image=image,
            target=files,
            state=settings.state,
            owner=OWNER,
            background=settings.background,
            silence_period=settings.silence_period,
            fetch_period=settings.fetch_period,
            max_queue_size=settings.max_queue_size,
            prefetch=settings.prefetch,
            engine=settings.engine,
            topmost=True,
            is_stack=len(lowers) == len(below),
        )

    def _image_request(self, record: LayerRecord, lowers: Sequence[KnownLayer]) -> ImageRequest:
        settings = self._settings
        return ImageRequest(
            place=record.place,
            names="store",
            store=settings.store,
            cache=settings.cache,
            environ=settings.environ,
            cache_limit=settings.cache_limit,
            requests=settings.requests,
            reader_deadline=settings.reader_deadline,
            registry=settings.registry,
            layers=(*lowers, record.layer),
        )

    def _complete(self, record: LayerRecord, files: Path) -> LayerRecord:
        """The record with what is known when it is mounted."""
        try:
            status = files.stat()
        except OSError as error:
            raise UnavailableError(f"{files}: {error.strerror}") from error
        with self._mutex:
            name = self._served.get(files, "")
        mounted = self._mounts.read(Folder(self._mounts.root / name))
        metadata = mounted.metadata if mounted is not None else ""
        return replace(record, user=status.st_uid, group=status.st_gid, metadata=metadata)

    def _is_served(self, files: Path) -> bool:
        """Whether a layer is mounted, and served if it needs that."""
        with self._mutex:
            name = self._served.get(files)
        if name is None:
            return False
        folder = Folder(self._mounts.root / name)
        if folder.is_alive():
            return True
        record = self._mounts.read(folder)
        return record is not None and not record.served and is_well((folder, record))

    def _restore(self, snapshot: Snapshot, files: Path, below: Sequence[Snapshot]) -> None:
        with self._turns.of(files):
            if self._is_served(files):
                return
            self.release(files)
            self._mount(_record_of(snapshot), files, below)
        self._log("info", "layer mounted again", key=snapshot.name, mountpoint=str(files))

    def _try_to_restore(self, chain: Sequence[Snapshot], files: Callable[[Snapshot], Path]) -> None:
        snapshot, *below = chain
        try:
            self._restore(snapshot, files(snapshot), below)
        except (SociError, RemoteError) as error:
            self._log("error", "layer cannot be mounted again", key=snapshot.name, error=str(error))


def _digests(record: LayerRecord) -> set[str]:
    """The layer and the blobs that a layer is served from."""
    layer = record.layer
    digests = {one.digest for one in (layer.descriptor, layer.ztoc, layer.prefetch) if one}
    return digests | ({record.metadata} if record.metadata else set())


def _record_of(snapshot: Snapshot) -> LayerRecord:
    try:
        return encoding.decode(LayerRecord, snapshot.layer, f"the layer of {snapshot.name}")
    except InvalidDataError as error:
        raise UnavailableError(str(error)) from error
