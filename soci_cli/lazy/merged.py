"""An image's files as a container would see them: the layers over each other, as overlayfs does it.

An upper layer's file hides what is below it, whiteouts hide names, an opaque folder hides all that lower
layers have in it, and folders of several layers merge, with the attributes of the topmost layer that names
them. Nothing is fetched to look at indexed layers but their zTOCs, and of these only what is needed: a file
is looked for from the topmost layer down, and a layer is opened when somebody looks into it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, NotFoundError
from soci_cli.index.discover import FoundIndex
from soci_cli.lazy.layer import IMPLIED, IMPLIED_DIRECTORY, LayerFiles, Node
from soci_cli.lazy.spans import Archive
from soci_cli.oci import (
    Descriptor,
    Platform,
)
from soci_cli.parallel import Stop, run_all
from soci_cli.text import brief

_MAX_LINKS = 40  # as Linux's ELOOP
_MAX_PATH = 4096  # as Linux's PATH_MAX
_OPENED_AT_ONCE = 4


class File:
    """One file of an image; `path` has no slashes at either end, the root is b"".

    `layer` and `entry` say where its attributes and bytes are; a hard link has those of the file that it
    names. `layers` are the layers that a folder is made of, topmost first; None for all else. Of a folder
    all three are found out when they are asked for, which may open layers and raise what that raises.
    """

    __slots__ = ("_entry", "_folder", "_layer", "path")

    def __init__(self, path: bytes, layer: int, entry: int, folder: Folder | None = None) -> None:
        """`layer` and `entry` do not count for a folder."""
        self.path = path
        self._layer = layer
        self._entry = entry
        self._folder = folder

    @property
    def layer(self) -> int:
        """The number of the layer that has its attributes, and its bytes."""
        return self._layer if self._folder is None else self._folder.named[0]

    @property
    def entry(self) -> int:
        """Its entry in that layer, or IMPLIED."""
        return self._entry if self._folder is None else self._folder.named[1]

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The layers that a folder is made of, topmost first."""
        return None if self._folder is None else tuple(self._folder)

    @property
    def folder(self) -> Folder | None:
        """The layers of a folder, one after the other."""
        return self._folder

    @property
    def is_directory(self) -> bool:
        """Whether it is a folder."""
        return self._folder is not None

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


class Opener(Protocol):
    """Opens layers when they are needed."""

    def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, Archive]:
        """The files of a layer and its bytes; setting `stop` ends unpacking."""

    def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
        """See `LazyLayer.prefetch_ranges`; the layer has `count` spans."""


class LazyLayer(Closing):
    """One layer: its files, and its bytes where they are read. `indexed` when it has a zTOC.

    It is opened once, by who first asks for the files or the bytes, while others wait; when that fails, the
    next to ask tries again.
    """

    def __init__(self, descriptor: Descriptor, opener: Opener, indexed: bool) -> None:
        self.descriptor = descriptor
        self.indexed = indexed
        self._opener = opener
        self._opened: tuple[LayerFiles, Archive] | None = None
        self._mutex = threading.Lock()
        self._stop = Stop()
        self._closed = False

    @property
    def files(self) -> LayerFiles:
        """Its files. Raises what opening raises."""
        return (self._opened or self.open())[0]

    @property
    def archive(self) -> Archive:
        """Its bytes. Raises what opening raises."""
        return (self._opened or self.open())[1]

    def open(self, stop: Stop | None = None) -> tuple[LayerFiles, Archive]:
        """Opens the layer, unless it is open. Raises as `open_image` does."""
        with self._mutex:
            if self._opened is None:
                self._opened = self._opener.open(self.descriptor, stop or self._stop)
                if self._closed:
                    self._opened[1].close()
            return self._opened

    def prefetch_ranges(self) -> tuple[tuple[int, int], ...]:
        """Ranges of spans to fetch soon, both ends included, as the SOCI index of the image wants it.

        Raises what fetching raises, and InvalidDataError for spans that the layer does not have.
        """
        if not self.indexed:
            return ()
        return self._opener.prefetch_ranges(self.descriptor, len(self.files.ztoc.spans))

    def close(self) -> None:
        """Ends an opening that runs, at its next step, and closes what is open."""
        self._closed = True
        self._stop.set()
        if self._opened is not None:
            self._opened[1].close()


@dataclass(frozen=True)
class Origin:
    """What an image was found to be: its manifest, its platform and its SOCI index, if it has one."""

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
        self.root = File(b"", 0, IMPLIED, Folder(_Stack(self.layers, threading.Lock())))

    def open_all(self) -> None:
        """Opens all layers, several side by side. Raises the first error."""
        run_all(lambda layer, stop: layer.open(stop), self.layers, _OPENED_AT_ONCE)

    def close(self) -> None:
        """Closes the layers."""
        for layer in self.layers:
            layer.close()

    # Finding files.

    def lookup(self, directory: File, name: bytes) -> File | None:
        """What a folder has under a name, symlinks not followed; None when there is no such file."""
        folder = directory.folder
        if folder is None:
            return None
        above = folder.path
        path = above + b"/" + name if above else name
        for at, number in enumerate(folder):
            files = self.layers[number].files
            found = files.look(above, name, path)
            if found is not None:
                entry, is_directory = found
                if not is_directory:
                    return File(path, number, entry)
                below = Folder(folder.stack, folder, name, path)
                below.begin(at, number, entry)
                return File(path, number, entry, below)
            if name in files.whiteouts(above):
                break
        return None

    def children(self, directory: File) -> list[File]:
        """What is in a folder, sorted by the bytes of the names. NotFoundError when it is none."""
        found = self.listing(directory)
        found.sort(key=itemgetter(0))
        return [file for _, file in found]

    def listing(self, directory: File) -> list[tuple[bytes, File]]:
        """As `children`, with the names, in the order of the archives, the topmost layer first."""
        folder = directory.folder
        if folder is None:
            raise NotFoundError(f"{self._show(directory.path)} is no directory")
        path = folder.path
        above = path + b"/" if path else path
        found = []
        done: set[bytes] = set()  # what is found, or hidden
        for at, number in enumerate(folder):
            files = self.layers[number].files
            there = files.listing(path)
            for name, entry, is_directory in there:
                if name in done:
                    continue
                below = None
                if is_directory:
                    below = Folder(folder.stack, folder, name, above + name)
                    below.begin(at, number, entry)
                found.append((name, File(above + name, number, entry, below)))
            done.update(name for name, _, _ in there)
            done |= files.whiteouts(path)
        return found

    def find(self, path: bytes, *, follow: bool = True) -> File:
        """The file at a path from the root, symlinks on the way followed inside the image.

        With `follow` the last one is followed too; a slash at the end asks for that as well. NotFoundError.
        """
        parts = self._parts(path, path)
        at = [self.root]
        links = 0
        while parts:
            part = parts.pop()
            if not part:
                continue
            here = at[-1]
            if here.is_directory and part == b".":
                continue
            if here.is_directory and part == b"..":
                at = at[:-1] or [self.root]
                continue
            file = self.lookup(here, part)
            if file is None:
                raise NotFoundError(f"{self.name} has no file {self._show(path)}")
            if (parts or follow) and self.type_of(file) == "symlink":
                links += 1
                if links > _MAX_LINKS:
                    raise NotFoundError(
                        f"{self.name}: {self._show(path)} leads through too many links"
                    )
                target = self.node(file).linkname
                if target.startswith(b"/"):
                    at = [self.root]
                parts += self._parts(target, path)
            else:
                at.append(file)
        if path.endswith(b"/") and not at[-1].is_directory:
            raise NotFoundError(f"{self.name}: {self._show(path)} is no directory")
        return at[-1]

    # What is known of a file.

    def node(self, file: File) -> Node:
        """All that is known of a file."""
        layer, entry = file.layer, file.entry
        return IMPLIED_DIRECTORY if entry == IMPLIED else self.layers[layer].files.node(entry)

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
        """Bytes of a regular file, fewer at its end. Raises as `Archive` does, InvalidDataError else."""
        node = self._regular(file)
        length = max(0, min(length, node.size - offset))
        return self._archive(file).read(node.offset + offset, length, file.path)

    def pieces(self, file: File) -> Iterator[memoryview]:
        """The content of a regular file in pieces; see `read`."""
        node = self._regular(file)
        return self._archive(file).pieces(node.offset, node.size, file.path)

    def read_all(self, files: Iterable[File]) -> Iterator[tuple[File, Iterator[memoryview]]]:
        """The contents of regular files, layer by layer in the order of the archives.

        What the next ones need is fetched meanwhile, so take each content before the next file.
        """
        by_layer: dict[int, list[tuple[int, int, File]]] = {}
        for file in files:
            node = self._regular(file)
            by_layer.setdefault(file.layer, []).append((node.offset, node.size, file))
        for number, found in sorted(by_layer.items()):
            found.sort(key=lambda one: one[:2])
            archive = self.layers[number].archive
            reach = archive.ahead([(offset, size) for offset, size, _ in found])
            for offset, size, file in found:
                if size:
                    reach(offset)
                yield file, archive.pieces(offset, size, file.path)

    def _archive(self, file: File) -> Archive:
        return self.layers[file.layer].archive

    def _regular(self, file: File) -> Node:
        kind = self.type_of(file)
        if kind != "reg":
            raise InvalidDataError(
                f"{self.name}: {self._show(file.path)} is {_KINDS.get(kind, kind)}"
            )
        return self.node(file)

    def _parts(self, target: bytes, path: bytes) -> list[bytes]:
        """The parts of a path or of a link's target, last to first."""
        if len(target) > _MAX_PATH:
            raise NotFoundError(f"{self.name}: {self._show(path)} leads through a path too long")
        return target.split(b"/")[::-1]

    def _show(self, path: bytes) -> str:
        return brief(path if path.startswith(b"/") else b"/" + path)


_KINDS = {
    "dir": "a directory",
    "symlink": "a symbolic link",
    "char": "a device",
    "block": "a device",
    "fifo": "a named pipe",
}


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of an image, and what guards its folders."""

    layers: Sequence[LazyLayer]
    mutex: threading.Lock


class Folder:
    """The layers that a folder is made of, topmost first, found out only as far as somebody asks.

    An opaque folder hides what is in it below, but where its layer does not name it, the attributes are
    still those from below.
    """

    __slots__ = (
        "_above",
        "_closed",
        "_done",
        "_doubt",
        "_layers",
        "_name",
        "_named",
        "_next",
        "path",
        "stack",
    )

    def __init__(
        self, stack: _Stack, above: Folder | None = None, name: bytes = b"", path: bytes = b""
    ) -> None:
        """The root, or the folder `name` of the folder `above`."""
        self.stack = stack
        self.path = path
        self._above = above
        self._name = name
        self._next = 0  # of the layers above, or of the image
        self._layers: list[int] = []
        self._named: tuple[int, int] | None = None
        self._doubt: int | None = None  # the layer that may have it opaque
        self._closed = False  # nothing below adds files
        self._done = False

    def begin(self, at: int, number: int, entry: int) -> None:
        """Takes what was found already: the topmost layer, which is the one `at` of those above."""
        self._next = at
        self._take(number, entry)
        above = self._above
        assert above is not None
        if self._name in self.stack.layers[number].files.whiteouts(above.path):
            self._done = True

    def __iter__(self) -> Iterator[int]:
        at = 0
        while True:
            complete = self._closed or self._done
            if at < len(self._layers):
                yield self._layers[at]
                at += 1
            elif complete:
                return
            else:
                self._advance()

    @property
    def named(self) -> tuple[int, int]:
        """The topmost layer that names the folder, and its entry there; else a layer and IMPLIED."""
        while self._named is None and not self._done:
            self._advance()
        return self._named or (self._layers[0] if self._layers else 0, IMPLIED)

    def _advance(self) -> None:
        """Looks into one more layer."""
        # A folder can be thousands deep, so no recursion: those above go first, as far as needed.
        waiting = [self]
        while waiting:
            one = waiting[-1]
            if one._doubt is not None:
                one._settle(one._doubt)
                waiting.pop()
                continue
            above, at = one._above, one._next
            if above is None:
                count = len(self.stack.layers)
                number = count - 1 - at if at < count else None
            else:
                complete = above._closed or above._done
                if at < len(above._layers):
                    number = above._layers[at]
                elif complete:
                    number = None
                else:
                    waiting.append(above)
                    continue
            waiting.pop()
            if number is None:
                one._done = True
            else:
                one._look(at, number)

    def _look(self, at: int, number: int) -> None:
        files = self.stack.layers[number].files
        name, above = self._name, self._above
        found: tuple[int, bool] | None
        if above is None:
            found, ends = (files.root, True), False
        else:
            found = files.look(above.path, name, self.path)
            ends = name in files.whiteouts(above.path)
        with self.stack.mutex:
            if self._next != at or self._doubt is not None or self._done:
                return  # another thread was quicker
            if found is None:
                self._next = at + 1
            elif found[1]:
                self._take(number, found[0])
            else:
                ends = True
            self._done = self._done or ends

    def _take(self, number: int, entry: int) -> None:
        """The next layer has the folder too."""
        if not self._closed:
            self._layers.append(number)
            self._doubt = number
        if self._named is None and entry != IMPLIED:
            self._named = number, entry
        self._next += 1
        self._done = self._closed and self._named is not None

    def _settle(self, number: int) -> None:
        """Finds out whether the layer that was taken last hides what is below."""
        is_opaque = self.stack.layers[number].files.is_opaque(self.path)
        with self.stack.mutex:
            if self._doubt == number:
                self._doubt = None
                self._closed = is_opaque
                self._done = self._done or (is_opaque and self._named is not None)
