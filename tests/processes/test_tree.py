"""Removing folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from soci_cli.kernel.points import points_below
from soci_cli.processes.tree import remove_tree


def test_removing_what_has_no_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("")
    (folder / "link").symlink_to("/etc")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    remove_tree(folder)
    assert not folder.exists()


def test_removing_what_is_deep(tmp_path: Path) -> None:
    """Deeper than Python's stack and than a path may be long."""
    folder = tmp_path / "gone"
    folder.mkdir()
    at = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.close(at)
        at = below
    os.close(at)
    remove_tree(folder)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("depth", ["mounted", "a/mounted"])
def test_what_is_mounted_stays(tmp_path: Path, depth: str) -> None:
    """Also where it is of the same file system."""
    kept, folder = tmp_path / "kept", tmp_path / "gone"
    kept.mkdir(mode=0o500)
    (kept / "file").write_text("kept")
    (folder / depth).mkdir(parents=True)
    (folder / "file").write_text("gone")
    subprocess.run(["mount", "--bind", kept, folder / depth], check=True)
    try:
        remove_tree(folder)
        assert (kept / "file").read_text() == "kept"
        assert kept.stat().st_mode & 0o777 == 0o500
        assert not (folder / "file").exists()
    finally:
        for point in points_below(str(folder)):
            subprocess.run(["umount", point], check=True)
    remove_tree(folder)
    assert not folder.exists()
    assert (kept / "file").read_text() == "kept"
