"""Real mounts: the kernel's FUSE and overlayfs, as root."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from soci_cli.errors import MountError, NotMountedError
from soci_cli.kernel import calls
from soci_cli.kernel.points import mount_at, mount_points
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy import LazyImage
from soci_cli.lazy.fuse import MountOptions, mount_image
from soci_cli.lazy.layer_bytes import Name, no_name
from soci_cli.ztoc import FileMetadata
from soci_cli.ztoc.folders import IMPLIED
from tests.lazy.fuse.tools import (
    Bytes,
    content,
    errno_of,
    file,
    image_with,
    layer_of,
    mounted,
    names,
)
from tests.lazy.test_image import converted, walk  # noqa: F401 - a fixture
from tests.lazy.tools import entry, opened
from tests.support.machine import need

FORMATS = {
    "reg": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


pytestmark = pytest.mark.usefixtures("need_fuse")


def check(image: LazyImage, target: Path) -> None:
    """The mounted files are those of the image, and no others."""
    files = [one for one in (image.root, *walk(image)) if image.type_of(one) in FORMATS]
    for one in files:
        node, path = image.node(one), target / os.fsdecode(one.path)
        found = path.lstat()
        assert found.st_mode == FORMATS[node.type] | node.mode, path
        assert (found.st_uid, found.st_gid) == (node.uid, node.gid), path
        assert found.st_mtime_ns == node.mtime_ns, path
        if node.type != "dir":
            assert (found.st_size, found.st_nlink) == (node.size, image.link_count(one)), path
        if node.type in ("char", "block"):
            assert found.st_rdev == os.makedev(node.devmajor, node.devminor), path
        if node.type == "symlink":
            assert os.fsencode(path.readlink()) == node.linkname
        if node.type == "reg":
            assert path.read_bytes() == b"".join(image.pieces(one)), path
        xattrs = {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        named = one.entry != IMPLIED
        assert xattrs == (dict(image.layers[one.layer].files.xattrs(one.entry)) if named else {}), (
            path
        )
    there = {os.fsencode(path.relative_to(target)) for path in target.rglob("*")}
    assert there == {one.path for one in files[1:]}


def xattr(name: str, value: bytes) -> tuple[bytes, bytes]:
    return b"SCHILY.xattr." + name.encode(), value


@pytest.fixture
def odd() -> LazyImage:
    """Layers with everything that overlayfs treats in a special way."""
    lower = [
        entry("", "dir", mode=0o751, uid=5, gid=6, mod_time=b"1969-12-31T23:59:59.25Z"),
        entry("a", "dir", mode=0o700, uid=7),
        file("a/f", 0, 5000, uid=1 << 20, mod_time=b"2262-01-01T00:00:00.123456789Z"),
        file("a/suid", 0, 5000),
        entry("a/hard", "hardlink", linkname=b"a/f"),
        entry("gone", "dir"),
        file("gone/x", 0, 10),
        entry("opaque", "dir"),
        file("opaque/old", 0, 10),
        file("both", 0, 10),
        entry("both2", "dir"),
        file("both2/old", 0, 10),
        entry("null", "char", devmajor=1, devminor=3, mode=0o666),
        entry("disk", "block", devmajor=259, devminor=70000, mode=0o660),
        entry("pipe", "fifo"),
        entry("socket", "socket"),
        entry("link", "symlink", linkname=b"a/f", mode=0o777),
        entry("dangling", "symlink", linkname=b"x/" * 2000 + b"x", mode=0o777),
        file(b"\xff\xfe name \n", 0, 10),
        file("n" * 255, 0, 10),
        file("empty", 0, 0),
        entry("x", "dir", xattrs=(xattr("user.a", b"1"), xattr("trusted.b", b"2"))),
        file(
            "x/file",
            0,
            1,
            xattrs=(xattr("user.a", b""), xattr("trusted.overlay.opaque", b"y")),
        ),
        entry("x/steer", "dir", xattrs=(xattr("trusted.overlay.redirect", b"/a"),)),
    ]
    upper = [
        file(".wh.gone", 0, 0),
        file("opaque/.wh..wh..opq", 0, 0),
        file("opaque/new", 8, 100),
        file("both", 16, 20),
        file(".wh.both", 0, 0),
        entry("both2", "dir"),
        file(".wh.both2", 0, 0),
        file("both2/new", 24, 20),
        file("a/new", 32, 1 << 20),  # nobody names its folder in this layer
        file("implied/deep/file", 40, 40),
        file("link", 48, 40),
    ]
    return image_with(lower, upper, [file("top", 0, 10)])


def test_odd_files(odd: LazyImage, tmp_path: Path) -> None:
    """Whiteouts, opaque and implied folders, links, devices, times, names, xattrs."""
    with mounted(odd, tmp_path) as (made, target, log):
        assert made.kind == "overlay"
        check(odd, target)
        assert not (target / "gone").exists()
        assert names(target / "both2") == ["new"]
        assert names(target / "opaque") == ["new"]
        assert (target / "a/f").samefile(target / "a/hard")
        assert not (target / "socket").exists()
        found = mount_at(str(target))
        assert found is not None
        assert (found.kind, found.source) == ("overlay", "soci:example.org/image:1")
        assert errno_of(lambda: (target / "a/f").write_bytes(b"")) == errno.EROFS
        assert errno_of(lambda: (target / "null").read_bytes()) == errno.EACCES  # nodev
    assert not log
    assert mount_at(str(target)) is None


def test_root_that_is_opaque(tmp_path: Path) -> None:
    """It hides all that is below."""
    image = image_with([file("old", 0, 1)], [file(".wh..wh..opq", 0, 0), file("new", 0, 1)], [])
    with mounted(image, tmp_path) as (_, target, _):
        check(image, target)
        assert names(target) == ["new"]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_numbers_of_layers(count: int, tmp_path: Path) -> None:
    """None, one, and many."""
    layers = [[file(f"f{number % 250}", 8 * number, 10)] for number in range(count)]
    image = image_with(*layers)
    with mounted(image, tmp_path) as (_, target, _):
        check(image, target)


def test_too_many_layers(tmp_path: Path) -> None:
    """overlayfs has a limit."""
    image = image_with(*[[file("f", 0, 1)]] * 500)
    with pytest.raises(MountError, match="has 500 layers"), mounted(image, tmp_path):
        pass


def test_whole_image(converted: Path, tmp_path: Path) -> None:  # noqa: F811
    """An image with zTOCs, and the same files once more when everything is in the cache."""
    with opened(f"oci:{converted}", tmp_path / "cache") as image:
        for _ in range(2):
            with mounted(image, tmp_path) as (_, target, log):
                check(image, target)
            assert not log


def _xattr_errno(path: Path) -> int:
    return errno_of(lambda: os.getxattr(path, "user.none"))


@pytest.mark.parametrize("writable", [False, True])
def test_without_xattrs(tmp_path: Path, writable: bool) -> None:
    """Programs hear that there is none, and all else is as with attributes."""
    lower = [entry("d/e", "dir"), file("d/e/f", 0, 10), file("d/a", 512, 5000), file("gone", 0, 1)]
    image = image_with(lower, [file("d/e/g", 8, 8), file(".wh.gone", 0, 0)])
    with mounted(image, tmp_path, MountOptions(writable=writable)) as (_, target, log):
        for path in (target, target / "d", target / "d/a"):
            assert _xattr_errno(path) == errno.ENODATA
        check(image, target)
        assert not any(os.listxattr(path) for path in target.rglob("*"))
        if writable:
            os.setxattr(target / "d/a", "trusted.new", b"1")
            assert os.getxattr(target / "d/a", "trusted.new") == b"1"
            assert (target / "d/a").read_bytes() == content(512, 5000)
            shutil.copytree(target / "d", target / "copy")
            shutil.rmtree(target / "d/e")
            (target / "d/e").mkdir()
            assert names(target / "d/e") == []
            assert names(target / "copy/e") == ["f", "g"]
    assert not log


def acl(*entries: tuple[int, int, int]) -> bytes:
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *one) for one in entries)


def acl_file(name: str, mode: int, access: bytes) -> FileMetadata:
    return file(name, 0, 10, mode=mode, xattrs=(xattr("system.posix_acl_access", access),))


GIVES = acl((1, 6, -1 & 0xFFFFFFFF), (2, 4, 4711), (4, 0, 0), (16, 4, 0), (32, 0, 0))
DENIES = acl((1, 6, 0), (2, 0, 4711), (4, 4, 0), (16, 4, 0), (32, 4, 0))


@pytest.mark.parametrize("writable", [False, True])
def test_access_control_lists_are_obeyed(tmp_path: Path, writable: bool) -> None:
    """As the kernel obeys those of a disk: who is given access has it, who is shut out has not."""
    if os.geteuid():
        pytest.skip("only root's mounts check permissions")
    made = [acl_file("gives", 0o640, GIVES), acl_file("denies", 0o644, DENIES)]
    made += [acl_file("broken", 0o644, b"\2\0\0\0no list"), file("plain", 0, 10, mode=0o600)]
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    with mounted(image_with(made), tmp_path, MountOptions(writable=writable)) as (_, target, log):

        def reads(name: str) -> bool:
            done = subprocess.run(
                ["cat", target / name],
                cwd="/",
                user=4711,
                group=4711,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            return done.returncode == 0

        found = [reads(name) for name in ("gives", "denies", "broken", "plain")]
        assert found == [True, False, True, False]
        assert os.getxattr(target / "gives", "system.posix_acl_access")
        assert _xattr_errno(target / "plain") == errno.ENODATA
    assert not log


@pytest.mark.parametrize("upper", [["d/.wh..wh..opq"], [".wh.d", "d/new"]])
def test_folders_that_need_xattrs(tmp_path: Path, upper: list[str]) -> None:
    """A folder that hides what is below goes on doing so."""
    made = [file(name, 0, 0) for name in upper]
    many = [file(f"{n}/x", 0, 1) for n in range(100)]
    with mounted(image_with([*many, file("d/old", 0, 1)], made), tmp_path) as (_, target, _):
        for number in range(100):
            assert _xattr_errno(target / f"{number}/x") == errno.ENODATA
        assert names(target / "d") == ([] if len(upper) == 1 else ["new"])


def test_writing(odd: LazyImage, tmp_path: Path) -> None:
    """With a folder for it, everything can be changed, and nothing of that reaches the image."""
    with mounted(odd, tmp_path, MountOptions(writable=True)) as (_, target, _):
        found = target.stat()
        assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFDIR | 0o751, 5, 6)
        (target / "a/f").write_bytes(b"new")
        (target / "made").mkdir()
        shutil.rmtree(target / "a")
        (target / "both").unlink()
        with (target / "top").open("ab") as out:
            out.write(b"more")
        assert (target / "top").read_bytes() == content(0, 10) + b"more"
        assert not (target / "a").exists()
    with mounted(odd, tmp_path) as (_, target, _):
        check(odd, target)


def test_upper_on_overlayfs(odd: LazyImage, tmp_path: Path) -> None:
    """overlayfs cannot write there: the line says which folder and what to do."""
    with mounted(odd, tmp_path, MountOptions(writable=True)) as (_, target, _):
        inner, scratch = tmp_path / "inner", target / "scratch"
        inner.mkdir()
        scratch.mkdir()
        options = MountOptions(writable=True)
        with pytest.raises(MountError, match=f"{scratch}.*SOCI_STATE"):
            mount_image(odd, inner, scratch, options, print)
        assert mount_at(str(inner)) is None
        assert not any(str(scratch) in point.path for point in mount_points())
        (target / "below").mkdir()
        (tmp_path / "scratch2").mkdir()
        with mount_image(odd, target / "below", tmp_path / "scratch2", MountOptions(), print):
            assert (target / "below/top").read_bytes() == content(0, 10)


def test_without_overlayfs(odd: LazyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server merges the layers itself; only writing needs overlayfs."""
    mount = calls.mount

    def without(kind: str, source: str, target: Path, flags: int, data: str) -> None:
        if kind == "overlay":
            raise OSError(errno.ENODEV, "No such device")
        mount(kind, source, target, flags, data)

    monkeypatch.setattr(calls, "mount", without)
    with mounted(odd, tmp_path) as (made, target, log):
        assert made.kind == "fuse"
        check(odd, target)
        point = mount_at(str(target))
        assert point is not None
        assert (point.kind, point.source) == ("fuse.soci", "example.org/image:1")
    assert not log
    writable = MountOptions(writable=True)
    with pytest.raises(MountError, match="no overlayfs"), mounted(odd, tmp_path, writable):
        pass


def test_suid_and_dev(odd: LazyImage, tmp_path: Path) -> None:
    """Only who wants them gets them."""
    with mounted(odd, tmp_path, MountOptions(suid=True, dev=True)) as (_, target, _):
        assert (target / "null").read_bytes() == b""
        line = next(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {target} " in line
        )
        assert "nosuid" not in line
        assert "nodev" not in line


def test_bad_targets(odd: LazyImage, tmp_path: Path) -> None:
    """One line for each."""
    scratch = tmp_path / "aside"
    scratch.mkdir()
    plain = tmp_path / "plain"
    plain.touch()
    options = MountOptions()
    with pytest.raises(MountError, match=r"there is no folder .* mkdir"):
        mount_image(odd, tmp_path / "none", scratch, options, print)
    with pytest.raises(MountError, match="is no folder"):
        mount_image(odd, plain, scratch, options, print)
    with mounted(odd, tmp_path) as (made, target, _):
        link = tmp_path / "link"
        link.symlink_to(target)
        with pytest.raises(
            MountError, match=r"mounted already \(example.org/image:1\).*soci umount"
        ):
            mount_image(odd, link, scratch, options, print)
    for gone in (target, tmp_path / "none"):
        with pytest.raises(NotMountedError, match="is not mounted"):
            unmount(gone, made.identity)


def test_programs_and_chroot(tmp_path: Path) -> None:
    """A program that is run from the mount, with the image as its root folder."""
    program = Path(need("ldconfig")).read_bytes()  # statically linked everywhere

    class Program(Bytes):
        def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
            buffer[:] = program[offset : offset + buffer.nbytes]
            return True

    layer = layer_of(file("bin/tool", 0, len(program), mode=0o755), archive=Program())
    with mounted(image_with(layer), tmp_path) as (_, target, _):
        command = ["chroot", str(target), "/bin/tool", "--version"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert b"ldconfig" in done.stdout
