from __future__ import annotations

import io
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import parse_reference
from soci_cli.targets import BlobReader, Layout, Store, read_blob
from tests.support.images import noise
from tests.support.places import describe, index_json, push_image, push_index

A = parse_reference("alpine:3")
B = parse_reference("ghcr.io/x/b:1")


def put(store: Store, name: str, seed: int = 0) -> Descriptor:
    with store.open(parse_reference(name)) as target:
        image = push_image(target, seed)
        target.tag(image)
    return image


def blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in store.root.glob("blobs/sha256/*")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def test_reading_creates_nothing(store: Store) -> None:
    assert store.images() == []
    assert store.locations("sha256:" + "0" * 64) == []
    assert store.recall_derived("k", "sha256:" + "0" * 64, "") is None
    assert store.sweep().blobs == ()
    with pytest.raises(NotFoundError, match=r"docker\.io/library/alpine:3 is not in"):
        store.remove(A)
    with store.open(A) as place:
        with pytest.raises(NotFoundError, match="is not in the local store"):
            place.resolve()
        assert not place.exists(describe(b"x"))
    assert not store.root.parent.exists()


def test_images(store: Store) -> None:
    image = put(store, "alpine:3")
    other = put(store, "ghcr.io/x/b:1", 1)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert [(stored.name, stored.descriptor) for stored in store.images()] == [
        ("docker.io/library/alpine:3", image),
        ("ghcr.io/x/b:1", other),
    ]
    assert index_json(store.root)["manifests"][0]["annotations"] == {
        "io.containerd.image.name": "docker.io/library/alpine:3",
        "org.opencontainers.image.ref.name": "docker.io/library/alpine:3",
    }
    with store.open(A) as source:
        assert source.resolve() == image
        assert source.name == "docker.io/library/alpine:3"
        assert read_blob(source, image)
    # Any tool can read the store as a layout.
    assert Layout(store.root, "ghcr.io/x/b:1").resolve() == other


def test_names_with_a_digest(store: Store) -> None:
    image = put(store, "alpine:3")
    by_digest = parse_reference(f"alpine@{image.digest}")
    with store.open(by_digest) as source:
        assert source.resolve() == image
        source.tag(image)
    assert len(store.images()) == 2
    with (
        store.open(parse_reference(f"alpin@{image.digest}")) as source,
        pytest.raises(NotFoundError),
    ):
        source.resolve()
    with (
        store.open(parse_reference("alpine@sha256:" + "0" * 64)) as target,
        pytest.raises(UsageError, match="cannot name"),
    ):
        target.tag(image)


def test_a_second_name(store: Store) -> None:
    image = put(store, "alpine:3")
    assert store.tag_image(A, B) == image
    assert [stored.name for stored in store.images()] == [str(A), str(B)]
    assert store.remove(A).blobs == ()
    with store.open(B) as source:
        assert source.resolve() == image
    with pytest.raises(NotFoundError):
        store.tag_image(A, B)


def test_remove_sweeps_what_nothing_needs(store: Store) -> None:
    with store.open(A) as target:
        shared, one, two = (push_image(target, seed) for seed in range(3))
        target.tag(push_index(target, [shared, one]))
    with store.open(B) as target:
        root = push_index(target, [shared, two])
        target.tag(root)
    (store.root / ".ingest-crashed").write_bytes(bytes(100))
    (store.root / "blobs" / "sha256" / "not-a-digest").touch()
    before = blobs(store)
    swept = store.remove(A)
    assert not swept.skipped
    assert len(swept.blobs) == 5  # the index, the manifest, its config and two layers
    assert set(swept.blobs) == before - blobs(store)
    assert swept.freed > 10_000
    assert not (store.root / ".ingest-crashed").exists()
    with store.open(B) as source:
        for descriptor in (root, shared, two):
            assert read_blob(source, descriptor)
    store.remove(B)
    assert blobs(store) == {"sha256:not-a-digest"}


def test_no_sweep_while_somebody_uses_the_store(store: Store) -> None:
    put(store, "alpine:3")
    layer = describe(noise(0, 5000))
    with store.open(B) as target:
        assert target.exists(layer)
        swept = store.remove(A)
        assert "another soci command" in swept.skipped
        assert swept.blobs == ()
        assert target.exists(layer)
    assert layer.digest in store.sweep().blobs


def test_a_pinned_image_stays_and_nothing_else(store: Store) -> None:
    image, other = put(store, "alpine:3"), put(store, "ghcr.io/x/b:1", 1)
    with store.open(A) as place:
        needed = blobs(store)
        place.pin(image)
        needed -= set(store.remove(B).blobs)
        assert other.digest not in blobs(store)
        assert store.remove(A).skipped == ""
        assert blobs(store) == needed
        assert read_blob(place, image)
        # What is damaged may name anything.
        (path,) = (store.root / ".pins").iterdir()
        path.write_text("[1]")
        assert str(path) in store.sweep().skipped
        path.write_text("[]")
    assert image.digest in store.sweep().blobs
    assert list((store.root / ".pins").iterdir()) == []


def test_pins_of_a_killed_process_count_no_more(store: Store) -> None:
    put(store, "alpine:3")
    code = (
        "import sys; from pathlib import Path; from soci_cli.targets import Store\n"
        "from soci_cli.oci.references import parse_reference\n"
        "place = Store(Path(sys.argv[1])).open(parse_reference('alpine:3'))\n"
        "place.pin(place.resolve()); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert store.remove(A).blobs == ()
        process.kill()
        process.wait()
    assert len(store.sweep().blobs) == len(blobs(store)) + 4


def test_a_damaged_manifest_stops_the_sweep(store: Store) -> None:
    image = put(store, "alpine:3")
    put(store, "ghcr.io/x/b:1", 1)
    path = Layout(store.root).blob_path(image.digest)
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    assert image.digest in store.remove(B).skipped
    path.write_bytes(good)
    assert len(store.sweep().blobs) == 4


def test_missing_blobs_do_not_stop_the_sweep(store: Store) -> None:
    image = put(store, "alpine:3")
    put(store, "ghcr.io/x/b:1", 1)
    Layout(store.root).blob_path(image.digest).unlink()
    assert store.remove(B).skipped == ""


def test_derived(store: Store) -> None:
    put(store, "alpine:3")
    layer = describe(noise(0, 5000))
    made = Descriptor("a/b", describe(b"made").digest, 4, annotations={"k": "ü"})
    with store.open(A) as target:
        target.push(made, b"made")
        orphan = describe(b"orphan")
        target.push(orphan, b"orphan")
    store.remember_derived("ztoc", layer.digest, "4194304", made)
    store.remember_derived("ztoc", describe(b"nowhere").digest, "", orphan)
    assert store.recall_derived("ztoc", layer.digest, "4194304") == made
    assert store.recall_derived("ztoc", layer.digest, "1") is None
    assert store.recall_derived("other", layer.digest, "4194304") is None
    # What comes from a needed layer is needed; what comes from nowhere is not.
    assert store.sweep().blobs == (orphan.digest,)
    assert store.recall_derived("ztoc", layer.digest, "4194304") == made
    assert store.recall_derived("ztoc", describe(b"nowhere").digest, "") is None
    Layout(store.root).blob_path(made.digest).unlink()
    assert store.recall_derived("ztoc", layer.digest, "4194304") is None
    store.remove(A)
    with closing(sqlite3.connect(store.root / "soci.db")) as db:
        assert db.execute("SELECT count(*) FROM derived").fetchone() == (0,)
    with pytest.raises(InvalidDataError):
        store.remember_derived("ztoc", "sha256:..", "", made)


def test_locations(store: Store) -> None:
    put(store, "alpine:3")
    layer = describe(noise(0, 5000)).digest
    other = describe(b"other").digest
    for place in ("registry.example/a", "docker.io/library/alpine", "registry.example/a"):
        store.remember_location(layer, place)
    store.remember_location(other, "x")
    assert store.locations(layer) == ["docker.io/library/alpine", "registry.example/a"]
    store.sweep()
    assert store.locations(other) == []
    assert len(store.locations(layer)) == 2
    store.remove(A)
    assert store.locations(layer) == []


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_database_is_moved_aside(store: Store, content: bytes) -> None:
    image = put(store, "alpine:3")
    (store.root / "soci.db").write_bytes(content)
    assert store.recall_derived("k", image.digest, "") is None
    store.remember_location(image.digest, "x")
    assert store.locations(image.digest) == ["x"]
    assert (store.root / "soci.db.unusable").read_bytes() == content


def test_a_database_of_another_version_is_moved_aside(store: Store) -> None:
    image = put(store, "alpine:3")
    with closing(sqlite3.connect(store.root / "soci.db")) as db:
        db.execute("PRAGMA user_version = 99")
    store.remember_location(image.digest, "x")
    assert store.locations(image.digest) == ["x"]
    assert (store.root / "soci.db.unusable").exists()


def test_odd_rows_are_unknown(store: Store) -> None:
    image = put(store, "alpine:3")
    store.remember_derived("k", image.digest, "", image)
    for change in ("digest = '../../x'", "size = -1", "annotations = '{'", "size = 'many'"):
        with closing(sqlite3.connect(store.root / "soci.db")) as db, db:
            db.execute(f"UPDATE derived SET {change}")
        assert store.recall_derived("k", image.digest, "") is None
        assert not store.sweep().skipped
        store.remember_derived("k", image.digest, "", image)


def test_a_database_that_cannot_be_opened(store: Store) -> None:
    put(store, "alpine:3")
    (store.root / "soci.db").mkdir()
    with pytest.raises(StorageError, match="cannot use") as caught:
        store.remember_location("sha256:" + "0" * 64, "x")
    assert "\n" not in str(caught.value)


def test_many_threads_remember(store: Store) -> None:
    image = put(store, "alpine:3")

    def remember(number: int) -> None:
        store.remember_location(image.digest, f"place{number:02}")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(remember, range(20)))
    assert len(store.locations(image.digest)) == 20


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StorageError, match="neither empty nor"):
        Store(tmp_path).open(A)


class Elsewhere:
    """A place that has one blob, or refuses to answer."""

    def __init__(self, name: str, data: bytes | None) -> None:
        self.name = name
        self.asked = 0
        self._data = data

    def fetch_while(
        self,
        check: Callable[[], None],
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
    ) -> BlobReader:
        self.asked += 1
        if self._data is None:
            raise StorageError(f"{self.name} is down")
        return Bytes(self._data)


class Bytes(io.BytesIO):
    """A blob that is read."""

    skipped = 0


def test_a_place_that_failed_is_asked_last(tmp_path: Path) -> None:
    data = noise(7, 1000)
    places = {"docker://gone.example/x": None, "docker://here.example/x": data}
    made = {name: Elsewhere(name, data) for name, data in places.items()}
    store = Store(tmp_path / "store", open_place=cast(Any, made.__getitem__))
    put(store, "alpine:3")
    layer = describe(data)
    for name in places:
        store.remember_location(layer.digest, name)
    asked = store.locations(layer.digest)
    made[asked[0]], made[asked[1]] = (
        made["docker://gone.example/x"],
        made["docker://here.example/x"],
    )
    with store.open(A) as target:
        for _ in range(5):
            with target.fetch(layer) as stream:
                assert stream.read(2000) == data
    assert made[asked[0]].asked == 1
    assert made[asked[1]].asked == 5
