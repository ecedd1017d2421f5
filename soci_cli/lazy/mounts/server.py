"""One mounted image, from the request until the mount is gone. Its process may serve others besides."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack
from functools import partial

from soci_cli.errors import BusyError, CoveredError, EndedError, SociError
from soci_cli.kernel.points import points_below
from soci_cli.lazy.background import BackgroundFetcher, BackgroundOptions
from soci_cli.lazy.fetcher import Fetcher
from soci_cli.lazy.fuse import MountedImage, MountOptions
from soci_cli.lazy.fuse.mounting import check_target
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.mounts.engines import Engines, LayerEngines
from soci_cli.lazy.mounts.readlist import ReadList
from soci_cli.lazy.mounts.records import MountRecord, Mounts
from soci_cli.lazy.mounts.request import READAHEAD, MountRequest, OpenedImage, opened
from soci_cli.lazy.mounts.statistics import statistics
from soci_cli.oci import platforms
from soci_cli.processes.folder import OwnFolder
from soci_cli.processes.identity import this_process
from soci_cli.processes.log import Log, LogFile
from soci_cli.progress import Observer


class Server:
    """An image that is mounted and served. `run` it in a thread; the rest may be called from any other.

    `ready` is the id of its folder as soon as it is mounted, or why it is not.
    """

    def __init__(
        self,
        request: MountRequest,
        host: str,
        fetcher: Fetcher,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """Writes the record of a mount that is about to be made; StorageError, also when there is one.

        `host` is the folder of this process, `fetcher` what all its mounts share. Log lines go to `write`,
        by default into the mount's folder.
        """
        this = this_process()
        self._request = request
        self._fetcher = fetcher
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
        mounts = Mounts(request.state)
        mounts.check_free(request.target)
        check_target(request.target)
        request.check_clear()
        self.folder: OwnFolder = mounts.claim(self._record)
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
            if not _settle(self.ready, error):
                self.log(f"the server ended: {type(error).__name__}: {error}")

    def _run(self, observer: Observer) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.folder)
            if self._write is None:
                file = stack.enter_context(LogFile(self.folder.log))
                self.log = Log(file.write)
            stack.enter_context(self.log)
            try:
                found = self._open(observer, stack)
                self._mount(found, stack)
            except SociError:
                self._check()  # which may have caused it
                raise
            self.ready.set_result(self.folder.name)
            self._serve(found)

    def _open(self, observer: Observer, stack: ExitStack) -> OpenedImage:
        found = stack.enter_context(opened(self._request.image, observer, READAHEAD, self._fetcher))
        with self._mutex:
            self._check()
            self._opened = found
        if self._request.topmost:
            found.image.layers[-1].open()
        else:
            found.image.open_all()
        found.keep()
        return found

    def _mount(self, found: OpenedImage, stack: ExitStack) -> None:
        request, image = self._request, found.image
        reads = None
        if request.record is not None:
            reads = ReadList(image.layers, request.record)
            stack.callback(self._quietly, reads.close)
        stack.callback(self._close)
        options = MountOptions(request.writable, request.suid, request.dev, request.allow_other)
        engines = self._engines(found)
        # What is recorded is what somebody reads, without what the kernel reads ahead.
        engine = "fuse" if reads is not None and request.engine == "auto" else request.engine
        prepared = engines.prepare(engine)
        with self._mutex:
            self._check()
            made = engines.mount(
                prepared,
                request.target,
                self.folder.scratch,
                options,
                reads,
                fallback=request.engine != "erofs",
            )
            mounted = self._mounted = made.image
        identity = mounted.identity
        self._record = dataclasses.replace(
            self._record,
            digest=image.digest,
            platform=platforms.format_platform(image.platform or platforms.host_platform()),
            layers=len(image.layers),
            indexed=sum(layer.indexed for layer in image.layers),
            layer_digests=tuple(layer.descriptor.digest for layer in image.layers),
            kind=mounted.kind,
            device=identity.device,
            mount_id=identity.number,
            unique_id=identity.unique,
            namespace=identity.namespace,
            engine=made.engine,
            reason=made.reason,
            metadata=made.metadata,
        )
        self.folder.write(self._record)

    def _engines(self, found: OpenedImage) -> Engines:
        request, image, cache = self._request, found.image, found.fetching.cache
        about = image, cache, request.state, request.image.environ, self.log
        return (
            LayerEngines(*about, is_stack=request.is_stack) if request.topmost else Engines(*about)
        )

    def _serve(self, found: OpenedImage) -> None:
        request, image = self._request, found.image
        options = BackgroundOptions(
            request.background,
            request.silence_period,
            request.fetch_period,
            request.max_queue_size,
        )
        layers = image.layers[-1:] if request.topmost else image.layers
        with BackgroundFetcher(layers, found.fetching, options) as ahead:
            if request.prefetch:
                work = partial(self._prefetch, layers, ahead)
                threading.Thread(target=work, name="soci-prefetch", daemon=True).start()
            assert self._mounted is not None
            self._mounted.serve()

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
        if not self._cancel():
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

    def _cancel(self) -> bool:
        """Ends what is not mounted yet; whether it was so. What hangs in the network is left behind."""
        with self._mutex:
            if self._mounted is not None:
                return False
            self._cancelled = True
            found = self._opened
        if found is not None:
            found.image.close()
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
