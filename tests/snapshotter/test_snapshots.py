"""What the suite of containerd does not ask of a snapshotter: crashes, and files of others."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from soci_cli.errors import NotFoundError, StorageError
from soci_cli.snapshotter.metadata import Kind, Metadata, Usage
from soci_cli.snapshotter.snapshots import DATABASE, Snapshotter


def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    with Snapshotter(tmp_path) as first:
        first.prepare("a", "", {"x": "y"})
        first.commit("a", "base", {"l": "v"})
        mounts = first.prepare("b", "base", {})
        before = list(first.walk([]))
    with Snapshotter(tmp_path) as second:
        assert list(second.walk([])) == before
        assert second.mounts("b") == mounts
        second.prepare("c", "base", {})


def test_a_folder_whose_making_was_interrupted(tmp_path: Path) -> None:
    with Metadata(tmp_path / DATABASE) as metadata:
        metadata.create(Kind.ACTIVE, "key", "", {})
    with Snapshotter(tmp_path) as snapshotter:
        (mount,) = snapshotter.mounts("key")
        assert Path(mount.source).is_dir()


def test_a_snapshot_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with Snapshotter(tmp_path) as snapshotter:
        (tmp_path / "snapshots/1").write_bytes(b"in the way")
        with pytest.raises(StorageError):
            snapshotter.prepare("key", "", {})
        with pytest.raises(NotFoundError):
            snapshotter.stat("key")
        snapshotter.prepare("key", "", {})


def test_ids_are_not_used_again(tmp_path: Path) -> None:
    with Metadata(tmp_path / "db") as metadata:
        first = metadata.create(Kind.ACTIVE, "key", "", {})
        metadata.remove("key")
        assert metadata.create(Kind.ACTIVE, "key", "", {}).id > first.id


def test_of_another_version(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "db")
    database.execute("PRAGMA user_version = 77")
    database.commit()
    database.close()
    with pytest.raises(StorageError, match="another version"):
        Metadata(tmp_path / "db")


def test_no_database(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(StorageError):
        Metadata(tmp_path / "db")


def test_two_processes(tmp_path: Path) -> None:
    with Metadata(tmp_path / "db") as one, Metadata(tmp_path / "db") as other:
        one.create(Kind.ACTIVE, "a", "", {})
        other.commit("a", "base", {}, Usage(1, 2))
        assert one.get("base").usage == Usage(1, 2)
