"""Which engine serves a mount: the kernel's EROFS over lazy devices, or FUSE for every file.

EROFS is taken where it can be, as it is quicker: by root, on a kernel whose trial went well, for an image
whose layers it can show. What is in the way is said, not hidden: the reason is kept with the mount.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping
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
from soci_cli.kernel.fuse_device import DEVICE
from soci_cli.kernel.namespaces import privileges
from soci_cli.lazy.cache import Cache, device_key
from soci_cli.lazy.devices.complete import Device, open_device
from soci_cli.lazy.entries import Entry
from soci_cli.lazy.erofs import engine as erofs
from soci_cli.lazy.erofs.image import ErofsImage
from soci_cli.lazy.erofs.making import Images, LayerImages
from soci_cli.lazy.erofs.mounting import Probed, Way, probe
from soci_cli.lazy.fuse import MountedImage, MountOptions, mount_image
from soci_cli.lazy.fuse.filesystem import Tree
from soci_cli.lazy.fuse.layer_mounting import layer_tree, mount_layer
from soci_cli.lazy.fuse.mounted import Handover, resume_image, tree_of
from soci_cli.lazy.fuse.session import OnRead
from soci_cli.lazy.merged import LazyImage
from soci_cli.new_file import replacing
from soci_cli.processes import encoding
from soci_cli.processes.identity import boot_id

WITHOUT = "SOCI_WITHOUT"
"""The variable of the environment that names what of the kernel is not used; see `erofs.mounting.probe`."""

_FILE = "engine.json"
_AT_ONCE = 40_000  # entries whose metadata are made in about 0.2 s


@dataclass(frozen=True)
class _Trial:
    """What a trial said, and on which kernel, since when, and where, by whom and without what."""

    boot: str
    release: str
    folder: str
    user: str
    way: str
    reason: str


def probed(state: Path, cache: Path, environ: Mapping[str, str]) -> Probed:
    """Whether this process can have EROFS over files in the cache's folder; tried once a boot."""
    file = state / _FILE
    without = frozenset(environ.get(WITHOUT, "").split())
    user = " ".join([privileges(), *sorted(without)])
    known = boot_id(), platform.release(), str(cache), user
    with suppress(OSError, InvalidDataError):
        trial = encoding.decode(_Trial, file.read_bytes(), str(file))
        if (trial.boot, trial.release, trial.folder, trial.user) == known:
            return Probed(Way(trial.way) if trial.way else None, trial.reason)
    found = probe(cache, without)
    with suppress(OSError):
        state.mkdir(parents=True, exist_ok=True)
        trial = _Trial(*known, found.way.value if found.way else "", found.reason)
        with replacing(file, 0o600) as new:
            new.write(encoding.encode(trial))
    return found


@dataclass(frozen=True)
class Available:
    """Whether an engine can serve mounts that are made now, and why it can or cannot."""

    engine: str
    available: bool
    reason: str


def available(state: Path, cache: Path, environ: Mapping[str, str]) -> list[Available]:
    """All engines, the best first."""
    found = probed(state, cache, environ)
    reason = "" if Path(DEVICE).exists() else f"there is no {DEVICE}"
    by = "FUSE and overlayfs" if os.geteuid() == 0 else "FUSE, by fusermount3"
    return [
        Available("erofs", found.way is not None and not reason, reason or found.reason),
        Available("fuse", not reason, reason or by),
    ]


@dataclass(frozen=True)
class Prepared:
    """What a mount by EROFS needs; `file` is open, and named by the digest `metadata` in the cache."""

    way: Way
    file: Entry
    about: ErofsImage
    metadata: str


@dataclass(frozen=True)
class Mounted:
    """A mount: by which engine, "erofs" or "fuse", and why not by the other; `Prepared.metadata`."""

    image: MountedImage
    engine: str
    reason: str = ""
    metadata: str = ""


class Engines:
    """Mounts an image by the engine that is wanted, or that is best here."""

    def __init__(
        self,
        image: LazyImage,
        cache: Cache,
        state: Path,
        environ: Mapping[str, str],
        log: Callable[[str], None],
    ) -> None:
        """`log` is told what goes wrong while nobody waits."""
        self._image = image
        self._images = Images(cache)
        self._layers = image.layers
        self._cache = cache
        self._state = state
        self._environ = environ
        self._log = log
        self._makes_later = False

    def prepare(self, engine: str) -> Prepared | str:
        """What EROFS needs, which is made now if that is quick; or why FUSE is to serve the mount.

        `engine` is "auto", "erofs" or "fuse". With "erofs" nothing but that will do, and it takes as long
        as it takes: raises MountError, and what making the metadata raises.
        """
        if engine == "fuse":
            return "FUSE was asked for"
        try:
            return self._prepare(is_patient=engine == "erofs")
        except (MountError, StorageError, UnsupportedLayerError, InvalidDataError) as error:
            if engine == "erofs":
                raise
            return str(error)

    def mount(
        self,
        prepared: Prepared | str,
        target: Path,
        scratch: Path,
        options: MountOptions,
        on_read: OnRead | None,
        *,
        fallback: bool,
        unserved: bool,
    ) -> Mounted:
        """Mounts at `target`; with `fallback` by FUSE where EROFS fails. See `mount_image`.

        With `unserved` the kernel reads complete layers by itself, and a mount may need no process.
        """
        if isinstance(prepared, Prepared):
            try:
                mounted = erofs.mount_image(
                    self._image,
                    prepared.file.fileno(),
                    prepared.about,
                    prepared.way,
                    target,
                    scratch,
                    options,
                    self._log,
                    on_read,
                    self._complete(prepared.about, unserved=unserved and on_read is None),
                )
                return Mounted(mounted, "erofs", metadata=prepared.metadata)
            except MountError as error:
                if not fallback:
                    raise
                prepared = str(error)
        mounted = self._by_fuse(target, scratch, options, on_read)
        if self._makes_later:  # not beside mounting, which somebody waits for
            threading.Thread(target=self._make, name="soci-erofs", daemon=True).start()
        return Mounted(mounted, "fuse", prepared)

    def resume(
        self,
        handover: Handover,
        descriptors: Mapping[str, int],
        target: Path,
        on_read: OnRead | None,
    ) -> MountedImage:
        """Goes on with what another process mounted; see `fuse.mounted.resume_image`."""
        about = target, handover, descriptors, self._log, on_read
        if "metadata" in descriptors:
            return erofs.resume_image(self._image, *about)
        return resume_image(self._tree(handover.kind), *about)

    def _tree(self, kind: str) -> Tree:
        return tree_of(kind, self._image)

    def _by_fuse(
        self, target: Path, scratch: Path, options: MountOptions, on_read: OnRead | None
    ) -> MountedImage:
        return mount_image(self._image, target, scratch, options, self._log, on_read)

    def _prepare(self, *, is_patient: bool) -> Prepared | str:
        layers = self._layers
        if not layers:
            raise MountError("EROFS is for images with layers")
        found = probed(self._state, self._cache.root, self._environ)
        if found.way is None:
            raise MountError(found.reason)
        made = self._images.find(layers)
        if made is None:
            count = 0 if is_patient else sum(len(layer.files) for layer in layers)
            if count > _AT_ONCE:
                self._makes_later = True
                return (
                    f"its metadata for EROFS, of {count} entries, are being made for the next mount"
                )
            self._images.make(layers)
            made = self._images.find(layers)
        if made is None:
            raise StorageError(f"the cache {self._cache.root} does not keep the metadata for EROFS")
        return Prepared(found.way, *made, self._images.digest(layers))

    def _complete(self, about: ErofsImage, *, unserved: bool) -> list[Device | None]:
        """The complete devices of layers, as far as they are laid out as the metadata have it."""
        found: list[Device | None] = []
        for layer, layout in zip(self._image.layers, about.layouts, strict=True):
            key = device_key(layer.descriptor.digest, layer.ztoc_digest)
            device = open_device(self._cache, key) if unserved else None
            fits = device is not None and (
                (device.size, device.layout.runs) == (layout.archive_size, layout.runs)
            )
            found.append(device if fits else None)
        return found

    def _make(self) -> None:
        try:
            self._images.make_apart(self._image.layers)
        except (SociError, OSError) as error:
            self._log(f"the next mount cannot be by EROFS: {error}")


class LayerEngines(Engines):
    """Mounts the topmost layer of an image by itself, for overlayfs to join with those below it."""

    def __init__(
        self,
        image: LazyImage,
        cache: Cache,
        state: Path,
        environ: Mapping[str, str],
        log: Callable[[str], None],
        *,
        is_stack: bool,
    ) -> None:
        """`is_stack`: the other layers of the image are all that is below."""
        *below, layer = image.layers
        super().__init__(LazyImage(image.name, [layer]), cache, state, environ, log)
        self._images = LayerImages(cache)
        self._layers = image.layers
        self._below = below if is_stack else None

    def _prepare(self, *, is_patient: bool) -> Prepared | str:
        if self._below is None:
            raise MountError("its metadata for EROFS depend on layers below that nobody knows here")
        # There is no next mount that could be better.
        return super()._prepare(is_patient=True)

    def _tree(self, kind: str) -> Tree:
        return layer_tree(self._image, self._below)

    def _by_fuse(
        self, target: Path, scratch: Path, options: MountOptions, on_read: OnRead | None
    ) -> MountedImage:
        return mount_layer(self._image, self._below, target, self._log, on_read)
