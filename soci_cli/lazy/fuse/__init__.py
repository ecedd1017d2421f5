"""Mounting lazy images: the kernel's FUSE protocol, spoken by a few hundred lines of Python.

No compiler and no library is needed. `mount_image` mounts an image on a folder and serves it.
"""

from soci_cli.lazy.fuse.mounting import (
    MountedImage,
    MountOptions,
    mount_image,
    unmount,
    unmount_below,
)

__all__ = [
    "MountOptions",
    "MountedImage",
    "mount_image",
    "unmount",
    "unmount_below",
]
