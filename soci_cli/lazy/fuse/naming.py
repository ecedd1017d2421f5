"""By what the mounts of images are known in the kernel's list."""

from __future__ import annotations

from soci_cli.kernel.points import MountPoint

SUBTYPE = "soci"
"""What `mount` shows after "fuse.", and before the image's name where overlayfs joins the layers."""

SOURCE_PREFIX = f"{SUBTYPE}:"


LAYER_SUBTYPE, LAYER_SOURCE = "rawBridge", "soci"
"""The same of a single layer that is mounted for containerd, whose clients count them by this word."""


def is_image(point: MountPoint) -> bool:
    """Whether it is an image, or a layer, that this program mounted."""
    if point.source == LAYER_SOURCE:
        return point.kind == f"fuse.{LAYER_SUBTYPE}"
    return point.kind == f"fuse.{SUBTYPE}" or point.source.startswith(SOURCE_PREFIX)
