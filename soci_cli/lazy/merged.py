"""An image's files as a container would see them: the layers over each other, as overlayfs does it.

An upper layer's file hides what is below it, whiteouts hide names, an opaque folder hides all that lower
layers have in it, and folders of several layers merge, with the attributes of the topmost layer that names
them. Nothing is fetched to look at indexed layers but their zTOCs, and of these only what is needed: a file
is looked for from the topmost layer down, and a layer is opened when somebody looks into it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, NotFoundError, SociError, errors_at
from soci_cli.index.discover import FoundIndex
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.sparse import spread
from soci_cli.oci import (
    Descriptor,
    Platform,
)
from soci_cli.parallel import run_all
from soci_cli.ztoc.attributes import IMPLIED_DIRECTORY, Node
from soci_cli.ztoc.folders import IMPLIED
from soci_cli.ztoc.paths import MAX_LINKS, show, walk

_OPENED_AT_ONCE = 4
_SMALL_AT_ONCE = 32
_ONE_BY_ONE = 2


class File:
    """One file of an image; `path` has no slashes at either end, the root is b"".

    `layer` and `entry` say where its attributes and bytes are; a hard link has those of the file that it
    names.
    """

    __slots__ = ("_entry", "_layer", "path")

    is_directory = False

    def __init__(self, path: bytes, layer: int, entry: int) -> None:
        self.path = path
        self._layer = layer
        self._entry = entry

    @property
    def layer(self) -> int:
        """The number of the layer that has its attributes, and its bytes."""
        return self._layer

    @property
    def entry(self) -> int:
        """Its entry in that layer; see `LayerFiles`."""
        return self._entry

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The layers that a folder is made of, topmost first; None for all else."""
        return None

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"File({self.path!r})"

    def _all(self) -> tuple[object, ...]:
        return self.path, self.layer, self.entry, self.layers


@dataclass(frozen=True)
class Origin:
    """The manifest, platform and SOCI index, if any, of an image that was opened."""

    manifest: Descriptor
    platform: Platform
    index: FoundIndex | None = None


class LazyImage(Closing):
    """The files of one platform of an image. Several threads may read; closing ends nothing shared."""

    def __init__(
        self, name: str, layers: Sequence[LazyLayer], origin: Origin | None = None
    ) -> None:
        """`layers` from the lowest to the topmost."""
        self.name = name
        self.layers = tuple(layers)
        self.origin = origin
        self.digest = origin.manifest.digest if origin else ""
        self.platform = origin.platform if origin else None
        self.index = origin.index if origin else None
        self.root = Folder(_Stack(self.layers, threading.Lock()))
        self._ahead = threading.Lock()
        for layer in self.layers:
            layer.before_opening = self._open_ahead
        self._depth = 0  # of hard links that lead from layer to layer

    def open_all(self) -> None:
        """Opens all layers, several side by side. Raises the first error."""
        small = [layer for layer in self.layers if layer.is_small]
        run_all(lambda layer, stop: layer.open(stop), small, _SMALL_AT_ONCE)
        run_all(lambda layer, stop: layer.open(stop), self.layers, _OPENED_AT_ONCE)

    def _open_ahead(self, layer: LazyLayer) -> None:
        """Opens the layers below one that is needed, too, where others were needed before it.

        So looking for a file in many layers takes a few round trips and not one for each layer.
        """
        with self._ahead:
            opened = sum(one.is_open for one in self.layers)
            if layer.is_open or not layer.is_small or opened < _ONE_BY_ONE:
                return
            at = self.layers.index(layer)
            order = (*reversed(self.layers[: at + 1]), *self.layers[at + 1 :])
            small = [one for one in order if one.is_small and not one.is_open]
            with suppress(SociError):  # who needs one that cannot be opened is told
                run_all(lambda one, stop: one.open(stop), small[:_SMALL_AT_ONCE], _SMALL_AT_ONCE)

    def close(self) -> None:
        """Closes the layers."""
        for layer in self.layers:
            layer.close()

    # Finding files.

    def lookup(self, directory: File, name: bytes) -> File | None:
        """The file with a name in a folder, symlinks not followed; None when there is none."""
        if not isinstance(directory, Folder):
            return None
        path = directory.path
        for at, number in enumerate(directory):
            files = self.layers[number].files
            found = files.look(path, name)
            is_hidden = name in files.whiteouts(path)
            if found is not None:
                return directory.child(name, *found, at, number, is_hidden)
            target = files.lost_link(path, name)
            if target is not None:
                return self.linked(number, path + b"/" + name if path else name, target)
            if is_hidden:
                break
        return None

    def linked(self, number: int, path: bytes, target: bytes) -> File:
        """A hard link of layer `number` to a file of those below. NotFoundError where they have none."""
        file = self.below(number, target)
        if file is None:
            raise NotFoundError(
                f"{show(path)} is a hard link to {show(target)}, which {self.name} does not have",
                place=self.name,
            )
        return File(path, file.layer, file.entry)

    def below(self, number: int, path: bytes) -> File | None:
        """The file that the layers below layer `number` have at a path; None for a folder, or for nothing.

        A hard link may name a file of a lower layer.
        """
        view = LazyImage(self.name, self.layers[:number])
        view._depth = self._depth + 1
        if view._depth > MAX_LINKS:
            return None
        try:
            file = view.find(path, follow=False)
        except NotFoundError:
            return None
        return None if file.is_directory else file

    def children(self, directory: File) -> list[File]:
        """The files in a folder, sorted by the bytes of their names. NotFoundError for another file."""
        if not isinstance(directory, Folder):
            raise NotFoundError(f"{show(directory.path)} is no directory")
        found = [
            directory.child(*one, part.at, part.layer, one[0] in part.hidden)
            for part in self.listing(directory)
            for one in part.found
        ]
        found.sort(key=attrgetter("path"))
        return found

    def listing(self, folder: Folder) -> Iterator[Part]:
        """The files in a folder by layer, the topmost first, each in the order of its archive."""
        path = folder.path
        done: set[bytes] = set()  # what is found, or hidden
        for at, number in enumerate(folder):
            files = self.layers[number].files
            there = files.listing(path)
            hidden = files.whiteouts(path)
            yield Part(at, number, [one for one in there if one[0] not in done], hidden)
            if len(there) < len(files.names(path)):
                for name, target in files.lost_links(path):
                    file = None if name in done else self.below(number, target)
                    if file is not None:
                        yield Part(at, file.layer, [(name, file.entry, False)], hidden)
                    done.add(name)
            done.update(one[0] for one in there)
            done |= hidden

    def find(self, path: bytes, *, follow: bool = True) -> File:
        """The file at a path from the root, symlinks on the way followed inside the image.

        With `follow` the last one is followed too; a slash at the end asks for that as well. NotFoundError.
        """
        with errors_at(place=self.name):
            follow = follow or path.endswith(b"/")
            file = walk(self, self.root, path, self.name, follow=follow)
            if path.endswith(b"/") and not file.is_directory:
                raise NotFoundError(f"{show(path)} is no directory")
        return file

    # For `walk`.

    def look(self, folder: File, name: bytes) -> File | None:
        """See `Walker.look`."""
        return self.lookup(folder, name)

    def is_folder(self, file: File) -> bool:
        """See `Walker.is_folder`."""
        return file.is_directory

    def link_of(self, file: File) -> bytes | None:
        """See `Walker.link_of`."""
        return self.node(file).linkname if self.type_of(file) == "symlink" else None

    # Attributes.

    def node(self, file: File) -> Node:
        """All that is known of a file."""
        layer, entry = file.layer, file.entry
        return IMPLIED_DIRECTORY if entry < 0 else self.layers[layer].files.node(entry)

    def type_of(self, file: File) -> str:
        """The type of a file, as in its `Node`, for less work."""
        if file.is_directory:
            return "dir"
        return self.layers[file.layer].files.type_of(file.entry).decode("ascii", "replace")

    def link_count(self, file: File) -> int:
        """How many names a file has in its layer; 1 for a folder."""
        if file.is_directory:
            return 1
        return self.layers[file.layer].files.link_count(file.entry)

    # Reading.

    def read(self, file: File, offset: int, length: int) -> bytes:
        """Bytes of a regular file, fewer at its end. Raises as `LayerBytes` does, InvalidDataError else."""
        archive, start, size = self._content(file)
        length = max(0, min(length, size - offset))
        return archive.read(start + offset, length, lambda: file.path)

    def pieces(self, file: File) -> Iterator[memoryview]:
        """The content of a regular file in pieces; see `read`."""
        archive, start, size = self._content(file)
        return archive.pieces(start, size, lambda: file.path)

    def read_all(self, files: Iterable[File]) -> Iterator[tuple[File, Iterator[memoryview]]]:
        """As `read_in_turn`, layer by layer in the order of the archives, which is quickest."""
        return self.read_in_turn(sorted(files, key=lambda one: (one.layer, self._stored(one))))

    def read_in_turn(self, files: Sequence[File]) -> Iterator[tuple[File, Iterator[memoryview]]]:
        """The contents of regular files, one after the other.

        What the next ones need is fetched meanwhile, so take each content before the next file.
        """
        ranges: dict[int, list[tuple[int, int]]] = {}
        for file in files:
            ranges.setdefault(file.layer, []).append(self._stored(file))
        advance = {number: self.layers[number].archive.ahead(ranges[number]) for number in ranges}
        for file in files:
            offset, size = self._stored(file)
            if size:
                advance[file.layer](offset)
            yield file, self.pieces(file)

    def _stored(self, file: File) -> tuple[int, int]:
        return self.layers[file.layer].files.stored(file.entry)

    def _content(self, file: File) -> tuple[LayerBytes, int, int]:
        """What a regular file is read from, its offset there, and its size."""
        kind = self.type_of(file)
        if kind != "reg":
            raise InvalidDataError(
                f"{show(file.path)} is {_KINDS.get(kind, kind)}", place=self.name
            )
        layer, node = self.layers[file.layer], self.node(file)
        with errors_at(place=self.name, layer=layer.descriptor.digest, file=show(file.path)):
            archive, offset = spread(layer.archive, node.offset, layer.files, file.entry)
        return archive, offset, node.size


_KINDS = {
    "dir": "a directory",
    "symlink": "a symbolic link",
    "char": "a device",
    "block": "a device",
    "fifo": "a named pipe",
}


class Part(NamedTuple):
    """The files that layer number `at` of a folder adds to it: `found` as of `LayerFiles.listing`.

    `hidden` are the whiteouts of that layer in the folder.
    """

    at: int
    layer: int
    found: list[tuple[bytes, int, bool]]
    hidden: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of an image, and what guards its folders."""

    layers: Sequence[LazyLayer]
    mutex: threading.Lock


class Folder(File):
    """A folder. The layers that have it are found out, topmost first, only as far as somebody asks.

    An opaque folder hides what is in it below, but where its layer does not name it, the attributes are
    still those from below. Asking may open layers, and raises what that raises.
    """

    __slots__ = ("_done", "_entries", "_layers", "_next", "_stack", "_visible", "above")

    is_directory = True

    def __init__(
        self, stack: _Stack, above: Folder | None = None, path: bytes = b"", at: int = 0
    ) -> None:
        """The root, or what the folder `above` has in the layer that is the one `at` of its layers."""
        self.path = path
        self._stack = stack
        self.above = above
        self._next = at  # of the layers above, or of the image
        self._layers: list[int] = []
        self._entries: list[int] = []
        self._visible: int | None = None  # how many of these layers are seen, once that is known
        self._done = False  # no more layers have it

    def child(
        self, name: bytes, entry: int, is_directory: bool, at: int, layer: int, is_hidden: bool
    ) -> File:
        """One of the files in it, as the one `at` of its layers has it; see `Part`."""
        path = self.path + b"/" + name if self.path else name
        if not is_directory:
            return File(path, layer, entry)
        below = Folder(self._stack, self, path, at)
        below._take(layer, entry, is_hidden)
        return below

    @property
    def topmost(self) -> tuple[int, int]:
        """The topmost layer that has it, and its entry there, which no other file of the image has."""
        while not self._layers and not self._done:
            self._advance()
        return (self._layers[0], self._entries[0]) if self._layers else (0, IMPLIED)

    @property
    def layer(self) -> int:
        """See `File.layer`."""
        return self._named()[0]

    @property
    def entry(self) -> int:
        """See `File.entry`."""
        return self._named()[1]

    @property
    def layers(self) -> tuple[int, ...]:
        """See `File.layers`."""
        return tuple(self)

    def __iter__(self) -> Iterator[int]:
        at = 0
        while (layer := self._layer_at(at)) is not None:
            if layer < 0:
                self._advance()
            else:
                yield layer
                at += 1

    def _named(self) -> tuple[int, int]:
        """The topmost layer that names it, and its entry there; else the topmost that has it."""
        at = 0
        while True:
            if at == len(self._layers):
                if self._done:
                    return self.topmost
                self._advance()
            elif self._entries[at] >= 0:
                return self._layers[at], self._entries[at]
            else:
                at += 1

    def _layer_at(self, at: int) -> int | None:
        """The layer that is the one `at` of those seen; None where there is none, -1 for not known yet."""
        if at == self._visible or (self._done and at == len(self._layers)):
            return None
        return self._layers[at] if at < len(self._layers) else -1

    def _advance(self) -> None:
        """Looks into one more layer."""
        # A folder can be thousands deep, so no recursion: those above go first, as far as needed.
        waiting = [self]
        while waiting:
            one = waiting[-1]
            at, above = one._next, one.above
            if one._is_hiding():
                waiting.pop()
                continue
            if above is not None:
                layer = above._layer_at(at)
            else:
                count = len(self._stack.layers)
                layer = count - 1 - at if at < count else None
            if layer is not None and layer < 0:
                assert above is not None
                waiting.append(above)
                continue
            waiting.pop()
            one._look(at, layer)

    def _is_hiding(self) -> bool:
        """Whether the last layer that was found hides what is below it, which is found out now."""
        count = len(self._layers)
        if not count or self._visible is not None:
            return False
        if not self._stack.layers[self._layers[count - 1]].files.is_opaque(self.path):
            return False
        with self._stack.mutex:
            if count == len(self._layers):
                self._visible = count
                self._done = self._done or any(entry >= 0 for entry in self._entries)
        return True

    def _look(self, at: int, layer: int | None) -> None:
        """Looks into the layer that is the one `at` of those above."""
        above = self.above
        found: tuple[int, bool] | None = None
        is_last = layer is None
        if layer is not None:
            files = self._stack.layers[layer].files
            if above is None:
                found = files.root, True
            else:
                found = files.look(above.path, self.name)
                is_last = self.name in files.whiteouts(above.path)
        with self._stack.mutex:
            if self._next != at or self._done:
                return  # another thread was quicker
            if layer is not None and found is not None and found[1]:
                self._take(layer, found[0], is_last)
            else:
                self._next += 1
                self._done = is_last or found is not None

    def _take(self, layer: int, entry: int, is_last: bool) -> None:
        """The next layer has the folder too."""
        self._entries.append(entry)
        self._layers.append(layer)
        self._next += 1
        self._done = is_last or (self._visible is not None and entry >= 0)
