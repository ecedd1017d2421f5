"""The list of files that were read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from soci_cli.errors import StorageError
from soci_cli.index.prefetch import read_prefetch_list
from soci_cli.lazy.mounts import readlist
from soci_cli.lazy.mounts.readlist import ReadList
from tests.lazy.tools import entry, eventually, files_of


def list_of(path: Path, *layers: list[bytes]) -> ReadList:
    """A list for layers that have files of these names."""
    named: Any = [SimpleNamespace(files=files_of(*map(entry, one))) for one in layers]
    return ReadList(named, path)


def test_record(tmp_path: Path) -> None:
    path = tmp_path / "files.json"
    path.write_text("old")
    odd = b"./usr//lib/\xff\xfe \xc3\xbc\n"
    with list_of(path, [b"bin/a", b"bin/b"], [odd, b"/bin/a"]) as read:
        assert read_prefetch_list(path) == []
        for layer, number in ((1, 0), (0, 1), (1, 0), (0, 0), (1, 1)):
            read(layer, number)
    files = read_prefetch_list(path)
    assert files == ["/usr/lib/\udcff\udcfe ü\n", "/bin/b", "/bin/a"]
    assert os.fsencode(files[0]) == b"/usr/lib/\xff\xfe \xc3\xbc\n"
    assert [path.name for path in tmp_path.iterdir()] == ["files.json"]


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"absent/files.json: the list of files cannot be written"
    ):
        list_of(tmp_path / "absent" / "files.json")


def test_names_are_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is looked up once, however long the list is."""
    monkeypatch.setattr(readlist, "_PERIOD", 0.01)
    path = tmp_path / "files.json"
    asked: list[int] = []

    class Names:
        def path_of(self, entry: int) -> bytes:
            asked.append(entry)
            return b"file%d" % entry

    layers: Any = [SimpleNamespace(files=Names())]
    with ReadList(layers, path) as read:
        for end in (1000, 1001, 1500):
            for entry in range(end):
                read(0, entry)
            eventually(lambda: len(read_prefetch_list(path)) == end)  # noqa: B023
    assert asked == list(range(1500))
    expected = [f"/file{number}" for number in range(1500)]
    assert path.read_text() == json.dumps(expected, indent=1) + "\n"


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path) -> None:
    """The list is written as soon as that can be done."""
    folder, path = tmp_path / "there", tmp_path / "there/files.json"
    folder.mkdir()
    with list_of(path, [b"a", b"b"]) as read:
        folder.rename(tmp_path / "aside")
        read(0, 0)
        with pytest.raises(StorageError, match="cannot be written"):
            read._update()
        (tmp_path / "aside").rename(folder)
        read(0, 1)
    assert read_prefetch_list(path) == ["/a", "/b"]
