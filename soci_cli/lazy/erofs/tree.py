"""From the tables of contents of layers to the tree of an EROFS image.

What a layer has under which names is what `ztoc/layer.py` says, as it is for FUSE; layers are merged as
overlayfs does it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from soci_cli.errors import InvalidDataError, NotFoundError, UnsupportedLayerError, errors_at
from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.erofs import format as erofs
from soci_cli.lazy.erofs.metadata import NO_HEAD, Attributes, Device, Directory, Inodes, next_start
from soci_cli.lazy.erofs.xattrs import body_of, marked
from soci_cli.lazy.merged import File, LazyImage
from soci_cli.text import brief
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.attributes import (
    FORMATS,
    IMPLIED_DIRECTORY,
    MAX_MAJOR,
    MAX_MINOR,
    nanoseconds,
    xattrs_of,
)
from soci_cli.ztoc.layer import LayerFiles
from soci_cli.ztoc.model import XATTR_PREFIX
from soci_cli.ztoc.sparse import PREFIX as SPARSE_PREFIX
from soci_cli.ztoc.toc import LoadedContents
from soci_cli.ztoc.toc_writer import XATTR_COST

_NOBODY = 65534
_NO_ID = (1 << 32) - 1
_SECOND = 10**9
_MAX_FILES = 3_000_000
"""Of an image, with directories that no entry names: about 600 bytes of memory each while it is made."""
_REGULAR, _DIRECTORY, _SYMLINK = (
    erofs.FILE_TYPES[kind] for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
)
_HIDDEN, _HARD_LINK = 0, 255  # in place of a type: what cannot be shown, and what is another entry
_KINDS = {
    name.encode(): (name.encode(), kind, erofs.FILE_TYPES[kind]) for name, kind in FORMATS.items()
} | {b"hardlink": (b"hardlink", 0, _HARD_LINK)}
_UNKNOWN = b"", 0, _HIDDEN
_IMPLIED = Attributes(IMPLIED_DIRECTORY.mode)


@dataclass(frozen=True)
class Tree:
    """A tree that can be laid out, and the devices that it needs."""

    root: Directory
    inodes: Inodes
    devices: Sequence[Device]
    layouts: Sequence[DeviceLayout]


class _Limit:
    """How many files and directories an image may still have."""

    def __init__(self) -> None:
        self._left = _MAX_FILES

    def take(self, count: int = 1) -> None:
        """UnsupportedLayerError where there are too many."""
        self._left -= count
        if self._left < 0:
            raise UnsupportedLayerError(f"it has more than {_MAX_FILES:,} files and directories")


class _Layer:
    """The files of one layer; inodes have the numbers of the entries, plus `first`."""

    def __init__(
        self, ztoc: Ztoc, tag: bytes, inodes: Inodes, limit: _Limit, start: int, is_lowest: bool
    ) -> None:
        """Adds the inodes of a layer whose device begins at block `start`."""
        self._is_lowest = is_lowest
        if ztoc.files.contains(SPARSE_PREFIX) and any(
            key.startswith(SPARSE_PREFIX) for file in ztoc.files for key, _ in file.xattrs
        ):
            raise UnsupportedLayerError("it has sparse files")
        self.first = len(inodes)
        limit.take(len(ztoc.files))
        self.layout = DeviceLayout(ztoc.uncompressed_archive_size)
        self._contents = ztoc.files
        self._has_xattrs = ztoc.files.contains(XATTR_PREFIX)
        self._times: dict[bytes, tuple[int, int]] = {}
        # Entries of an honest zTOC share no bytes, so all strings together are smaller than the buffer.
        self._budget = len(ztoc.files.buffer)
        kinds = self._add_inodes(inodes, start)
        self.files = LayerFiles(replace(ztoc, files=LoadedContents(ztoc.files, kinds)))
        self.device = Device(tag[:63], self.layout.size // erofs.BLOCK)

    def attributes(self, entry: int) -> Attributes:
        """Those of a directory."""
        if entry < 0:
            return _IMPLIED
        found = self._contents.fields(entry)
        time = self._time(self._contents.string(found.mod_time))
        xattrs = self._xattrs(found.xattrs, b"dir") if self._has_xattrs and found.xattrs else b""
        return Attributes(found.mode & 0o7777, (_owner(found.uid), _owner(found.gid)), time, xattrs)

    def children(self, inodes: Inodes, path: bytes) -> Iterator[tuple[bytes, int, int]]:
        """What is in a directory: name, entry with hard links followed, and type."""
        first, types, files = self.first, inodes.types, self.files
        for name, entry in files.names(path).items():
            type_ = _DIRECTORY if entry < 0 else types[first + entry]
            if type_ == _HARD_LINK:
                target = files.resolve(entry)
                if target is None:
                    if self._is_lowest:
                        continue
                    raise UnsupportedLayerError(
                        f"{brief(name)} is a hard link to a file of another layer"
                    )
                entry = target
                type_ = types[first + entry]
                inodes.shared.add(first + entry)
            if len(name) <= erofs.MAX_NAME:
                yield name, entry, type_

    def _xattrs(self, position: int, kind: bytes) -> bytes:
        """What follows the inode of an entry whose records are there. InvalidDataError."""
        records = self._contents.xattrs(position)
        self._spend(sum(len(key) + len(value) + XATTR_COST for key, value in records))
        return body_of(xattrs_of(records, kind))

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise InvalidDataError("not a valid zTOC: strings overlap")

    def _time(self, text: bytes) -> tuple[int, int]:
        time = self._times.get(text)
        if time is None:
            time = self._times[text] = divmod(nanoseconds(text), _SECOND)
        return time

    def _add_inodes(self, inodes: Inodes, start: int) -> list[bytes]:
        """Adds an inode for each entry, none for directories and hard links; the types of all entries."""
        contents, times, place_of = self._contents, self._times, self.layout.add
        add, pack, types = inodes.heads.extend, erofs.INODE.pack, inodes.types
        kinds: list[bytes] = []
        number = self.first - 1
        for kind, offset, size, link, mode, uid, gid, text, major, minor, xattrs in contents.rows():
            number += 1
            kind, format_, type_ = _KINDS.get(kind, _UNKNOWN)
            kinds.append(kind)
            place = 0
            if type_ == _REGULAR:
                if size:
                    place = start + place_of(offset, size)
            elif not format_ or type_ == _DIRECTORY:
                types.append(type_)
                add(NO_HEAD)
                continue
            elif type_ == _SYMLINK:
                size, mode = contents.string_size(link), 0o777
                target = contents.string(link) if 0 < size <= erofs.MAX_TARGET else b""
                if not target or b"\0" in target:
                    type_ = _HIDDEN
                self._spend(len(target))
                inodes.targets[number] = target
            else:
                size = 0
                if major or minor:
                    major, minor = min(max(major, 0), MAX_MAJOR), min(max(minor, 0), MAX_MINOR)
                    place = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
            types.append(type_)
            seconds, fraction = times.get(text) or self._time(text)
            if uid == _NO_ID or gid == _NO_ID:
                uid, gid = _owner(uid), _owner(gid)
            if xattrs and self._has_xattrs:
                body = self._xattrs(xattrs, kind)
                if body:
                    inodes.xattrs[number] = body
            mode = format_ | mode & 0o7777
            add(pack(1, 0, mode, 0, size, place, number, uid, gid, seconds, fraction, 1))
        return kinds


class _Part(NamedTuple):
    """What a layer, by its number, has of a directory: its entry there."""

    layer: int
    entry: int


def merged_tree(ztocs: Sequence[Ztoc], tags: Sequence[bytes]) -> Tree:
    """The files of an image, its layers merged: `ztocs` and `tags`, which name the layers, lowest first.

    Raises InvalidDataError for zTOCs that are not valid, and UnsupportedLayerError for what EROFS cannot
    show.
    """
    inodes, limit = Inodes(), _Limit()
    layers: list[_Layer] = []
    for ztoc, tag in zip(ztocs, tags, strict=True):
        with errors_at(layer=tag.decode("ascii", "replace")):
            start = next_start([layer.device for layer in layers])
            layers.append(_Layer(ztoc, tag, inodes, limit, start, is_lowest=not layers))
    return Tree(
        _Merging(layers, inodes, limit).run(),
        inodes,
        [layer.device for layer in layers],
        [layer.layout for layer in layers],
    )


class _Merging:
    """Makes the tree of layers that lie over each other."""

    def __init__(self, layers: Sequence[_Layer], inodes: Inodes, limit: _Limit) -> None:
        self._layers = layers
        self._inodes = inodes
        self._limit = limit
        self._stack: list[tuple[bytes, Directory, list[_Part]]] = []

    def run(self) -> Directory:
        """The root."""
        numbers = reversed(range(len(self._layers)))
        root = self._directory(
            None, b"", [_Part(number, self._layers[number].files.root) for number in numbers]
        )
        while self._stack:
            path, directory, parts = self._stack.pop()
            if len(parts) == 1:
                self._add(path, directory, parts, 0, frozenset())
                continue
            done: set[bytes] = set()  # what is found, or hidden
            for at, part in enumerate(parts):
                files = self._layers[part.layer].files
                self._add(path, directory, parts, at, done)
                if files.is_opaque(path):
                    break
                done.update(directory.children)
                done |= files.whiteouts(path)
        return root

    def _directory(self, above: Directory | None, path: bytes, parts: list[_Part]) -> Directory:
        """A directory, whose children are added later. The topmost layer that names it says what it is."""
        named = (self._layers[one.layer].attributes(one.entry) for one in parts if one.entry >= 0)
        self._limit.take()
        directory = Directory(above, next(named, _IMPLIED))
        self._stack.append((path, directory, parts))
        return directory

    def _add(
        self, path: bytes, directory: Directory, parts: list[_Part], at: int, done: Set[bytes]
    ) -> None:
        """Adds what the layer of one part of a directory has in it, but for what is done."""
        number = parts[at].layer
        layer = self._layers[number]
        for name, entry, type_ in layer.children(self._inodes, path):
            if name in done:
                continue
            if type_ == _DIRECTORY:
                below = path + b"/" + name if path else name
                own = [_Part(number, entry)]
                if at + 1 < len(parts):
                    own += self._below(path, name, parts, at)
                directory.children[name] = self._directory(directory, below, own)
            elif type_ != _HIDDEN:
                directory.children[name] = layer.first + entry

    def _below(self, path: bytes, name: bytes, parts: list[_Part], at: int) -> Iterator[_Part]:
        """What the layers below the one of a part have of a directory in it."""
        for number, part in enumerate(parts[at:]):
            layer = self._layers[part.layer]
            if number:
                found = layer.files.look(path, name)
                if found is not None and not found[1]:
                    return
                if found is not None:
                    yield _Part(part.layer, found[0])
            if name in layer.files.whiteouts(path) or layer.files.is_opaque(path):
                return


def layer_tree(ztoc: Ztoc, tag: bytes, below: LazyImage) -> Tree:
    """The files of one layer for overlayfs to join with those of the layers `below`.

    Names that it hides there are devices 0:0, directories that hide all below have overlayfs' mark, and
    those that it does not name have the attributes from below. Raises as `merged_tree`, and what opening
    layers raises.
    """
    inodes, limit = Inodes(), _Limit()
    layer = _Layer(ztoc, tag, inodes, limit, next_start([]), is_lowest=not below.layers)
    return Tree(_Single(layer, inodes, limit, below).run(), inodes, [layer.device], [layer.layout])


class _Single:
    """Makes the tree of one layer."""

    def __init__(self, layer: _Layer, inodes: Inodes, limit: _Limit, below: LazyImage) -> None:
        self._layer = layer
        self._inodes = inodes
        self._limit = limit
        self._below = below
        self._whiteout = inodes.add(stat.S_IFCHR)
        inodes.shared.add(self._whiteout)
        # With them whether overlayfs merges them with what is below.
        self._stack: list[tuple[bytes, Directory, bool]] = []

    def run(self) -> Directory:
        """The root."""
        files = self._layer.files
        root = Directory(None, self._attributes(b"", files.root, True))
        self._stack = [(b"", root, not files.is_opaque(b""))]
        while self._stack:
            path, directory, is_merged = self._stack.pop()
            hidden = files.whiteouts(path)
            for name, entry, type_ in self._layer.children(self._inodes, path):
                if type_ == _DIRECTORY:
                    below = path + b"/" + name if path else name
                    is_opaque = name in hidden or files.is_opaque(below)
                    # An opaque directory has the attributes from below, one beside its whiteout not.
                    about = self._attributes(below, entry, is_merged and name not in hidden)
                    if is_opaque:
                        about = replace(about, xattrs=marked(about.xattrs))
                    child = directory.children[name] = Directory(directory, about)
                    self._stack.append((below, child, is_merged and not is_opaque))
                elif type_ != _HIDDEN:
                    directory.children[name] = self._layer.first + entry
            # Where it has nothing to merge, overlayfs lists whiteouts as files that nobody can look up.
            for name in hidden.difference(directory.children) if is_merged else ():
                if self._find(path + b"/" + name if path else name) is not None:
                    directory.children[name] = self._whiteout
        return root

    def _attributes(self, path: bytes, entry: int, is_merged: bool) -> Attributes:
        """Those of a directory. overlayfs takes them from the topmost layer that has it, named or not."""
        self._limit.take()
        if entry < 0 and is_merged:
            file = self._find(path)
            if file is not None and file.is_directory and file.entry >= 0:
                found = _attributes_of(self._below.layers[file.layer].files, file.entry)
                self._limit.take(len(found.xattrs) >> 9)  # the layer below may share them
                return found
        return self._layer.attributes(entry)

    def _find(self, path: bytes) -> File | None:
        """A file of the layers below; None where there is none."""
        try:
            return self._below.find(path, follow=False)
        except NotFoundError:
            return None


def _attributes_of(files: LayerFiles, entry: int) -> Attributes:
    """Those of a directory of any layer."""
    found = files.attributes(entry)
    time = divmod(found.mtime_ns, _SECOND)
    owner = _owner(found.uid), _owner(found.gid)
    return Attributes(found.mode, owner, time, body_of(files.xattrs(entry)))


def _owner(number: int) -> int:
    """A user or group. What belongs to nobody (-1), not even root may open."""
    return _NOBODY if number == _NO_ID else number
