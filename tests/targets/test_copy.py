from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from soci_cli.targets import (
    Archive,
    ArchiveTarget,
    BlobReader,
    Layout,
    Source,
    WritableLayout,
    copy_blob,
    copy_graph,
    open_source,
    open_target,
    parse_place,
    read_blob,
)
from tests.support.images import noise
from tests.support.places import describe, push_image, push_index, push_json, temporary_files


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.advanced = 0
        self.outcomes: list[str] = []
        self._mutex = threading.Lock()

    def start(self, name: str, total: int | None) -> Recorder:
        return self

    def note(self, message: str, kind: str = "") -> None:
        raise AssertionError(message)

    def advance(self, amount: int) -> None:
        with self._mutex:
            self.advanced += amount

    def finish(self, outcome: str) -> None:
        with self._mutex:
            self.outcomes.append(outcome)


class MemoryStream:
    skipped = 0

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1, /) -> bytes:
        size = len(self._data) if size < 0 else min(size, 100)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class MemorySource(Source):
    """A source in memory that may lie, with no more than a source must have."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.blobs: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def add(self, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
        descriptor = describe(data, media_type)
        self.blobs[descriptor.digest] = data
        return descriptor

    def add_json(self, value: object, media_type: str) -> Descriptor:
        return self.add(json.dumps(value).encode(), media_type)

    def resolve(self) -> Descriptor:
        raise NotFoundError("nothing is named here")

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        self.fetched.append(descriptor.digest)
        if descriptor.digest not in self.blobs:
            raise NotFoundError(f"memory has no blob {descriptor.digest}")
        return MemoryStream(self.blobs[descriptor.digest])

    def exists(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs


def manifest_of(source: MemorySource, *layers: Descriptor) -> Descriptor:
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": source.add(b"{}", "application/json").to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return source.add_json(value, OCI_MANIFEST)


def index_of(source: MemorySource, *manifests: Descriptor) -> Descriptor:
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [manifest.to_json() for manifest in manifests],
    }
    return source.add_json(value, OCI_INDEX)


def test_read_blob() -> None:
    source = MemorySource()
    blob = source.add(noise(1, 1000))
    assert read_blob(source, blob) == noise(1, 1000)
    assert read_blob(source, source.add(b"")) == b""
    with pytest.raises(InvalidDataError, match="at most 999"):
        read_blob(source, blob, limit=999)
    for bad in (noise(1, 999), noise(1, 1001), noise(2, 1000)):
        source.blobs[blob.digest] = bad
        with pytest.raises(IntegrityError, match=rf"memory: blob {blob.digest}"):
            read_blob(source, blob)


def test_copy_blob(tmp_path: Path) -> None:
    source = MemorySource()
    blob = source.add(noise(1, 1000))
    task = Recorder()
    with WritableLayout(tmp_path) as target:
        assert copy_blob(source, target, blob, task) == "copied"
        assert task.advanced == 1000
        assert copy_blob(source, target, blob) == "already there"
        empty = source.add(b"")
        assert copy_blob(source, target, empty) == "copied"
        assert read_blob(target, empty) == b""
        for bad in (noise(1, 999), noise(1, 1001), noise(2, 1000)):
            other = describe(noise(3, 1000))
            source.blobs[other.digest] = bad
            with pytest.raises(IntegrityError):
                copy_blob(source, target, other)
            assert not target.exists(other)
        assert not temporary_files(tmp_path)


def test_children_come_before_parents(tmp_path: Path) -> None:
    source = MemorySource()
    layer = source.add(noise(1, 1000))
    one = manifest_of(source, layer, layer)
    two = manifest_of(source, layer, source.add(noise(2, 1000)))
    inner = index_of(source, one)
    root = index_of(source, inner, two, one)

    order: list[str] = []

    class Watched(WritableLayout):
        def push(self, descriptor: Descriptor, data: bytes) -> None:
            order.append(descriptor.digest)
            assert data == source.blobs[descriptor.digest]
            super().push(descriptor, data)

    observer = Recorder()
    with Watched(tmp_path) as target:
        summary = copy_graph(source, target, root, observer)
        assert (summary.copied, summary.present, summary.left_out) == (7, 0, 0)
        assert summary.size == sum(len(source.blobs[digest]) for digest in source.blobs)
        assert observer.outcomes == ["copied"] * 3
        assert observer.advanced == 2002
        assert set(order) == {one.digest, two.digest, inner.digest, root.digest}
        assert order.index(one.digest) < order.index(inner.digest)
        assert order[-1] == root.digest
        again = copy_graph(source, target, root)
        assert (again.copied, again.present, again.size) == (0, 7, 0)


def test_a_failure_leaves_no_parent(tmp_path: Path) -> None:
    source = MemorySource()
    layers = [source.add(noise(seed, 100_000)) for seed in range(6)]
    root = manifest_of(source, *layers)
    source.blobs[layers[2].digest] = b"short"
    with WritableLayout(tmp_path / "d", "t") as target:
        with pytest.raises(IntegrityError, match=layers[2].digest):
            copy_graph(source, target, root, concurrency=3)
        assert not target.exists(root)
    assert not temporary_files(tmp_path)


def test_absent_blobs(tmp_path: Path) -> None:
    source = MemorySource()
    absent = describe(b"absent")
    with WritableLayout(tmp_path) as target:
        with pytest.raises(NotFoundError, match=absent.digest):
            copy_graph(source, target, manifest_of(source, absent))
        foreign = replace(absent, urls=("https://example.com/layer",))
        observer = Recorder()
        summary = copy_graph(source, target, manifest_of(source, foreign), observer)
        # The config may have been copied before the first copy failed.
        assert (summary.copied + summary.present, summary.left_out) == (2, 1)
        assert "left out" in observer.outcomes
        with pytest.raises(NotFoundError):
            copy_graph(source, target, describe(b"?", OCI_MANIFEST))

        here = manifest_of(source)
        root = index_of(source, here, describe(b"elsewhere", OCI_MANIFEST))
        with pytest.raises(NotFoundError):
            copy_graph(source, target, root)
        assert not target.exists(root)
        summary = copy_graph(source, target, root, allow_missing_manifests=True)
        assert summary.left_out == 1
        assert target.exists(root)
        with pytest.raises(NotFoundError):
            copy_graph(source, target, describe(b"?", OCI_MANIFEST), allow_missing_manifests=True)


def test_skip(tmp_path: Path) -> None:
    source = MemorySource()
    keep, leave = (manifest_of(source, source.add(noise(seed, 100))) for seed in (1, 2))
    root = index_of(source, keep, leave)
    with WritableLayout(tmp_path) as target:
        summary = copy_graph(source, target, root, skip=lambda part: part.digest == leave.digest)
        assert summary.copied == 4
        assert not target.exists(leave)
    assert leave.digest not in source.fetched


def test_subjects_are_not_followed(tmp_path: Path) -> None:
    source = MemorySource()
    value = {
        "schemaVersion": 2,
        "config": source.add(b"{}", "x").to_json(),
        "layers": [],
        "subject": describe(b"not here", OCI_MANIFEST).to_json(),
    }
    with WritableLayout(tmp_path) as target:
        assert copy_graph(source, target, source.add_json(value, OCI_MANIFEST)).copied == 2


def test_depth_is_limited(tmp_path: Path) -> None:
    source = MemorySource()
    root = manifest_of(source)
    for _ in range(7):
        root = index_of(source, root)
    with WritableLayout(tmp_path) as target:
        copy_graph(source, target, root)
        with pytest.raises(InvalidDataError, match="deeper than 8"):
            copy_graph(source, target, index_of(source, root))


def test_the_number_of_parts_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soci_cli.targets.copy.NODE_LIMIT", 4)
    source = MemorySource()
    layers = [source.add(noise(seed, 10)) for seed in range(3)]
    with WritableLayout(tmp_path) as target:
        copy_graph(source, target, manifest_of(source, *layers[:2]))
        with pytest.raises(InvalidDataError, match="more than 4 parts"):
            copy_graph(source, target, manifest_of(source, *layers))


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    source = MemorySource()
    with WritableLayout(tmp_path) as target:
        for data in (b"{", b"[]", b'{"schemaVersion":2,"layers":3}'):
            with pytest.raises(InvalidDataError):
                copy_graph(source, target, source.add(data, OCI_MANIFEST))


def test_an_interrupt_stops_the_copy(tmp_path: Path) -> None:
    source = MemorySource()
    layers = [source.add(noise(seed, 50_000)) for seed in range(4)]

    class Interrupting(Recorder):
        def advance(self, amount: int) -> None:
            super().advance(amount)
            if self.advanced > 60_000:
                raise KeyboardInterrupt

    with WritableLayout(tmp_path / "d", "t") as target, pytest.raises(KeyboardInterrupt):
        copy_graph(source, target, manifest_of(source, *layers), Interrupting(), concurrency=1)
    assert not temporary_files(tmp_path)


KINDS = ("oci:{}/layout:t", "oci-archive:{}/image.tar:t", "alpine:3")


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_between_any_two_places(tmp_path: Path, here: str, there: str) -> None:
    first = parse_place(here.format(tmp_path / "1"))
    second = parse_place(there.format(tmp_path / "2"))
    with open_target(first, tmp_path / "store1") as target:
        root = push_index(target, [push_image(target, 1), push_image(target, 2)])
        target.tag(root)
    with (
        open_source(first, tmp_path / "store1") as source,
        open_target(second, tmp_path / "store2") as target,
    ):
        copy_graph(source, target, source.resolve())
        target.tag(source.resolve())
    with (
        open_source(second, tmp_path / "store2") as source,
        ArchiveTarget(tmp_path / "check.tar") as target,
    ):
        assert source.resolve() == root
        assert copy_graph(source, target, root).copied == 9
        # In place: the same place is read and written at once, under the same name.
        with open_target(second, tmp_path / "store2") as same:
            copy_graph(source, same, root)
            converted = push_json(same, {"schemaVersion": 2, "manifests": []}, OCI_INDEX)
            same.tag(converted)
    with open_source(second, tmp_path / "store2") as source:
        assert source.resolve() == converted


def test_places_are_sources(tmp_path: Path) -> None:
    with ArchiveTarget(tmp_path / "a.tar") as target:
        image = push_image(target)
        target.tag(image)
    with Archive(tmp_path / "a.tar") as source, WritableLayout(tmp_path / "d") as target:
        assert not target.link(image, source)
        copy_graph(source, target, image)
        target.tag(image)
    assert Layout(tmp_path / "d").resolve() == image
