"""The trees that the FUSE server shows, by node id: each layer in a folder of its own, or all merged.

Node ids follow from the zTOCs of the layers alone (`Numbers`), so another process that opens the same
layers can answer for a server that died. Nothing is remembered of a file, and hard links are one file.
"""

from __future__ import annotations

import errno
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

from soci_cli.errors import InvalidDataError
from soci_cli.lazy.acls import usable
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.owners import Owners, same_owners
from soci_cli.lazy.fuse.retries import Retries
from soci_cli.lazy.layer_bytes import LayerBytes, Name
from soci_cli.lazy.merged import File, Folder, LazyImage
from soci_cli.lazy.sparse import spread
from soci_cli.ztoc.attributes import FORMATS, IMPLIED_ATTRIBUTES
from soci_cli.ztoc.folders import FOLDER, IMPLIED, SYMLINK
from soci_cli.ztoc.layer import LayerFiles

ROOT = 1

_EMPTY = 2
_WHITEOUT = 3
_FIRST_ENTRY = 4
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NO_DEVICE = (0, 0)
_ROOT_ATTR = wire.attr(ROOT, stat.S_IFDIR | 0o755, 0, 1, (0, 0))
_WHITEOUT_ATTR = wire.attr(_WHITEOUT, stat.S_IFCHR, 0, 1, (0, 0))
_FOLDER_SIZE = 4096
_MAX_CONTENTS = 4096
_MAX_OPEN = 4096  # folders of the merged image that need not be looked up again

TRUSTED_MARK = b"trusted.overlay.opaque"
"""The xattr that makes a folder opaque where root mounts overlayfs."""
USER_MARK = b"user.overlay.opaque"
"""The same where the root of a user namespace does (mount option userxattr), or fuse-overlayfs."""


class Content(Protocol):
    """The bytes of a regular file: `size` of them, from `offset` in what is read of `layer`."""

    @property
    def layer(self) -> int:
        """The number of the layer."""

    @property
    def archive(self) -> LayerBytes:
        """What is read. Raises what opening it raises."""

    @property
    def offset(self) -> int:
        """Where the file begins in it."""

    @property
    def size(self) -> int:
        """How many bytes the file has."""

    def entry_at(self, offset: int) -> int:
        """The entry that has the byte at an offset of the file."""

    def name_at(self, offset: int) -> Name:
        """Gives the name of that entry in the archive."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """The bytes of one entry, which are in one piece. Implements `Content`."""

    files: LayerFiles
    layer: int
    entry: int
    archive: LayerBytes
    offset: int
    size: int

    def entry_at(self, offset: int) -> int:
        """See `Content.entry_at`."""
        return self.entry

    def name_at(self, offset: int) -> Name:
        """See `Content.name_at`."""
        return self._name

    def _name(self) -> bytes:
        return self.files.path_of(self.entry)


class Tree(Protocol):
    """Files by node id. What is not there is OSError, with the number for the kernel."""

    image: LazyImage
    is_direct: bool
    """Whether the kernel is to keep nothing of what it reads, and so read nothing ahead."""
    retries: Retries | None
    """Which reads need not wait again after a failure."""

    def lookup(self, parent: int, name: bytes) -> int:
        """The node of a name in a folder; 0 when there is none."""

    def attr(self, node: int) -> bytes:
        """The attributes, as the kernel's struct fuse_attr."""

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """The names in a folder and their nodes, in the order of the archives."""

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


class Numbers:
    """The node ids of an image's files, which `stat` shows as inode numbers.

    Those below 4 are for what is in no layer. Then each entry of each layer has one, from the lowest
    layer's first; then come the folders that no entry names, folder 0 of each layer, folder 1 of each, and
    so on. All fit into 32 bits, without which 32-bit programs cannot use a file, as long as all layers
    together have fewer than 2,147,483,644 entries.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts` are the entries of each layer, from the lowest to the topmost."""
        self._starts = list(accumulate(counts, initial=_FIRST_ENTRY))
        self._folders = max(1 << 31, 1 << self._starts[-1].bit_length())
        self._layers = len(counts)

    def node(self, layer: int, entry: int) -> int:
        """The id of an entry, or of folder n of a layer where `entry` is `FOLDER + n`."""
        if entry >= 0:
            return self._starts[layer] + entry
        return self._folders + (entry - FOLDER) * self._layers + layer

    def place(self, node: int) -> tuple[int, int]:
        """Layer and entry of an id. OSError (ESTALE) for one that is of no layer."""
        if node >= self._folders and self._layers:
            number, layer = divmod(node - self._folders, self._layers)
            if FOLDER + number < 0:
                return layer, FOLDER + number
        layer = bisect_right(self._starts, node) - 1
        if not 0 <= layer < self._layers:
            raise OSError(errno.ESTALE, "no such node")
        return layer, node - self._starts[layer]


class _Files:
    """The common part of both trees."""

    is_direct = False
    retries: Retries | None = None

    def __init__(self, image: LazyImage, owners: Owners) -> None:
        self.image = image
        self._owners = owners
        self._files = [layer.files for layer in image.layers]
        self._numbers = Numbers([len(files) for files in self._files])
        self._contents: dict[int, Content] = {}

    def link(self, node: int) -> bytes:
        """See `Tree.link`."""
        files, entry = self._entry(node)
        if entry < 0 or files.type_of(entry) != SYMLINK:
            raise OSError(errno.EINVAL, "no symbolic link")
        return files.linkname(entry)

    def content(self, node: int) -> Content:
        """See `Tree.content`."""
        content = self._contents.get(node)
        if content is None:
            number, entry = self._numbers.place(node)
            files = self._files[number]
            found = files.node(entry)
            if found.type != "reg":
                raise OSError(errno.EINVAL, "no regular file")
            archive, offset = spread(self.image.layers[number].archive, found.offset, files, entry)
            content = FileContent(files, number, entry, archive, offset, found.size)
            if len(self._contents) >= _MAX_CONTENTS:
                self._contents.clear()
            self._contents[node] = content
        return content

    def _entry(self, node: int) -> tuple[LayerFiles, int]:
        """The layer and the entry of a node."""
        number, entry = self._numbers.place(node)
        return self._files[number], entry

    def _attr(self, node: int, files: LayerFiles | None, entry: int) -> bytes:
        """Of an entry of `files`; None is an image without layers, which has no files, but a root."""
        found, links = IMPLIED_ATTRIBUTES, 1
        if files is not None and entry >= 0:
            found, links = files.attributes(entry), files.link_count(entry)
        type_, mode, uid, gid, size, mtime_ns, major, minor = found
        kind = FORMATS.get(type_)
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, "no file of a type that can be shown")
        if kind == stat.S_IFDIR:
            size = _FOLDER_SIZE
        device = (major, minor) if kind in _DEVICES else _NO_DEVICE
        return wire.attr(node, kind | mode, size, links, self._owners(uid, gid), mtime_ns, device)

    def _xattrs(self, files: LayerFiles | None, entry: int) -> tuple[tuple[bytes, bytes], ...]:
        found = files.xattrs(entry) if files is not None and entry >= 0 else ()
        return usable(found, self._owners) if found else ()


class _Folder(NamedTuple):
    """A folder of one layer."""

    layer: int
    entry: int
    path: bytes


class LayersTree(_Files):
    """A folder for each layer, "0" the lowest, and "empty", for overlayfs to join. Implements `Tree`.

    Whiteouts are devices 0:0, and opaque folders have the xattr `mark`, as overlayfs wants them. The root
    of each layer has the id of its folder 0, whether an entry names it or not.
    """

    def __init__(
        self, image: LazyImage, mark: bytes = TRUSTED_MARK, owners: Owners = same_owners
    ) -> None:
        super().__init__(image, owners)
        self._mark = mark
        self._mark_prefix = mark.removesuffix(b"opaque")
        self._last: tuple[int, _Folder | None] = 0, None
        self._tops = {b"empty": _EMPTY}
        for number in range(len(image.layers)):
            self._tops[b"%d" % number] = self._numbers.node(number, IMPLIED)

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        if parent == ROOT:
            return self._tops.get(name, 0)
        if parent == _EMPTY:
            return 0
        folder = self._folder(parent)
        if self._is_hidden(folder):
            return 0
        files = self._files[folder.layer]
        found = files.look(folder.path, name)
        if found is not None:
            return self._numbers.node(folder.layer, found[0])
        target = files.lost_link(folder.path, name)
        if target is not None:
            file = self.image.linked(folder.layer, folder.path + b"/" + name, target)
            return self._numbers.node(file.layer, file.entry)
        return _WHITEOUT if name in files.whiteouts(folder.path) else 0

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        if node == ROOT:
            return list(self._tops.items())
        if node == _EMPTY:
            return []
        folder = self._folder(node)
        if self._is_hidden(folder):
            return []
        layer, path, number = folder.layer, folder.path, self._numbers.node
        files = self._files[layer]
        found = [
            (name, number(layer, entry))
            for name, entry, _ in files.listing(path)
            if len(name) <= wire.MAX_NAME
        ]
        if len(found) < len(files.names(path)):
            for name, target in files.lost_links(path):
                file = self.image.below(layer, target)
                if file is not None and len(name) <= wire.MAX_NAME:
                    found.append((name, number(file.layer, file.entry)))
        hidden = files.whiteouts(path)
        if hidden:
            names = sorted(hidden.difference(files.names(path)))
            found += [(name, _WHITEOUT) for name in names if self._is_below(folder, name)]
        return found

    def _is_below(self, folder: _Folder, name: bytes) -> bool:
        """Whether a layer below has a name in a folder.

        Where overlayfs has nothing to merge with a folder, it lists the whiteouts in it, too: names that
        nobody can look up, at which `find` and `cp` fail.
        """
        layer, path = folder.layer, folder.path
        files, at = self._files[layer], path
        while not files.is_opaque(at):
            if not at:
                return len(name) <= wire.MAX_NAME and self._has_below(layer, path, name)
            at, _, base = at.rpartition(b"/")
            if base in files.whiteouts(at):
                break
        return False

    def _has_below(self, layer: int, path: bytes, name: bytes) -> bool:
        """Whether a layer below another has a name at a path."""
        return any(name in files.names(path) for files in self._files[:layer])

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        if node in (ROOT, _EMPTY):
            return ROOT
        layer, _, path = self._folder(node)
        if not path:
            return ROOT
        above, _, _ = path.rpartition(b"/")
        found = self._files[layer].find(above)
        return self._numbers.node(layer, IMPLIED if found is None else found[0])

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        if node == _WHITEOUT:
            return _WHITEOUT_ATTR
        if node == ROOT:
            return _ROOT_ATTR
        return self._attr(node, *self._named(node))

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        return () if node in (ROOT, _WHITEOUT) else self._xattrs(*self._named(node))

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`. overlayfs asks for marks of every file, so that is quick."""
        if not name.startswith(self._mark_prefix):
            return dict(self.xattrs(node)).get(name)
        if name == self._mark and node >= _FIRST_ENTRY and self._is_directory(node):
            layer, _, path = self._folder(node)
            above, _, base = path.rpartition(b"/")
            files = self._files[layer]
            # A folder beside a whiteout of its name replaces what is below, too.
            if path and (files.is_opaque(path) or base in files.whiteouts(above)):
                return b"y"
        return None

    def _is_directory(self, node: int) -> bool:
        files, entry = self._entry(node)
        return files.is_directory(entry)

    def _folder(self, node: int) -> _Folder:
        known, folder = self._last
        if known != node or folder is None:
            if node == _WHITEOUT or not self._is_directory(node):
                raise OSError(errno.ENOTDIR, "no folder")
            layer, entry = self._numbers.place(node)
            folder = _Folder(layer, entry, path_of(self._files[layer], entry))
            self._last = node, folder
        return folder

    def _is_hidden(self, folder: _Folder) -> bool:
        """Whether this is the root of a layer below one whose root is opaque; overlayfs does not look."""
        return not folder.path and folder.layer < self._lowest

    @cached_property
    def _lowest(self) -> int:
        """The lowest layer of which anything is seen."""
        opaque = (number for number, files in enumerate(self._files) if files.is_opaque(b""))
        return max(opaque, default=0)

    def _named(self, node: int) -> tuple[LayerFiles | None, int]:
        """Layer and entry that have the attributes of a file. Every layer's root has the image's.

        Of a folder that its layer only has files in, those are in the topmost layer below that names it, if
        any does: overlayfs takes a folder's attributes from the topmost layer that has it, named or not.
        """
        if node == _EMPTY:
            return self._root
        layer, entry = self._numbers.place(node)
        if entry >= 0:
            return self._files[layer], entry
        if entry == IMPLIED:
            return self._root
        view = LazyImage(self.image.name, self.image.layers[: layer + 1])
        file = view.find(path_of(self._files[layer], entry), follow=False)
        return self._files[file.layer], file.entry

    @cached_property
    def _root(self) -> tuple[LayerFiles | None, int]:
        """The entry of the image's root. A mount asks for it at once, and should not wait for all names."""
        for files in reversed(self._files):
            entry = files.root_at_a_glance()
            if entry != IMPLIED:
                return files, entry
        return None, IMPLIED


class MergedTree(_Files):
    """The image's files as they are seen in a container. Implements `Tree`.

    A folder has the id that it has in the topmost of the layers that it is made of.
    """

    def __init__(self, image: LazyImage, owners: Owners = same_owners) -> None:
        super().__init__(image, owners)
        self._folders = {b"": image.root}  # those that were used last, by path

    def lookup(self, parent: int, name: bytes) -> int:
        """See `Tree.lookup`."""
        file = self.image.lookup(self._folder(parent), name)
        return 0 if file is None else self._node(file)

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """See `Tree.children`."""
        number = self._numbers.node
        return [
            (name, number(part.layer, entry))
            for part in self.image.listing(self._folder(node))
            for name, entry, _ in part.found
            if len(name) <= wire.MAX_NAME
        ]

    def parent(self, node: int) -> int:
        """See `Tree.parent`."""
        return self._node(self._folder(node).above or self.image.root)

    def attr(self, node: int) -> bytes:
        """See `Tree.attr`."""
        return self._attr(node, *self._named(node))

    def xattrs(self, node: int) -> Sequence[tuple[bytes, bytes]]:
        """See `Tree.xattrs`."""
        return self._xattrs(*self._named(node))

    def xattr(self, node: int, name: bytes) -> bytes | None:
        """See `Tree.xattr`."""
        return dict(self.xattrs(node)).get(name)

    def _named(self, node: int) -> tuple[LayerFiles | None, int]:
        """Layer and entry that have the attributes of a file."""
        if node != ROOT:
            layer, entry = self._numbers.place(node)
            if entry >= 0:
                return self._files[layer], entry
        folder = self._folder(node)
        return (self._files[folder.layer] if self._files else None), folder.entry

    def _node(self, file: File) -> int:
        if file is self.image.root:
            return ROOT
        return self._numbers.node(
            *(file.topmost if isinstance(file, Folder) else (file.layer, file.entry))
        )

    def _folder(self, node: int) -> Folder:
        if node == ROOT:
            return self.image.root
        files, entry = self._entry(node)
        if not files.is_directory(entry):
            raise OSError(errno.ENOTDIR, "no folder")
        path = path_of(files, entry)
        missing = []
        while path not in self._folders:
            path, _, name = path.rpartition(b"/")
            missing.append(name)
        folder = self._folders[path]
        for name in reversed(missing):
            found = self.image.lookup(folder, name)
            if not isinstance(found, Folder):
                raise OSError(errno.ESTALE, "no such node")
            folder = found
            if len(self._folders) >= _MAX_OPEN:
                self._folders = {b"": self.image.root}
            self._folders[folder.path] = folder
        return folder


def path_of(files: LayerFiles, entry: int) -> bytes:
    """The path of a folder. OSError (ESTALE) for one that is not there."""
    try:
        return files.path_of(entry)
    except InvalidDataError:
        raise OSError(errno.ESTALE, "no such node") from None
