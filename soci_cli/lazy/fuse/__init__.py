"""Mounting lazy images: the kernel's FUSE protocol, spoken by a few hundred lines of Python.

No compiler and no library is needed. `mount_image` mounts an image on a folder and serves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soci_cli.exports import importing

if TYPE_CHECKING:
    from soci_cli.lazy.fuse.mounted import MountedImage
    from soci_cli.lazy.fuse.mounting import MountOptions, mount_image
    from soci_cli.lazy.fuse.naming import is_image
else:
    __getattr__ = importing(
        __name__,
        {
            "mounted": "MountedImage",
            "mounting": "MountOptions mount_image",
            "naming": "is_image",
        },
    )

__all__ = [
    "MountOptions",
    "MountedImage",
    "is_image",
    "mount_image",
]
