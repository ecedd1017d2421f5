"""One layer as a file system of its own, for overlayfs to join with others: what a snapshotter mounts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from soci_cli.lazy.fuse.filesystem import (
    ROOT,
    TRUSTED_MARK,
    LayersTree,
    path_of,
)
from soci_cli.lazy.fuse.owners import Owners, same_owners
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage
from soci_cli.ztoc.folders import IMPLIED
from soci_cli.ztoc.layer import LayerFiles


class LayerTree(LayersTree):
    """The files of the one layer of `image`, its whiteouts and opaque folders as overlayfs wants them.

    The layers below it are opened when they are needed: a folder that the layer only has files in has the
    attributes that they give it, and a whiteout of nothing is not listed. Node ids follow from the layer
    alone.
    """

    def __init__(
        self,
        image: LazyImage,
        below: Sequence[LazyLayer] | None,
        mark: bytes = TRUSTED_MARK,
        owners: Owners = same_owners,
    ) -> None:
        """`below` are from the lowest to the topmost; None where nobody knows them."""
        super().__init__(image, mark, owners)
        self._below = below
        self._all = LazyImage(image.name, [*(below or ()), *image.layers])
        self._top = self._numbers.node(0, IMPLIED)

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        return super().lookup(self._inner(parent), name)

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        return super().children(self._inner(node))

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        return super().attr(self._inner(node))

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        return super().xattrs(self._inner(node))

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`."""
        return super().xattr(self._inner(node), name)

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        found = super().parent(self._inner(node))
        return ROOT if found == self._top else found

    def _inner(self, node: int) -> int:
        """The node of the layer's root instead of the mount's."""
        return self._top if node == ROOT else node

    def _has_below(self, layer: int, path: bytes, name: bytes) -> bool:
        if self._below is None:
            return True
        return any(name in one.files.names(path) for one in self._below)

    def _named(self, node: int) -> tuple[LayerFiles | None, int]:
        """See `LayersTree`; the layers below are opened for folders that this one does not name."""
        _, entry = self._numbers.place(node)
        files = self._files[0]
        if entry >= 0:
            return files, entry
        if entry == IMPLIED:
            return self._root
        file = self._all.find(path_of(files, entry), follow=False)
        return self._all.layers[file.layer].files, file.entry

    @cached_property
    def _root(self) -> tuple[LayerFiles | None, int]:
        for layer in reversed(self._all.layers):
            entry = layer.files.root_at_a_glance()
            if entry != IMPLIED:
                return layer.files, entry
        return None, IMPLIED
