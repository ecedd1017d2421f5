"""The server of one mounted image, from the mount until it is gone."""

from __future__ import annotations

import dataclasses
import gc
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import BusyError, CoveredError, SociError
from soci_cli.kernel.calls import limit_heaps
from soci_cli.kernel.points import points_below
from soci_cli.lazy.background import BackgroundFetcher, BackgroundOptions
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.fuse import MountedImage, MountOptions, mount_image
from soci_cli.lazy.layer import LazyLayer
from soci_cli.lazy.merged import LazyImage
from soci_cli.lazy.mounts.control import ControlServer
from soci_cli.lazy.mounts.log import Log
from soci_cli.lazy.mounts.readlist import ReadList
from soci_cli.lazy.mounts.state import MountRecord, OwnFolder
from soci_cli.lazy.spans import LayerSpans
from soci_cli.lazy.stats import Presence
from soci_cli.lazy.whole import WholeLayer

READAHEAD = 128 << 20
"""Uncompressed bytes that are fetched ahead where a layer is read in order."""

_SWITCH_INTERVAL = 0.0005
_AGAIN = 1.0  # seconds


@dataclass(frozen=True)
class ServeOptions:
    """How an image is mounted, what is fetched unasked, and where the files that are read are written."""

    mount: MountOptions
    background: BackgroundOptions
    prefetch: bool = True
    record: Path | None = None


class Server(Closing):
    """An image that is mounted. Make it, say that it is ready, and `run` it until the mount is gone."""

    def __init__(
        self,
        image: LazyImage,
        fetching: Fetching,
        folder: OwnFolder,
        record: MountRecord,
        options: ServeOptions,
        log: Log,
    ) -> None:
        """Mounts the image. Raises what mounting raises, and StorageError."""
        self.log = log
        self.folder = folder
        self._image = image
        self._fetching = fetching
        self._record = record
        self._options = options
        self._ending = threading.Event()
        raise_limits()
        with ExitStack() as stack:
            recorder = None
            if options.record is not None:
                recorder = ReadList(image.layers, options.record)
                stack.callback(self._quietly, recorder.close)
            target = Path(record.target)
            self._mounted: MountedImage = mount_image(
                image, target, folder.scratch, options.mount, log, recorder
            )
            stack.callback(self._mounted.close)
            found = self._mounted.identity
            folder.write(
                dataclasses.replace(
                    record,
                    kind=self._mounted.kind,
                    device=found.device,
                    mount_id=found.number,
                    unique_id=found.unique,
                    namespace=found.namespace,
                )
            )
            answers: dict[str, Callable[[], object]] = {
                "stats": self._statistics,
                "stop": self._mounted.unmount,
                "abort": self._mounted.abort,
            }
            stack.enter_context(ControlServer(folder.path, answers))
            self._stack = stack.pop_all()

    def run(self) -> None:
        """Serves until the mount is gone, by whoever unmounts it."""
        threading.Thread(target=self._end, name="soci-end", daemon=True).start()
        # What is here now stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        with BackgroundFetcher(
            self._image.layers, self._fetching, self._options.background
        ) as ahead:
            if self._options.prefetch:
                work = partial(self._prefetch, ahead)
                threading.Thread(target=work, name="soci-prefetch", daemon=True).start()
            self._mounted.serve()

    def end(self) -> None:
        """Asks for the end, from a signal handler or any thread."""
        self._ending.set()

    def close(self) -> None:
        """Unmounts what is still mounted, and writes what is left to write."""
        self._stack.close()

    def _end(self) -> None:
        """Unmounts when the server is told to end, and tries again until that can be done."""
        self._ending.wait()
        while not self._try_to_end():
            self._ending.clear()
            self._ending.wait(_AGAIN)

    def _try_to_end(self) -> bool:
        target = self._record.target
        try:
            self._mounted.unmount()
        except CoveredError as error:
            self.log(f"{error}; the server ends when it can be unmounted")
            return False
        except BusyError as error:
            inside = points_below(target)
            if inside:
                self.log(
                    f"{target} has something mounted in it, {inside[-1]}; the server ends after that"
                )
                return False
            self.log(f"{error}; taken away all the same, because the server was told to end")
            self._quietly(self._mounted.abort)
        except SociError as error:
            self.log(f"{error}; ended all the same, because the server was told to end")
            self._quietly(self._mounted.abort)
        return True

    def _prefetch(self, ahead: BackgroundFetcher) -> None:
        for number, layer in enumerate(self._image.layers):
            self._quietly(lambda: ahead.prefetch(number, layer.prefetch_ranges()))  # noqa: B023

    def _quietly(self, work: Callable[[], object]) -> None:
        """Does what may fail without harm to the rest."""
        try:
            work()
        except SociError as error:
            self.log(str(error))

    def _statistics(self) -> object:
        return {
            **dataclasses.asdict(self._fetching.stats.report()),
            "layers": [_presence(layer) for layer in self._image.layers],
            "log_lines": self.log.count,
            "log_recent": self.log.recent,
            "seconds": time.time() - self._record.started,
        }


def _presence(layer: LazyLayer) -> dict[str, object]:
    """How much of a layer is on this machine, in uncompressed bytes."""
    archive = layer.archive
    found = Presence(0, 0, 0, 0)
    if isinstance(archive, LayerSpans):
        found = archive.presence()
    elif isinstance(archive, WholeLayer):
        size = archive.ztoc.compressed_archive_size
        found = Presence(0, 0, size, size)
    return {"digest": layer.descriptor.digest, "lazy": layer.indexed, **dataclasses.asdict(found)}


def raise_limits() -> None:
    """Lets this process open as many files as the system lets it: the cache's entries stay open."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit_heaps()


def counted(layers: Sequence[LazyLayer]) -> tuple[int, int]:
    """How many layers there are, and how many of them stay where they are."""
    return len(layers), sum(layer.indexed for layer in layers)
