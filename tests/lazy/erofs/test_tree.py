"""Trees for EROFS are what the merged image is, whatever the layers are."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import UnsupportedLayerError
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.tree import Tree, merged_tree
from soci_cli.lazy.merged import File, LazyImage
from soci_cli.ztoc import FileMetadata, decode_ztoc
from soci_cli.ztoc.attributes import FORMATS
from tests.lazy.erofs.checker import Checked, Found, check
from tests.lazy.test_merged import LAYERS, as_entries
from tests.lazy.tools import entry, image_of, link
from tests.support.layers import tar_ztoc
from tests.support.scale import examples


def tree_of(*layers: Sequence[FileMetadata]) -> Tree:
    ztocs = [decode_ztoc(tar_ztoc(files)) for files in layers]
    return merged_tree(ztocs, [b"layer %d" % number for number in range(len(layers))])


def checked(tree: Tree) -> Checked:
    return check(Metadata(tree.root, tree.inodes, tree.devices).data)


def expected_of(image: LazyImage) -> dict[bytes, File]:
    found: dict[bytes, File] = {b"": image.root}
    waiting: list[File] = [image.root]
    while waiting:
        for file in image.children(waiting.pop()):
            found[file.path] = file
            if file.is_directory:
                waiting.append(file)
    return found


def about(image: LazyImage, file: File) -> tuple[object, ...]:
    node = image.node(file)
    size = node.size if node.type in ("reg", "symlink") else 0
    return (
        FORMATS[node.type] | node.mode,
        (node.uid, node.gid),
        divmod(node.mtime_ns, 10**9),
        size,
    )


def about_found(found: Found) -> tuple[object, ...]:
    size = found.size if stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode) else 0
    return found.mode, found.owner, found.mtime, size


@examples(300)
@given(LAYERS)
def test_layers_over_each_other(layers: list[list[tuple[str, str, str]]]) -> None:
    entries = [
        [one for one in as_entries(layer) if one.type != b"symlink" or one.linkname]
        for layer in layers
    ]
    image = image_of(*entries)
    expected = expected_of(image)
    found = checked(tree_of(*entries))
    assert found.files.keys() == expected.keys()
    same: dict[int, tuple[int, int]] = {}
    for path, file in expected.items():
        one = found.files[path]
        assert about_found(one) == about(image, file)
        assert found.targets.get(path, b"") == image.node(file).linkname
        if not file.is_directory:
            assert same.setdefault(one.nid, (file.layer, file.entry)) == (file.layer, file.entry)
    assert len(same) == len(set(same.values()))


def test_what_is_known_of_files() -> None:
    many = (
        (b"SCHILY.xattr.user.a", b"1"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"x", b"y"),
    )
    files = [
        entry("./", "dir", mode=0o700, uid=5),
        entry("d/", "dir", mode=0o1777, xattrs=many),
        entry(
            "d/f", size=0, mode=0o4755, uid=1000, gid=2**32 - 1, mod_time=b"2024-01-02T03:04:05.6Z"
        ),
        entry("d/x", xattrs=many, mod_time=b"1969-12-31T23:59:59.5Z"),
        entry("null", "char", devmajor=1, devminor=3),
        entry("far", "block", devmajor=5000, devminor=2**21),
        entry("pipe", "fifo"),
        entry("lost", "symlink", linkname=b""),
        entry("long", "symlink", linkname=b"t" * 4095),
        entry("longer", "symlink", linkname=b"t" * 4096),
        entry("n" * 256),
        link("again", "d/x"),
        link("nothing", "nowhere"),
    ]
    found = checked(tree_of(files))
    assert sorted(found.files) == [
        b"", b"again", b"d", b"d/f", b"d/x", b"far", b"long", b"null", b"pipe"
    ]  # fmt: skip
    assert (found.files[b""].mode, found.files[b""].owner) == (stat.S_IFDIR | 0o700, (5, 0))
    assert found.files[b"d"].xattrs == found.files[b"d/x"].xattrs == ((b"user.a", b"1"),)
    assert found.files[b"again"] == found.files[b"d/x"]
    assert found.files[b"again"].links == 2
    assert found.files[b"d/x"].mtime == (-1, 500_000_000)
    assert found.files[b"d/f"].owner == (1000, 65534)
    assert found.files[b"d/f"].mtime == (1704164645, 600_000_000)
    assert found.files[b"null"].place == 0x103
    assert found.files[b"far"].place == 0xFFF << 8 | 0xFF | 0xFFF00 << 12
    assert found.targets == {b"long": b"t" * 4095}


def test_each_layer_is_a_device() -> None:
    def layer(name: str, *sizes: int) -> list[FileMetadata]:
        files: list[FileMetadata] = []
        offset = 0
        for number, size in enumerate(sizes):
            offset += 512
            one = entry(f"{name}{number}", size=size)
            files.append(replace(one, uncompressed_offset=offset))
            offset += size + -size % 512
        return files

    layer_size = 1 << 20
    tree = tree_of(layer("a", 10, 5000, 0, 4096), layer("b", 1))
    found = checked(tree)
    (first, blocks), (second, _) = found.devices
    places = [found.files[b"a%d" % number].place for number in range(4)]
    assert places == [first + 1, first + 2, 0, first + 4]
    assert found.files[b"b0"].place == second + 1
    first_layout, second_layout = tree.layouts
    assert first_layout.size == blocks * 4096
    assert second_layout.size == layer_size + 4096


@pytest.mark.parametrize(("offset", "size"), [(512, 1 << 40), (-512, 10), (512, -1)])
def test_files_that_cannot_be_are_refused(offset: int, size: int) -> None:
    with pytest.raises(UnsupportedLayerError):
        tree_of([replace(entry("f"), uncompressed_offset=offset, uncompressed_size=size)])


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=6))
def test_files_that_share_bytes_are_refused(sizes: list[int]) -> None:
    files = [
        replace(entry(f"{number}"), uncompressed_offset=512, uncompressed_size=size + 1)
        for number, size in enumerate(sizes)
    ]
    with pytest.raises(UnsupportedLayerError, match="share bytes"):
        tree_of(files)
