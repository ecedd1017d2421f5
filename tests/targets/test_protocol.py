"""A place needs five methods; everything else has an answer that is right for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_INDEX, OCI_MANIFEST
from soci_cli.oci.references import parse_reference
from soci_cli.targets import (
    Archive,
    ArchiveTarget,
    BytesLike,
    Layout,
    Store,
    Target,
    WritableLayout,
    copy_graph,
    local_store,
)
from soci_cli.targets._disk import MemoryReader
from soci_cli.targets.blobs import ContentCheck, check_range
from tests.support.images import noise
from tests.support.places import describe, push_image, push_index, push_json, temporary_files


class Memory(Target):
    """A place in memory, with the five methods that make one."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.blobs: dict[str, bytes] = {}
        self.tagged: Descriptor | None = None

    def resolve(self) -> Descriptor:
        if self.tagged is None:
            raise NotFoundError("nothing is tagged", place=self.name)
        return self.tagged

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> MemoryReader:
        count = check_range(descriptor, offset, length)
        return MemoryReader(self.blobs[descriptor.digest][offset : offset + count])

    def exists(self, descriptor: Descriptor) -> bool:
        return len(self.blobs.get(descriptor.digest, b"")) == descriptor.size

    def open_writer(self, descriptor: Descriptor) -> MemoryWriter:
        return MemoryWriter(self, descriptor)

    def tag(self, descriptor: Descriptor) -> None:
        self.tagged = descriptor


class MemoryWriter:
    def __init__(self, place: Memory, descriptor: Descriptor) -> None:
        self._place = place
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, place.name)
        self._data = b""

    def write(self, data: BytesLike, /) -> int:
        self._check.add(data)
        self._data += data
        return len(data)

    def commit(self) -> None:
        self._check.verify()
        self._place.blobs[self._descriptor.digest] = self._data

    def abort(self) -> None:
        self._data = b""


def test_five_methods_make_a_place(tmp_path: Path) -> None:
    with WritableLayout(tmp_path / "from", "t") as layout:
        root = push_index(layout, [push_image(layout, 1), push_image(layout, 2)])
        layout.tag(root)
    with Memory() as memory, Layout(tmp_path / "from") as source:
        assert copy_graph(source, memory, source.resolve()).copied == 9
        memory.tag(root)
        memory.tag(memory.find(root.digest))
        assert copy_graph(source, memory, root).present == 9
        with WritableLayout(tmp_path / "to", "t") as target:
            copy_graph(memory, target, memory.resolve())
            target.tag(root)
        assert memory.names() == {} and memory.referrers(root, "x") == ()
        assert memory.origins(root) == () and memory.before() is None
        assert not memory.link(root, source) and not memory.mount(root, source)
        assert memory.folder is None and memory.repository is None and memory.store is None
    assert Layout(tmp_path / "to").resolve() == root


def test_manifests_are_found_by_their_digest(tmp_path: Path) -> None:
    """Those that the image lists everywhere; those that it does not where blobs can be looked up."""
    store = local_store(tmp_path / "store")
    targets: list[Target] = [
        Memory(),
        WritableLayout(tmp_path / "layout", "t"),
        ArchiveTarget(tmp_path / "a.tar", "t"),
        store.open(parse_reference("app:1")),
    ]
    for target in targets:
        with target:
            child = push_image(target, 1)
            other = push_json(target, {"schemaVersion": 2, "manifests": []}, OCI_INDEX)
            layer = describe(b"no manifest")
            target.push(layer, b"no manifest")
            root = push_index(target, [child])
            target.tag(root)
        source = Archive(tmp_path / "a.tar") if isinstance(target, ArchiveTarget) else target
        assert source.find(root.digest).media_type == OCI_INDEX
        assert source.find(child.digest) == Descriptor(OCI_MANIFEST, child.digest, child.size)
        if isinstance(target, Memory):
            with pytest.raises(NotFoundError, match=f"^memory: .*{other.digest}"):
                source.find(other.digest)
        else:
            found = source.find(other.digest)
            assert found == Descriptor(OCI_INDEX, other.digest, other.size)
            with pytest.raises(InvalidDataError):
                source.find(layer.digest)
        with pytest.raises(NotFoundError):
            source.find("sha256:" + "0" * 64)


@pytest.mark.parametrize("kind", ["layout", "archive", "store"])
def test_a_thread_that_was_left_behind_writes_no_more(tmp_path: Path, kind: str) -> None:
    """After `close` its writer is aborted and it can open no other, so nothing half-written stays."""
    blob = describe(noise(1, 1000))
    target: Target = WritableLayout(tmp_path / "d")
    if kind == "archive":
        target = ArchiveTarget(tmp_path / "d.tar")
    elif kind == "store":
        target = Store(tmp_path / "d").open(parse_reference("app:1"))
    errors: list[Exception] = []
    half, closed = threading.Event(), threading.Event()

    def work() -> None:
        writer = target.open_writer(blob)
        writer.write(noise(1, 1000)[:500])
        half.set()
        closed.wait(60)
        for again in (lambda: writer.write(b"more"), lambda: target.push(blob, noise(1, 1000))):
            try:
                again()
            except StorageError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    with pytest.raises(KeyboardInterrupt), target:
        thread.start()
        half.wait(60)
        raise KeyboardInterrupt
    closed.set()
    thread.join()
    assert len(errors) == 2 and "aborted" in str(errors[0]) and "closed" in str(errors[1])
    assert not temporary_files(tmp_path) and not list(tmp_path.rglob(blob.digest[7:]))
