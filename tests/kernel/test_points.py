"""What is mounted where, and who uses it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_at, mount_points, resolve, users_of


def test_mount_points() -> None:
    root = mount_at("/")
    assert root is not None
    assert root.kind != "fuse.soci"
    assert any(point.kind == "proc" and point.path == "/proc" for point in mount_points())
    assert mount_at("/no/such/folder") is None


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "again").symlink_to(tmp_path / "link" / "sub")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for text in ("real", "./real/", "link", "link/", "real/sub/..", "link/sub/.."):
        assert resolve(Path(text)) == real
    assert resolve(Path("again")) == real / "sub"
    assert resolve(Path("absent/x")) == tmp_path / "absent" / "x"
    assert resolve(Path("/")) == Path("/")
    assert resolve(Path("loop")).name == "loop"
    monkeypatch.chdir(real / "sub")
    assert resolve(Path()) == real / "sub"
    assert resolve(Path("..")) == real


def test_users(tmp_path: Path) -> None:
    folder = tmp_path / "used"
    folder.mkdir()
    (tmp_path / "used-not").mkdir()
    with (
        subprocess.Popen(["sleep", "600"], cwd=folder) as one,
        subprocess.Popen(["sleep", "600"], cwd=tmp_path / "used-not") as other,
    ):
        try:
            deadline = time.monotonic() + 30
            while (one.pid, "sleep") not in users_of(str(folder)) and time.monotonic() < deadline:
                time.sleep(0.01)  # before it has become `sleep`
            assert users_of(str(folder)) == [(one.pid, "sleep")]
        finally:
            one.kill()
            other.kill()
    with (folder / "file").open("w"):
        assert [pid for pid, _ in users_of(str(folder))] == [os.getpid()]
