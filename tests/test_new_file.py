"""Files that are written aside and renamed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from soci_cli.new_file import NewFile, replacing


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "directory") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["directory"]  # noqa: PTH208


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"old")
    (tmp_path / "link").symlink_to("other")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "other").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_the_mode_is_cut_by_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as file:
            file.write(b"new")
        with replacing(tmp_path / "secret", 0o600) as file:
            file.write(b"new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_what_was_committed_can_be_read_on(tmp_path: Path) -> None:
    with NewFile(tmp_path / "file") as new:
        os.write(new.fd, b"new")
        new.commit()
        assert os.pread(new.fd, 3, 0) == b"new"
    assert (tmp_path / "file").read_bytes() == b"new"
