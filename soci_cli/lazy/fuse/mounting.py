"""Mounting an image on a folder.

Root mounts the layers by FUSE and joins them with overlayfs. The FUSE mount is detached at once: overlayfs
holds on to it, and it ends with the overlay, whoever unmounts that. Others mount the merged image through
fusermount3, or join the layers with fuse-overlayfs where they want to write.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls
from soci_cli.kernel.fuse_device import (
    fusermount,
    is_dead,
    mount_fuse,
    raise_read_ahead,
)
from soci_cli.kernel.namespaces import is_initial_user_namespace
from soci_cli.kernel.overlay import MAX_LOWERS, NoOverlayError, Overlay
from soci_cli.kernel.points import identify, mount_at, resolve
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.filesystem import Tree
from soci_cli.lazy.fuse.mounted import (
    MountedImage,
    end_connection,
    follow_program,
    start_session,
    tree_of,
)
from soci_cli.lazy.fuse.naming import SOURCE_PREFIX, SUBTYPE, is_image
from soci_cli.lazy.fuse.session import Log, OnRead, Session
from soci_cli.lazy.merged import LazyImage

_MAX_SOURCE = 200
_MAX_LAYERS = MAX_LOWERS - 1  # one is "empty"
_LAYERS = "l"  # short, for the options of overlayfs must fit into 4 KiB


@dataclass(frozen=True)
class MountOptions:
    """How an image is mounted. What is written with `writable` goes to `scratch` and is lost at the end.

    `allow_other` lets other users in where an ordinary user mounts; root's mounts are for everybody.
    """

    writable: bool = False
    suid: bool = False
    dev: bool = False
    allow_other: bool = False


def mount_image(
    image: LazyImage,
    target: Path,
    scratch: Path,
    options: MountOptions,
    log: Log,
    on_read: OnRead | None = None,
) -> MountedImage:
    """Mounts an image on a folder and serves it from threads of this process.

    `scratch` is an empty folder of this user alone, needed as long as the mount lasts. See `Session` for
    `log` and `on_read`. Raises MountError, and what opening a layer raises.
    """
    target = resolve(target)
    check_target(target)
    begin = _Mounting(image, target, scratch, options, log, on_read)
    if os.geteuid() == 0:
        return begin.as_root()
    return begin.by_fuse_overlayfs() if options.writable else begin.by_fusermount()


def check_target(target: Path) -> None:
    """Raises MountError for a folder that no image can be mounted on."""
    point = mount_at(str(target))
    if point is not None and is_image(point):
        has = f"an image mounted already ({point.source.removeprefix(SOURCE_PREFIX)})"
        if is_dead(target):
            has = "a mount whose server crashed"
        raise MountError(f"{target} has {has}; unmount it with: soci umount {target}")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        raise MountError(
            f"there is no folder {target} to mount on; make it with: mkdir {target}"
        ) from None
    except OSError as error:
        raise MountError(f"{target} cannot be mounted: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise MountError(f"{target} is no folder to mount on")


def source_of(name: str) -> str:
    """What `mount` shows as the source of an image that is mounted: one part of a path."""
    return SOURCE_PREFIX + _shown(name).replace("/", "+")


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)[:_MAX_SOURCE]


class _Mounting:
    """The ways to mount one image.

    Nothing is mounted before its layers are open: until somebody serves it, whoever looks at it hangs.
    """

    def __init__(
        self,
        image: LazyImage,
        target: Path,
        scratch: Path,
        options: MountOptions,
        log: Log,
        on_read: OnRead | None,
    ) -> None:
        self._image = image
        self._target = target
        self._scratch = scratch
        self._options = options
        self._log = log
        self._on_read = on_read
        self._layers = scratch / _LAYERS
        self._source = _shown(image.name)
        self._flags = (0 if options.suid else calls.MS_NOSUID) | (
            0 if options.dev else calls.MS_NODEV
        )

    def as_root(self) -> MountedImage:
        """By the kernel's FUSE and overlayfs, or by FUSE alone where overlayfs cannot do it."""
        if self._options.writable:
            return self._by_overlay()
        if not self._image.layers:
            return self._merged()
        try:
            return self._by_overlay()
        except NoOverlayError:
            return self._merged()

    def _by_overlay(self) -> MountedImage:
        overlay = self._overlay(not is_initial_user_namespace())
        tree = tree_of("overlay", self._image)
        flags = calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV
        fd = mount_fuse(SUBTYPE, self._source, self._layers, flags, "allow_other")
        session = self._serve(fd, tree, self._layers)
        try:
            raise_read_ahead(self._layers)
            connection = os.minor(self._layers.stat().st_dev)
            if overlay.writable:
                overlay.prepare_upper()
            flags = self._flags | (0 if overlay.writable else calls.MS_RDONLY)
            overlay.mount(SOURCE_PREFIX + self._source, self._target, flags)
        except BaseException:
            end_connection(session, self._layers, None)
            raise
        finally:
            with suppress(OSError):
                calls.umount2(self._layers, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
        return MountedImage("overlay", self._target, session, connection=connection)

    def _merged(self) -> MountedImage:
        tree = tree_of("fuse", self._image)
        options = "allow_other,default_permissions"
        flags = calls.MS_RDONLY | self._flags
        fd = mount_fuse(SUBTYPE, self._source, self._target, flags, options)
        session = self._serve(fd, tree, self._target)
        raise_read_ahead(self._target)
        connection = os.minor(self._target.stat().st_dev)
        return MountedImage("fuse", self._target, session, connection=connection)

    def by_fusermount(self) -> MountedImage:
        """By the setuid program of libfuse, the layers merged here."""
        self._check_plain()
        tree = tree_of("fuse", self._image)
        options = ["ro"]
        if self._options.allow_other:
            options += ["allow_other", "default_permissions"]
        fd = fusermount(SUBTYPE, self._source, self._target, options)
        return MountedImage("fuse", self._target, self._serve(fd, tree, self._target))

    def by_fuse_overlayfs(self) -> MountedImage:
        """By that program over the layers, which fusermount3 mounts."""
        self._check_plain()
        overlay = self._overlay(in_namespace=True)
        tree = tree_of("fuse-overlayfs", self._image)
        fd = fusermount(SUBTYPE, self._source, self._layers, ["ro"])
        session = self._serve(fd, tree, self._layers)
        below = identify(self._layers)
        try:
            overlay.prepare_upper()
            program = overlay.start_program(self._target)
        except BaseException:
            end_connection(session, self._layers, None)
            with suppress(MountError):
                unmount(self._layers, below, force=True)
            raise

        follow_program(program, self._layers, below)
        descriptors = {"program": os.pidfd_open(program.pid)}
        return MountedImage(
            "fuse-overlayfs",
            self._target,
            session,
            program,
            self._layers,
            descriptors=descriptors,
        )

    def _check_plain(self) -> None:
        if self._options.suid or self._options.dev:
            raise MountError("only root can mount with suid or dev")

    def _overlay(self, in_namespace: bool) -> Overlay:
        """What is to be joined, with the folder that the layers will be mounted on.

        The first layer gives the root's attributes. It has nothing else: without a writable folder,
        overlayfs wants two of them.
        """
        count = len(self._image.layers)
        if count > _MAX_LAYERS:
            raise MountError(
                f"{self._image.name} has {count} layers; overlayfs joins {_MAX_LAYERS} at most"
            )
        try:
            self._layers.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MountError(f"{self._scratch} cannot be written: {error.strerror}") from error
        names = ["empty", *map(str, reversed(range(count)))]
        lowers = [f"{_LAYERS}/{name}" for name in names]
        return Overlay(self._scratch, lowers, self._options.writable, in_namespace)

    def _serve(self, fd: int, tree: Tree, path: Path) -> Session:
        """Serves what is mounted at a path."""
        wanted = wire.POSIX_ACL if os.geteuid() == 0 else 0  # others' mounts check no permissions
        session = Session(fd, tree, self._log, self._on_read, wanted=wanted)
        try:
            return start_session(session, self._target)
        except MountError:
            with suppress(MountError):
                unmount(path, identify(path), force=True)
            raise
