"""By what the mounts of images are known in the kernel's list."""

from __future__ import annotations

from soci_cli.kernel.points import MountPoint

SUBTYPE = "soci"
"""What `mount` shows after "fuse.", and before the image's name where overlayfs joins the layers."""

SOURCE_PREFIX = f"{SUBTYPE}:"


def is_image(point: MountPoint) -> bool:
    """Whether it is an image that this program mounted."""
    return point.kind == f"fuse.{SUBTYPE}" or point.source.startswith(SOURCE_PREFIX)
