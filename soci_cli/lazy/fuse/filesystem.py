"""What the FUSE server shows, by node id: each layer in a folder of its own, or the layers merged.

A file's node id is made of its layer and its entry, so hard links share it and no table is needed. Folders
that the archive does not name, and those of the merged image, get theirs when they are first looked up.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from soci_cli.kernel.namespaces import mapped_ids
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.layer import DIRECTORY, FORMATS, IMPLIED, IMPLIED_ATTRIBUTES, SYMLINK, LayerFiles
from soci_cli.lazy.merged import File, LazyImage
from soci_cli.lazy.spans import Archive
from soci_cli.ztoc.reader import clean_path

ROOT = 1

_EMPTY = 2
_WHITEOUT = 3
_FIRST_FOLDER = 4
_LAYER_SHIFT = 40
_ENTRY_MASK = (1 << _LAYER_SHIFT) - 1
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NO_DEVICE = (0, 0)
_ROOT_ATTR = wire.attr(ROOT, stat.S_IFDIR | 0o755, 0, 1, (0, 0))
_WHITEOUT_ATTR = wire.attr(_WHITEOUT, stat.S_IFCHR, 0, 1, (0, 0))
_FOLDER_SIZE = 4096
_MAX_CONTENTS = 4096

TRUSTED_MARK = b"trusted.overlay.opaque"
"""The xattr that makes a folder opaque where root mounts overlayfs."""
USER_MARK = b"user.overlay.opaque"
"""The same where the root of a user namespace does (mount option userxattr), or fuse-overlayfs."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of a regular file are: in the archive of `layer`, from `offset`."""

    files: LayerFiles
    layer: int
    entry: int
    archive: Archive
    offset: int
    size: int

    def name(self) -> bytes:
        """The name that the archive gives the file."""
        return clean_path(self.files.name(self.entry))


class Tree(Protocol):
    """Files by node id. What is not there is OSError, with the number for the kernel."""

    image: LazyImage

    def lookup(self, parent: int, name: bytes) -> int:
        """The node of a name in a folder; 0 when there is none."""

    def attr(self, node: int) -> bytes:
        """What `stat` says, as the kernel's struct fuse_attr."""

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """What is in a folder, names and nodes, in the order of the archives."""

    def parent(self, node: int) -> int:
        """The folder that a folder is in; the root's is itself."""

    def link(self, node: int) -> bytes:
        """Where a symbolic link leads."""

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """The extended attributes."""

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """The value of one of them, or of one that only overlayfs knows."""

    def content(self, node: int) -> Content:
        """Where the bytes of a regular file are."""


Owners = Callable[[int, int], tuple[int, int]]
"""Who a file of this user and this group belongs to where the image is mounted."""


def same_owners(user: int, group: int) -> tuple[int, int]:
    """Who the image says; for the real root, and for who does not check."""
    return user, group


def namespace_owners() -> Owners:
    """Who the image says, but root for ids that this process's user namespace does not have."""
    users, groups = mapped_ids("uid"), mapped_ids("gid")

    def owners(user: int, group: int) -> tuple[int, int]:
        return (
            user if any(user in ids for ids in users) else 0,
            group if any(group in ids for ids in groups) else 0,
        )

    return owners


class _Files:
    """What both trees share: nodes of files, which are a layer and an entry."""

    def __init__(self, image: LazyImage, owners: Owners) -> None:
        self.image = image
        self._owners = owners
        self._files = [layer.files for layer in image.layers]
        self._contents: dict[int, Content] = {}

    def link(self, node: int) -> bytes:
        """See `Tree.link`."""
        files, entry = self._entry(node)
        if files.type_of(entry) != SYMLINK:
            raise OSError(errno.EINVAL, "no symbolic link")
        return files.linkname(entry)

    def content(self, node: int) -> Content:
        """See `Tree.content`."""
        content = self._contents.get(node)
        if content is None:
            files, entry = self._entry(node)
            found = files.node(entry)
            if found.type != "reg":
                raise OSError(errno.EINVAL, "no regular file")
            number = (node >> _LAYER_SHIFT) - 1
            archive = self.image.layers[number].archive
            content = Content(files, number, entry, archive, found.offset, found.size)
            if len(self._contents) >= _MAX_CONTENTS:
                self._contents.clear()
            self._contents[node] = content
        return content

    def _entry(self, node: int) -> tuple[LayerFiles, int]:
        """The layer and the entry of a file's node."""
        number = (node >> _LAYER_SHIFT) - 1
        if not 0 <= number < len(self._files):
            raise OSError(errno.ESTALE, "no such node")
        return self._files[number], node & _ENTRY_MASK

    def _attr(self, node: int, layer: int, entry: int, links: int) -> bytes:
        # An image without layers has no files, but a root.
        found = self._files[layer].attributes(entry) if entry != IMPLIED else IMPLIED_ATTRIBUTES
        type_, mode, uid, gid, size, mtime_ns, major, minor = found
        kind = FORMATS.get(type_)
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, "no file of a type that can be shown")
        if kind == stat.S_IFDIR:
            size = _FOLDER_SIZE
        device = (major, minor) if kind in _DEVICES else _NO_DEVICE
        return wire.attr(node, kind | mode, size, links, self._owners(uid, gid), mtime_ns, device)

    def _file_attr(self, node: int) -> bytes:
        files, entry = self._entry(node)
        return self._attr(node, (node >> _LAYER_SHIFT) - 1, entry, files.link_count(entry))

    def _xattrs(self, layer: int, entry: int) -> tuple[tuple[bytes, bytes], ...]:
        return self._files[layer].xattrs(entry) if entry != IMPLIED else ()


def _file_node(layer: int, entry: int) -> int:
    return (layer + 1) << _LAYER_SHIFT | entry


class _Folder(NamedTuple):
    """A folder of one layer. `named` says where its attributes are: a layer and an entry."""

    layer: int
    path: bytes
    named: tuple[int, int]


class LayersTree(_Files):
    """A folder for each layer, "0" the lowest, and "empty", for overlayfs to join. Implements `Tree`.

    Whiteouts are devices 0:0, and opaque folders have the xattr `mark`, as overlayfs wants them.
    """

    def __init__(
        self, image: LazyImage, mark: bytes = TRUSTED_MARK, owners: Owners = same_owners
    ) -> None:
        super().__init__(image, owners)
        self._mark = mark
        self._mark_prefix = mark.removesuffix(b"opaque")
        self._views: dict[int, LazyImage] = {}
        self._implied: list[_Folder] = []  # with the layers' roots: all that no entry stands for
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._last: tuple[int, _Folder | None] = 0, None
        self._tops = {b"empty": _EMPTY}
        for number in range(len(image.layers)):
            self._tops[b"%d" % number] = self._add(_Folder(number, b"", (0, IMPLIED)))

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        if parent == ROOT:
            return self._tops.get(name, 0)
        if parent == _EMPTY:
            return 0
        folder = self._folder(parent)
        return 0 if self._is_hidden(folder) else self._child(folder, name)

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        if node == ROOT:
            return list(self._tops.items())
        if node == _EMPTY:
            return []
        folder = self._folder(node)
        if self._is_hidden(folder):
            return []
        files, layer = self._files[folder.layer], folder.layer
        first = _file_node(layer, 0)
        above = folder.path + b"/" if folder.path else b""
        found = [
            (name, first | entry if entry != IMPLIED else self._directory(layer, above + name))
            for name, entry, _ in files.listing(folder.path)
            if len(name) <= wire.MAX_NAME
        ]
        hidden = files.whiteouts(folder.path)
        if hidden:
            names = sorted(hidden.difference(files.names(folder.path)))
            found += [(name, _WHITEOUT) for name in names if self._is_below(folder, name)]
        return found

    def _is_below(self, folder: _Folder, name: bytes) -> bool:
        """Whether a layer below has a name in a folder.

        Where overlayfs has nothing to merge with a folder, it lists the whiteouts in it, too: names that
        nobody can look up, at which `find` and `cp` fail.
        """
        layer, path, _ = folder
        files, at = self._files[layer], path
        while not files.is_opaque(at):
            if not at:
                below = self._files[:layer]
                return len(name) <= wire.MAX_NAME and any(name in one.names(path) for one in below)
            at, _, base = at.rpartition(b"/")
            if base in files.whiteouts(at):
                break
        return False

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        if node in (ROOT, _EMPTY):
            return ROOT
        layer, path, _ = self._folder(node)
        above, _, _ = path.rpartition(b"/")
        return self._directory(layer, above) if path else ROOT

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        if node > _ENTRY_MASK:
            return self._file_attr(node)
        if node == _WHITEOUT:
            return _WHITEOUT_ATTR
        if node == ROOT:
            return _ROOT_ATTR
        return self._attr(node, *self._named(node), links=1)

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        if node > _ENTRY_MASK:
            files, entry = self._entry(node)
            return files.xattrs(entry)
        if node in (ROOT, _WHITEOUT):
            return ()
        return self._xattrs(*self._named(node))

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`. overlayfs asks for marks of every file, so that is quick."""
        if not name.startswith(self._mark_prefix):
            return dict(self.xattrs(node)).get(name)
        if name == self._mark and node >= _FIRST_FOLDER and self._is_directory(node):
            layer, path, _ = self._folder(node)
            above, _, base = path.rpartition(b"/")
            files = self._files[layer]
            # A folder beside a whiteout of its name replaces what is below, too.
            if path and (files.is_opaque(path) or base in files.whiteouts(above)):
                return b"y"
        return None

    def _is_directory(self, node: int) -> bool:
        if node <= _ENTRY_MASK:
            return node != _WHITEOUT
        files, entry = self._entry(node)
        return files.type_of(entry) == DIRECTORY

    def _folder(self, node: int) -> _Folder:
        known, folder = self._last
        if known == node and folder is not None:
            return folder
        if not self._is_directory(node):
            raise OSError(errno.ENOTDIR, "no folder")
        if node > _ENTRY_MASK:
            files, entry = self._entry(node)
            layer = (node >> _LAYER_SHIFT) - 1
            folder = _Folder(layer, clean_path(files.name(entry)), (layer, entry))
        else:
            number = node - _FIRST_FOLDER
            if not 0 <= number < len(self._implied):
                raise OSError(errno.ESTALE, "no such node")
            folder = self._implied[number]
        self._last = node, folder
        return folder

    def _child(self, folder: _Folder, name: bytes) -> int:
        files = self._files[folder.layer]
        path = folder.path + b"/" + name if folder.path else name
        found = files.look(folder.path, name, path)
        if found is None:
            return _WHITEOUT if name in files.whiteouts(folder.path) else 0
        entry, _ = found
        return (
            self._directory(folder.layer, path)
            if entry == IMPLIED
            else _file_node(folder.layer, entry)
        )

    def _directory(self, layer: int, path: bytes) -> int:
        """The node of a folder that is there."""
        above, _, base = path.rpartition(b"/")
        found = self._files[layer].look(above, base, path) if path else None
        if found is not None and found[0] != IMPLIED:
            return _file_node(layer, found[0])
        number = self._numbers.get((layer, path))
        return number or self._add(_Folder(layer, path, self._below(layer, path)))

    def _add(self, folder: _Folder) -> int:
        number = _FIRST_FOLDER + len(self._implied)
        self._implied.append(folder)
        self._numbers[folder.layer, folder.path] = number
        return number

    def _is_hidden(self, folder: _Folder) -> bool:
        """Whether this is the root of a layer below one whose root is opaque; overlayfs does not look."""
        return not folder.path and folder.layer < self._lowest

    @cached_property
    def _lowest(self) -> int:
        """The lowest layer of which anything is seen."""
        opaque = (number for number, files in enumerate(self._files) if files.is_opaque(b""))
        return max(opaque, default=0)

    def _named(self, node: int) -> tuple[int, int]:
        """Where the attributes of a folder are. Every layer's root has those of the image's."""
        folder = None if node == _EMPTY else self._folder(node)
        if folder is not None and folder.path:
            return folder.named
        return self._root

    @cached_property
    def _root(self) -> tuple[int, int]:
        """Who names the image's root. A mount asks for that at once, and should not wait for all names."""
        for number in reversed(range(len(self._files))):
            entry = self._files[number].root_at_a_glance()
            if entry != IMPLIED:
                return number, entry
        return 0, IMPLIED

    def _below(self, layer: int, path: bytes) -> tuple[int, int]:
        """Who names a folder that this layer only has files in: the topmost layer below, if any does.

        overlayfs takes a folder's attributes from the topmost layer that has it, named or not.
        """
        view = self._views.get(layer)
        if view is None:
            view = LazyImage(self.image.name, self.image.layers[: layer + 1])
            self._views[layer] = view
        file = view.find(path, follow=False)
        return file.layer, file.entry


class MergedTree(_Files):
    """The image's files as they are seen in a container. Implements `Tree`."""

    def __init__(self, image: LazyImage, owners: Owners = same_owners) -> None:
        super().__init__(image, owners)
        self._folders: list[tuple[File, int]] = []  # with the parents
        self._numbers: dict[bytes, int] = {}

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        file = self.image.lookup(self._folder(parent)[0], name)
        return 0 if file is None else self._node(parent, file)

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        found = self.image.listing(self._folder(node)[0])
        return [
            (name, self._node(node, file)) for name, file in found if len(name) <= wire.MAX_NAME
        ]

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        return self._folder(node)[1]

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        if node > _ENTRY_MASK:
            return self._file_attr(node)
        file, _ = self._folder(node)
        return self._attr(node, file.layer, file.entry, links=1)

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        if node > _ENTRY_MASK:
            files, entry = self._entry(node)
            return files.xattrs(entry)
        file, _ = self._folder(node)
        return self._xattrs(file.layer, file.entry)

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`."""
        return dict(self.xattrs(node)).get(name)

    def _folder(self, node: int) -> tuple[File, int]:
        if node > _ENTRY_MASK:
            raise OSError(errno.ENOTDIR, "no folder")
        if node == ROOT:
            return self.image.root, ROOT
        number = node - _FIRST_FOLDER
        if not 0 <= number < len(self._folders):
            raise OSError(errno.ESTALE, "no such node")
        return self._folders[number]

    def _node(self, parent: int, file: File) -> int:
        if not file.is_directory:
            return _file_node(file.layer, file.entry)
        number = self._numbers.get(file.path)
        if number is None:
            number = _FIRST_FOLDER + len(self._folders)
            self._folders.append((file, parent))
            self._numbers[file.path] = number
        return number
