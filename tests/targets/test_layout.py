from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    StorageError,
    UsageError,
)
from soci_cli.oci.descriptor import Descriptor, Platform
from soci_cli.oci.media_types import OCI_INDEX
from soci_cli.targets import Layout, WritableLayout, copy_graph, read_blob
from tests.support.images import noise
from tests.support.places import (
    GOLDEN,
    describe,
    index_json,
    push_image,
    push_index,
    ref_names,
    temporary_files,
    write_index_json,
)


def make(root: Path, *tags: str | None) -> list[Descriptor]:
    made = []
    for seed, tag in enumerate(tags):
        with WritableLayout(root, tag) as target:
            made.append(push_image(target, seed))
            target.tag(made[-1])
    return made


def test_what_is_tagged_is_read_back(tmp_path: Path) -> None:
    (image,) = make(tmp_path / "new" / "layout", "v1")
    source = Layout(tmp_path / "new" / "layout", "v1")
    assert source.resolve() == image
    assert len(read_blob(source, image)) == image.size
    assert source.name == f"oci:{tmp_path}/new/layout:v1"
    assert json.loads((tmp_path / "new/layout/oci-layout").read_bytes()) == {
        "imageLayoutVersion": "1.0.0"
    }


def test_a_held_layout_is_read_though_its_path_leads_elsewhere(tmp_path: Path) -> None:
    (image,) = make(tmp_path / "layout", "v1")
    with Layout(tmp_path / "layout", "v1") as source:
        source.pin()
        (tmp_path / "layout").rename(tmp_path / "away")
        assert source.resolve() == image
        assert len(read_blob(source, image)) == image.size
        (tmp_path / "away").rename(tmp_path / "layout")
    assert source.resolve() == image
    with pytest.raises(StorageError, match=r"cannot open .*absent"):
        Layout(tmp_path / "absent").pin()


def test_ranges(tmp_path: Path) -> None:
    data = noise(1, 1000)
    blob = describe(data)
    with WritableLayout(tmp_path / "d") as target:
        target.push(blob, data)
        with target.fetch(blob, 10, 20) as stream:
            assert stream.read(5) == data[10:15]
            buffer = bytearray(100)
            assert stream.readinto(buffer) == 15
            assert bytes(buffer[:15]) == data[15:30]
            assert stream.read() == b""
            assert stream.readinto(buffer) == 0
        with target.fetch(blob, 990) as stream:
            assert stream.read() == data[990:]
        for offset, length in ((-1, 1), (0, 1001), (1001, None), (5, -1)):
            with pytest.raises(InvalidDataError, match="asked of blob"):
                target.fetch(blob, offset, length)


def test_tags(tmp_path: Path) -> None:
    first, second = make(tmp_path, "a", "docker.io/library/b:2")
    assert Layout(tmp_path, "a").resolve() == first
    assert Layout(tmp_path, "docker.io/library/b:2").resolve() == second
    assert Layout(tmp_path, f"@{second.digest}").resolve() == second
    with pytest.raises(NotFoundError, match="there are a, docker"):
        Layout(tmp_path, "c").resolve()
    with pytest.raises(NotFoundError, match="several images, so add a tag; there are a, docker"):
        Layout(tmp_path).resolve()
    with pytest.raises(UsageError, match="which tag to write"):
        WritableLayout(tmp_path)
    with pytest.raises(UsageError, match="under a digest"):
        WritableLayout(tmp_path, f"@{second.digest}")


def test_containerd_names(tmp_path: Path) -> None:
    make(tmp_path, "one", "two")
    value = index_json(tmp_path)
    for entry, name in zip(value["manifests"], ("a", "b"), strict=True):
        entry["annotations"] = {
            "io.containerd.image.name": f"docker.io/library/{name}:{name}1",
            "org.opencontainers.image.ref.name": "latest",
        }
    write_index_json(tmp_path, value)
    found = Layout(tmp_path, "docker.io/library/b:b1").resolve()
    assert found.digest == value["manifests"][1]["digest"]
    assert not found.annotations
    assert Layout(tmp_path, "b1").resolve() == found
    with pytest.raises(NotFoundError, match="several images with the tag latest"):
        Layout(tmp_path, "latest").resolve()
    with pytest.raises(UsageError, match="several images with the tag latest"):
        WritableLayout(tmp_path, "latest")
    # One image with two names is not ambiguous to read, but writing would lose a name.
    one = json.loads(json.dumps(value))
    one["manifests"][1]["digest"] = one["manifests"][0]["digest"]
    one["manifests"][1]["size"] = one["manifests"][0]["size"]
    write_index_json(tmp_path, one)
    assert Layout(tmp_path, "latest").resolve()
    with pytest.raises(UsageError, match="several images with the tag latest"):
        WritableLayout(tmp_path, "latest")
    write_index_json(tmp_path, value)
    # The entry that is found by its long name keeps both names.
    with WritableLayout(tmp_path, "docker.io/library/b:b1") as target:
        target.tag(push_image(target, 7))
    after = index_json(tmp_path)["manifests"]
    assert after[0] == value["manifests"][0]
    assert after[1]["annotations"] == value["manifests"][1]["annotations"]
    assert after[1]["digest"] != value["manifests"][1]["digest"]


def test_the_rest_of_index_json_stays(tmp_path: Path) -> None:
    make(tmp_path, "a", "b", "c")
    value = index_json(tmp_path)
    value["x-unknown"] = {"kept": [1, 2.5, None, "ü<&>"]}
    value["annotations"] = {"k": "v"}
    value["manifests"][0]["x-entry"] = True
    write_index_json(tmp_path, value)
    with WritableLayout(tmp_path, "b") as target:
        image = replace(push_image(target, 9), annotations={"keep": "me"}, platform=None)
        target.tag(image)
    after = index_json(tmp_path)
    assert after["manifests"][1]["digest"] == image.digest
    assert after["manifests"][1]["annotations"] == {
        "keep": "me",
        "org.opencontainers.image.ref.name": "b",
    }
    after["manifests"][1] = value["manifests"][1]
    assert after == value
    assert Layout(tmp_path, "b").resolve().annotations == {"keep": "me"}


def test_without_a_tag(tmp_path: Path) -> None:
    make(tmp_path / "plain", None)
    assert ref_names(tmp_path / "plain") == [None]
    (_, second) = make(tmp_path / "plain", None, None)
    assert Layout(tmp_path / "plain").resolve() == second
    assert len(index_json(tmp_path / "plain")["manifests"]) == 1

    make(tmp_path / "named", "latest", None)
    assert ref_names(tmp_path / "named") == ["latest"]
    assert index_json(tmp_path / "named")["manifests"][0]["digest"] == second.digest

    make(tmp_path / "mixed", None, "x")
    with WritableLayout(tmp_path / "mixed") as target:
        target.tag(push_image(target, 5))
    assert ref_names(tmp_path / "mixed") == [None, "x"]


def test_flat_index(tmp_path: Path) -> None:
    images = make(tmp_path, "a", "b")
    value = index_json(tmp_path)
    for entry, arch in zip(value["manifests"], ("amd64", "arm64"), strict=True):
        entry["platform"] = {"architecture": arch, "os": "linux"}
        del entry["annotations"]
    write_index_json(tmp_path, value)
    source = Layout(tmp_path)
    root = source.resolve()
    assert root.media_type == OCI_INDEX
    assert source.exists(root)
    listed = json.loads(read_blob(source, root))["manifests"]
    assert [entry["digest"] for entry in listed] == [image.digest for image in images]
    assert Layout(tmp_path, f"@{root.digest}").resolve() == root
    one = Layout(tmp_path, f"@{images[1].digest}").resolve()
    assert one.platform == Platform("arm64", "linux")
    with source.fetch(root, 2, 5) as stream:
        assert stream.read() == read_blob(source, root)[2:7]

    with WritableLayout(tmp_path / "out", "t") as target:
        copy_graph(source, target, root)
        target.tag(root)
    assert Layout(tmp_path / "out", "t").resolve() == root

    with WritableLayout(tmp_path) as target:
        copy_graph(source, target, root)
        target.tag(root)
    assert Layout(tmp_path).resolve() == root
    assert len(index_json(tmp_path)["manifests"]) == 1


def test_broken_layouts(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        Layout(tmp_path / "absent").resolve()
    with pytest.raises(InvalidDataError, match="no file oci-layout"):
        Layout(tmp_path).resolve()
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(InvalidDataError, match=r"2\.0\.0"):
        Layout(tmp_path).resolve()
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.1.0"}')
    with pytest.raises(InvalidDataError, match=r"no file index\.json"):
        Layout(tmp_path).resolve()
    bad = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schemaVersion":2,"manifests":{}}',
        '{"schemaVersion":2,"manifests":[1]}',
        '{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../etc/passwd","size":1}]}',
        '{"schemaVersion":2,"manifests":[{"digest":"sha256:%s","size":-1}]}' % ("0" * 64),
        "[" * 100_000,
    ]
    for text in bad:
        (tmp_path / "index.json").write_text(text)
        for layout in (Layout(tmp_path), Layout(tmp_path, "x")):
            with pytest.raises(InvalidDataError) as caught:
                layout.resolve()
            assert "\n" not in str(caught.value)
        with pytest.raises(InvalidDataError):
            WritableLayout(tmp_path, "x")
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":null}')
    with pytest.raises(NotFoundError, match="holds no image"):
        Layout(tmp_path).resolve()
    (tmp_path / "index.json").unlink()
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidDataError, match="at most"):
        Layout(tmp_path).resolve()
    (tmp_path / "index.json").unlink()
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(InvalidDataError, match="no regular file"):
        Layout(tmp_path).resolve()


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    value = index_json(tmp_path)
    value["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "\x1b[2J\nx"
    write_index_json(tmp_path, value)
    with pytest.raises(NotFoundError) as caught:
        Layout(tmp_path, "zzz").resolve()
    assert str(caught.value).isprintable()


def test_bad_blobs(tmp_path: Path) -> None:
    make(tmp_path, "a")
    layout = Layout(tmp_path)
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    blob = describe(b"secret")
    path = layout.blob_path(blob.digest)

    with pytest.raises(NotFoundError, match=blob.digest):
        layout.fetch(blob)
    path.symlink_to(outside)
    for action in (layout.fetch, layout.exists):
        with pytest.raises(InvalidDataError, match="no regular file"):
            action(blob)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidDataError, match="no regular file"):
        layout.fetch(blob)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(InvalidDataError, match="no regular file"):
        layout.fetch(blob)
    path.unlink()
    path.write_bytes(b"secre")
    assert not layout.exists(blob)
    with pytest.raises(IntegrityError, match="has 5 bytes"):
        layout.fetch(blob)
    path.write_bytes(b"sEcret")
    with pytest.raises(IntegrityError, match="does not have that digest"):
        read_blob(layout, blob)

    traversal = Descriptor("x", "sha256:../../../../etc/passwd", 5)
    for action in (layout.fetch, layout.exists):
        with pytest.raises(InvalidDataError):
            action(traversal)
    with pytest.raises(InvalidDataError), WritableLayout(tmp_path, "x") as target:
        target.open_writer(traversal)


def test_linked_blob_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "real", "a")
    image = Layout(tmp_path / "real").resolve()
    fake = tmp_path / "fake"
    fake.mkdir()
    for name in ("oci-layout", "index.json"):
        shutil.copy(tmp_path / "real" / name, fake)
    (fake / "blobs").symlink_to(tmp_path / "real" / "blobs")
    with pytest.raises(InvalidDataError):
        Layout(fake).fetch(image)


def test_writers_check(tmp_path: Path) -> None:
    blob = describe(b"12345")
    with WritableLayout(tmp_path / "d", "t") as target:
        short = target.open_writer(blob)
        short.write(b"1234")
        with pytest.raises(IntegrityError, match="ended after 4 of 5"):
            short.commit()
        short.abort()
        short.abort()
        long = target.open_writer(blob)
        with pytest.raises(IntegrityError, match="longer than"):
            long.write(b"123456")
        wrong = target.open_writer(blob)
        wrong.write(memoryview(b"123"))
        wrong.write(bytearray(b"xx"))
        with pytest.raises(IntegrityError, match="does not have that digest"):
            wrong.commit()
        assert not target.exists(blob)
        with pytest.raises(NotFoundError, match="cannot be tagged"):
            target.tag(blob)
    # A new layout in which nothing was finished leaves nothing.
    assert not (tmp_path / "d").exists()


def test_finished_blobs_of_an_unfinished_run_are_found(tmp_path: Path) -> None:
    with WritableLayout(tmp_path / "d", "t") as target:
        image = push_image(target)
    assert not (tmp_path / "d" / "index.json").exists()
    with WritableLayout(tmp_path / "d", "t") as target:
        assert target.exists(image)
        target.tag(image)
    assert Layout(tmp_path / "d").resolve() == image


def test_a_damaged_blob_is_replaced(tmp_path: Path) -> None:
    with WritableLayout(tmp_path, "t") as target:
        image = push_image(target)
        target.blob_path(image.digest).write_bytes(b"x")
        image = push_image(target)
        target.tag(image)
    assert read_blob(Layout(tmp_path), image)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StorageError, match="neither empty nor"):
        WritableLayout(tmp_path, "t")
    for path in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(StorageError, match="a file in the way"):
            WritableLayout(path, "t")


def test_leftovers_are_cleaned_after_a_day(tmp_path: Path) -> None:
    make(tmp_path, "a")
    old, new = tmp_path / ".ingest-old", tmp_path / ".ingest-new"
    for path in (old, new):
        path.touch()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    make(tmp_path, "b")
    assert not old.exists()
    assert new.exists()


def test_links(tmp_path: Path) -> None:
    make(tmp_path / "a", "t")
    source = Layout(tmp_path / "a")
    image = source.resolve()
    with WritableLayout(tmp_path / "b", "t") as target:
        summary = copy_graph(source, target, image)
        target.tag(image)
        assert summary.linked == 3
        assert target.link(image, source)
        layer = describe(noise(0, 5000))
        assert target.blob_path(layer.digest).samefile(source.blob_path(layer.digest))
        assert not target.link(describe(b"absent"), source)
    damaged = source.blob_path(layer.digest)
    damaged.write_bytes(bytes(5000))
    with WritableLayout(tmp_path / "c", "t") as target:
        with pytest.raises(IntegrityError, match="does not have that digest"):
            copy_graph(source, target, image)
        assert not target.exists(layer)
    if os.geteuid() == 0:
        damaged.write_bytes(noise(0, 5000))
        os.chown(damaged, 12345, 12345)
        with WritableLayout(tmp_path / "c", "t") as target:
            assert not target.link(layer, source)
            copy_graph(source, target, image)
            assert target.blob_path(layer.digest).stat().st_nlink == 1


def test_one_layout_as_source_and_target(tmp_path: Path) -> None:
    (image,) = make(tmp_path, "a")
    for tag in ("b", "a"):
        with Layout(tmp_path, "a") as source, WritableLayout(tmp_path, tag) as target:
            summary = copy_graph(source, target, source.resolve())
            assert (summary.copied, summary.linked) == (0, 0)
            target.tag(image)
    assert ref_names(tmp_path) == ["a", "b"]


def test_many_writers(tmp_path: Path) -> None:
    blobs = [noise(seed, 300_000) for seed in range(8)]

    with WritableLayout(tmp_path, "t") as target:

        def write(data: bytes) -> None:
            writer = target.open_writer(describe(data))
            for start in range(0, len(data), 7001):
                writer.write(data[start : start + 7001])
            writer.commit()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(write, blobs * 2))
        for data in blobs:
            assert read_blob(target, describe(data)) == data
    assert not temporary_files(tmp_path)


def test_full_disk(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    data = noise(1, 2_000_000)
    with (
        pytest.raises(StorageError, match=r"No space left.*free some space") as caught,
        WritableLayout(disk / "layout", "t") as target,
    ):
        target.push(describe(data), data)
    assert "\n" not in str(caught.value)
    assert not (disk / "layout").exists()
    make(disk / "layout", "small")
    with pytest.raises(StorageError), WritableLayout(disk / "layout", "big") as target:
        target.push(describe(data), data)
    assert ref_names(disk / "layout") == ["small"]
    assert not temporary_files(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(StorageError, match="Read-only"):
        make(disk / "layout", "other")
    assert Layout(disk / "layout").resolve()


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*")))
def test_golden_images_are_copied_whole(tmp_path: Path, name: str) -> None:
    with Layout(GOLDEN / name) as source, WritableLayout(tmp_path / "out", "x") as target:
        root = source.resolve()
        copy_graph(source, target, root, concurrency=4)
        target.tag(root)
    assert Layout(tmp_path / "out").resolve() == root
    before = {path.name for path in GOLDEN.glob(f"{name}/blobs/sha256/*")}
    assert {path.name for path in tmp_path.glob("out/blobs/sha256/*")} <= before


def test_index_of_indexes(tmp_path: Path) -> None:
    with WritableLayout(tmp_path / "a", "t") as target:
        one = push_image(target, 1)
        inner = push_index(target, [one, push_image(target, 2)])
        root = push_index(target, [inner, one])
        target.tag(root)
    with WritableLayout(tmp_path / "b", "t") as target:
        summary = copy_graph(Layout(tmp_path / "a"), target, root)
        target.tag(root)
    assert summary.copied + summary.linked == 10
    names = {path.name for path in tmp_path.glob("a/blobs/sha256/*")}
    assert {path.name for path in tmp_path.glob("b/blobs/sha256/*")} == names
