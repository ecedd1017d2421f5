from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets import Archive, ArchiveTarget, Layout, copy_graph, read_blob
from tests.support.images import noise
from tests.support.places import GOLDEN, describe, push_image, temporary_files


def make(path: Path, tag: str | None, seed: int = 0) -> Descriptor:
    with ArchiveTarget(path, tag) as target:
        image = push_image(target, seed)
        target.tag(image)
    return image


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        found = []
        for member in tar.getmembers():
            file = tar.extractfile(member)
            if file is not None:
                found.append((member.name, file.read()))
        return found


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.tar"
    image = make(path, "v1")
    with Archive(path, "v1") as source:
        assert source.name == f"oci-archive:{path}:v1"
        assert source.resolve() == image
        assert source.exists(image)
        assert len(read_blob(source, image)) == image.size
        with source.fetch(image, 1, 3) as stream:
            assert len(stream.read()) == 3
        with pytest.raises(NotFoundError, match="has no blob"):
            source.fetch(describe(b"absent"))
        with pytest.raises(IntegrityError, match="bytes, not the"):
            source.fetch(Descriptor("x", image.digest, image.size + 1))
        with pytest.raises(NotFoundError, match="there are v1"):
            Archive(path, "v2").resolve()
        stream = source.fetch(image)
    assert len(stream.read()) == image.size
    stream.close()
    assert os.listdir(path.parent) == ["a.tar"]  # noqa: PTH208


def test_the_tar_file_is_plain(tmp_path: Path) -> None:
    make(tmp_path / "a.tar", "v1")
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:2]] == ["blobs", "blobs/sha256"]
    assert [member.name for member in members[-2:]] == ["index.json", "oci-layout"]
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(0, 0, 0)}
    assert {member.mode for member in members} == {0o755, 0o644}
    assert (tmp_path / "a.tar").stat().st_size % 10240 == 0
    make(tmp_path / "b.tar", "v1")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers(tmp_path: Path, form: int) -> None:
    image = make(tmp_path / "a.tar", "v1")
    members = members_of(tmp_path / "a.tar")
    odd = [
        ("index.json", b"the last one counts"),
        ("x" * 99 + "/" + "y" * 99, b"long"),
        *((f"./{name}", data) for name, data in members),
    ]
    write_tar(tmp_path / "odd.tar", odd, form)
    with Archive(tmp_path / "odd.tar") as source:
        assert source.resolve() == image
        assert read_blob(source, image)


def test_refused_files(tmp_path: Path) -> None:
    make(tmp_path / "good.tar", "v1")
    good = (tmp_path / "good.tar").read_bytes()
    bad = tmp_path / "bad.tar"

    def refused(data: bytes, match: str) -> None:
        bad.write_bytes(data)
        with pytest.raises(InvalidDataError, match=match) as caught:
            Archive(bad)
        assert "\n" not in str(caught.value)

    refused(b"", "no valid tar file")
    refused(b"hello" * 1000, "no valid tar file")
    refused(gzip.compress(good), "gunzip first")
    refused(bytes(10240), "no member index.json|no valid tar file")
    refused(good[: len(good) // 2 + 100], "no valid tar file|no member|cut short")

    members = members_of(tmp_path / "good.tar")
    blobs = [(name, data) for name, data in members if name.startswith("blobs")]
    write_tar(bad, [*blobs, ("manifest.json", b"[]")], tarfile.GNU_FORMAT)
    refused(bad.read_bytes(), "skopeo copy docker-archive:")
    write_tar(bad, [*blobs, ("index.json", b"{}")], tarfile.GNU_FORMAT)
    refused(bad.read_bytes(), "no member oci-layout")
    marker = ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    write_tar(bad, [marker, ("index.json", b"{}")], tarfile.GNU_FORMAT)
    refused(bad.read_bytes(), "schema version 2")
    with tarfile.open(bad, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("index.json")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    refused(bad.read_bytes(), "no regular file")
    with pytest.raises(NotFoundError, match="no file"):
        Archive(tmp_path / "absent.tar")
    with pytest.raises(InvalidDataError, match="no regular file"):
        Archive(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidDataError, match="no regular file"):
        Archive(tmp_path / "fifo")


def header_with_size(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with any size in base 256, negative ones too."""
    info = tarfile.TarInfo(name)
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"5", b"S"])
@pytest.mark.parametrize("size", [-512, -1024, -1, 1 << 40, 1 << 62])
def test_hostile_sizes(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    first = header_with_size("first", 0)
    path.write_bytes(first + header_with_size("x", size, kind) + bytes(4096))
    with pytest.raises(InvalidDataError):
        Archive(path)


def test_every_cut_and_flip_is_a_clean_error(tmp_path: Path) -> None:
    image = make(tmp_path / "good.tar", "v1")
    good = (tmp_path / "good.tar").read_bytes()
    path = tmp_path / "a.tar"
    for position in range(0, len(good), 97):
        flipped = bytearray(good)
        flipped[position] ^= 0xFF
        for data in (good[:position], bytes(flipped)):
            path.write_bytes(data)
            try:
                with Archive(path) as source:
                    source.resolve()
                    read_blob(source, image)
            except (InvalidDataError, NotFoundError, IntegrityError):
                pass


def test_large_members(tmp_path: Path) -> None:
    """A sparse file stands for a blob of 9 GiB, which needs a base-256 size."""
    path = tmp_path / "a.tar"
    size = 9 << 30
    big = Descriptor("x", "sha256:" + "0" * 64, size)
    with ArchiveTarget(path, "t") as target:
        image = push_image(target)
        writer = target.open_writer(big)
        after = push_image(target, 1)
        with pytest.raises(StorageError, match="was not written"):
            target.tag(image)
        # Nobody wants to wait for the real digest of 9 GiB.
        target._finish_writer(writer, writer._region, True)
        target.tag(after)
    with Archive(path) as source:
        assert source.exists(big)
        assert read_blob(source, after)
        with source.fetch(big, size - 10) as stream:
            assert stream.read() == bytes(10)


def test_sha512_names_are_longer_than_a_header(tmp_path: Path) -> None:
    data = noise(3, 1000)
    blob = Descriptor("x", "sha512:" + hashlib.sha512(data).hexdigest(), len(data))
    with ArchiveTarget(tmp_path / "a.tar", "t") as target:
        target.push(blob, data)
        target.tag(blob)
    with Archive(tmp_path / "a.tar") as source:
        assert read_blob(source, source.resolve()) == data


def test_many_writers(tmp_path: Path) -> None:
    blobs = [noise(seed, 200_000 + seed) for seed in range(10)]
    path = tmp_path / "a.tar"
    with ArchiveTarget(path, "t") as target, ThreadPoolExecutor(10) as pool:

        def write(data: bytes) -> None:
            writer = target.open_writer(describe(data))
            for start in range(0, len(data), 7001):
                writer.write(data[start : start + 7001])
            writer.commit()
            assert read_blob(target, describe(data)) == data

        list(pool.map(write, blobs))
        target.tag(describe(blobs[0]))

    with Archive(path) as source, ThreadPoolExecutor(10) as pool:

        def read(data: bytes) -> bool:
            return read_blob(source, describe(data)) == data

        assert all(pool.map(read, blobs * 3))


def test_an_aborted_blob_is_written_again_or_the_archive_is_not_finished(tmp_path: Path) -> None:
    data = noise(1, 3000)
    with ArchiveTarget(tmp_path / "a.tar", "t") as target:
        image = push_image(target)
        writer = target.open_writer(describe(data))
        writer.write(data[:1000])
        with pytest.raises(IntegrityError, match="ended after"):
            writer.commit()
        writer.abort()
        writer.abort()
        assert not target.exists(describe(data))
        with pytest.raises(StorageError, match=describe(data).digest):
            target.tag(image)
        target.push(describe(data), data)
        target.tag(image)
        assert target.resolve() == image
        with pytest.raises(StorageError, match="is finished"):
            target.push(describe(b"more"), b"more")
    with Archive(tmp_path / "a.tar") as source:
        assert read_blob(source, describe(data)) == data


def test_nothing_is_left_without_a_tag(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with ArchiveTarget(path, "t") as target:
        writer = target.open_writer(describe(b"12345"))
        writer.write(b"123")
        with pytest.raises(NotFoundError, match="was not written yet"):
            target.resolve()
    assert not list(tmp_path.iterdir())
    first = make(path, "t", 1)
    with ArchiveTarget(path, "t") as target:
        push_image(target, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]
    with Archive(path) as source:
        assert source.resolve() == first


def test_writing_over_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    image = make(path, "latest")
    with Archive(path) as source, ArchiveTarget(path) as target:
        copy_graph(source, target, image)
        extra = push_image(target, 5)
        target.tag(extra)
        assert read_blob(source, image)
        assert source.resolve() == image
    # The name of the only image is kept.
    with Archive(path, "latest") as source:
        assert source.resolve() == extra
        assert read_blob(source, image)


def test_leftovers_are_cleaned_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.tar.tmp-old", tmp_path / ".a.tar.tmp-new"
    for path in (old, new):
        path.touch()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    make(tmp_path / "a.tar", "t")
    assert temporary_files(tmp_path) == [new.name]


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no regular file"):
        ArchiveTarget(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        make(tmp_path / "file" / "a.tar", None)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*")))
def test_golden_images_are_copied_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar"
    with Layout(GOLDEN / name) as source, ArchiveTarget(path, "x") as target:
        root = source.resolve()
        summary = copy_graph(source, target, root, concurrency=4)
        target.tag(root)
    with Archive(path, "x") as archive:
        assert archive.resolve() == root
        files = GOLDEN.glob(f"{name}/blobs/sha256/*")
        blobs = [Descriptor("x", f"sha256:{file.name}", file.stat().st_size) for file in files]
        copied = [blob for blob in blobs if archive.exists(blob)]
        assert len(copied) == summary.copied
        for blob in copied:
            read_blob(archive, blob)
