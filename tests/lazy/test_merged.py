"""Layers over each other, as overlayfs shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError, NotFoundError
from soci_cli.lazy import File, LazyImage
from soci_cli.ztoc import FileMetadata
from tests.lazy.tools import entry, image_of, link, listing
from tests.support.scale import examples


def test_folders_in_the_order_of_the_archives() -> None:
    """The topmost layer comes first; what it hides comes not at all."""
    lower = [entry(name) for name in ("z", "gone", "both", "d/x", "a")]
    image = image_of(lower, [entry("both"), entry("d", "dir"), entry(".wh.gone"), entry("b")])
    found = [name for part in image.listing(image.root) for name, _, _ in part.found]
    assert found == [b"both", b"d", b"b", b"z", b"a"]
    there = [image.lookup(image.root, name) for name in sorted(found)]
    assert there == image.children(image.root)
    with pytest.raises(NotFoundError):
        image.children(image.find(b"a"))


def test_whiteouts_hide_lower_layers_only() -> None:
    lower = [entry("x", mode=0o600), entry("y"), entry("d/1"), entry("d/2"), entry("e/1")]
    upper = [entry("x", mode=0o700), entry(".wh.x"), entry(".wh.y"), entry("d/.wh..wh..opq")]
    upper += [entry("d/3"), entry("e/", "dir"), entry(".wh.e"), entry(".wh.absent")]
    image = image_of(lower, upper)
    assert listing(image) == ["d/", "d/3", "e/", "x"]
    assert image.node(image.find(b"x")).mode == 0o700


def test_a_folder_that_is_only_implied_has_the_attributes_below() -> None:
    image = image_of([entry("tmp/", "dir", mode=0o1777)], [entry("tmp/x")])
    assert image.node(image.find(b"tmp")).mode == 0o1777
    image = image_of([entry("./", "dir", mode=0o700)], [entry("x")])
    assert image.node(image.root).mode == 0o700


def test_symlinks_stay_inside() -> None:
    files = [
        entry("usr/bin/tool"),
        entry("bin", "symlink", linkname=b"usr/bin"),
        entry("abs", "symlink", linkname=b"/usr/bin/tool"),
        entry("up", "symlink", linkname=b"../../../usr/./bin//tool"),
        entry("slash", "symlink", linkname=b"usr/"),
        entry("chain", "symlink", linkname=b"abs"),
        entry("round", "symlink", linkname=b"round"),
        entry("gone", "symlink", linkname=b"nothing"),
    ]
    image = image_of(files)
    for path in (b"bin/tool", b"abs", b"/up", b"chain", b"slash/bin/tool", b"bin/../bin/./tool"):
        assert image.find(path).path == b"usr/bin/tool"
    assert image.find(b"bin", follow=False).path == b"bin"
    assert image.find(b"bin/", follow=False).path == b"usr/bin"
    assert image.find(b"../..").path == b""
    for path in (b"gone", b"usr/bin/tool/x", b"usr/bin/tool/", b"usr/bin/tool/.", b"a" * 5000):
        with pytest.raises(NotFoundError):
            image.find(path)
    with pytest.raises(NotFoundError, match="too many links"):
        image.find(b"round")
    with pytest.raises(InvalidDataError, match="is a directory"):
        image.read(image.find(b"usr"), 0, 1)


def test_an_image_without_layers() -> None:
    image = image_of()
    assert listing(image) == []
    assert image.node(image.root).mode == 0o755


# Against a model: trees of dictionaries that entries are unpacked into, one layer after the other.


@dataclass
class Tree:
    """A folder of the model; `named` is the entry that gives its attributes."""

    named: tuple[int, int] | None = None
    children: dict[str, Tree | tuple[int, int]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    opaque: bool = False


PARTS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
KINDS = st.sampled_from(["reg", "reg", "dir", "dir", "symlink", "hardlink", "whiteout", "opaque"])
LAYERS = st.lists(st.lists(st.tuples(PATHS, KINDS, PATHS), max_size=8), min_size=1, max_size=4)


def folder_of(
    root: Tree, parts: list[str], layer: list[tuple[str, str, str]], make: bool = True
) -> Tree | None:
    """The folder at a path, symbolic links of the layer followed; made if need be."""
    here, done, left = root, list[str](), list(parts)
    for _ in range(300):
        if not left:
            return here
        part = left.pop(0)
        below = here.children.get(part)
        if below is None and make:
            below = here.children[part] = Tree()
        if isinstance(below, Tree):
            here = below
            done.append(part)
            continue
        if below is None or layer[below[1]][1] != "symlink":
            return None
        here, done, left = root, [], [*done, *layer[below[1]][2].split("/"), *left]
    return None


def at(root: Tree, path: str, layer: list[tuple[str, str, str]]) -> Tree | tuple[int, int] | None:
    *above, name = path.split("/")
    folder = folder_of(root, above, layer, make=False)
    return folder.children.get(name) if folder else None


def unpack(number: int, layer: list[tuple[str, str, str]]) -> Tree:
    """A layer by itself; a file is (layer, entry), and a hard link is the very file."""
    root = Tree()
    for index, (path, kind, target) in enumerate(layer):
        *above, name = path.split("/")
        there = at(root, target, layer) if kind == "hardlink" else None
        if kind == "hardlink" and not isinstance(there, tuple):
            # A link to what comes later or never: the test gives it another name.
            continue
        parent = folder_of(root, above, layer)
        if parent is None:
            continue
        if kind == "whiteout":
            parent.hidden.add(name)
        elif kind == "opaque":
            parent.opaque = True
        elif kind == "dir":
            old = parent.children.get(name)
            tree = old if isinstance(old, Tree) else Tree()
            tree.named = (number, index)
            parent.children[name] = tree
        else:
            parent.children[name] = there if isinstance(there, tuple) else (number, index)
    return root


def over(lower: Tree, upper: Tree) -> Tree:
    """What overlayfs shows of two folders."""
    result = Tree(upper.named or lower.named)
    if not upper.opaque:
        result.children = {k: v for k, v in lower.children.items() if k not in upper.hidden}
    for name, above in upper.children.items():
        below = result.children.get(name)
        if isinstance(above, Tree):
            above = over(below if isinstance(below, Tree) else Tree(), above)
        result.children[name] = above
    return result


def as_entries(layer: list[tuple[str, str, str]]) -> list[FileMetadata]:
    entries = []
    seen: list[tuple[str, str, str]] = []
    for path, kind, target in layer:
        above, slash, name = path.rpartition("/")
        if kind == "whiteout":
            entries.append(entry(f"{above}{slash}.wh.{name}"))
        elif kind == "opaque":
            entries.append(entry(f"{above}{slash}.wh..wh..opq"))
        elif kind == "hardlink":
            known = isinstance(at(unpack(0, seen), target, seen), tuple)
            entries.append(link(path if known else "no\0where", target))
        else:
            target = target if kind == "symlink" else ""
            shown = f"./{path}/" if kind == "dir" else path
            entries.append(entry(shown, kind, linkname=target.encode()))
        seen.append((path, kind, target))
    return entries


def seen_of(image: LazyImage, folder: File) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for file in image.children(folder):
        where = (file.layer, file.entry) if file.entry >= 0 else None
        found[file.name] = (where, seen_of(image, file)) if file.is_directory else where
        assert image.lookup(folder, file.name) == file
        assert image.find(file.path, follow=False) == file
    return found


def model_of(tree: Tree) -> dict[bytes, object]:
    return {
        name.encode(): (one.named, model_of(one)) if isinstance(one, Tree) else one
        for name, one in tree.children.items()
    }


@examples(400)
@given(LAYERS)
def test_layers_over_each_other(layers: list[list[tuple[str, str, str]]]) -> None:
    trees = [unpack(number, layer) for number, layer in enumerate(layers)]
    image = image_of(*map(as_entries, layers))
    merged = trees[0]
    for tree in trees[1:]:
        merged = over(merged, tree)
    found = seen_of(image, image.root)
    assert found == model_of(over(Tree(), merged))
    assert list(found) == sorted(found)
