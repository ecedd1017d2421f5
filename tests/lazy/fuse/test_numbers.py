"""Node ids: small, one a file, and the same in every process that opens the same layers."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from soci_cli.lazy import LazyImage
from soci_cli.lazy.fuse import MountOptions, wire
from soci_cli.lazy.fuse.filesystem import ROOT, LayersTree, MergedTree, Numbers, Tree
from soci_cli.ztoc import FileMetadata
from soci_cli.ztoc.folders import FOLDER
from tests.lazy.fuse.tools import errno_of, image_with, mounted
from tests.lazy.test_merged import LAYERS, as_entries
from tests.lazy.tools import entry, image_of
from tests.support.scale import examples

MakeTree = Callable[[LazyImage], Tree]


Facts = tuple[bytes, object, object, object]


def facts(tree: Tree, node: int) -> Facts:
    """All that a tree says of a node."""
    attr = tree.attr(node)
    kind = wire.mode_of(attr) & 0o170000
    inside = (list(tree.children(node)), tree.parent(node)) if kind == 0o040000 else None
    target = tree.link(node) if kind == 0o120000 else None
    marks = [tree.xattr(node, b"trusted.overlay.opaque"), list(tree.xattrs(node))]
    return attr, inside, target, marks


def walk(tree: Tree) -> dict[int, Facts]:
    """The facts of all nodes, from the root down."""
    found: dict[int, Facts] = {}
    waiting = [ROOT]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found[node] = facts(tree, node)
        if found[node][1] is not None:
            for name, child in tree.children(node):
                assert tree.lookup(node, name) == child
                waiting.append(child)
    return found


@pytest.mark.parametrize("make", [LayersTree, MergedTree])
@examples(200)
@given(LAYERS, st.randoms(use_true_random=False))
@example(
    [
        [
            ("a", "reg", ""),
            ("a", "symlink", "b"),
            ("a", "whiteout", ""),
            ("a/a", "hardlink", "a"),  # lies below b: its name counts before anybody looks there
        ]
    ],
    random.Random(0),
)
def test_a_successor_answers_for_any_node(
    make: MakeTree, layers: list[list[tuple[str, str, str]]], order: random.Random
) -> None:
    """Another process that opens the same zTOCs is asked for any node, in any order."""
    entries = [as_entries(layer) for layer in layers]
    known = walk(make(image_of(*entries)))
    assert max(known) < 1 << 32
    successor = make(image_of(*entries))
    nodes = list(known)
    order.shuffle(nodes)
    for node in nodes:
        assert struct.unpack_from("=Q", known[node][0])[0] == node
        assert facts(successor, node) == known[node]


@given(
    st.lists(st.integers(0, 1 << 29), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 28))),
)
def test_numbers(counts: list[int], wanted: list[tuple[int, int]]) -> None:
    numbers = Numbers(counts)
    places = [(layer, one) for layer, one in wanted if layer < len(counts) and one < counts[layer]]
    places += [(layer, FOLDER + one) for layer, one in wanted if layer < len(counts)]
    nodes = [numbers.node(*place) for place in places]
    assert len(set(nodes)) == len(set(places))
    assert [numbers.place(node) for node in nodes] == places
    assert all(node >= 4 for node in nodes)


def test_numbers_fit_into_32_bits() -> None:
    """As many files as an image can have: 20 layers of 100,000,000 entries and 100,000,000 folders each."""
    numbers = Numbers([100_000_000] * 20)
    assert numbers.node(19, 99_999_999) < 1 << 31
    assert numbers.node(19, FOLDER + 100_000_000) < 1 << 32
    # More than that are told apart all the same.
    numbers = Numbers([1 << 31, 1 << 31])
    assert numbers.place(numbers.node(1, 7)) == (1, 7)
    assert numbers.place(numbers.node(1, FOLDER + 7)) == (1, FOLDER + 7)


@pytest.mark.parametrize("make", [LayersTree, MergedTree])
def test_nodes_that_nobody_was_given(make: MakeTree) -> None:
    layer: list[FileMetadata] = [entry("a/x"), entry("b", "dir")]
    tree = make(image_of(layer, layer))
    for node in (0, 8, 9, (1 << 31) - 1, (1 << 31) + 4, 1 << 32, 1 << 63):
        assert errno_of(lambda node=node: tree.attr(node)), node  # type: ignore[misc]
        assert errno_of(lambda node=node: tree.children(node)), node  # type: ignore[misc]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.usefixtures("need_fuse")
def test_inode_numbers_of_a_mount(tmp_path: Path, writable: bool) -> None:
    """stat and readdir give numbers below 2**32, the same again when the kernel has forgotten the files."""
    lower = [
        entry("a", "dir"),
        entry("a/f"),
        entry("a/g", "hardlink", linkname=b"a/f"),
        entry("top"),
    ]
    upper = [entry("a/h"), entry("b/c/d"), entry("b/l", "symlink", linkname=b"d")]

    def numbers_below(root: Path) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, names, files in os.walk(root):
            assert names or files
            with os.scandir(folder) as items:
                for item in items:
                    status = item.stat(follow_symlinks=False)
                    assert max(status.st_ino, item.inode()) < 1 << 32
                    found[os.path.relpath(item.path, root)] = status.st_dev, status.st_ino
        return found

    with mounted(image_with(lower, upper), tmp_path, MountOptions(writable=writable)) as (
        _,
        target,
        _,
    ):
        first = numbers_below(target)
        assert set(first) == {"a", "a/f", "a/g", "a/h", "top", "b", "b/c", "b/c/d", "b/l"}
        assert first["a/f"] == first["a/g"]
        assert len(set(first.values())) == len(first) - 1
        if not writable:  # there overlayfs numbers folders by itself
            Path("/proc/sys/vm/drop_caches").write_text("2")
            assert numbers_below(target) == first
