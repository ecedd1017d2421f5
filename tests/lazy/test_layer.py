"""The files of one layer."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError
from soci_cli.lazy import LazyImage
from soci_cli.ztoc import FileMetadata, LayerFiles, Node, decode_ztoc
from soci_cli.ztoc.folders import IMPLIED
from tests.lazy.tools import NoBytes, entry, files_of, image_of, link, listing, opened_layer
from tests.support.layers import tar_ztoc
from tests.support.scale import examples


def node_of(one: FileMetadata) -> Node:
    files = files_of(one)
    found = files.look(b"", b"x")
    assert found is not None
    return files.node(found[0])


@pytest.mark.parametrize(
    "name", ["a/b", "./a/b", "/a/b", "a//b", "a/./b", "./a/b/", "//a/b//", "././a/b/."]
)
def test_names_count_from_the_root(name: str) -> None:
    image = image_of([entry(name, "dir" if name.endswith(("/", ".")) else "reg")])
    assert [path.rstrip("/") for path in listing(image)] == ["a", "a/b"]
    assert image.node(image.find(b"a")) == Node("dir", 0o755)


@pytest.mark.parametrize("name", [b"a/..", b"..", b"x\0y", b"a/" * 3000 + b"x", b"a/../..", b""])
def test_names_that_lead_elsewhere_are_not_there(name: bytes) -> None:
    assert listing(image_of([entry(name), entry("good")])) == ["good"]


@pytest.mark.parametrize("name", ["../x", "a/../x", "/../../x", "a/./../../b/../x", "../a/..//x/"])
def test_names_count_from_the_root_whatever_dots_they_have(name: str) -> None:
    assert listing(image_of([entry(name, mode=0o711), link("y", "b/../../x")])) == ["x", "y"]


def test_names_with_dots_are_ordinary() -> None:
    names = ["..a", "a..", "...", "b/..c", ".wh", "wh.x"]
    found = listing(image_of([entry(name) for name in names]))
    assert found == sorted([*names, "b/"])


def test_the_last_entry_of_a_name_counts() -> None:
    image = image_of([entry("x", mode=0o600), entry("x", mode=0o700), entry("./x", mode=0o711)])
    assert image.node(image.find(b"x")).mode == 0o711
    # A folder for a folder keeps what is in it, a file for a folder does not.
    image = image_of([entry("d/", "dir"), entry("d/x"), entry("d", "dir", mode=0o700)])
    assert listing(image) == ["d/", "d/x"]
    assert image.node(image.find(b"d")).mode == 0o700
    image = image_of([entry("d/e/x"), entry("d"), entry("d/y"), entry("d", "dir")])
    assert listing(image) == ["d/"]
    assert listing(image_of([entry("d"), entry("d/y")])) == ["d"]


def test_attributes() -> None:
    one = entry(
        "x",
        mode=0o106755,
        uid=(1 << 32) - 1,
        gid=7,
        uname=b"\xff",
        mod_time=b"1969-12-31T23:59:59.25Z",
        xattrs=(
            (b"SCHILY.xattr.", b"no name"),
            (b"SCHILY.xattr.security.capability", b"\1\0\xff"),
            (b"SCHILY.xattr.user.\0", b"nothing"),
            (b"mtime", b"1"),
        ),
    )
    node = node_of(one)
    assert (node.mode, node.uid, node.gid, node.uname) == (0o6755, (1 << 32) - 1, 7, b"\xff")
    assert node.mtime_ns == -750_000_000
    assert node.xattrs == ((b"security.capability", b"\1\0\xff"),)
    device = node_of(entry("x", "char", devmajor=1, devminor=3))
    assert (device.type, device.devmajor, device.devminor) == ("char", 1, 3)


@pytest.mark.parametrize(
    "text, nanoseconds",
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"2023-11-14T22:13:20.000000001Z", 1_700_000_000_000_000_001),
        (b"9999-12-31T23:59:59Z", 253_402_300_799_000_000_000),
        (b"0000-01-01T00:00:00Z", -62_167_219_200_000_000_000),
        (b"", 0),
        (b"nonsense", 0),
        (b"2023-99-14T22:13:20Z", 0),
        (b"2023-11-14T22:13:20.1234567890Z", 0),
    ],
)
def test_times(text: bytes, nanoseconds: int) -> None:
    assert node_of(entry("x", mod_time=text)).mtime_ns == nanoseconds


def test_hard_links_are_the_file_that_they_name() -> None:
    files = [
        entry("x", mode=0o711),
        link("d/y", "x"),
        link("z", "./d/y"),
        link("dangling", "nothing"),
        link("dir", "d"),
        link("out", "../x"),
        link("round", "round"),
        link("r1", "r2"),
        link("r2", "r1"),
    ]
    image = image_of(files)
    assert listing(image) == ["d/", "d/y", "out", "x", "z"]
    for name in (b"x", b"d/y", b"z", b"out"):
        file = image.find(name)
        assert (image.node(file).mode, file.entry) == (0o711, 0)
        assert image.link_count(file) == 4
    assert image.link_count(image.find(b"d")) == 1


def test_a_hard_link_keeps_the_file_that_was_there() -> None:
    image = image_of([entry("x", mode=0o600), link("y", "x"), entry("x", mode=0o777)])
    assert image.node(image.find(b"y")).mode == 0o600
    assert image.node(image.find(b"x")).mode == 0o777


def test_what_is_asked_for_most_often() -> None:
    entries = [
        entry("d", "dir", mode=0o1777, uid=3, gid=4),
        entry("f", mode=0o104755, size=0, mod_time=b"1969-12-31T23:59:59.25Z"),
        entry("l", "symlink", linkname=b"target", mode=0o4755),
        entry("c", "char", devmajor=1 << 40, devminor=-1),
        entry("p", "fifo"),
        entry("o", "odd\xff", mod_time=b"nonsense"),
    ]
    files = files_of(*entries)
    for number, one in enumerate(entries):
        node, found = files.node(number), files.attributes(number)
        assert found[:6] == (node.type, node.mode, node.uid, node.gid, node.size, node.mtime_ns)
        assert (files.name(number), files.linkname(number)) == (one.name, node.linkname)
        assert 0 <= found.devmajor < 1 << 12 and 0 <= found.devminor < 1 << 20
    assert (files.attributes(2).size, files.attributes(2).mode) == (6, 0o777)
    assert files.attributes(IMPLIED)[:2] == ("dir", 0o755)
    assert (files.name(IMPLIED), files.xattrs(IMPLIED)) == (b"", ())


def test_xattrs_that_would_steer_overlayfs_are_left_out() -> None:
    names = [b"trusted.overlay.opaque", b"user.overlay.whiteout", b"user.a", b"trusted.overlays"]
    files = files_of(entry("x", xattrs=tuple((b"SCHILY.xattr." + one, b"y") for one in names)))
    assert files.xattrs(0) == ((b"user.a", b"y"), (b"trusted.overlays", b"y"))


@pytest.mark.parametrize("kind", ["reg", "dir", "symlink", "char", "fifo"])
def test_user_attributes_are_of_files_and_folders(kind: str) -> None:
    """Linux has none elsewhere, and overlayfs fails to copy them up (xattr(7))."""
    records = ((b"SCHILY.xattr.trusted.t", b"1"), (b"SCHILY.xattr.user.u", b"2"))
    files = files_of(entry("x", kind, xattrs=records, linkname=b"y"))
    expected = ((b"trusted.t", b"1"), (b"user.u", b"2"))[: 2 if kind in ("reg", "dir") else 1]
    assert files.xattrs(0) == files.node(0).xattrs == expected


def test_a_link_to_a_name_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="NUL"):
        node_of(entry("x", "symlink", linkname=b"a\0b"))


def test_hard_links_to_what_a_folder_had_before() -> None:
    files = [
        entry("d/x", mode=0o601),
        link("1", "d/x"),
        entry("d/x", mode=0o602),
        link("2", "d/x"),
        entry("d"),  # the folder goes
        entry("d/x", mode=0o603),  # has no place
        link("3", "d/x"),
        entry("d/", "dir"),
        link("4", "d/x"),
        entry("d/x", mode=0o605),
        link("5", "d/x"),
    ]
    image = image_of(files)
    assert listing(image) == ["1", "2", "3", "4", "5", "d/", "d/x"]
    modes = [image.node(image.find(b"%d" % number)).mode for number in range(1, 6)]
    assert modes == [0o601, 0o602, 0o602, 0o602, 0o605]
    assert image.link_count(image.find(b"1")) == 1  # its own name is that of another by now
    assert image.link_count(image.find(b"2")) == 3
    assert image.link_count(image.find(b"d/x")) == 2
    image = image_of(files[:6])
    assert listing(image) == ["1", "2", "d"]


def test_a_folder_that_comes_and_goes() -> None:
    files = [entry("a/b/x"), entry("a/b"), entry("a/b/y"), entry("a/b/", "dir"), entry("a/b/z")]
    assert listing(image_of(files)) == ["a/", "a/b/", "a/b/z"]
    files += [entry("a"), entry("a/b/v"), entry("a", "dir"), entry("a/c/.wh.w")]
    image = image_of(files)
    assert listing(image) == ["a/", "a/c/"]
    assert image.layers[0].files.whiteouts(b"a/c") == {b"w"}
    files += [entry("a/b/u"), entry("a/c"), entry("a/c", "dir")]
    image = image_of(files)
    assert listing(image) == ["a/", "a/b/", "a/b/u", "a/c/"]
    assert image.layers[0].files.whiteouts(b"a/c") == set()


@pytest.mark.parametrize(
    "files",
    [
        [one for _ in range(4000) for one in (entry("d"), entry("d/x"), entry("d/", "dir"))]
        + [link(f"{number}", "d/x") for number in range(4000)],
        [entry("d"), *(entry("d/x") for _ in range(8000))]
        + [link(f"{number}", "d/x") for number in range(8000)],
        [entry("x") for _ in range(8000)] + [link(f"{number}", "x") for number in range(8000)],
        [entry(f"{a}/{b}") for a in range(200) for b in range(200)]
        + [link(f"l{number}", f"{number % 200}/{number // 200}") for number in range(4000)],
        [entry("a/" * number + "x") for number in range(2000)],
        [entry("a/" * number + "b") for number in range(1000)]
        + [entry("a/" * number + "b/", "dir") for number in range(1000)]
        + [entry("a/" * number + "b/x") for number in range(1000)],
    ],
    ids=["toggled", "blocked", "replaced", "scattered", "deep", "deep-toggled"],
)
def test_odd_layers_are_quick(files: list[FileMetadata]) -> None:
    image = image_of(files)
    begin = time.process_time()
    assert listing(image)
    image.layers[0].files.link_count(0)
    assert time.process_time() - begin < 10  # about 0.5


def test_whiteouts_are_no_files() -> None:
    files = [entry(".wh.x"), entry("d/.wh..wh..opq"), entry(".wh..wh.plnk/1"), entry(".wh.d/x")]
    files += [entry(".wh."), entry(".wh..")]
    image = image_of(files)
    assert listing(image) == ["d/"]
    assert image.layers[0].files.whiteouts(b"") == {b"x"}
    assert image.layers[0].files.is_opaque(b"d")


def test_many_files_take_little() -> None:
    entries = [
        entry(f"usr/lib/python3/{folder}/module{number}.py")
        for folder in range(550)
        for number in range(100)
    ]
    data = tar_ztoc(entries)
    del entries
    begin = time.perf_counter()
    LayerFiles(decode_ztoc(data)).names(b"")
    assert time.perf_counter() - begin < 2  # about 0.1
    tracemalloc.start()
    try:
        files = LayerFiles(decode_ztoc(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # nothing is read yet
        for folder in range(550):
            assert len(files.names(b"usr/lib/python3/%d" % folder)) == 100
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert files.look(b"usr/lib/python3/7", b"module9.py")


def test_tables_that_are_dropped_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soci_cli.ztoc.layer._KEPT", 20)
    monkeypatch.setattr("soci_cli.ztoc.layer._LARGE", 10)
    names = [f"{a}/{b}/{c}" for a in range(6) for b in range(6) for c in range(4)]
    names += [f"large/{number}" for number in range(50)]
    files = files_of(*map(entry, names))
    for _ in range(2):
        for name in names[::-1]:
            folder, _, base = name.encode().rpartition(b"/")
            found = files.look(folder, base)
            assert found is not None
            assert files.name(found[0]) == name.encode()
    assert len(files._tables) < 12


def test_several_threads_ask_at_once() -> None:
    data = tar_ztoc([entry(f"{number % 97}/{number}") for number in range(20_000)])
    for _ in range(3):
        files = LayerFiles(decode_ztoc(data))
        barrier = threading.Barrier(8)

        def ask(start: int, files: LayerFiles = files, go: threading.Barrier = barrier) -> int:
            go.wait()
            folders = [b"%d" % ((start + number) % 97) for number in range(97)]
            return sum(len(files.names(folder)) for folder in folders)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(0, 96, 12))) == {20_000}


def test_names_that_make_too_many_folders() -> None:
    names = [entry(f"{number}/" + "a/" * 2000 + "x") for number in range(100)]
    files = files_of(*names)
    for _ in range(2):
        with pytest.raises(InvalidDataError, match="too many folders"):
            files.names(b"")


def test_replacing_many_folders_is_quick() -> None:
    names = [entry(f"d{number}/x/y") for number in range(5000)]
    names += [entry(f"d{number}") for number in range(5000)]
    files = files_of(*names)
    begin = time.perf_counter()
    assert len(files.names(b"")) == 5000
    assert time.perf_counter() - begin < 2


@examples(300)
@given(st.data())
def test_a_ztoc_from_a_stranger(data: st.DataObject) -> None:
    """Whatever the bytes are, there is an answer or an InvalidDataError."""
    buffer = bytearray(STRANGE)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(buffer) - 5))
        buffer[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    with suppress(InvalidDataError):
        files = LayerFiles(decode_ztoc(bytes(buffer)))
        image = LazyImage("image", [opened_layer(files, NoBytes())])
        for path in listing(image):
            with suppress(InvalidDataError):
                file = image.find(os.fsencode(path), follow=False)
                image.node(file)
                image.link_count(file)
        for number in range(7):
            for ask in (files.name, files.attributes, files.xattrs, files.node, files.type_of):
                with suppress(InvalidDataError):
                    ask(number)


STRANGE = tar_ztoc(
    [
        entry("d/", "dir"),
        entry("d/x", size=5, xattrs=((b"SCHILY.xattr.user.a", b"1"),)),
        link("d/y", "d/x"),
        entry("d/z", "symlink", linkname=b"x"),
        entry("d/.wh.w"),
        entry("d"),
        entry("e/.wh..wh..opq"),
    ]
)
