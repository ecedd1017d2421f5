"""Mounting an image by EROFS: the kernel answers all but reads of what is not here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls, detached
from soci_cli.kernel.fuse_device import abort_connection, connection_of, raise_read_ahead
from soci_cli.kernel.overlay import Overlay
from soci_cli.kernel.points import identify
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy.devices.complete import Device
from soci_cli.lazy.erofs import serving
from soci_cli.lazy.erofs.image import ErofsImage, decode
from soci_cli.lazy.erofs.mounting import Way, mount
from soci_cli.lazy.fuse import mounted as fuse
from soci_cli.lazy.fuse.mounted import Handover, MountedImage, start_session
from soci_cli.lazy.fuse.mounting import MountOptions, source_of
from soci_cli.lazy.fuse.session import OnRead, Session
from soci_cli.lazy.merged import LazyImage

_LOWER = "l"
_READ_AHEAD = 256
"""KiB that the kernel reads ahead in a device, across files.

Measured on Linux 6.18 (the server's and the readers' processor time): with 256 as with 1024, 469 MB of
libraries take 0.6 s out of spans that are here and 20,000 small files 0.67 s, with 1024 0.78 s; and a start
of Python asks for no span that it does not read. EROFS's own 128 KiB stays: with 1024 the libraries take
0.9 s, as what is copied twice does not stay in the processor's cache.
"""


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
    complete: Sequence[Device | None],
) -> MountedImage:
    """Mounts an image, whose metadata are in `file`, and serves its devices from threads of this process.

    Those of layers that are in `complete` the kernel reads by itself; where all are, nothing is served.
    `scratch` is a folder of this user alone. Raises MountError, and nothing is mounted then.
    """
    attributes = (0 if options.suid else detached.NOSUID) | (0 if options.dev else detached.NODEV)
    ready = [device.fileno() for device in complete if device is not None]
    if len(ready) == len(about.layouts):
        try:
            _attach(way, file, ready, image, target, scratch, options, attributes)
        except OSError as error:
            raise MountError(f"{target} cannot be mounted: {error.strerror}") from error
        return UnservedImage("overlay" if options.writable else "erofs", target)
    fd, below = serving.connect(f"soci-devices:{image.name}"[:200])
    with ExitStack() as stack:
        stack.callback(os.close, below)
        # What is recorded is what somebody reads, without what the kernel reads ahead across files.
        tree = serving.DevicesTree(image, about.layouts, is_direct=on_read is not None)
        session = start_session(Session(fd, tree, log, on_read), target)
        connection = connection_of(below)  # which asks the server
        try:
            raise_read_ahead(below, _READ_AHEAD)
            devices = []
            for number, device in enumerate(complete):
                if device is None:
                    devices.append(serving.open_device_file(below, number))
                    stack.callback(os.close, devices[-1])
                else:
                    devices.append(device.fileno())
            _attach(way, file, devices, image, target, scratch, options, attributes)
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
    tree = serving.DevicesTree(image, about.layouts, is_direct=on_read is not None)
    return fuse.resume_image(tree, target, handover, descriptors, log, on_read)


class UnservedImage(MountedImage):
    """An image that is mounted, and of which everything is here: it outlives this process."""

    is_served = False

    def __init__(self, kind: str, target: Path) -> None:
        self.kind = kind
        self.target = target
        self.identity = identify(target)
        self.on_end = lambda: None

    def serve(self) -> None:
        """See `MountedImage.serve`: there is nothing to wait for."""

    def abort(self) -> None:
        """See `MountedImage.abort`."""
        unmount(self.target, self.identity, force=True)

    def close(self) -> None:
        """It stays."""


def _attach(
    way: Way,
    file: int,
    devices: Sequence[int],
    image: LazyImage,
    target: Path,
    scratch: Path,
    options: MountOptions,
    attributes: int,
) -> None:
    """Mounts metadata over devices, all of which are open files, at the target."""
    mounted = mount(way, file, devices, attributes, scratch / source_of(image.name))
    try:
        if options.writable:
            _attach_overlay(mounted, image, target, scratch, attributes)
        else:
            detached.attach(mounted, target)
    finally:
        os.close(mounted)


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
