"""zTOCs of strangers: refused in one line, or shown harmlessly by a sound image; never much memory."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import InvalidDataError, SociError, UnsupportedLayerError
from soci_cli.kernel import detached
from soci_cli.lazy.erofs import tree as trees
from soci_cli.lazy.erofs.format import BLOCK
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.mounting import Way, mount
from soci_cli.lazy.erofs.tree import Tree, layer_tree, merged_tree
from soci_cli.lazy.merged import LazyImage
from soci_cli.ztoc import FileMetadata, decode_ztoc
from soci_cli.ztoc.layer import LayerFiles
from tests.lazy.erofs.checker import check
from tests.lazy.tools import NoBytes, entry, opened_layer
from tests.support.layers import tar_ztoc
from tests.support.machine import need, need_root
from tests.support.scale import examples
from tests.ztoc.test_flatbuffer_by_hand import NONE, REF, Hand, hand_made, toc_with

SIZE = 1 << 20
_PARTS = st.sampled_from(
    [b"a", b"b", b"c", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh.", b"n" * 255, b"n" * 256,
     b"\xff\n", b"nul\0in", b"\0"]
)  # fmt: skip
_NAMES = st.lists(_PARTS, max_size=5).map(b"/".join)
_TYPES = st.sampled_from(
    [
        b"reg",
        b"reg",
        b"dir",
        b"dir",
        b"symlink",
        b"hardlink",
        b"char",
        b"block",
        b"fifo",
        b"",
        b"sock",
    ]
)
_INT64 = st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**63 - 1))
_OFFSETS = st.one_of(st.integers(0, SIZE // 512).map(lambda n: n * 512), _INT64)
_SIZES = st.one_of(st.integers(0, 2000), _INT64)
_UINT32 = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
_TIMES = st.one_of(
    st.sampled_from(
        [b"", b"2023-11-14T22:13:20Z", b"0001-01-01T00:00:00Z", b"9999-12-31T23:59:59.9Z"]
    ),
    st.binary(max_size=30),
)
_XATTRS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(
                [b"SCHILY.xattr." + name for name in (
                    b"user.a", b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"user.",
                    b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default",
                    b"user." + b"n" * 300, b"security.selinux", b"trusted.x", b"other", b"user.\0")]
            ),
            st.binary(max_size=20),
        ),
        st.one_of(st.binary(max_size=50), st.just(b"v" * 70_000)),
    ),
    max_size=4,
).map(tuple)  # fmt: skip
_ENTRIES = st.builds(
    FileMetadata,
    name=_NAMES, type=_TYPES, uncompressed_offset=_OFFSETS, uncompressed_size=_SIZES,
    linkname=st.one_of(_NAMES, st.sampled_from([b"t" * 4095, b"t" * 4096])), mode=_UINT32, uid=_UINT32,
    gid=_UINT32, mod_time=_TIMES, devmajor=_INT64, devminor=_INT64, xattrs=_XATTRS,
)  # fmt: skip
LAYERS = st.lists(st.lists(_ENTRIES, max_size=8), min_size=1, max_size=3)


def made(layers: Sequence[Sequence[FileMetadata]]) -> list[Tree]:
    """The trees that are made of these entries: all merged, and the topmost for overlayfs."""
    ztocs = [decode_ztoc(tar_ztoc(files, size=SIZE)) for files in layers]
    found = []
    with suppress(InvalidDataError, UnsupportedLayerError):
        found.append(merged_tree(ztocs, [b"layer"] * len(ztocs)))
    below = LazyImage("image", [opened_layer(LayerFiles(one), NoBytes()) for one in ztocs[:-1]])
    with suppress(InvalidDataError, UnsupportedLayerError):
        found.append(layer_tree(ztocs[-1], b"layer", below))
    return found


@examples(400)
@given(LAYERS)
def test_any_entries(layers: list[list[FileMetadata]]) -> None:
    for tree in made(layers):
        data = Metadata(tree.root, tree.inodes, tree.devices).data
        check(data)
        assert len(data) <= 64 * BLOCK + 3 * sum(len(tar_ztoc(files)) for files in layers)


@pytest.mark.root
@examples(30)
@given(LAYERS)
def test_the_kernel_and_fsck_take_them(layers: list[list[FileMetadata]]) -> None:
    need_root()
    fsck = need("fsck.erofs")
    for tree in made(layers):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            files = [folder / "image", *(folder / f"{n}" for n in range(len(tree.devices)))]
            files[0].write_bytes(Metadata(tree.root, tree.inodes, tree.devices).data)
            for file, layout in zip(files[1:], tree.layouts, strict=True):
                file.touch()
                os.truncate(file, layout.size)
            devices = [f"--device={file}" for file in files[1:]]
            done = subprocess.run([fsck, *devices, files[0]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            image, *fds = [stack.enter_context(file.open("rb")).fileno() for file in files]
            mounted = mount(Way.FILES, image, fds, detached.NOSUID | detached.NODEV)
            try:
                walk(mounted)
            finally:
                os.close(mounted)


def walk(mounted: int) -> None:
    """Looks at all that is there, and reads it: sockets and devices not."""
    for _, folders, names, above in os.fwalk(".", dir_fd=mounted, onerror=_raise):
        for name in (*folders, *names):
            about = os.lstat(name, dir_fd=above)
            if stat.S_ISLNK(about.st_mode):
                assert len(os.readlink(name, dir_fd=above)) == about.st_size
            elif stat.S_ISREG(about.st_mode):
                fd = os.open(name, os.O_RDONLY, dir_fd=above)
                try:
                    assert len(os.read(fd, 1 << 21)) == about.st_size
                    for key in os.listxattr(fd):
                        os.getxattr(fd, key)
                finally:
                    os.close(fd)


def _raise(error: OSError) -> None:
    raise error


# What would take much memory.


def sharing(field: int, type_: bytes, fill: bytes, records: int = 0, count: int = 3000) -> bytes:
    """A zTOC of some files with one string, or one vector of records, for all of them."""

    def toc(hand: Hand) -> int:
        position, first = toc_with(hand, count)
        fields = [REF if one in (0, 1, field) else NONE for one in range(14)]
        places = []
        for number in range(count):
            table, at = hand.table(fields)
            hand.refer(first + 4 * number, table)
            hand.refer(at[0], hand.string(b"%d" % number))
            places.append(at)
        kind = hand.string(type_)
        shared = hand.references(records) if records else hand.string(fill)
        for at in places:
            hand.refer(at[1], kind)
            hand.refer(at[field], shared)
        for number in range(records):
            record, (key, value) = hand.table([REF, REF])
            hand.refer(shared + 4 + 4 * number, record)
            hand.refer(key, hand.string(b"SCHILY.xattr.user.%d" % number))
            hand.refer(value, hand.string(fill))
        return position

    return hand_made(toc)


@pytest.mark.parametrize(
    "data",
    [
        sharing(4, b"symlink", b"t" * 4000),
        sharing(13, b"reg", b"v" * 50_000, records=1),
        sharing(13, b"dir", b"v" * 50_000, records=1),
        sharing(13, b"reg", b"", records=3000),
        sharing(10, b"reg", b"2" * 100_000),
    ],
    ids=["targets", "attributes", "of directories", "records", "times"],
)
def test_shared_strings_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidDataError, match=r"overlap|too long"):
        merged_tree([decode_ztoc(data)], [b"layer"])


def test_too_many_files_are_not_for_erofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_MAX_FILES", 20)
    few = decode_ztoc(tar_ztoc([entry(f"{number}") for number in range(19)]))
    merged_tree([few], [b"layer"])
    deep = decode_ztoc(tar_ztoc([entry("/".join("abcdefghijklmnopqrstuvwxyz"))]))
    for ztocs in ([few, few], [deep]):
        with pytest.raises(UnsupportedLayerError, match="more than 20 files and directories"):
            merged_tree(ztocs, [b"layer"] * len(ztocs))
    with pytest.raises(SociError, match="more than 20 files and directories"):
        layer_tree(deep, b"layer", LazyImage("image", []))
