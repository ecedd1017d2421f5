"""Mounting lazy images: the kernel's FUSE protocol, spoken by a few hundred lines of Python.

No compiler and no library is needed. `mount_image` mounts an image on a folder and serves it.
"""

from soci_cli.lazy.fuse.mounting import MountedImage, MountOptions, is_image, mount_image

__all__ = [
    "MountOptions",
    "MountedImage",
    "is_image",
    "mount_image",
]
