"""Real mounts of the root of a user namespace, and of ordinary users."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_points
from soci_cli.lazy import LazyImage
from tests.lazy.fuse.test_mounting import FORMATS
from tests.lazy.fuse.tools import names
from tests.lazy.test_image import converted, walk  # noqa: F401 - a fixture
from tests.support.machine import need

_NOBODY = 65534


pytestmark = pytest.mark.usefixtures("need_fuse")


_SCRIPT = """
import os, sys
from pathlib import Path
import encodings.idna
import soci_cli.targets.layout
from soci_cli.lazy.fuse import MountOptions
from tests.lazy.fuse.tools import mounted
from tests.lazy.tools import opened
from tests.lazy.fuse.test_users import check_as
root, image, user, writable = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "rw"
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
with opened("oci:" + image, root / "cache") as opened_image:
    with mounted(opened_image, root, MountOptions(writable=writable)) as (made, target, log):
        print(made.kind)
        check_as(opened_image, target, user, writable)
        print(log)
"""


def check_as(image: LazyImage, target: Path, user: int, writable: bool) -> None:
    """What somebody sees who is not the real root."""
    for one in walk(image):
        path = target / os.fsdecode(one.path)
        node, found = image.node(one), path.lstat()
        assert found.st_mode == FORMATS[node.type] | node.mode, path
        assert found.st_mtime_ns == node.mtime_ns, path
        assert found.st_ino < 1 << 32, (path, found.st_ino)
        if user and not writable:
            assert (found.st_uid, found.st_gid) == (node.uid, node.gid), path
        if node.type == "reg":
            assert path.read_bytes() == b"".join(image.pieces(one)), path
    assert names(target / "opaque") == ["new"]
    assert not (target / "gone").exists()
    if writable:
        (target / "etc/hosts").write_text("changed")
        (target / "opaque/new").unlink()
        shutil.rmtree(target / "bin")
        assert (target / "etc/hosts").read_text() == "changed"
        assert names(target / "opaque") == []


def run_script(root: Path, image: Path, user: int, mode: str, *before: str) -> list[str]:
    command = [*before, sys.executable, "-c", _SCRIPT, str(root), str(image), str(user), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_user_namespace(converted: Path, tmp_path: Path, mode: str) -> None:  # noqa: F811
    """As the root of a namespace that has no other user."""
    before = [need("unshare"), "-Urm"]
    if subprocess.run([*before, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed")
    assert run_script(tmp_path, converted, 0, mode, *before) == ["overlay", "[]"]


@pytest.fixture
def device() -> Iterator[None]:
    """The device as it is on most machines."""
    path = Path("/dev/fuse")
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o666)
    yield
    path.chmod(before)


@pytest.fixture
def public(converted: Path) -> Iterator[Path]:  # noqa: F811
    """A folder that everybody reaches, with the image."""
    need("fusermount3")
    root = Path(
        subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
    )
    shutil.copytree(converted, root / "image")
    subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", root], check=True)
    yield root
    shutil.rmtree(root)


@pytest.mark.usefixtures("device")
def test_ordinary_user(public: Path) -> None:
    """Through fusermount3, the layers merged by the server."""
    assert run_script(public, public / "image", _NOBODY, "ro") == ["fuse", "[]"]


@pytest.mark.usefixtures("device")
def test_ordinary_user_who_writes(public: Path) -> None:
    """By fuse-overlayfs."""
    need("fuse-overlayfs")
    assert run_script(public, public / "image", _NOBODY, "rw") == ["fuse-overlayfs", "[]"]
    assert not any(str(public) in point.path for point in mount_points())
