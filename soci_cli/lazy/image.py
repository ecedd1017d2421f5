"""An image's files as a container would see them: the layers over each other, as overlayfs does it.

An upper layer's file hides what is below it, whiteouts hide names, an opaque folder hides all that lower
layers have in it, and folders of several layers merge, with the attributes of the topmost layer that names
them. Nothing is fetched to look at indexed layers but their zTOCs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, NotFoundError, UsageError
from soci_cli.index.build import manifest_of
from soci_cli.index.discover import IndexSources, find_index
from soci_cli.index.image import Image, choose_platforms, read_image
from soci_cli.index.model import ztocs_by_layer
from soci_cli.lazy.cache import blob_key
from soci_cli.lazy.layer import IMPLIED, IMPLIED_DIRECTORY, LayerFiles, Node
from soci_cli.lazy.spans import Archive, Fetching, LayerSpans
from soci_cli.lazy.whole import WholeLayer
from soci_cli.oci import (
    Descriptor,
    Manifest,
    Platform,
    media_types,
    parse_config_diff_ids,
    platforms,
)
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.parallel import Stop, run_all
from soci_cli.progress import Observer, SilentObserver
from soci_cli.targets import BlobReader, FileBlobs, Source, StoreTarget, read_blob
from soci_cli.ztoc import decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE
from soci_cli.ztoc.reader import show_name

_MAX_LINKS = 40  # as Linux's ELOOP
_MAX_PATH = 4096  # as Linux's PATH_MAX
_OPENED_AT_ONCE = 3
_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One file of an image; `path` has no slashes at either end, the root is b"".

    `layer` and `entry` say where its attributes and bytes are; a hard link has those of the file that it
    names. `layers` are the layers that a folder is made of, topmost first; None for all else.
    """

    path: bytes
    layer: int
    entry: int
    layers: tuple[int, ...] | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a folder."""
        return self.layers is not None

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


@dataclass(frozen=True)
class LazyLayer:
    """One layer: its files, and its bytes where they are read. `indexed` when it has a zTOC."""

    descriptor: Descriptor
    files: LayerFiles
    archive: Archive
    indexed: bool


class LazyImage(Closing):
    """The files of one platform of an image. Several threads may read; closing ends nothing shared."""

    def __init__(self, name: str, layers: Sequence[LazyLayer]) -> None:
        """`layers` from the lowest to the topmost."""
        self.name = name
        self.layers = tuple(layers)
        root = _Folder()
        for number in reversed(range(len(layers))):
            files = layers[number].files
            root.add(number, files.root, is_opaque=files.is_opaque(b""))
        self.root = root.file(b"")

    def close(self) -> None:
        """Closes the layers."""
        for layer in self.layers:
            layer.archive.close()

    # Finding files.

    def lookup(self, directory: File, name: bytes) -> File | None:
        """What a folder has under a name, symlinks not followed; None when there is no such file."""
        folder = directory.path
        path = folder + b"/" + name if folder else name
        merged: _Folder | None = None
        for number in directory.layers or ():
            files = self.layers[number].files
            found = files.look(folder, name, path)
            if found is not None:
                entry, is_directory = found
                if not is_directory:
                    return merged.file(path) if merged else File(path, number, entry)
                merged = merged or _Folder()
                if merged.add(number, entry, is_opaque=files.is_opaque(path)):
                    break
            if name in files.whiteouts(folder):
                break
        return merged.file(path) if merged else None

    def children(self, directory: File) -> list[File]:
        """What is in a folder, sorted by the bytes of the names. NotFoundError when it is none."""
        if directory.layers is None:
            raise NotFoundError(f"{self._show(directory.path)} is no directory")
        names: set[bytes] = set()
        for number in directory.layers:
            names.update(self.layers[number].files.names(directory.path))
        found = (self.lookup(directory, name) for name in sorted(names))
        return [file for file in found if file is not None]

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
        if file.entry == IMPLIED:
            return IMPLIED_DIRECTORY
        return self.layers[file.layer].files.node(file.entry)

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
        return self._archive(file).read(node.offset + offset, length)

    def pieces(self, file: File) -> Iterator[memoryview]:
        """The content of a regular file in pieces; see `read`."""
        node = self._regular(file)
        return self._archive(file).pieces(node.offset, node.size)

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
                yield file, archive.pieces(offset, size)

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
        return show_name(path if path.startswith(b"/") else b"/" + path)


_KINDS = {
    "dir": "a directory",
    "symlink": "a symbolic link",
    "char": "a device",
    "block": "a device",
    "fifo": "a named pipe",
}


class _Folder:
    """A folder of several layers, which are added topmost first."""

    __slots__ = ("_closed", "_layers", "_named")

    def __init__(self) -> None:
        self._layers: list[int] = []
        self._named: tuple[int, int] | None = None
        self._closed = False

    def add(self, layer: int, entry: int, *, is_opaque: bool) -> bool:
        """Takes what one layer has; whether nothing below matters any more.

        An opaque folder hides what is in it below, but where its layer does not name it, the attributes
        are still those from below.
        """
        if not self._closed:
            self._layers.append(layer)
        if self._named is None and entry != IMPLIED:
            self._named = layer, entry
        self._closed = self._closed or is_opaque
        return self._closed and self._named is not None

    def file(self, path: bytes) -> File:
        """The folder as a file of the image."""
        layer, entry = self._named or (self._layers[0] if self._layers else 0, IMPLIED)
        return File(path, layer, entry, tuple(self._layers))


# Opening.


@dataclass(frozen=True)
class OpenOptions:
    """Which platform, by default this machine's, and where SOCI indexes are looked for."""

    platforms: tuple[Platform, ...] = ()
    index: IndexSources = field(default_factory=IndexSources)


def open_image(
    source: Source,
    fetching: Fetching,
    options: OpenOptions | None = None,
    observer: Observer | None = None,
) -> LazyImage:
    """The files of an image. Layers without a zTOC are fetched whole, unless they are in the cache.

    Close the image before `fetching`, and both before `source`. Raises NotFoundError, UsageError,
    InvalidDataError and IntegrityError, and what reading the place raises.
    """
    options, observer = options or OpenOptions(), observer or SilentObserver()
    image = read_image(source, _needed(options.platforms))
    chosen = choose_platforms(image, options.platforms, False, source.name)
    if len(chosen) != 1:
        raise UsageError("the files of one platform can be read; choose one with --platform")
    entry = image.get(chosen[0], source.name)
    sources = options.index
    if isinstance(source, StoreTarget):
        sources = replace(sources, v1=True)  # what is here was pulled on purpose
    found = find_index(_Finder(source, image), entry, sources, observer)
    ztocs = ztocs_by_layer(found.manifest) if found else {}
    wanted = manifest_of(entry).layers
    unindexed = [layer for layer in wanted if layer.digest not in ztocs]
    diff_ids = _diff_ids(source, manifest_of(entry)) if unindexed else {}
    opened: list[LazyLayer] = []

    def open_layer(layer: Descriptor, stop: Stop) -> LazyLayer:
        ztoc, diff_id = ztocs.get(layer.digest), diff_ids.get(layer.digest)
        made = _open_layer(source, layer, ztoc, diff_id, fetching, observer, stop)
        opened.append(made)
        return made

    try:
        layers = run_all(open_layer, wanted, _OPENED_AT_ONCE)
    except BaseException:
        for one in opened:
            one.archive.close()
        raise
    return LazyImage(source.name, layers)


def _open_layer(
    source: Source,
    layer: Descriptor,
    ztoc: Descriptor | None,
    diff_id: str | None,
    fetching: Fetching,
    observer: Observer,
    stop: Stop,
) -> LazyLayer:
    what = f"layer {layer.digest} of {source.name}"
    if not media_types.is_layer(layer.media_type):
        raise InvalidDataError(f"{what} is no file system layer ({layer.media_type})")
    try:
        if ztoc is None:
            whole = WholeLayer(fetching.cache, source, layer, diff_id, observer, stop)
            return LazyLayer(layer, LayerFiles(whole.ztoc_data, whole.ztoc), whole, False)
        data = _read_ztoc(source, ztoc, fetching)
        decoded = decode_ztoc(data)
        spans = LayerSpans(fetching, source, layer, decoded, ztoc.digest)
        return LazyLayer(layer, LayerFiles(data, decoded), spans, True)
    except InvalidDataError as error:
        if layer.digest in str(error):
            raise
        raise InvalidDataError(f"{what}: {error}") from None


def _diff_ids(source: Source, manifest: Manifest) -> dict[str, str]:
    """The digests of the layers' archives, by layer; empty when the config has not one for each."""
    config = manifest.config
    what = f"config {config.digest} in {source.name}"
    diff_ids = parse_config_diff_ids(read_blob(source, config, _CONFIG_LIMIT), what)
    digests = [layer.digest for layer in manifest.layers]
    return dict(zip(digests, diff_ids, strict=True)) if len(diff_ids) == len(digests) else {}


def _read_ztoc(source: Source, ztoc: Descriptor, fetching: Fetching) -> bytes:
    """The bytes of a zTOC, which the cache keeps when they come from somewhere else."""
    if isinstance(source, FileBlobs):
        return read_blob(source, ztoc, MAX_ZTOC_SIZE)
    key = blob_key(ztoc.digest)
    data = fetching.cache.load(key)
    if data is None or len(data) != ztoc.size:
        data = read_blob(source, ztoc, MAX_ZTOC_SIZE)
        fetching.cache.put(key, data)
    return data


def _needed(wanted: Sequence[Platform]) -> Callable[[Sequence[Descriptor], Descriptor], bool]:
    """Which manifests of an index must be read: those of the wanted platform."""

    def needed(entries: Sequence[Descriptor], descriptor: Descriptor) -> bool:
        if descriptor.platform is None:
            return True
        if platforms.is_unknown(descriptor.platform):
            return False
        there = platforms.dedupe(
            entry.platform
            for entry in entries
            if entry.platform and not platforms.is_unknown(entry.platform)
        )
        chosen = wanted or (there if len(there) == 1 else [platforms.host_platform()])
        return any(platforms.matches(platform, descriptor.platform) for platform in chosen)

    return needed


@runtime_checkable
class _Finding(Protocol):
    def find(self, digest: str) -> Descriptor: ...


class _Finder:
    """Any place as one that finds manifests by their digest. Implements `Finder`."""

    def __init__(self, source: Source, image: Image) -> None:
        self._source = source
        self._image = image

    def find(self, digest: str) -> Descriptor:
        """See `Finder.find`: what the image lists, what the place finds, or a file of that name."""
        for entry in self._image.manifests:
            if entry.descriptor.digest == digest:
                return entry.descriptor
        if isinstance(self._source, _Finding):
            return self._source.find(digest)
        if isinstance(self._source, FileBlobs):
            with suppress(OSError):
                size = self._source.blob_path(digest).lstat().st_size
                return Descriptor(OCI_MANIFEST, digest, size)
        raise NotFoundError(f"{self._source.name} has no SOCI index {digest}")

    @property
    def name(self) -> str:
        return self._source.name

    def resolve(self) -> Descriptor:
        return self._source.resolve()

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        return self._source.fetch(descriptor, offset, length)

    def exists(self, descriptor: Descriptor) -> bool:
        return self._source.exists(descriptor)

    def names(self) -> dict[str, str]:
        return self._source.names()

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        return self._source.referrers(subject, artifact_type)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> _Finder:
        return self

    def __exit__(self, *_: object) -> None:
        """The place belongs to the caller."""
