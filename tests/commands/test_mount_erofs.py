"""`soci mount --engine erofs`, as real processes with real mounts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_at
from tests.commands.mounting import Home, until
from tests.commands.test_reading import BIG
from tests.support.images import noise
from tests.support.machine import need_root


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def test_mount_and_umount(home: Home, layout: Path) -> None:
    home("mount", "--engine", "erofs", f"oci:{layout}", home.target).good()
    point = mount_at(str(home.target))
    assert point is not None
    assert point.kind == "erofs"
    assert home.mounts()[0]["kind"] == "erofs"
    usr = home.target / "usr"
    assert sorted(path.name for path in usr.iterdir()) == ["big", "big2", "dir", "small", "upper"]
    assert (usr / "big").read_bytes() == BIG
    assert (usr / "big").samefile(usr / "big2")
    assert (usr / "upper").read_bytes() == noise(1, 70_000)
    assert stat.S_ISFIFO((home.target / "dev/pipe").lstat().st_mode)
    with pytest.raises(OSError, match="Read-only"):
        (usr / "new").write_text("")
    home("mount", f"oci:{layout}", home.target).bad(1, "has an image mounted already")
    home("umount", "--force", home.target).good()
    assert not home.is_mounted()
    until(lambda: home.left == [])


def test_auto_and_what_is_not_for_it(home: Home, layout: Path) -> None:
    done = home("mount", "--rw", "--engine", "erofs", f"oci:{layout}", home.target)
    done.bad(1, "EROFS is for images with layers, and read-only")
    assert not home.is_mounted()
    home("mount", "--engine", "auto", f"oci:{layout}", home.target).good()
    assert home.mounts()[0]["kind"] == "erofs"
    assert "metadata" in home("cache", "ls").good().text
    home("umount", "--force", home.target).good()


def test_the_end_of_the_server_leaves_errors_and_no_hang(home: Home, layout: Path) -> None:
    home("mount", "--engine", "erofs", f"oci:{layout}", home.target).good()
    os.kill(home.mounts()[0]["pid"], 9)
    until(lambda: home.mounts()[0]["state"] == "crashed")
    assert (home.target / "usr/big").stat().st_size == len(BIG)
    with pytest.raises(OSError, match="Input/output"):
        (home.target / "usr/big").read_bytes()
    home("umount", home.target).good()
    assert not home.is_mounted()
