"""Images of single layers under the kernel's overlayfs, and of merged layers: both show the same."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given

from soci_cli.kernel import calls, detached
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.mounting import Way, mount
from soci_cli.lazy.erofs.tree import Tree, layer_tree, merged_tree
from soci_cli.lazy.merged import File, LazyImage
from soci_cli.ztoc import FileMetadata, decode_ztoc
from tests.lazy.erofs.checker import check
from tests.lazy.test_merged import LAYERS, as_entries
from tests.lazy.tools import entry, image_of
from tests.support.layers import tar_ztoc
from tests.support.machine import need_root
from tests.support.scale import examples


def images_of(layers: Sequence[Sequence[FileMetadata]]) -> Iterator[Tree]:
    """The tree of each layer over those below it, the lowest first."""
    for number, files in enumerate(layers):
        yield layer_tree(decode_ztoc(tar_ztoc(files)), b"layer", image_of(*layers[:number]))


@contextmanager
def mounted(tree: Tree, folder: Path) -> Iterator[Path]:
    """A tree whose files are empty, in a new folder."""
    folder.mkdir()
    data = Metadata(tree.root, tree.inodes, tree.devices).data
    check(data)
    with ExitStack() as stack:
        image = stack.enter_context(tempfile.TemporaryFile(dir=folder.parent))
        image.write(data)
        image.flush()
        devices = [
            stack.enter_context(tempfile.TemporaryFile(dir=folder.parent)) for _ in tree.devices
        ]
        fd = mount(
            Way.FILES,
            image.fileno(),
            [one.fileno() for one in devices],
            detached.NOSUID | detached.NODEV,
        )
        try:
            detached.attach(fd, folder)
        finally:
            os.close(fd)
    try:
        yield folder
    finally:
        calls.umount2(folder, 0)


@contextmanager
def joined(lowers: Sequence[Path], target: Path) -> Iterator[Path]:
    """Folders joined by overlayfs, the topmost last."""
    target.mkdir()
    names = ":".join(str(path) for path in reversed(lowers))
    calls.mount("overlay", "overlay", target, calls.MS_RDONLY, f"lowerdir={names}")
    try:
        yield target
    finally:
        calls.umount2(target, 0)


def expected_of(image: LazyImage) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    waiting: list[File] = [image.root]
    while waiting:
        for file in image.children(waiting.pop()):
            node = image.node(file)
            found[os.fsdecode(file.path)] = node.type, node.mode, node.mtime_ns, node.linkname
            if file.is_directory:
                waiting.append(file)
    return found


KINDS = {
    stat.S_IFREG: "reg", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char", stat.S_IFIFO: "fifo",
}  # fmt: skip


def found_in(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        about = path.lstat()
        kind = KINDS[stat.S_IFMT(about.st_mode)]
        target = os.fsencode(path.readlink()) if kind == "symlink" else b""
        mode = stat.S_IMODE(about.st_mode)
        found[str(path.relative_to(root))] = kind, mode, about.st_mtime_ns, target
    return found


@pytest.mark.root
@examples(25)
@given(LAYERS)
def test_layers_over_each_other(layers: list[list[tuple[str, str, str]]]) -> None:
    need_root()
    # overlayfs looks for no mark of the root of a layer, and Linux has no symbolic link to nothing.
    entries = [
        [
            one
            for one in as_entries(layer)
            if one.name != b".wh..wh..opq" and (one.type != b"symlink" or one.linkname)
        ]
        for layer in layers
    ]
    expected = expected_of(image_of(*entries))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        merged = merged_tree([decode_ztoc(tar_ztoc(one)) for one in entries], [b"x"] * len(entries))
        assert found_in(stack.enter_context(mounted(merged, folder / "merged"))) == expected
        lowers = [
            stack.enter_context(mounted(tree, folder / f"layer{number}"))
            for number, tree in enumerate(images_of(entries))
        ]
        (folder / "empty").mkdir()
        joint = stack.enter_context(joined([folder / "empty", *lowers], folder / "joined"))
        assert found_in(joint) == expected


@pytest.mark.root
def test_attributes_that_only_lower_layers_name(tmp_path: Path) -> None:
    need_root()
    lower = [entry("./", "dir", mode=0o751), entry("d/", "dir", mode=0o1777, uid=9), entry("d/old")]
    upper = [entry("d/new"), entry("e/.wh..wh..opq"), entry("e/f"), entry("d/.wh.absent")]
    trees = list(images_of([lower, upper]))
    with ExitStack() as stack:
        lowers = [
            stack.enter_context(mounted(tree, tmp_path / f"{number}"))
            for number, tree in enumerate(trees)
        ]
        joint = stack.enter_context(joined(lowers, tmp_path / "joined"))
        assert sorted(path.name for path in (joint / "d").iterdir()) == ["new", "old"]
        assert (stat.S_IMODE((joint / "d").stat().st_mode), (joint / "d").stat().st_uid) == (
            0o1777,
            9,
        )
        assert stat.S_IMODE(joint.stat().st_mode) == 0o751
        assert [path.name for path in (lowers[1] / "d").iterdir()] == ["new"]
        assert os.getxattr(lowers[1] / "e", "trusted.overlay.opaque") == b"y"
