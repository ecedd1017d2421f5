"""Helpers of the tests of soci_cli.lazy: layers and images made of entries, places that count."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soci_cli.lazy import (
    Cache,
    Fetching,
    File,
    LayerBytes,
    LayerSpans,
    LazyImage,
    LazyLayer,
    OpenOptions,
    open_image,
)
from soci_cli.lazy.layer_bytes import Name, no_name
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.targets import BlobReader, Source, open_source, parse_place
from soci_cli.ztoc import Compression, FileMetadata, LayerFiles, build_ztoc, decode_ztoc
from tests.support.images import LayoutMaker, sha256
from tests.support.layers import tar_ztoc

LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + "1" * 64, 1)


def entry(name: str | bytes, type_: str = "reg", **fields: Any) -> FileMetadata:
    """A file of a zTOC that nobody reads."""
    raw = name.encode() if isinstance(name, str) else name
    fields.setdefault("mode", 0o755 if type_ == "dir" else 0o644)
    fields.setdefault("mod_time", b"2023-11-14T22:13:20Z")
    return FileMetadata(raw, type_.encode(), 0, fields.pop("size", 0), **fields)


def files_of(*entries: FileMetadata) -> LayerFiles:
    """The files of a layer."""
    return LayerFiles(decode_ztoc(tar_ztoc(entries)))


def listing(image: LazyImage) -> list[str]:
    """Every path of an image; folders end in a slash."""
    found = []
    waiting: list[File] = [image.root]
    while waiting:
        for file in image.children(waiting.pop()):
            found.append(os.fsdecode(file.path) + ("/" if file.is_directory else ""))
            if file.is_directory:
                waiting.append(file)
    return sorted(found)


def link(name: str, target: str) -> FileMetadata:
    """A hard link."""
    return entry(name, "hardlink", linkname=target.encode())


class NoBytes(LayerBytes):
    """In place of a layer whose bytes nobody reads."""

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        raise AssertionError("this layer is not read")

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        raise AssertionError("this layer is not read")

    def ahead(self, ranges: Iterable[tuple[int, int]], name: Name = no_name) -> Any:
        raise AssertionError("this layer is not read")


def read_now(layer: LayerBytes, offset: int, length: int, name: Name = no_name) -> bytes | None:
    """What `LayerBytes.read_now` gives; None where it gives nothing."""
    data = bytearray(length)
    return bytes(data) if layer.read_now(offset, memoryview(data), name) else None


def image_of(*layers: Sequence[FileMetadata]) -> LazyImage:
    """An image, the lowest layer first."""
    return LazyImage("image", [opened_layer(files_of(*files), NoBytes()) for files in layers])


def opened_layer(files: LayerFiles, archive: LayerBytes) -> LazyLayer:
    """A layer with these files and these bytes."""
    return LazyLayer(LAYER, _Opened(files, archive), "sha256:" + "2" * 64)


@dataclass(frozen=True)
class _Opened:
    """Opens what is open already. Implements `Opener`."""

    files: LayerFiles
    archive: LayerBytes

    def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
        return self.files, self.archive

    def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
        return ()


class Place(Source):
    """A place with blobs in memory, which counts the requests for them."""

    def __init__(self, *blobs: bytes, ranges: bool = True) -> None:
        super().__init__("place")
        self.blobs = {sha256(blob): blob for blob in blobs}
        self.requests: list[tuple[int, int]] = []
        self.damage: dict[int, int] = {}  # how often the byte at an offset is wrong
        self.delay = 0.0
        self.busiest = 0
        self.gate: threading.Semaphore | None = None  # lets requests through, one each
        self.failures: list[Exception] = []  # what the next requests end in
        self._ranges = ranges
        self._busy = 0
        self._mutex = threading.Lock()

    @property
    def sent(self) -> int:
        """All bytes that were sent."""
        return sum(length for _, length in self.requests)

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        whole = self.blobs[descriptor.digest]
        length = len(whole) - offset if length is None else length
        data = bytearray(whole[offset : offset + length])
        gate = self.gate  # before the test sees that there was a request
        with self._mutex:
            skipped = 0 if self._ranges else offset
            self.requests.append((offset - skipped, length + skipped))
            failure = self.failures.pop(0) if self.failures else None
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            for at, left in self.damage.items():
                if offset <= at < offset + length and left:
                    data[at - offset] ^= 0xFF
                    self.damage[at] = left - 1
        time.sleep(self.delay)
        if gate is not None:
            gate.acquire()
        with self._mutex:
            self._busy -= 1
        if failure is not None:
            raise failure
        stream: Any = _Stream(bytes(data))
        stream.skipped = skipped
        reader: BlobReader = stream
        return reader

    def resolve(self) -> Descriptor:
        raise AssertionError("nobody should ask what a reference means")

    def exists(self, descriptor: Descriptor) -> bool:
        raise AssertionError("nobody should ask whether a blob is there")


class _Stream(io.BytesIO):
    skipped = 0


def no_thread(thread: threading.Thread) -> None:
    """In place of Thread.start: what Python raises at a limit of processes."""
    raise RuntimeError("can't start new thread")


def eventually(happened: Callable[[], bool]) -> None:
    """Waits until something is so, which it will be soon."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def spans_of(
    layer: bytes,
    fetching: Fetching,
    place: Place | None = None,
    span_size: int = 1 << 16,
) -> tuple[LayerSpans, Place]:
    """A layer that is read from a place in memory."""
    compression = Compression.GZIP if layer[:2] == b"\x1f\x8b" else Compression.UNCOMPRESSED
    built = build_ztoc(io.BytesIO(layer), span_size=span_size, compression=compression)
    place = place or Place(layer)
    descriptor = Descriptor(LAYER.media_type, sha256(layer), len(layer))
    source: Any = place
    return (
        LayerSpans(fetching, source, descriptor, decode_ztoc(built.data), built.digest),
        place,
    )


@contextmanager
def fetching_at(root: Path, limit: int = 1 << 30, readahead: int = 0) -> Iterator[Fetching]:
    """Caches in a folder."""
    with Fetching(Cache(root, limit), readahead=readahead) as fetching:
        yield fetching


@contextmanager
def opened(
    place: str | Source,
    cache: Path,
    store: Path = Path("no-store"),
    options: OpenOptions | None = None,
) -> Iterator[LazyImage]:
    """An image that is read lazily, with a cache in the folder `cache`."""
    source = open_source(parse_place(place), store) if isinstance(place, str) else place
    with source, Fetching(Cache(cache, 1 << 30)) as fetching:
        image = open_image(source, fetching, options)
        try:
            yield image
        finally:
            fetching.close()
            image.close()


def whole(tmp_path: Path, data: bytes, media_type: str = "") -> str:
    """The place of an image with one layer, which has no zTOC."""
    maker = LayoutMaker(tmp_path / "image")
    blob = maker.blob(data, media_type or "application/vnd.oci.image.layer.v1.tar+gzip")
    maker.tag(maker.manifest([blob], maker.config()))
    return f"oci:{maker.root}"
