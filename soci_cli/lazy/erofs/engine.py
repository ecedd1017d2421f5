"""Mounting an image by EROFS: the kernel answers all but reads of what is not here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls, detached
from soci_cli.kernel.fuse_device import abort_connection, connection_of, raise_read_ahead
from soci_cli.kernel.overlay import Overlay
from soci_cli.lazy.erofs import serving
from soci_cli.lazy.erofs.image import ErofsImage, decode
from soci_cli.lazy.erofs.mounting import Way, mount
from soci_cli.lazy.fuse import mounted as fuse
from soci_cli.lazy.fuse.mounted import Handover, MountedImage, start_session
from soci_cli.lazy.fuse.mounting import MountOptions, source_of
from soci_cli.lazy.fuse.session import OnRead, Session
from soci_cli.lazy.merged import LazyImage

_LOWER = "l"
_READ_AHEAD = 512  # KiB of a device; with more, programs that start get spans that they never read


def mount_image(
    image: LazyImage,
    file: int,
    about: ErofsImage,
    way: Way,
    target: Path,
    scratch: Path,
    options: MountOptions,
    log: Callable[[str], None],
    on_read: OnRead | None,
) -> MountedImage:
    """Mounts an image, whose metadata are in `file`, and serves its devices from threads of this process.

    `scratch` is a folder of this user alone. Raises MountError, and nothing is mounted then.
    """
    attributes = (0 if options.suid else detached.NOSUID) | (0 if options.dev else detached.NODEV)
    fd, below = serving.connect(f"soci-devices:{image.name}"[:200])
    with ExitStack() as stack:
        stack.callback(os.close, below)
        tree = serving.DevicesTree(image, about.layouts)
        session = start_session(Session(fd, tree, log, on_read), target)
        connection = connection_of(below)  # which asks the server
        try:
            raise_read_ahead(below, _READ_AHEAD)
            devices = serving.open_devices(below, len(about.layouts))
            for device in devices:
                stack.callback(os.close, device)
            name = scratch / source_of(image.name)
            mounted = mount(way, file, devices, attributes, name)
            stack.callback(os.close, mounted)
            if options.writable:
                _attach_overlay(mounted, image, target, scratch, attributes)
            else:
                detached.attach(mounted, target)
        except OSError as error:
            abort_connection(connection)
            raise MountError(f"{target} cannot be mounted: {error.strerror}") from error
        except BaseException:
            abort_connection(connection)
            raise
    kind = "overlay" if options.writable else "erofs"
    descriptors = {"metadata": os.dup(file)}
    return MountedImage(kind, target, session, connection=connection, descriptors=descriptors)


def resume_image(
    image: LazyImage,
    target: Path,
    handover: Handover,
    descriptors: Mapping[str, int],
    log: Callable[[str], None],
    on_read: OnRead | None,
) -> MountedImage:
    """See `fuse.mounted.resume_image`."""
    about = decode(descriptors["metadata"])
    tree = serving.DevicesTree(image, about.layouts)
    return fuse.resume_image(tree, target, handover, descriptors, log, on_read)


def _attach_overlay(
    mounted: int, image: LazyImage, target: Path, scratch: Path, attributes: int
) -> None:
    """Mounts an overlay that can be written over a mount that has no place."""
    lower = scratch / _LOWER
    lower.mkdir(mode=0o700, exist_ok=True)
    detached.attach(mounted, lower)
    try:
        overlay = Overlay(scratch, [_LOWER], writable=True)
        overlay.prepare_upper()
        overlay.mount(source_of(image.name), target, attributes)
    finally:
        with suppress(OSError):
            calls.umount2(lower, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
