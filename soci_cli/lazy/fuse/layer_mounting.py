"""Mounting one layer by FUSE, as root, for a snapshotter: overlayfs is mounted over it by others, later."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls
from soci_cli.kernel.fuse_device import mount_fuse, raise_read_ahead
from soci_cli.kernel.namespaces import is_initial_user_namespace
from soci_cli.kernel.points import identify, resolve
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy.fuse.filesystem import TRUSTED_MARK, USER_MARK, namespace_owners, same_owners
from soci_cli.lazy.fuse.layer_tree import LayerTree
from soci_cli.lazy.fuse.mounting import MountedImage, check_target
from soci_cli.lazy.fuse.naming import LAYER_SOURCE, LAYER_SUBTYPE
from soci_cli.lazy.fuse.session import Log, OnRead, Session
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage


def mount_layer(
    layer: LazyLayer,
    below: Sequence[LazyLayer] | None,
    target: Path,
    name: str,
    log: Log,
    on_read: OnRead | None = None,
) -> MountedImage:
    """Mounts a layer, which must be open, and serves it from a thread of this process.

    `below` as for `LayerTree`, `name` is the image's. MountError.
    """
    target = resolve(target)
    check_target(target)
    image = LazyImage(name, [layer])
    if is_initial_user_namespace():
        tree = LayerTree(image, below, TRUSTED_MARK, same_owners)
    else:
        tree = LayerTree(image, below, USER_MARK, namespace_owners())
    flags = calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV
    fd = mount_fuse(LAYER_SUBTYPE, LAYER_SOURCE, target, flags, "allow_other")
    session = Session(fd, tree, log, on_read)
    try:
        threading.Thread(target=session.run, name="soci-fuse", daemon=True).start()
    except RuntimeError as error:
        os.close(fd)
        with suppress(MountError):
            unmount(target, identify(target), force=True)
        raise MountError(f"{target} cannot be served: {error}") from error
    raise_read_ahead(target)
    return MountedImage("fuse", target, session, connection=os.minor(target.stat().st_dev))
