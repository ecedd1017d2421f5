"""Where entries lie whose names, or whose targets, are not simply the path: as containerd unpacks them."""

from __future__ import annotations

import time

import pytest

from soci_cli.errors import InvalidDataError, NotFoundError
from soci_cli.lazy import File, LazyImage
from soci_cli.lazy.fuse.filesystem import ROOT, LayersTree, MergedTree, Tree
from soci_cli.ztoc import FileMetadata, FileTree, decode_ztoc
from tests.lazy.tools import entry, files_of, image_of, link
from tests.support.layers import tar_ztoc


def folder(name: str) -> FileMetadata:
    return entry(name, "dir")


def symlink(name: str, target: str) -> FileMetadata:
    return entry(name, "symlink", linkname=target.encode())


def seen(image: LazyImage) -> dict[str, int | None]:
    """All paths, and the entries that they are; folders end in a slash, None where no entry names one."""
    found: dict[str, int | None] = {}
    waiting: list[File] = [image.root]
    while waiting:
        for file in image.children(waiting.pop()):
            is_folder = file.is_directory
            found[file.path.decode() + "/" * is_folder] = file.entry if file.entry >= 0 else None
            assert image.find(file.path, follow=False) == file
            if is_folder:
                waiting.append(file)
    return found


def nodes(tree: Tree, top: int, path: str = "") -> dict[str, int]:
    """The paths below a node of a FUSE tree, and their nodes."""
    found: dict[str, int] = {}
    for name, node in tree.children(top):
        assert tree.lookup(top, name) == node
        inner = path + name.decode()
        found[inner] = node
        if tree.attr(node)[61] & 0xF0 == 0x40:  # the high byte of st_mode
            found |= nodes(tree, node, inner + "/")
    return found


BELOW_LINKS = {
    "the link stays": (
        [folder("usr/"), symlink("lib", "usr"), entry("lib/a"), folder("lib/d"), entry("lib/d/b")],
        {"usr/": 0, "lib": 1, "usr/a": 2, "usr/d/": 3, "usr/d/b": 4},
    ),
    "links to links, absolute and upwards": (
        [
            folder("u/v/"),
            symlink("u/v/w", "../../x/../y"),
            symlink("y", "/../z"),
            entry("u/v/w/a"),
            entry("y/b"),
        ],
        {"u/": None, "u/v/": 0, "u/v/w": 1, "y": 2, "z/": None, "z/a": 3, "z/b": 4},
    ),
    "where the link leads comes to be": (
        [symlink("lib", "usr/lib"), entry("lib/a"), symlink("lib/b", "a"), folder("usr/lib")],
        {"lib": 0, "usr/": None, "usr/lib/": 3, "usr/lib/a": 1, "usr/lib/b": 2},
    ),
    "names in another spelling": (
        [
            folder("./usr/"),
            symlink("./lib", "usr"),
            entry("other"),
            entry("lib//a"),
            entry("/lib/b"),
        ],
        {"usr/": 0, "lib": 1, "other": 2, "usr/a": 3, "usr/b": 4},
    ),
    "a folder in place of the link": (
        [folder("usr"), symlink("lib", "usr"), entry("lib/a"), folder("lib"), entry("lib/b")],
        {"usr/": 0, "usr/a": 2, "lib/": 3, "lib/b": 4},
    ),
    "a link in place of the folder": (
        [folder("usr"), entry("lib/a"), symlink("lib", "usr"), entry("lib/b")],
        {"usr/": 0, "lib": 2, "usr/b": 3},
    ),
    "a link that goes away": (
        [
            symlink("l", "d"),
            entry("l/a"),
            entry("l"),
            entry("l/b"),
            symlink("l", "e"),
            entry("l/c"),
        ],
        {"d/": None, "d/a": 1, "l": 4, "e/": None, "e/c": 5},
    ),
    "a hard link to a link": (
        [folder("usr"), symlink("one", "usr"), link("two", "one"), entry("two/a")],
        {"usr/": 0, "one": 1, "two": 1, "usr/a": 3},
    ),
    "hard links below it, and to what is": (
        [symlink("l", "d"), entry("d/a"), link("l/b", "l/a"), link("c", "./l//b"), entry("l/a")],
        {"l": 0, "d/": None, "d/a": 4, "d/b": 1, "c": 1},
    ),
    "a hard link by way of a link that comes later": (
        [entry("d/a"), link("b", "d/a"), symlink("l", "d"), link("c", "l/a")],
        {"d/": None, "d/a": 0, "b": 0, "l": 2, "c": 0},
    ),
    "a file that goes through itself": (
        [
            symlink("l", "l"),
            entry("l/a"),
            symlink("m", "n"),
            symlink("n", "m"),
            entry("n/a"),
            entry("z"),
        ],
        {"l": 0, "m": 2, "n": 3, "z": 5},
    ),
    "a link to a file": (
        [entry("f"), symlink("l", "f"), entry("l/a"), entry("z")],
        {"f": 0, "l": 1, "z": 3},
    ),
    "a link to the root": (
        [symlink("l", "/"), entry("l/a"), entry("l/l/b"), symlink("d/l", "../.."), entry("d/l/c")],
        {"l": 0, "a": 1, "b": 2, "d/": None, "d/l": 3, "c": 4},
    ),
}


@pytest.mark.parametrize("entries, expected", BELOW_LINKS.values(), ids=BELOW_LINKS)
def test_entries_below_symbolic_links(
    entries: list[FileMetadata], expected: dict[str, int | None]
) -> None:
    image = image_of(entries)
    assert seen(image) == expected
    files = image.layers[0].files
    tree = FileTree(decode_ztoc(tar_ztoc(entries)))
    for path, number in expected.items():
        if number is not None:
            assert files.path_of(number) in (path.rstrip("/").encode(), b"a", b"b", b"d/a", b"one")
            if entries[number].type != b"symlink":
                assert tree.find(path.encode()) == entries[number]
    # The trees of the mounts are the same, and their numbers fit into 32 bits.
    merged, layers = MergedTree(image), LayersTree(image)
    found = nodes(merged, ROOT)
    assert set(found) == {path.rstrip("/") for path in expected}
    assert set(nodes(layers, layers.lookup(ROOT, b"0"))) == set(found)
    assert max(found.values()) < 1 << 32


def test_whiteouts_below_symbolic_links() -> None:
    lower = [entry("usr/a"), entry("usr/b"), entry("usr/d/c"), entry("lib")]
    upper = [symlink("lib", "usr"), entry("lib/.wh.a"), entry("lib/d/.wh..wh..opq")]
    assert set(seen(image_of(lower, upper))) == {"lib", "usr/", "usr/b", "usr/d/"}
    # The links of lower layers are not followed: a folder takes the place of the link, as overlayfs has it.
    below = [symlink("lib", "usr"), folder("usr")]
    assert set(seen(image_of(below, [entry("lib/a")]))) == {"usr/", "lib/", "lib/a"}


def test_many_entries_below_links_take_no_time() -> None:
    chain = [symlink(f"{number}", f"{number + 1}") for number in range(200)]
    begin = time.process_time()
    assert len(seen(image_of([*chain, *(entry(f"0/{number}") for number in range(5000))]))) == 5201
    # Where each entry takes a walk of its own, there is an end.
    mixed = [one for n in range(20000) for one in (entry(f"0/{n}"), symlink(f"x{n}", "0"))]
    with pytest.raises(InvalidDataError, match="too many symbolic links"):
        seen(image_of([*chain, *mixed]))
    assert time.process_time() - begin < 60  # about 2


# Whiteouts and long names.


def test_whiteouts_of_long_names_and_of_none() -> None:
    longest = "x" * 255
    upper = [entry(f".wh.{longest}"), entry(".wh."), entry("d/.wh."), entry("d/.wh..")]
    image = image_of([entry(longest), entry("y"), entry("d/z")], upper)
    assert set(seen(image)) == {"y", "d/", "d/z"}
    tree = LayersTree(image)
    assert tree.lookup(tree.lookup(ROOT, b"1"), longest.encode())  # the device that overlayfs wants
    # A name of 255 bytes that begins as a whiteout does hides one of 251.
    assert set(seen(image_of([entry("x" * 251), entry("y")], [entry(".wh." + "x" * 251)]))) == {"y"}


def test_names_that_are_not_utf_8() -> None:
    name = b"caf\xe9/\xff"
    image = image_of(
        [FileMetadata(name, b"reg", 0, 0), FileMetadata(b"l", b"hardlink", 0, 0, name)]
    )
    assert image.find(name).entry == image.find(b"l").entry == 0


# Hard links that lead out of the layer.


def test_the_folder_in_which_aufs_kept_hard_links() -> None:
    plink = [folder(".wh..wh.plnk/"), entry(".wh..wh.plnk/7.9", mode=0o711)]
    image = image_of([*plink, link("a", ".wh..wh.plnk/7.9"), link("d/b", "/.wh..wh.plnk/7.9")])
    assert seen(image) == {"a": 1, "d/": None, "d/b": 1}
    with pytest.raises(NotFoundError):
        image.find(b".wh..wh.plnk/7.9")
    tree = LayersTree(image)
    assert set(nodes(tree, tree.lookup(ROOT, b"0"))) == {"a", "d", "d/b"}
    assert image.link_count(image.find(b"a")) == 2


def test_hard_links_to_files_of_lower_layers() -> None:
    image = image_of(
        [entry("d/f", mode=0o711), symlink("s", "d/f"), entry("gone"), entry("d/old")],
        [link("d/g", "d/f"), entry(".wh.gone"), entry("d/old"), link("own", "d/old")],
        [link("h", "d/../d/g"), link("t", "s"), link("lost", "gone"), link("dir", "d")],
    )
    for path, where in {b"d/g": (0, 0), b"h": (0, 0), b"t": (0, 1), b"own": (1, 2)}.items():
        file = image.find(path, follow=False)
        assert (file.layer, file.entry) == where
    assert set(seen(image)) == {"d/", "d/f", "d/g", "d/old", "h", "own", "s", "t"}
    assert image.node(image.find(b"h")).mode == 0o711
    for name in ("lost", "dir"):
        with pytest.raises(NotFoundError, match=f"/{name} is a hard link to /"):
            image.find(name.encode())
    merged, layers = MergedTree(image), LayersTree(image)
    assert merged.lookup(ROOT, b"h") == merged.lookup(merged.lookup(ROOT, b"d"), b"f")
    found = nodes(layers, layers.lookup(ROOT, b"2"))
    assert set(found) == {"h", "t"}
    assert found["h"] == merged.lookup(ROOT, b"h")


def test_hard_links_that_hide() -> None:
    """A hard link to a lower layer is in the place of what had its name."""
    image = image_of([entry("a"), entry("b")], [link("b", "a")], [link("a", "b")])
    assert (image.find(b"a").layer, image.find(b"a").entry) == (0, 0)
    assert (image.find(b"b").layer, image.find(b"b").entry) == (0, 0)


def test_links_from_layer_to_layer_end() -> None:
    image = image_of([entry("x")], *([link("x", "x")] for _ in range(100)))
    with pytest.raises(NotFoundError, match="/x is a hard link to /x"):
        image.find(b"x")
    assert seen(image) == {}


def test_a_lookup_by_path_is_what_a_mount_shows() -> None:
    """Links to themselves, to names that change, and to links in other folders."""
    entries = [
        entry("f", mode=0o600),
        link("f", "f"),
        link("./f", "f"),
        symlink("d/l", "../f"),
        link("e/l", "d/l"),
        entry("g", mode=0o700),
        link("h", "g"),
        folder("g"),
        link("only", "only"),
    ]
    tree = FileTree(decode_ztoc(tar_ztoc(entries)))
    files = files_of(*entries)
    for path, number in {b"f": 0, b"d/l": 0, b"e/l": 0, b"h": 5, b"g": 7}.items():
        assert tree.find(path) == entries[number]
    assert files.link_count(0) == 1
    with pytest.raises(NotFoundError, match="hard link"):
        tree.find(b"only")
