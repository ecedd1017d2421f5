"""Finding files in a zTOC by path."""

from __future__ import annotations

import time
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import NotFoundError
from soci_cli.ztoc import (
    FileMetadata,
    FileTree,
    LayerReader,
    decode_ztoc,
)
from soci_cli.ztoc.paths import clean_path
from tests.support.layers import (
    build,
    file,
    gz,
    pax,
    reader_of,
    tar_ztoc,
)
from tests.support.scale import examples
from tests.ztoc.samples import content, sample


def tree(*entries: FileMetadata) -> FileTree:
    return FileTree(decode_ztoc(tar_ztoc(entries)))


def reg(name: bytes, offset: int = 0) -> FileMetadata:
    return FileMetadata(name, b"reg", offset, 0)


def symlink(name: bytes, target: bytes) -> FileMetadata:
    return FileMetadata(name, b"symlink", 0, 0, target)


def hardlink(name: bytes, target: bytes) -> FileMetadata:
    return FileMetadata(name, b"hardlink", 0, 0, target)


def folder(name: bytes) -> FileMetadata:
    return FileMetadata(name, b"dir", 0, 0)


@pytest.mark.parametrize(
    "stored", [b"a/b", b"/a/b", b"./a/b", b"a//b", b"a/./b", b"a/x/../b", b"../a/b"]
)
@pytest.mark.parametrize(
    "path", [b"a/b", b"/a/b", b"./a/b", b"a//b/", b"a/./b", b"x/../a/b", b"/../a/b"]
)
def test_names_in_any_form(stored: bytes, path: bytes) -> None:
    assert tree(reg(stored)).find(path).name == stored


def test_the_last_of_a_name_counts() -> None:
    found = tree(reg(b"a", 1), reg(b"b", 2), reg(b"./a", 3), reg(b"c", 4))
    assert found.find(b"a").uncompressed_offset == 3


def test_a_file_may_replace_a_link() -> None:
    assert tree(symlink(b"a", b"b"), reg(b"b", 1), reg(b"a", 2)).find(b"a").uncompressed_offset == 2
    assert tree(reg(b"a", 2), reg(b"b", 1), symlink(b"a", b"b")).find(b"a").uncompressed_offset == 1


@pytest.mark.parametrize(
    "path", [b"", b"/", b".", b"missing", b"a/missing", b"a/b/c", b"a\0", b"A/B"]
)
def test_what_is_not_there(path: bytes) -> None:
    with pytest.raises(NotFoundError):
        tree(folder(b"a/"), reg(b"a/b")).find(path)


def test_folders_are_found() -> None:
    this = tree(folder(b"a/"), folder(b"a/b/"), symlink(b"l", b"a/b"), symlink(b"m", b"a/b/"))
    for path in (b"a", b"a/", b"/a"):
        assert this.find(path).name == b"a/"
    assert this.find(b"l").name == b"a/b/"
    # A target with a slash, a dot or two at its end is the folder too.
    assert this.find(b"m").name == b"a/b/"
    assert tree(folder(b"a/"), symlink(b"a/l", b".")).find(b"a/l").name == b"a/"
    assert (
        tree(folder(b"a/"), folder(b"a/b/"), symlink(b"a/b/l", b"..")).find(b"a/b/l").name == b"a/"
    )


def test_parents_need_no_entry() -> None:
    assert tree(reg(b"a/b/c/d")).find(b"a/b/c/d").name == b"a/b/c/d"


def test_not_utf_8() -> None:
    name = b"caf\xe9/\xff\xfe"
    assert tree(reg(name)).find(name).name == name
    with pytest.raises(NotFoundError) as raised:
        tree(reg(name)).find(b"\xff\x1b[2J\n")
    assert "\x1b" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (b"l", b"dir/file"),
        (b"l", b"./dir/./file"),
        (b"l", b"/dir/file"),
        (b"l", b"//dir//file"),
        (b"dir/l", b"file"),
        (b"dir/l", b"../dir/file"),
        (b"dir/l", b"/dir/file"),
        (b"dir/sub/l", b"../file"),
        (b"dir/sub/l", b"../../dir/file"),
        (b"dir/sub/l", b"../../../../../dir/file"),
        (b"l", b"/../dir/file"),
        (b"l", b"dir/./../dir/file"),
    ],
)
def test_symlinks(link: bytes, target: bytes) -> None:
    assert tree(reg(b"dir/file"), symlink(link, target)).find(link).name == b"dir/file"


def test_symlinks_to_symlinks() -> None:
    this = tree(
        symlink(b"a", b"b"), symlink(b"b", b"/c/d"), symlink(b"c", b"real/./"), reg(b"real/d")
    )
    assert this.find(b"a").name == b"real/d"


def test_folders_that_are_symlinks() -> None:
    this = tree(
        symlink(b"bin", b"usr/bin"),
        reg(b"usr/bin/tool"),
        symlink(b"usr/bin/other", b"../lib/tool"),
        reg(b"usr/lib/tool", 7),
        symlink(b"lib", b"/usr/lib"),
        symlink(b"usr/up", b".."),
    )
    assert this.find(b"bin/tool").name == b"usr/bin/tool"
    # `..` goes up from where the link leads, not from where it lies.
    assert this.find(b"bin/other").uncompressed_offset == 7
    assert this.find(b"lib/tool").uncompressed_offset == 7
    assert this.find(b"usr/up/usr/up/bin/tool").name == b"usr/bin/tool"


def test_dangling_links() -> None:
    this = tree(symlink(b"a", b"missing"), hardlink(b"b", b"missing"), symlink(b"c", b""))
    for path in (b"a", b"b", b"a/x"):
        with pytest.raises(NotFoundError):
            this.find(path)


@pytest.mark.parametrize(
    "links",
    [
        [(b"a", b"a")],
        [(b"a", b"./a")],
        [(b"a", b"b"), (b"b", b"a")],
        [(b"a", b"a/a")],
        [(b"a", b"a/a/a/a/a/a/a/a/a/a")],
        [(b"a", b"b/b/b/b"), (b"b", b"a/a/a/a")],
        [(b"a", b"/a/../a")],
    ],
)
@pytest.mark.parametrize("make", [symlink, hardlink])
def test_loops(
    links: list[tuple[bytes, bytes]], make: Callable[[bytes, bytes], FileMetadata]
) -> None:
    this = tree(*(make(name, target) for name, target in links))
    with pytest.raises(NotFoundError):
        this.find(b"a")


def test_long_chains() -> None:
    links = [symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(60)]
    this = tree(*links, reg(b"l60"))
    assert this.find(b"l30").name == b"l60"
    with pytest.raises(NotFoundError, match="too many links"):
        this.find(b"l0")


@pytest.mark.parametrize(
    "target",
    [b"x/" * 400_000, b"../" * 400_000, b"./" * 400_000, b"/" * 800_000, b"x/../" * 200_000],
)
def test_long_link_targets_take_no_time(target: bytes) -> None:
    this = tree(symlink(b"l", target + b"file"), reg(b"file"))
    started = time.monotonic()
    try:
        this.find(b"l")
    except NotFoundError as error:
        assert len(str(error)) < 1000
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("path", [b"x/" * 400_000, b"../" * 400_000, b"x/../" * 200_000])
def test_long_paths_take_no_time(path: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(NotFoundError):
        tree(reg(b"file")).find(path)
    assert time.monotonic() - started < 2


def test_hard_links() -> None:
    this = tree(
        reg(b"a/file", 7),
        hardlink(b"b/hard", b"a/file"),
        hardlink(b"hard2", b"b/hard"),
        symlink(b"soft", b"b/hard"),
        hardlink(b"b/abs", b"/a/file"),
        hardlink(b"b/dot", b"./a/file"),
    )
    for path in (b"b/hard", b"hard2", b"soft", b"b/abs", b"b/dot"):
        assert this.find(path).uncompressed_offset == 7


def test_a_hard_link_to_a_symlink() -> None:
    # The target of a symlink counts from the folder of the name under which it is reached.
    this = tree(symlink(b"a/l", b"file"), reg(b"a/file", 1), hardlink(b"a/h", b"a/l"))
    assert this.find(b"a/h").uncompressed_offset == 1


def test_files_of_golden_layers_are_found() -> None:
    for name in ("ustar-l6.tar.gz", "pax.tar.gz", "gnu-long.tar.gz", "ustar-prefix.tar.gz"):
        ztoc = sample(name, 65536).ztoc
        found = FileTree(ztoc)
        for entry in ztoc.files:
            if entry.type not in (b"symlink", b"hardlink") and b"/.wh." not in entry.name:
                assert found.find(entry.name) == entry
    found = FileTree(sample("ustar-l6.tar.gz", 65536).ztoc)
    for link in (b"etc/link", b"/etc/hard"):
        assert found.find(link).name == b"etc/conf.d/001/file-1.txt"
    assert (
        FileTree(sample("ustar-prefix.tar.gz", 65536).ztoc).find(b"abs/path.txt").name
        == b"/abs/path.txt"
    )


@examples(200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"reg", b"dir", b"symlink", b"hardlink"]),
            st.lists(st.sampled_from([b"a", b"b", b"c", b".."]), min_size=1, max_size=3),
            st.lists(st.sampled_from([b"a", b"b", b"..", b".", b""]), max_size=4),
        ),
        max_size=10,
    ),
    st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b""]), max_size=5),
)
def test_any_tree(entries: list[tuple[bytes, list[bytes], list[bytes]]], path: list[bytes]) -> None:
    this = tree(
        *(
            FileMetadata(b"/".join(name), type_, 0, 0, b"/".join(target))
            for type_, name, target in entries
        )
    )
    try:
        found = this.find(b"/".join(path))
    except NotFoundError:
        return
    assert found.type in (b"reg", b"dir")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"", b""),
        (b"/", b""),
        (b"a", b"a"),
        (b"a/", b"a"),
        (b"//a///b//", b"a/b"),
        (b"./a/./b/.", b"a/b"),
        (b"a/../b", b"b"),
        (b"../../a", b"a"),
        (b"a/..", b""),
        (b".hidden/..data", b".hidden/..data"),
        (b"...", b"..."),
    ],
)
def test_clean_path(name: bytes, expected: bytes) -> None:
    assert clean_path(name) == expected


def test_entries_with_records_are_read_back() -> None:
    archive = b"".join(
        pax([(b"path", b"p%d" % i), (b"SCHILY.xattr.user.n", b"%d" % i)])
        + file(b"short", b"%d" % i * i)
        for i in range(50)
    )
    layer = gz(archive + bytes(1024))
    ztoc = decode_ztoc(build(layer, span_size=1000).data)
    reader = LayerReader(ztoc, reader_of(layer))
    found = FileTree(ztoc)
    for i in range(50):
        entry = found.find(b"p%d" % i)
        assert content(reader.read_file(entry)) == b"%d" % i * i
        assert dict(entry.xattrs)[b"SCHILY.xattr.user.n"] == b"%d" % i
