"""The list of SOCI artifacts in the local store: what is kept, what goes, what is found again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import InvalidDataError, NotFoundError, StorageError, UsageError
from soci_cli.index.artifacts import (
    INDEX,
    PREFETCH,
    ZTOC,
    Artifacts,
    carried_indexes,
    made_indexes,
    version_of,
)
from soci_cli.index.build import IndexOptions, index_image
from soci_cli.index.image import read_image
from soci_cli.index.prefetch import decode_prefetch, encode_prefetch, span_count
from soci_cli.index.rebuild import rebuild
from soci_cli.oci import parse_reference
from soci_cli.targets import LOCAL_CONTENT, Layout, Store
from soci_cli.targets.containerd.client import Containerd
from tests.support.images import LINUX_AMD64, gz, layer_tar, make_image, run_convert

NAME = parse_reference("app")


def nowhere() -> Containerd:
    raise StorageError("containerd is not here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifacts(store: Store) -> Iterator[Artifacts]:
    with Artifacts(store, "default", nowhere) as opened:
        yield opened


def options(**more: object) -> IndexOptions:
    values: dict[str, object] = {"min_layer_size": 0, "platforms": (LINUX_AMD64,), **more}
    return IndexOptions(**values)  # type: ignore[arg-type]


def create(artifacts: Artifacts, image: Path, chosen: IndexOptions | None = None) -> str:
    """Indexes an image that is not in the store; the digest of the index."""
    with Layout(image) as source, artifacts.store.open_unnamed() as target:
        reports = index_image(source, target, chosen or options())
        made = made_indexes(reports, target, source.resolve())
        artifacts.record(made, LOCAL_CONTENT, pinned=True)
    return made[0].descriptor.digest


def blobs(store: Store) -> set[str]:
    return {digest for digest, _, _ in store.blobs()}


def test_what_was_made_is_listed(artifacts: Artifacts, tmp_path: Path) -> None:
    maker = make_image(tmp_path / "image")
    digest = create(artifacts, maker.root, options(prefetch_files=("etc/1/1",), span_size=1 << 16))
    (index,) = artifacts.all(INDEX)
    manifest = maker.entries[0]["digest"]
    assert (index.digest, index.original_digest, index.image_digest) == (digest, manifest, manifest)
    assert (index.platform, version_of(index), index.content_store) == ("linux/amd64", "v1", "soci")
    assert index.namespace == ""
    assert index.created.utcoffset() == timedelta(0)
    ztocs = artifacts.all(ZTOC)
    assert {one.span_size for one in ztocs} == {1 << 16}
    document = artifacts.read_index(index)
    named = {blob.digest for blob in document.layers}
    assert {one.digest for one in (*ztocs, *artifacts.all(PREFETCH))} == named
    assert len(artifacts.all(PREFETCH)) == 1
    assert [one.digest for one in artifacts.of_manifest(manifest)] == [digest]


def test_the_newest_comes_first(artifacts: Artifacts, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image").root
    first = create(artifacts, image)
    second = create(artifacts, image, options(span_size=1 << 16))
    assert [one.digest for one in artifacts.all(INDEX)] == [second, first]
    create(artifacts, image)
    assert [one.digest for one in artifacts.all(INDEX)] == [first, second]


def test_sweeps_keep_artifacts_until_they_are_removed(
    artifacts: Artifacts, store: Store, tmp_path: Path
) -> None:
    shared = gz(layer_tar(1))
    one = create(artifacts, make_image(tmp_path / "a", [shared, gz(layer_tar(2))]).root)
    two = create(artifacts, make_image(tmp_path / "b", [shared, gz(layer_tar(3))]).root)
    before = blobs(store)
    assert store.sweep().blobs == ()
    run_convert(tmp_path / "a", "app", store=store.root)
    store.remove(NAME)
    assert blobs(store) == before
    sweep = artifacts.remove([artifacts.find(one, INDEX)])
    assert one in sweep.blobs
    assert len(sweep.blobs) == 2  # the index, and the zTOC that the other one does not have
    assert [index.digest for index in artifacts.all(INDEX)] == [two]
    assert len(artifacts.all(ZTOC)) == 2
    artifacts.remove([artifacts.find(two, INDEX)])
    assert blobs(store) == set()
    assert artifacts.all(ZTOC) == []


def test_artifacts_of_an_image_in_the_store_go_with_it(
    artifacts: Artifacts, store: Store, tmp_path: Path
) -> None:
    run_convert(make_image(tmp_path / "image").root, "app", store=store.root)
    with store.open(NAME) as target:
        artifacts.record(carried_indexes(read_image(target)), LOCAL_CONTENT, pinned=False)
    assert [version_of(one) for one in artifacts.all(INDEX)] == ["v2"]
    store.remove(NAME)
    assert artifacts.all(INDEX) == artifacts.all(ZTOC) == []
    assert blobs(store) == set()


def test_finding(artifacts: Artifacts, tmp_path: Path) -> None:
    digest = create(artifacts, make_image(tmp_path / "image").root)
    ztoc = artifacts.all(ZTOC)[0]
    with pytest.raises(UsageError, match="is a zTOC, not a SOCI index; see `soci ztoc info`"):
        artifacts.find(ztoc.digest, INDEX)
    with pytest.raises(UsageError, match="is a SOCI index, not a zTOC"):
        artifacts.find(digest, ZTOC)
    with pytest.raises(NotFoundError, match="rebuild-db"):
        artifacts.find("sha256:" + "0" * 64, INDEX)


def test_a_lost_database(artifacts: Artifacts, store: Store, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image")
    digest = create(artifacts, image.root)
    run_convert(image.root, "app", store=store.root)
    (store.root / "soci.db").unlink()
    assert artifacts.all(INDEX) == []
    result = rebuild(artifacts, None)
    assert (result.added, result.removed, result.kept) == (6, 0, 0)
    v1, v2 = sorted(artifacts.all(INDEX), key=version_of)
    assert (v1.digest, v1.original_digest) == (digest, image.entries[0]["digest"])
    assert v1.pinned
    assert not v2.pinned
    assert v2.platform == "linux/amd64"
    artifacts.close()
    # What is in the store is kept, and goes, as before.
    store.remove(NAME)
    assert digest in blobs(store)
    assert [one.digest for one in artifacts.all(INDEX)] == [digest]
    again = rebuild(artifacts, None)
    assert (again.added, again.removed, again.kept) == (0, 0, 3)


def test_rebuilding_takes_off_what_is_gone(
    artifacts: Artifacts, store: Store, tmp_path: Path
) -> None:
    digest = create(artifacts, make_image(tmp_path / "image").root)
    (store.root / "blobs" / "sha256" / digest[7:]).unlink()
    assert artifacts.of_manifest(artifacts.all(INDEX)[0].original_digest) == []
    assert rebuild(artifacts, None).removed == 3
    assert artifacts.all(INDEX) == artifacts.all(ZTOC) == []


def test_rebuilding_passes_over_what_is_no_index(store: Store, tmp_path: Path) -> None:
    store.put_artifacts([])
    folder = store.root / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate((b"{", b"{}", b"[]", b'{"config": 1}', b"{" + bytes(100))):
        (folder / f"{number:064}").write_bytes(data)
    with Artifacts(store, "default", nowhere) as artifacts:
        assert rebuild(artifacts, None).added == 0


def test_a_database_of_the_first_version_is_brought_up_to_date(
    artifacts: Artifacts, store: Store, tmp_path: Path
) -> None:
    run_convert(make_image(tmp_path / "image").root, "app", store=store.root)
    path = store.root / "soci.db"
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE artifacts")
        db.execute("PRAGMA user_version = 1")
        known = db.execute("SELECT count(*) FROM derived").fetchone()[0]
    assert known == 2
    create(artifacts, tmp_path / "image")
    assert len(artifacts.all(INDEX)) == 1
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 2
        assert db.execute("SELECT count(*) FROM derived WHERE kind = 'ztoc'").fetchone()[0] >= 2
    assert not path.with_name("soci.db.unusable").exists()


def test_damaged_rows_are_left_out(artifacts: Artifacts, store: Store, tmp_path: Path) -> None:
    create(artifacts, make_image(tmp_path / "image").root)
    with sqlite3.connect(store.root / "soci.db") as db:
        db.execute("UPDATE artifacts SET created = 'yesterday' WHERE kind = 'index'")
        db.execute("UPDATE artifacts SET digest = 'x' WHERE rowid = 2")
    assert artifacts.all(INDEX) == []
    assert len(artifacts.all(ZTOC)) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5))
def test_prefetch_artifacts_are_read_as_they_were_written(pairs: list[tuple[int, int]]) -> None:
    spans = [(start, start + more) for start, more in pairs]
    artifact = decode_prefetch(encode_prefetch(spans), "sha256:x")
    assert (artifact.version, list(artifact.spans)) == ("1.0", spans)
    assert span_count(artifact) == sum(more + 1 for _, more in pairs)


@given(
    st.one_of(
        st.binary(max_size=50),
        st.sampled_from(
            [
                b"{}",
                b"[]",
                b'{"version":1,"prefetch_spans":[]}',
                b'{"version":"1.0","prefetch_spans":[1]}',
                b'{"version":"1.0","prefetch_spans":[{"start_span":true,"end_span":1}]}',
                b'{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}',
                b'{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":1}]}',
                b'{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":1e99}]}',
                b'{"version":"1.0","prefetch_spans":[{"start_span":0}]}',
            ]
        ),
    )
)
def test_what_is_no_prefetch_artifact(data: bytes) -> None:
    with pytest.raises(InvalidDataError, match="sha256:x"):
        decode_prefetch(data, "sha256:x")
