"""Which engine serves a mount: the kernel's EROFS over lazy devices, or FUSE for every file."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import (
    InvalidDataError,
    MountError,
    SociError,
    StorageError,
    UnsupportedLayerError,
)
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.erofs import engine as erofs
from soci_cli.lazy.erofs.making import Images
from soci_cli.lazy.erofs.mounting import Probed, Way, probe
from soci_cli.lazy.fuse import MountedImage, MountOptions, mount_image
from soci_cli.lazy.fuse.session import OnRead
from soci_cli.lazy.merged import LazyImage
from soci_cli.new_file import replacing
from soci_cli.processes import encoding
from soci_cli.processes.identity import boot_id

ENGINES = ("auto", "erofs", "fuse")
_FILE = "engine.json"
_AT_ONCE = 40_000  # entries whose metadata are made in about 0.2 s


@dataclass(frozen=True)
class _Trial:
    """What a trial said, and on which kernel, since when, and where."""

    boot: str
    release: str
    folder: str
    way: str
    reason: str


def probed(state: Path, cache: Cache) -> Probed:
    """Whether this process can have EROFS over files in the cache; tried once a boot."""
    file = state / _FILE
    known = boot_id(), platform.release(), str(cache.root)
    with suppress(OSError, InvalidDataError):
        trial = encoding.decode(_Trial, file.read_bytes(), str(file))
        if (trial.boot, trial.release, trial.folder) == known:
            return Probed(Way(trial.way) if trial.way else None, trial.reason)
    found = probe(cache.root)
    with suppress(OSError):
        state.mkdir(parents=True, exist_ok=True)
        trial = _Trial(*known, found.way.value if found.way else "", found.reason)
        with replacing(file, 0o600) as new:
            new.write(encoding.encode(trial))
    return found


class Engines:
    """Mounts an image by the engine that is wanted, or that is best here."""

    def __init__(
        self, image: LazyImage, cache: Cache, state: Path, log: Callable[[str], None]
    ) -> None:
        """`log` is told why a mount is not served as it could be."""
        self._image = image
        self._images = Images(cache)
        self._cache = cache
        self._state = state
        self._log = log

    def mount(
        self,
        engine: str,
        target: Path,
        scratch: Path,
        options: MountOptions,
        on_read: OnRead | None,
    ) -> MountedImage:
        """Mounts at `target`; `engine` is one of `ENGINES`. Raises as `mount_image` does."""
        # What is recorded is what somebody reads, without what the kernel reads ahead.
        wanted = engine == "erofs" or (engine == "auto" and on_read is None)
        if wanted and not options.writable and self._image.layers:
            try:
                mounted = self._by_erofs(engine, target, scratch, options, on_read)
            except (MountError, StorageError, UnsupportedLayerError, InvalidDataError) as error:
                if engine == "erofs":
                    raise
                self._log(f"served by FUSE, not by EROFS: {error}")
            else:
                if mounted is not None:
                    return mounted
        elif engine == "erofs":
            raise MountError(
                f"{target} cannot be mounted: EROFS is for images with layers, and read-only"
            )
        return mount_image(self._image, target, scratch, options, self._log, on_read)

    def _by_erofs(
        self,
        engine: str,
        target: Path,
        scratch: Path,
        options: MountOptions,
        on_read: OnRead | None,
    ) -> MountedImage | None:
        """None where its metadata would take too long to make now; they are made meanwhile."""
        found = probed(self._state, self._cache)
        if found.way is None:
            raise MountError(found.reason)
        layers = self._image.layers
        made = self._images.find(layers)
        if made is None:
            if engine == "auto" and sum(len(layer.files) for layer in layers) > _AT_ONCE:
                threading.Thread(target=self._make, name="soci-erofs", daemon=True).start()
                return None
            self._images.make(layers)
            made = self._images.find(layers)
        if made is None:
            raise StorageError(f"the cache {self._cache.root} does not keep the metadata for EROFS")
        file, about = made
        return erofs.mount_image(
            self._image,
            file.fileno(),
            about,
            found.way,
            target,
            scratch,
            options,
            self._log,
            on_read,
        )

    def _make(self) -> None:
        try:
            self._images.make_apart(self._image.layers)
        except (SociError, OSError) as error:
            self._log(f"the next mount cannot be by EROFS: {error}")
