"""Random layers of files with all that files have: EROFS shows what overlayfs shows, byte by byte."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.kernel import calls, detached
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.mounting import Way, mount
from soci_cli.lazy.erofs.tree import Tree, layer_tree, merged_tree
from soci_cli.lazy.merged import LazyImage
from soci_cli.ztoc import Compression, build_ztoc, decode_ztoc
from soci_cli.ztoc.layer import LayerFiles
from tests.integration.mounts import Facts, facts
from tests.lazy.erofs.checker import check
from tests.lazy.erofs.test_overlay import joined
from tests.lazy.tools import NoBytes, opened_layer
from tests.support.images import noise
from tests.support.machine import need_root
from tests.support.scale import examples


@dataclass(frozen=True)
class Node:
    """A file of a layer; `whiteout` hides what is below, `opaque` all of a directory."""

    kind: str
    mode: int = 0o644
    owner: int = 0
    mtime: int = 1_700_000_000
    size: int = 0
    target: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    opaque: bool = False


@dataclass
class Layer:
    """The files of a layer by path; every directory is named, and comes before what is in it."""

    files: dict[str, Node] = field(default_factory=dict)


_NAMES = st.sampled_from(["a", "b", "c", "ü", "name with spaces", "n" * 255])
_KINDS = st.sampled_from(
    [*["reg"] * 3, *["dir"] * 2, "symlink", "hardlink", "fifo", "char", *["whiteout"] * 2]
)
_SIZES = st.one_of(
    st.sampled_from([0, 1, 4095, 4096, 4097, 511, 512, 20_000]), st.integers(0, 9000)
)
_XATTRS = st.lists(
    st.tuples(
        st.sampled_from(["user.colour", "user.x", "trusted.secret", "security.label"]),
        st.binary(max_size=40),
    ),
    max_size=2,
    unique_by=lambda one: one[0],
)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """One layer."""
    layer = Layer()
    directories = [""]
    plain: list[str] = []
    for _ in range(draw(st.integers(1, 10))):
        above = draw(st.sampled_from(directories))
        path = f"{above}/{draw(_NAMES)}" if above else draw(_NAMES)
        if path in layer.files:
            continue
        kind = draw(_KINDS)
        if kind == "hardlink" and not plain:
            continue
        # Linux has user.* of files and directories only, and what a link is, its target says.
        xattrs = tuple(draw(_XATTRS)) if kind in ("reg", "dir") else ()
        layer.files[path] = Node(
            kind,
            draw(st.integers(0, 0o7777)) if kind != "symlink" else 0o777,
            draw(st.integers(0, 70_000)),
            draw(st.integers(0, 2**33)),
            draw(_SIZES) if kind == "reg" else 0,
            draw(st.sampled_from(plain))
            if kind == "hardlink"
            else draw(st.text("ab/.", min_size=1)),
            xattrs,
            kind == "dir" and draw(st.booleans()) and draw(st.booleans()),
        )
        if kind == "dir":
            directories.append(path)
        elif kind == "reg":
            plain.append(path)
    return layer


_TYPES = {
    "reg": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "char": tarfile.CHRTYPE,
}  # fmt: skip


def content(path: str, node: Node) -> bytes:
    return noise(len(path) + node.size, node.size)


def as_tar(layer: Layer) -> bytes:
    """The layer as images have it, with whiteouts as files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, node in layer.files.items():
            above, _, name = path.rpartition("/")
            if node.kind == "whiteout":
                archive.addfile(tarfile.TarInfo(f"{above}/.wh.{name}" if above else f".wh.{name}"))
                continue
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.mtime = _TYPES[node.kind], node.mode, node.mtime
            info.uid, info.gid, info.size = node.owner, node.owner // 2, node.size
            info.devmajor, info.devminor = 1, 3
            if node.kind in ("symlink", "hardlink"):
                info.linkname = node.target
            info.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
                for key, value in node.xattrs
            }
            archive.addfile(info, io.BytesIO(content(path, node)))
            if node.opaque:
                archive.addfile(tarfile.TarInfo(f"{path}/.wh..wh..opq"))
    return stream.getvalue()


def unpack(layer: Layer, folder: Path, below: Path) -> None:
    """The layer as a directory for overlayfs over the one `below`, without any code of the project.

    Whiteouts that hide nothing are left out: overlayfs lists them where it has nothing to merge.
    """
    for path, node in layer.files.items():
        file = folder / path
        if node.kind == "whiteout":
            above = [str(one) for one in Path(path).parents]
            is_new = any(one in layer.files and layer.files[one].opaque for one in above)
            if os.path.lexists(below / path) and not is_new:
                os.mknod(file, stat.S_IFCHR, os.makedev(0, 0))
            continue
        if node.kind == "hardlink":
            file.hardlink_to(folder / node.target)
            continue
        if node.kind == "reg":
            file.write_bytes(content(path, node))
        elif node.kind == "dir":
            file.mkdir()
        elif node.kind == "symlink":
            file.symlink_to(node.target)
        elif node.kind == "fifo":
            os.mkfifo(file)
        else:
            os.mknod(file, stat.S_IFCHR, os.makedev(1, 3))
        for key, value in node.xattrs:
            os.setxattr(file, key, value)
        if node.opaque:
            os.setxattr(file, "trusted.overlay.opaque", b"y")
        os.chown(file, node.owner, node.owner // 2, follow_symlinks=False)
        if node.kind != "symlink":
            file.chmod(node.mode)
    for path, node in reversed(layer.files.items()):
        if node.kind not in ("whiteout", "hardlink"):
            os.utime(folder / path, (node.mtime, node.mtime), follow_symlinks=False)


@contextmanager
def shown(tree: Tree, archives: Sequence[bytes], place: Path) -> Iterator[Path]:
    """A tree over the complete devices of its archives."""
    place.mkdir()
    data = Metadata(tree.root, tree.inodes, tree.devices).data
    check(data)
    with ExitStack() as stack:
        files = [
            stack.enter_context(tempfile.TemporaryFile(dir=place.parent))
            for _ in range(1 + len(archives))
        ]
        files[0].write(data)
        for file, archive, layout in zip(files[1:], archives, tree.layouts, strict=True):
            for source, size in layout.segments(0, layout.size):
                file.write(bytes(size) if source < 0 else archive[source : source + size])
        for file in files:
            file.flush()
        image, *devices = [file.fileno() for file in files]
        fd = mount(Way.FILES, image, devices, detached.NOSUID | detached.NODEV)
        try:
            detached.attach(fd, place)
        finally:
            os.close(fd)
    try:
        yield place
    finally:
        calls.umount2(place, 0)


def visible(found: Facts) -> Facts:
    """Without counts of links, in which overlayfs has those that upper layers hide."""
    return {
        name: {key: value for key, value in fact.items() if key != "links"}
        for name, fact in found.items()
    }


@pytest.mark.root
@examples(40)
@given(st.lists(layers(), min_size=1, max_size=4))
def test_layers_with_content(found: list[Layer]) -> None:
    need_root()
    archives = [as_tar(layer) for layer in found]
    ztocs = [
        decode_ztoc(build_ztoc(io.BytesIO(one), compression=Compression.UNCOMPRESSED).data)
        for one in archives
    ]
    with tempfile.TemporaryDirectory() as top, ExitStack() as stack:
        folder = Path(top)
        lowers = [folder / f"unpacked{number}" for number in range(len(found))]
        for name in ("empty", "emptier"):
            (folder / name).mkdir()
        for number, layer in enumerate(found):
            lowers[number].mkdir()
            lower = [folder / "emptier", folder / "empty", *lowers[:number]]
            with joined(lower, folder / f"below{number}") as place:
                unpack(layer, lowers[number], place)
        joint = stack.enter_context(joined([folder / "empty", *lowers], folder / "joined"))
        expected = visible(facts(joint))

        merged = merged_tree(ztocs, [b"x"] * len(ztocs))
        place = stack.enter_context(shown(merged, archives, folder / "merged"))
        assert visible(facts(place)) == expected

        singles = []
        for number, ztoc in enumerate(ztocs):
            below = LazyImage(
                "image", [opened_layer(LayerFiles(one), NoBytes()) for one in ztocs[:number]]
            )
            tree = layer_tree(ztoc, b"x", below)
            singles.append(
                stack.enter_context(shown(tree, [archives[number]], folder / f"single{number}"))
            )
        over = stack.enter_context(joined([folder / "empty", *singles], folder / "over"))
        assert visible(facts(over)) == expected
