"""EROFS images of real layers, mounted by the kernel, beside what tar makes of the same layers."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soci_cli.errors import MountError
from soci_cli.kernel import calls, detached
from soci_cli.lazy.erofs.metadata import Metadata
from soci_cli.lazy.erofs.mounting import Way, mount, probe
from soci_cli.lazy.erofs.tree import merged_tree
from soci_cli.ztoc import Compression, build_ztoc, decode_ztoc
from tests.support.images import noise
from tests.support.machine import need_root

ACL = bytes.fromhex(
    "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000000ffffffff"
)
OPTIONS = detached.NOSUID | detached.NODEV


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def hard_layer() -> bytes:
    """A layer with every kind of file that tar and the kernel know."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object
        ) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mtime = kind, len(data), 1_700_000_000.25
            for key, value in {"mode": 0o644, **more}.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("./", tarfile.DIRTYPE, mode=0o755)
        add("d", tarfile.DIRTYPE, mode=0o1777, uid=7, gid=8)
        for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, 3_000_000):
            add(f"d/size-{size}", data=noise(size, size), uid=size % 70_000)
        add("d/setuid", data=b"#!", mode=0o6755, mtime=1)
        add("d/same", tarfile.LNKTYPE, linkname="d/size-513")
        add("d/link", tarfile.SYMTYPE, linkname="size-1")
        add("d/far", tarfile.SYMTYPE, linkname="x/" * 1500)
        add("pipe", tarfile.FIFOTYPE, mode=0o600)
        add("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("disk", tarfile.BLKTYPE, devmajor=259, devminor=70_000)
        add("attributes", data=b"x", pax_headers={"SCHILY.xattr.user.colour": "blue"})
        add("deep/er/than/named", data=b"implied")
        for number in range(700):
            add(f"many/{number:0200}", data=b"%d" % number)
        add("twice/f", data=b"first", mode=0o600)
        add("twice/f", data=b"again")
        add("n" * 255, data=b"long name")
    return stream.getvalue()


@contextmanager
def mounted(layer: bytes, folder: Path, way: Way = Way.FILES, cut: int = 0) -> Iterator[Path]:
    """A layer by EROFS; `cut` bytes are missing at the end of its device."""
    built = build_ztoc(io.BytesIO(layer), compression=Compression.UNCOMPRESSED)
    tree = merged_tree([decode_ztoc(built.data)], [b"layer"])
    (layout,) = tree.layouts
    image, device, target = folder / "image", folder / "device", folder / "mounted"
    image.write_bytes(Metadata(tree.root, tree.inodes, tree.devices).data)
    pieces = (
        bytes(size) if source < 0 else layer[source : source + size]
        for source, size in layout.segments(0, layout.size)
    )
    device.write_bytes(b"".join(pieces)[: layout.size - cut])
    target.mkdir()
    with image.open("rb") as first, device.open("rb") as second:
        fd = mount(way, first.fileno(), [second.fileno()], OPTIONS)
    try:
        detached.attach(fd, target)
    finally:
        os.close(fd)
    try:
        yield target
    finally:
        calls.umount2(target, 0)


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree but inode numbers, times of access and sizes of folders."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for above, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            path = Path(above, name)
            if name == "." and path != root:
                continue
            about = path.lstat()
            content: object = None
            if stat.S_ISREG(about.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(about.st_mode):
                content = path.readlink()
            shown = os.path.relpath(path, root)
            found[shown] = (
                about.st_mode, about.st_uid, about.st_gid, about.st_mtime_ns, about.st_rdev, content,
                0 if stat.S_ISDIR(about.st_mode) else about.st_size,
                0 if stat.S_ISDIR(about.st_mode) else about.st_nlink,
                tuple((one, os.getxattr(path, one, follow_symlinks=False))
                      for one in sorted(os.listxattr(path, follow_symlinks=False))),
                min(inodes.setdefault(about.st_ino, shown), shown) if about.st_nlink > 1 else "",
            )  # fmt: skip
    return found


@pytest.mark.parametrize("way", Way)
def test_all_is_as_tar_makes_it(tmp_path: Path, way: Way) -> None:
    layer = hard_layer()
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(
        ["tar", "-x", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"],
        input=layer, cwd=unpacked, check=True,
    )  # fmt: skip
    expected = facts(unpacked)
    # Which is root's, and of the time of its making, where no entry names it.
    implied = {"deep", "deep/er", "deep/er/than", "many", "twice"}
    expected = {name: about for name, about in expected.items() if name not in implied}
    with mounted(layer, tmp_path, way) as target:
        found = facts(target)
        assert found.keys() - expected.keys() == implied
        for name, about in expected.items():
            if name in ("d/size-513", "d/same"):
                assert {found["d/size-513"][-1], found["d/same"][-1]} <= {"d/size-513", "d/same"}
                assert found[name][:-1] == about[:-1]
            else:
                assert found[name] == about, name
        assert (target / "d/size-513").samefile(target / "d/same")
        assert (target / "d").stat().st_blksize == 4096
        assert all(path.stat().st_ino < 1 << 32 for path in target.rglob("*") if path.exists())


def _executable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode = 0o755
    return info


def test_programs_run_from_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", dereference=True) as archive:
        archive.add("/bin/sh", "sh", filter=_executable)
    with mounted(stream.getvalue(), tmp_path) as target:
        done = subprocess.run([target / "sh", "-c", "echo ran"], capture_output=True, check=True)
        assert done.stdout == b"ran\n"


def test_what_is_missing_of_a_device_is_an_error(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("first", "second"):
            info = tarfile.TarInfo(name)
            info.size = 20_000
            archive.addfile(info, io.BytesIO(noise(1, 20_000)))
    with mounted(stream.getvalue(), tmp_path, cut=20_000) as target:
        assert (target / "first").read_bytes() == noise(1, 20_000)
        with pytest.raises(OSError) as caught:
            (target / "second").read_bytes()
        assert caught.value.errno == errno.EIO


def test_access_lists_are_obeyed(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("secret")
        info.size, info.mode = 3, 0o640
        text = ACL.decode("utf-8", "surrogateescape")
        info.pax_headers = {"SCHILY.xattr.system.posix_acl_access": text, "hdrcharset": "BINARY"}
        archive.addfile(info, io.BytesIO(b"yes"))
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:-1]:
        above.chmod(above.stat().st_mode | 0o711)
    with mounted(stream.getvalue(), tmp_path) as target:

        def read(user: int) -> bytes:
            done = subprocess.run(
                ["cat", str(target / "secret")],
                user=user,
                group=user,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            return done.stdout

        assert read(1000) == b"yes"
        assert read(1001) == b""


def test_the_probe(tmp_path: Path) -> None:
    found = probe(tmp_path)
    assert found.way is not None, found.reason
    (tmp_path / "empty").write_bytes(bytes(8192))
    with (tmp_path / "empty").open("rb") as image, pytest.raises(MountError, match="erofs"):
        mount(Way.FILES, image.fileno(), [], OPTIONS)
