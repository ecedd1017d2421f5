"""One mounted image, from the request until the mount is gone. Its process may serve others besides."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial

from soci_cli.errors import BusyError, CoveredError, EndedError, SociError, StorageError
from soci_cli.kernel.points import points_below
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy.background import BackgroundFetcher, BackgroundOptions
from soci_cli.lazy.completing import complete_all
from soci_cli.lazy.fetcher import Fetcher
from soci_cli.lazy.fuse import MountedImage, MountOptions
from soci_cli.lazy.fuse.mounting import check_target
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage
from soci_cli.lazy.mounts.engines import Engines, LayerEngines
from soci_cli.lazy.mounts.keeping import Keeper
from soci_cli.lazy.mounts.readlist import ReadList
from soci_cli.lazy.mounts.records import KeptConfig, MountRecord, Mounts
from soci_cli.lazy.mounts.request import READAHEAD, MountRequest, OpenedImage, opened
from soci_cli.lazy.mounts.resuming import Inherited, descriptors_of, ztoc_files
from soci_cli.lazy.mounts.statistics import statistics
from soci_cli.lazy.remembering import RememberingSource
from soci_cli.oci import parse_manifest, platforms
from soci_cli.oci.manifest import CONFIG_LIMIT
from soci_cli.processes.folder import OwnFolder
from soci_cli.processes.identity import this_process
from soci_cli.processes.log import Log, LogFile
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import Source, read_blob

_PATIENCE = 5.0
_LONGEST_PAUSE = 30.0


class Server:
    """An image that is mounted and served. `run` it in a thread; the rest may be called from any other.

    `ready` is the id of its folder as soon as it is mounted, or why it is not.
    """

    def __init__(
        self,
        request: MountRequest,
        host: str,
        fetcher: Fetcher,
        keeper: Keeper,
        write: Callable[[str], None] | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """Writes the record of a mount that is about to be made; StorageError, also when there is one.

        `host` is the folder of this process, `fetcher` and `keeper` what all its mounts share. Log lines go
        to `write`, by default into the mount's folder. With `inherited` it goes on with a mount of another
        server, and `publish` writes the record.
        """
        this = this_process()
        self._request = request
        self._fetcher = fetcher
        self._keeper = keeper
        self._inherited = inherited
        self._reads: ReadList | None = None
        self.settled = threading.Event()
        """Whether it is known how a mount that is taken over goes on."""
        self._woken = threading.Event()
        self._journal: int | None = None
        self._place: RememberingSource | None = None
        self._record = MountRecord(
            image=request.image.place,
            digest="",
            platform="",
            target=str(request.target),
            pid=this.pid,
            process_started=this.started,
            boot_id=this.boot_id,
            started=time.time(),
            writable=request.writable,
            owner=request.owner,
            host=host,
        )
        self.folder: OwnFolder
        if inherited is not None:
            before = inherited.state.record
            self._record = dataclasses.replace(
                before,
                pid=this.pid,
                process_started=this.started,
                boot_id=this.boot_id,
                host=host,
                restarts=before.restarts + 1,
            )
            self.folder = Mounts(request.state).adopt(inherited.name, inherited.lock)
        else:
            mounts = Mounts(request.state)
            if not request.topmost:
                mounts.check_free(request.target)
            check_target(request.target)
            request.check_clear()
            # Who mounts single layers mounts many, each at a folder that it made for that.
            self.folder = (mounts.add if request.topmost else mounts.claim)(self._record)
        self.ready: Future[str] = Future()
        self._write = write
        self.log = Log(write or (lambda line: None))
        self._mutex = threading.Lock()
        self._opened: OpenedImage | None = None
        self._mounted: MountedImage | None = None
        self._cancelled = False
        self._has_ended = False

    def run(self, observer: Observer) -> None:
        """Opens and mounts the image, and serves until the mount is gone. Never raises."""
        try:
            self._run(observer)
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            if not _settle(self.ready, error) or self._inherited is not None:
                self.log(f"the server ended: {type(error).__name__}: {error}")

    def _run(self, observer: Observer) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.folder)
            if self._write is None:
                file = stack.enter_context(LogFile(self.folder.log))
                self.log = Log(file.write)
            stack.enter_context(self.log)
            stack.callback(self._keeper.drop, self.folder.name)
            if self._inherited is not None:
                stack.callback(self.settled.set)
                stack.callback(self._inherited.close)
                found = self._take_over(self._inherited, stack)
                if found is None:
                    return
            else:
                try:
                    found = self._open(observer, stack)
                    self._mount(found, stack)
                except SociError:
                    self._check()  # which may have caused it
                    raise
            if self._mounted is not None and not self._mounted.is_served:
                self.folder.leave()
                self.ready.set_result(self.folder.name)
                return
            self.ready.set_result(self.folder.name)
            self._serve(found)

    def _open(self, observer: Observer, stack: ExitStack) -> OpenedImage:
        found = stack.enter_context(
            opened(self._request.image, observer, READAHEAD, self._fetcher, self._remember)
        )
        with self._mutex:
            self._check()
            self._opened = found
        if self._request.topmost:
            found.image.layers[-1].open()
        else:
            found.image.open_all()
        if self._request.eager:
            complete_all(found.image.layers, observer)
        found.keep()
        return found

    def _remember(self, source: Source) -> RememberingSource:
        inherited = self._inherited
        self._place = inherited.remembering(source) if inherited else RememberingSource(source)
        return self._place

    def _recording(self, image: LazyImage, stack: ExitStack) -> ReadList | None:
        """The list of files that are read, if it is wanted. StorageError where it cannot be written."""
        path = self._request.record
        if path is not None:
            self._reads = ReadList(image.layers, path, is_new=self._inherited is None)
            stack.callback(self._quietly, self._reads.close)
        return self._reads

    def _mount(self, found: OpenedImage, stack: ExitStack) -> None:
        request, image = self._request, found.image
        reads = self._recording(image, stack)
        stack.callback(self._close)
        config = None
        if request.keep_config:  # beside the mounting: it comes from the image's place
            config = stack.enter_context(ThreadPoolExecutor(1)).submit(self._read_config, found)
        options = MountOptions(request.writable, request.suid, request.dev, request.allow_other)
        engines = self._engines(found)
        prepared = engines.prepare(request.engine)
        with self._mutex:
            self._check()
            made = engines.mount(
                prepared,
                request.target,
                self.folder.scratch,
                options,
                reads,
                fallback=request.engine != "erofs",
                # Who serves in the foreground unmounts at the end.
                unserved=self._write is None,
            )
            mounted = made.image
            self._set_mounted(mounted)
        identity = mounted.identity
        layers = self._shown(image)
        self._record = dataclasses.replace(
            self._record,
            digest=image.digest,
            platform=platforms.format_platform(image.platform or platforms.host_platform()),
            layers=len(layers),
            indexed=sum(layer.indexed for layer in layers),
            layer_digests=tuple(layer.descriptor.digest for layer in layers),
            kind=mounted.kind,
            device=identity.device,
            mount_id=identity.number,
            unique_id=identity.unique,
            namespace=identity.namespace,
            engine=made.engine,
            reason=made.reason,
            metadata=made.metadata,
            served=mounted.is_served,
            host=self._record.host if mounted.is_served else "",
        )
        self._keep(found)
        self.folder.write(self._record)
        if config is not None:
            self._write_config(config.result())

    def _read_config(self, found: OpenedImage) -> KeptConfig:
        origin = found.image.origin
        if origin is None:
            raise StorageError("the config of an image that is mounted by layers is not known")
        source, manifest = found.source, origin.manifest
        name = f"manifest {manifest.digest} in {source.name}"
        read = parse_manifest(read_blob(source, manifest), name, manifest.media_type)
        config = read_blob(source, read.config, CONFIG_LIMIT)
        return KeptConfig(source.resolve().digest, config.decode("utf-8", "replace"))

    def _write_config(self, config: KeptConfig) -> None:
        try:
            config.write(self.folder)
        except OSError as error:
            raise StorageError(f"{self.folder.path}: {error.strerror}") from error

    def _engines(self, found: OpenedImage) -> Engines:
        request, image, cache = self._request, found.image, found.fetching.cache
        about = image, cache, request.state, request.image.environ, self.log
        return (
            LayerEngines(*about, is_stack=request.is_stack) if request.topmost else Engines(*about)
        )

    def _shown(self, image: LazyImage) -> Sequence[LazyLayer]:
        """The layers that are mounted; the others only say how these are seen."""
        return image.layers[-1:] if self._request.topmost else image.layers

    def _set_mounted(self, mounted: MountedImage) -> None:
        mounted.on_end = partial(self._keeper.drop, self.folder.name)
        self._mounted = mounted

    def _keep(self, found: OpenedImage) -> None:
        """Has the holder keep what a successor needs."""
        if not self._keeper.is_begun or self._mounted is None or self._place is None:
            return
        if not self._mounted.is_served:
            return
        blobs: dict[str, int] = {}
        fds: list[int] = []
        try:
            handover, copies = self._mounted.handover(_PATIENCE)
            fds += copies.values()
            blobs = ztoc_files(self._shown(found.image), found.fetching.cache)
            fds += blobs.values()
            record = dataclasses.replace(self._record, held=True)
            kept = descriptors_of(
                self._request,
                record,
                self.folder.lock,
                (handover, copies),
                self._place,
                blobs,
            )
            fds.append(kept[0])
            self._keeper.keep(self.folder.name, kept)
            self._record = record
        except OSError as error:
            self.log(f"this mount does not outlive its server: {error}")
        finally:
            for fd in fds:
                os.close(fd)

    def _take_over(self, inherited: Inherited, stack: ExitStack) -> OpenedImage | None:
        """Goes on with a mount of another server; None where it is over.

        As long as the image cannot be opened, who reads waits: nothing else can be said to the kernel.
        """
        for attempt in itertools.count():
            with ExitStack() as opening:
                try:
                    found = self._open(SilentObserver(), opening)
                    reads = self._recording(found.image, opening)
                    opening.callback(self._close)
                    with self._mutex:
                        self._check()
                        self._set_mounted(
                            self._engines(found).resume(
                                inherited.state.handover,
                                inherited.mount_descriptors(),
                                self._request.target,
                                reads,
                            )
                        )
                except (SociError, OSError) as error:
                    if self._cancelled or not inherited.is_mounted:
                        return None
                    self.log(f"the mount cannot be taken over yet: {error}")
                    self.settled.set()
                else:
                    stack.push(opening.pop_all())
                    self._journal = inherited.shared_journal()
                    inherited.close()
                    self.settled.set()
                    return found
            self._woken.wait(min(_LONGEST_PAUSE, 2**attempt))
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether a mount could not be taken over yet."""
        return self._inherited is not None and self._mounted is None

    def publish(self) -> None:
        """Writes down that this process serves a mount of another one from now on."""
        with suppress(StorageError):
            self.folder.write(self._record)

    def confirm(self) -> None:
        """The server before has ended, and has written its last into the list of files."""
        journal, self._journal = self._journal, None
        if journal is not None and self._mounted is not None:
            self._mounted.take_up(journal)
        if self._opened is not None:
            self._keep(self._opened)
        if self._reads is not None:
            self._quietly(self._reads.take_up)

    def leave(self) -> None:
        """Writes what is left to write, because another process goes on with the mount."""
        if self._reads is not None:
            self._quietly(self._reads.close)
        self.log.close()

    def _serve(self, found: OpenedImage) -> None:
        request, image = self._request, found.image
        options = BackgroundOptions(
            request.background,
            request.silence_period,
            request.fetch_period,
            request.max_queue_size,
        )
        layers = self._shown(image)
        # What FUSE serves for good is as well off with spans.
        then = None if request.engine == "fuse" else partial(self._complete, layers)
        with BackgroundFetcher(layers, found.fetching, options, then) as ahead:
            if request.prefetch:
                work = partial(self._prefetch, layers, ahead)
                threading.Thread(target=work, name="soci-prefetch", daemon=True).start()
            assert self._mounted is not None
            self._mounted.serve()

    def _complete(self, layers: Sequence[LazyLayer]) -> None:
        """Makes devices of layers that are here, for the mounts after this one."""
        if os.geteuid() == 0:
            for layer in layers:
                if not layer.archive.missing():
                    self._quietly(layer.archive.complete)

    def _prefetch(self, layers: Sequence[LazyLayer], ahead: BackgroundFetcher) -> None:
        for number, layer in enumerate(layers):
            self._quietly(lambda: ahead.prefetch(number, layer.prefetch_ranges()))  # noqa: B023

    def _close(self) -> None:
        if self._mounted is not None:
            self._mounted.close()

    def _quietly(self, work: Callable[[], object]) -> None:
        """Does what may fail without harm to the rest."""
        try:
            work()
        except SociError as error:
            self.log(str(error))

    def _check(self) -> None:
        if self._cancelled:
            raise self._ended()

    def _ended(self) -> EndedError:
        return EndedError(f"{self._request.target} was told to end before it was mounted")

    # What others ask for.

    def unmount(self) -> None:
        """Unmounts, unless it is in use; ends what is not mounted yet. Raises as `kernel.unmount` does."""
        if not self._cancel():
            assert self._mounted is not None
            self._mounted.unmount()

    def abort(self) -> None:
        """As `unmount`, even while it is in use: all who wait for something get an error."""
        if not self._cancel(force=True):
            assert self._mounted is not None
            self._mounted.abort()

    def try_to_end(self) -> bool:
        """Unmounts because the process is told to end; False when that has to be tried again."""
        if self._has_ended:  # as far as it can be done from here
            return True
        target = str(self._request.target)
        try:
            self.unmount()
        except CoveredError as error:
            self.log(f"{error}; its server ends when it can be unmounted")
            return False
        except SociError as error:
            inside = points_below(target) if isinstance(error, BusyError) else []
            if inside:
                self.log(
                    f"{target} has something mounted in it, {inside[-1]}; its server ends after that"
                )
                return False
            self.log(f"{error}; ended all the same, because the server was told to end")
            self._quietly(self.abort)
        self._has_ended = True
        return True

    def statistics(self) -> dict[str, object]:
        """What was fetched so far."""
        found = self._opened
        if found is None:
            self._check()
            raise EndedError(f"{self._request.target} is not mounted yet")
        seconds = time.time() - self._record.started
        return statistics(found.image.layers, found.fetching, self.log, seconds)

    def _cancel(self, *, force: bool = False) -> bool:
        """Ends what is not mounted yet; whether it was so. What hangs in the network is left behind."""
        with self._mutex:
            if self._mounted is not None:
                return False
            if self._inherited is not None:
                unmount(self._request.target, self._inherited.state.handover.identity, force=force)
            self._cancelled = True
            self._woken.set()
            found = self._opened
        if found is not None:
            found.image.close()
        if self._inherited is None:
            self.folder.close()
        _settle(self.ready, self._ended())
        return True


def _settle(future: Future[str], error: BaseException) -> bool:
    """Gives a future its error; False where it is done."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        return False
    return True
