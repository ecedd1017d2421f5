"""What the trees show, without a mount."""

from __future__ import annotations

import errno
import stat
import struct

import pytest

from soci_cli.lazy.fuse import owners, wire
from soci_cli.lazy.fuse.filesystem import (
    ROOT,
    TRUSTED_MARK,
    USER_MARK,
    LayersTree,
    MergedTree,
    Tree,
)
from tests.lazy.fuse.tools import errno_of, file, image_with
from tests.lazy.tools import entry


def find(tree: Tree, path: bytes) -> int:
    node = ROOT
    for name in path.split(b"/"):
        node = tree.lookup(node, name)
        assert node, path
    return node


def names(tree: Tree, path: bytes) -> list[bytes]:
    return [name for name, _ in tree.children(find(tree, path))]


LOWER = (
    entry("a", "dir", mode=0o700, uid=7),
    file("a/z", 0, 10, uid=3, gid=4, mod_time=b"1969-12-31T23:59:59.25Z"),
    file("a/b", 0, 10),
    entry("a/hard", "hardlink", linkname=b"a/z"),
    entry("gone", "dir"),
    file("x" * 256, 0, 1),
)
UPPER = (file(".wh.gone", 0, 0), file("a/.wh..wh..opq", 0, 0), file("a/new", 0, 1))


def test_layers() -> None:
    """Whiteouts are devices, opaque folders have the mark, unnamed ones the attributes from below."""
    tree = LayersTree(image_with(LOWER, UPPER), USER_MARK)
    assert [name for name, _ in tree.children(ROOT)] == [b"empty", b"0", b"1"]
    assert names(tree, b"0/a") == [b"z", b"b", b"hard"]
    assert names(tree, b"0") == [b"a", b"gone"]
    assert names(tree, b"1") == [b"a", b"gone"]
    assert names(tree, b"empty") == []
    whiteout = tree.attr(find(tree, b"1/gone"))
    assert wire.mode_of(whiteout) == stat.S_IFCHR
    assert struct.unpack_from("=I", whiteout, 76) == (0,)
    upper, lower = find(tree, b"1/a"), find(tree, b"0/a")
    assert tree.attr(upper)[8:] == tree.attr(lower)[8:]
    assert wire.mode_of(tree.attr(upper)) == stat.S_IFDIR | 0o700
    assert (tree.xattr(upper, USER_MARK), tree.xattr(lower, USER_MARK)) == (b"y", None)
    assert not tree.xattrs(upper)
    assert find(tree, b"0/a/z") == find(tree, b"0/a/hard")
    assert (tree.parent(upper), tree.parent(lower)) == (find(tree, b"1"), find(tree, b"0"))
    for path in (b"1/gone", b"0/a/z"):
        assert errno_of(lambda path=path: tree.children(find(tree, path))) == errno.ENOTDIR  # type: ignore[misc]


def test_layers_below_an_opaque_root() -> None:
    """overlayfs does not ask a root whether it is opaque, so what is below is empty."""
    tree = LayersTree(image_with(LOWER, [file(".wh..wh..opq", 0, 0), file("new", 0, 1)], LOWER))
    assert names(tree, b"0") == []
    assert not tree.lookup(find(tree, b"0"), b"a")
    assert names(tree, b"1") == [b"new"]
    assert names(tree, b"2") == [b"a", b"gone"]


def test_whiteouts_of_nothing() -> None:
    """overlayfs would list them in folders that it has nothing to merge with."""
    upper = [
        *(file(f".wh.{name}", 0, 0) for name in ("gone", "nothing")),
        *(file(f"a/{name}", 0, 0) for name in (".wh..wh..opq", ".wh.z", "new")),
        *(file(f"b/c/{name}", 0, 0) for name in (".wh.x", "new")),
    ]
    tree = LayersTree(image_with([*LOWER, file("b/c/x", 0, 1)], upper))
    assert names(tree, b"1") == [b"a", b"b", b"gone"]
    assert names(tree, b"1/a") == [b"new"]
    assert names(tree, b"1/b/c") == [b"new", b"x"]
    tree = LayersTree(image_with(upper))
    assert names(tree, b"0") == [b"a", b"b"]
    assert names(tree, b"0/b/c") == [b"new"]


def test_merged() -> None:
    """The files as they are in a container, folders with one node each."""
    tree = MergedTree(image_with(LOWER, UPPER))
    assert [name for name, _ in tree.children(ROOT)] == [b"a"]
    assert names(tree, b"a") == [b"new"]
    assert find(tree, b"a") == find(tree, b"a")
    assert tree.parent(find(tree, b"a")) == ROOT
    assert errno_of(lambda: tree.attr(4711)) == errno.ESTALE


def test_attributes() -> None:
    """Numbers, and times before 1970, as the kernel wants them."""
    tree = MergedTree(image_with(LOWER))
    packed = tree.attr(find(tree, b"a/z"))
    size, blocks, _, seconds = struct.unpack_from("=QQqq", packed, 8)
    assert (size, blocks, seconds) == (10, 1, -1)
    nanoseconds, _, mode, links, uid, gid = struct.unpack_from("=IIIIII", packed, 52)
    assert (nanoseconds, mode, links) == (250_000_000, stat.S_IFREG | 0o644, 2)
    assert (uid, gid) == (3, 4)


def test_owners_that_are_not_in_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are root's; otherwise nobody could read them."""
    monkeypatch.setattr(owners, "mapped_ids", lambda kind: [range(0, 1), range(1, 65537)])
    of = owners.namespace_owners()
    assert of(3, 70000) == (3, 0)


def test_mounting_reads_no_names() -> None:
    """overlayfs asks for the roots of the layers, which must not wait until all names are sorted."""
    image = image_with(LOWER, UPPER)
    tree = LayersTree(image)
    for _, node in tree.children(ROOT):
        tree.attr(node)
        tree.xattr(node, TRUSTED_MARK)
    assert all(layer.files._folders is None for layer in image.layers)
