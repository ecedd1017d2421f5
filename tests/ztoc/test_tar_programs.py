"""Tar archives that other programs write."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.ztoc import Compression, FileMetadata, FileTree, LayerReader, decode_ztoc
from tests.support.layers import (
    END,
    build,
    file,
    header,
    long_name,
    pax,
    reader_of,
    refused,
    scan,
    utc,
)
from tests.support.scale import examples

# What other programs write, fed in pieces.


TYPES = {
    tarfile.REGTYPE: b"reg",
    tarfile.DIRTYPE: b"dir",
    tarfile.SYMTYPE: b"symlink",
    tarfile.LNKTYPE: b"hardlink",
    tarfile.CHRTYPE: b"char",
    tarfile.BLKTYPE: b"block",
    tarfile.FIFOTYPE: b"fifo",
}


def check_against_tarfile(archive: bytes, cuts: list[int]) -> list[FileMetadata]:
    """Compares with what tarfile reads; times to the second."""
    entries, _ = scan(archive, cuts)
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as other:
        members = other.getmembers()
    assert len(entries) == len(members)
    for entry, member in zip(entries, members, strict=True):
        name = member.name.encode("utf-8", "surrogateescape")
        # tarfile drops a folder's trailing slash.
        assert entry.name.rstrip(b"/") == name.rstrip(b"/")
        assert entry.type == TYPES[b"0" if member.type == b"\0" else member.type]
        assert entry.linkname.decode("utf-8", "surrogateescape") == member.linkname
        assert entry.uncompressed_offset == member.offset_data
        assert entry.uncompressed_size == member.size
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert (entry.uname.decode(), entry.gname.decode()) == (member.uname, member.gname)
        if member.mtime >= 0:
            assert entry.mod_time[:19] == utc(member.mtime)[:19]
        if entry.type in (b"char", b"block"):
            assert (entry.devmajor, entry.devminor) == (member.devmajor, member.devminor)
    return entries


letters = st.characters(codec="utf-8", exclude_characters="/\0")
parts = st.text(letters, min_size=1, max_size=60).filter(lambda part: part not in (".", ".."))
paths = st.lists(parts, min_size=1, max_size=6).map("/".join)
short_paths = st.lists(st.text("abcdef-_.", min_size=1, max_size=12), min_size=1, max_size=4).map(
    "/".join
)


@st.composite
def members(draw: st.DrawFn, long: bool) -> tuple[tarfile.TarInfo, bytes]:
    names = paths if long else short_paths
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from([tarfile.REGTYPE] * 3 + list(TYPES)))
    data = draw(st.binary(max_size=1500)) if info.type == tarfile.REGTYPE else b""
    info.size = len(data)
    info.mode = draw(st.integers(0, 0o7777))
    largest = 2**32 - 1 if long else 0o7777777
    info.uid = draw(st.integers(0, largest))
    info.gid = draw(st.integers(0, largest))
    info.uname = draw(st.text("abc", max_size=20))
    info.gname = draw(st.text("abc", max_size=20))
    info.mtime = draw(st.integers(0, 2**35 if long else 8**11 - 1))
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(names)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor = draw(st.integers(0, 0o777777))
        info.devminor = draw(st.integers(0, 0o777777))
    return info, data


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@examples(60)
@given(data=st.data())
def test_archives_of_tarfile(format_: int, data: st.DataObject) -> None:
    long = format_ != tarfile.USTAR_FORMAT
    written = data.draw(st.lists(members(long), max_size=8))
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_, encoding="utf-8") as archive:
        for info, content in written:
            archive.addfile(info, io.BytesIO(content))
    archive_bytes = target.getvalue()
    cuts = data.draw(st.lists(st.integers(0, len(archive_bytes)), max_size=30))
    entries = check_against_tarfile(archive_bytes, cuts)
    for entry, (info, content) in zip(entries, written, strict=True):
        start = entry.uncompressed_offset
        assert archive_bytes[start : start + len(content)] == content
        assert entry.mod_time == utc(info.mtime)


def test_fed_byte_by_byte() -> None:
    archive = (
        pax([(b"path", b"p" * 700)])
        + file(b"n", b"hello" * 300)
        + long_name(b"long" * 200)
        + file(b"m", b"x")
        + END
        + b"more"
    )
    whole = scan(archive)
    assert scan(archive, range(len(archive))) == whole
    for step in (7, 511, 512, 513, 1000):
        assert scan(archive, range(0, len(archive), step)) == whole


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with some of everything that an ordinary user can make."""
    root = tmp_path / "tree"
    deep = root / "folder" / ("d" * 90) / ("e" * 60)
    deep.mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "file").write_bytes(b"hello")
    (root / "block").write_bytes(b"x" * 512)
    (root / "big").write_bytes(b"y" * 100_001)
    (deep / "leaf").write_bytes(b"leaf")
    (root / "link").symlink_to("file")
    (root / "absolute").symlink_to("/etc/hosts")
    (root / "long-link").symlink_to("t" * 90)
    os.link(root / "file", root / "hard")
    os.mkfifo(root / "fifo")
    (root / "file").chmod(0o4711)
    for path in sorted(root.rglob("*")):
        os.utime(path, (1_600_000_000.25, 1_600_000_000.75), follow_symlinks=False)
    return root


def gnu_tar(tree: Path, *options: str) -> bytes:
    return subprocess.run(
        ["tar", "--create", "--sort=name", *options, "--directory", str(tree), "."],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    ).stdout


needs_gnu_tar = pytest.mark.skipif(
    shutil.which("tar") is None
    or b"GNU"
    not in subprocess.run(["tar", "--version"], stdout=subprocess.PIPE, check=False).stdout,
    reason="needs GNU tar",
)


@needs_gnu_tar
@pytest.mark.parametrize("format_", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_archives_of_gnu_tar(format_: str, tree: Path) -> None:
    if format_ == "v7":
        # Its names have 100 bytes, and it knows no fifos.
        shutil.rmtree(tree / "folder")
        (tree / "fifo").unlink()
    elif format_ in ("gnu", "oldgnu", "pax"):
        (tree / ("n" * 200)).write_bytes(b"long")
        (tree / "longest-link").symlink_to("t" * 250)
        (tree / "ünïcode-名前").write_bytes(b"name")
        (tree / os.fsdecode(b"\xff\xfe")).write_bytes(b"not UTF-8")
    archive = gnu_tar(tree, f"--format={format_}")
    entries = check_against_tarfile(archive, list(range(0, len(archive), 777)))
    by_name = {entry.name: entry for entry in entries}
    assert by_name[b"./file"].mode == 0o4711
    assert by_name[b"./"].type == b"dir"
    assert by_name[b"./hard"].type == b"hardlink"
    assert by_name[b"./hard"].linkname == b"./file"
    start = by_name[b"./file"].uncompressed_offset
    assert archive[start : start + 5] == b"hello"
    fraction = b".75Z" if format_ == "pax" else b"Z"
    assert by_name[b"./empty"].mod_time == b"2020-09-13T12:26:40" + fraction
    if format_ == "pax":
        keys = {key for key, _ in by_name[b"./empty"].xattrs}
        assert keys == {b"mtime", b"atime", b"ctime"}
    if format_ in ("gnu", "oldgnu", "pax"):
        assert by_name[b"./longest-link"].linkname == b"t" * 250
        assert b"./\xff\xfe" in by_name
        assert "./ünïcode-名前".encode() in by_name


@needs_gnu_tar
@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_archives_of_gnu_tar(version: str, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    source.mkdir()
    with (source / "file").open("wb") as target:
        target.truncate(10 << 20)
        for number in range(30):  # more than fit into a header
            target.seek((5 << 20) + (number << 16))
            target.write(b"piece %d" % number)
    how = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    archive = gnu_tar(source, "--sparse", *how)
    if len(archive) > 5 << 20:
        pytest.skip("this file system does not tell where holes are")
    ztoc = decode_ztoc(build(archive, compression=Compression.UNCOMPRESSED).data)
    reader = LayerReader(ztoc, reader_of(archive))
    content = b"".join(reader.read_file(FileTree(ztoc).find(b"file")))
    assert content == (source / "file").read_bytes()


@needs_gnu_tar
def test_multi_volume_and_incremental_archives_are_refused(tree: Path, tmp_path: Path) -> None:
    labelled = gnu_tar(tree, "--format=gnu", "--label=volume")
    refused(labelled)
    incremental = gnu_tar(tree, "--format=gnu", f"--listed-incremental={tmp_path / 'snapshot'}")
    refused(incremental)


def test_many_different_fields() -> None:
    # What is remembered of earlier headers stays bounded and never mixes up two of them.
    count = 20_000
    archive = b"".join(
        header(b"f%d" % i, uid=i & 0o777777, mtime=i, uname=b"u%d" % i) for i in range(count)
    )
    entries, _ = scan(archive + END)
    assert len(entries) == count
    for i in range(0, count, 997):
        assert entries[i].name == b"f%d" % i
        assert entries[i].uid == i & 0o777777
        assert entries[i].uname == b"u%d" % i
        assert entries[i].mod_time == utc(i)
