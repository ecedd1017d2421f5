"""Mounting one layer by FUSE, as root, for a snapshotter: overlayfs is mounted over it by others, later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls
from soci_cli.kernel.fuse_device import mount_fuse, raise_read_ahead
from soci_cli.kernel.namespaces import is_initial_user_namespace
from soci_cli.kernel.points import identify, resolve
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.filesystem import TRUSTED_MARK, USER_MARK
from soci_cli.lazy.fuse.layer_tree import LayerTree
from soci_cli.lazy.fuse.mounted import MountedImage, start_session
from soci_cli.lazy.fuse.mounting import check_target
from soci_cli.lazy.fuse.naming import LAYER_SOURCE, LAYER_SUBTYPE
from soci_cli.lazy.fuse.owners import namespace_owners, same_owners
from soci_cli.lazy.fuse.session import Log, OnRead, Session
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage


def mount_layer(
    image: LazyImage,
    below: Sequence[LazyLayer] | None,
    target: Path,
    log: Log,
    on_read: OnRead | None = None,
) -> MountedImage:
    """Mounts the one layer of `image`, which must be open, and serves it from a thread of this process.

    `below` as for `LayerTree`. MountError.
    """
    target = resolve(target)
    check_target(target)
    tree = layer_tree(image, below)
    flags = calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV
    fd = mount_fuse(LAYER_SUBTYPE, LAYER_SOURCE, target, flags, "allow_other")
    try:
        session = start_session(Session(fd, tree, log, on_read, wanted=wire.POSIX_ACL), target)
    except MountError:
        with suppress(MountError):
            unmount(target, identify(target), force=True)
        raise
    raise_read_ahead(target)
    return MountedImage("fuse", target, session, connection=os.minor(target.stat().st_dev))


def layer_tree(image: LazyImage, below: Sequence[LazyLayer] | None) -> LayerTree:
    """What is served for the one layer of `image` by this user."""
    if is_initial_user_namespace():
        return LayerTree(image, below, TRUSTED_MARK, same_owners)
    return LayerTree(image, below, USER_MARK, namespace_owners())
