"""The cases of containerd's own suite for snapshotters (core/snapshots/testsuite), by their names there.

What is mounted is mounted as containerd would, and changed by hand.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from soci_cli.errors import AlreadyExistsError, NotFoundError, SociError, StateError, UsageError
from soci_cli.kernel import calls
from soci_cli.snapshotter.metadata import Kind
from soci_cli.snapshotter.snapshots import Mount, Snapshotter
from tests.snapshotter.conftest import Api

Change = Mapping[str, bytes | None]
"""Files to write; None removes one."""


@contextmanager
def mounted(mounts: Sequence[Mount], at: Path) -> Iterator[Path]:
    """Mounts what a snapshotter answered, from the common folder of the lowers where that is long."""
    (mount,) = mounts
    at.mkdir(exist_ok=True)
    if mount.type == "bind":
        flags = 4096 | 16384  # MS_BIND, MS_REC
        calls.mount("", mount.source, at, flags, "")
        if "ro" in mount.options:
            calls.mount("", mount.source, at, 32 | 1 | 4096, "")  # MS_REMOUNT, MS_RDONLY, MS_BIND
    else:
        data = ",".join(mount.options)
        if len(data) > 4000:
            lowers = next(one for one in mount.options if one.startswith("lowerdir="))[9:].split(
                ":"
            )
            common = Path(os.path.commonpath(lowers))
            data = data.replace(f"{common}/", "")
            calls.in_directory(common, lambda: calls.mount("overlay", "overlay", at, 0, data))
        else:
            calls.mount("overlay", "overlay", at, 0, data)
    try:
        yield at
    finally:
        calls.umount2(at, 0)


def layer(api: Api, at: Path, name: str, parent: str, changes: Change) -> str:
    """Prepares, changes and commits a snapshot; its name."""
    key = f"{name}-active"
    with mounted(api.prepare(key, parent, {}), at) as root:
        apply(root, changes)
    api.commit(key, name, {})
    return name


def apply(root: Path, changes: Change) -> None:
    for path, data in changes.items():
        file = root / path
        if data is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Where snapshots are mounted."""
    return tmp_path / "mnt"


def test_basic(api: Api, at: Path) -> None:
    with mounted(api.prepare("preparing", "", {}), at) as root:
        apply(root, {"foo": b"foo\n", "a/b/c": b""})
    api.commit("preparing", "committed", {})
    assert api.stat("committed").parent == ""
    assert api.stat("committed").kind is Kind.COMMITTED
    with pytest.raises(NotFoundError):
        api.stat("preparing")
    with mounted(api.prepare("next", "committed", {}), at) as root:
        assert content(root) == {"foo": b"foo\n", "a/b/c": b""}
        apply(root, {"bar": b"bar\n", "foo": None})
        assert api.stat("next").kind is Kind.ACTIVE
    api.commit("next", "nextCommitted", {})
    walked = {one.name: one for one in api.walk([])}
    assert sorted(walked) == ["committed", "nextCommitted"]
    assert walked["nextCommitted"].parent == "committed"
    assert walked["nextCommitted"].created == api.stat("nextCommitted").created
    with mounted(api.view("view", "nextCommitted", {}), at) as root:
        assert content(root) == {"bar": b"bar\n", "a/b/c": b""}
    with pytest.raises(StateError, match="remove"):
        api.remove("committed")
    for name in ("view", "nextCommitted", "committed"):
        api.remove(name)
    assert not list(api.walk([]))


def test_stat_active(api: Api) -> None:
    api.prepare("active", "", {})
    found = api.stat("active")
    assert (found.name, found.parent, found.kind) == ("active", "", Kind.ACTIVE)


def test_transitivity(api: Api, at: Path) -> None:
    layer(api, at, "a", "", {})
    layer(api, at, "b", "a", {})
    api.prepare("c", "b", {})
    assert api.stat(api.stat("c").parent).parent == "a"
    with pytest.raises(StateError):
        api.remove("a")


@pytest.mark.parametrize("kinds", [("prepare", "view"), ("prepare", "prepare"), ("view", "view")])
def test_prepare_view_fails(api: Api, kinds: tuple[str, str]) -> None:
    getattr(api, kinds[0])("same", "", {})
    with pytest.raises(AlreadyExistsError):
        getattr(api, kinds[1])("same", "", {})


def test_update(api: Api, at: Path) -> None:
    layer(api, at, "base", "", {})
    api.prepare("active", "base", {})
    api.view("view", "base", {})
    for name in ("base", "active", "view"):
        before = api.stat(name)
        after = api.update(name, {"l1": "v1", "l2": "v2"}, [])
        assert after.labels == {"l1": "v1", "l2": "v2"}
        assert after.created == before.created
        assert after.updated > before.updated
        assert api.stat(name) == after
        assert api.update(name, {"l1": "new"}, ["labels.l1"]).labels == {"l1": "new", "l2": "v2"}
        assert api.update(name, {"l1": "x", "l2": ""}, ["labels.l1", "labels.l2"]).labels == {
            "l1": "x"
        }
        assert api.update(name, {"l3": "v3"}, ["labels"]).labels == {"l3": "v3"}
        with pytest.raises(UsageError):
            api.update(name, {}, ["parent"])
        assert api.stat(name).parent == before.parent
    with pytest.raises(NotFoundError):
        api.update("nobody", {}, [])


def test_remove(api: Api, at: Path) -> None:
    api.prepare("key", "", {})
    api.remove("key")
    api.view("key", "", {})
    api.remove("key")
    layer(api, at, "name", "", {})
    api.remove("name")
    layer(api, at, "name", "", {})
    with pytest.raises(NotFoundError):
        api.remove("key")


def test_walk(api: Api, at: Path) -> None:
    layer(api, at, "one", "", {})
    api.update("one", {"containerd.io/snapshot/l": "1"}, [])
    layer(api, at, "two", "one", {})
    api.prepare("active", "two", {"containerd.io/snapshot/l": "1"})
    api.view("view", "two", {"containerd.io/snapshot/l": "2"})

    def names(*filters: str) -> str:
        return " ".join(sorted(one.name for one in api.walk(filters)))

    label = 'labels."containerd.io/snapshot/l"'
    assert names() == "active one two view"
    assert names(f"{label}==1") == "active one"
    for kind, expected in (("active", "active"), ("view", ""), ("committed", "one")):
        assert names(f"kind=={kind},{label}==1") == expected
    assert names("name==one", "name==view") == "one view"
    assert names(f"name==one,{label}==2") == ""
    assert names("parent==two") == "active view"
    assert names(f'parent!="",{label}==1') == "active"
    assert names(label) == "active one view"
    assert names(f"{label}~=[12]") == "active one view"
    with pytest.raises(UsageError):
        names("name==")


LAYOUTS = [
    [{"foo": b"1", "bar": b"1"}, {"foo": b"2"}, {"foo": b"3", "bar": b"3"}],
    [{"a/foo": b"1"}, {"a/foo": b"2"}, {"a/foo": b"33"}],
    [{"foo": b"1"}, {"bar": b"2"}, {"foo": b"", "bar": b""}],
    [{"d/e/f": b"1"}, {"d/e/g": b"2"}, {"d/e/f": b"3"}],
    [{"foo": b"1" * 70_000}, {"foo": b"2"}, {"foo": b"1" * 70_000}],
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_layer_file_update(api: Api, at: Path, changes: Sequence[Change]) -> None:
    expected: dict[str, bytes] = {}
    parent = ""
    for number, change in enumerate(changes):
        parent = layer(api, at, f"layer-{number}", parent, change)
        expected |= {name: data for name, data in change.items() if data is not None}
        with mounted(api.view(f"view-{number}", parent, {}), at) as root:
            assert content(root) == expected


def test_remove_directory_in_lower_layer(api: Api, at: Path) -> None:
    layer(api, at, "lower", "", {"dir/old": b"old", "dir/older": b"older"})
    with mounted(api.prepare("middle", "lower", {}), at) as root:
        for file in (root / "dir").iterdir():
            file.unlink()
        (root / "dir").rmdir()
    api.commit("middle", "without", {})
    layer(api, at, "upper", "without", {"dir/new": b"new"})
    with mounted(api.view("view", "upper", {}), at) as root:
        assert content(root) == {"dir/new": b"new"}


def test_chown_and_permissions(api: Api, at: Path) -> None:
    layer(api, at, "lower", "", {"opt/a/file": b"x", "opt/b/file": b"y"})
    with mounted(api.prepare("changing", "lower", {}), at) as root:
        os.chown(root / "opt/a", 1, 2)
        (root / "opt/b").chmod(0o770)
        os.chown(root / "opt/b/file", 3, 4)
    api.commit("changing", "upper", {})
    with mounted(api.view("view", "upper", {}), at) as root:
        assert ((root / "opt/a").stat().st_uid, (root / "opt/a").stat().st_gid) == (1, 2)
        assert stat.S_IMODE((root / "opt/b").stat().st_mode) == 0o770
        assert (root / "opt/b/file").stat().st_uid == 3


def test_remove_intermediate_snapshot(api: Api, at: Path) -> None:
    layer(api, at, "base", "", {})
    layer(api, at, "intermediate", "base", {})
    api.prepare("active", "intermediate", {})
    with pytest.raises(StateError, match="remove"):
        api.remove("intermediate")
    for name in ("active", "intermediate", "base"):
        api.remove(name)


def test_deleted_files_in_child_snapshot(api: Api, at: Path) -> None:
    layer(api, at, "lower", "", {"foo": b"x", "dir/foo": b"y"})
    layer(api, at, "upper", "lower", {"foo": None, "dir/foo": None})
    with mounted(api.view("view", "upper", {}), at) as root:
        assert content(root) == {}


def test_move_file_from_lower_layer(api: Api, at: Path) -> None:
    layer(api, at, "lower", "", {"dir/file": b"moved", "dir/linked": b"linked"})
    with mounted(api.prepare("moving", "lower", {}), at) as root:
        (root / "dir/file").rename(root / "new")
        os.link(root / "dir/linked", root / "link")
    api.commit("moving", "upper", {})
    with mounted(api.view("view", "upper", {}), at) as root:
        assert content(root) == {"new": b"moved", "dir/linked": b"linked", "link": b"linked"}


def test_rename(api: Api, at: Path) -> None:
    layer(api, at, "lower", "", {"a/file": b"1", "b": b"2"})
    with mounted(api.prepare("renaming", "lower", {}), at) as root:
        (root / "b").rename(root / "c")
        (root / "empty").mkdir()
        (root / "empty").rename(root / "renamed")
        apply(root, {"full/inner": b"3"})
        (root / "full").rename(root / "moved")
        (root / "link").symlink_to("c")
        (root / "link").rename(root / "a/link")
    api.commit("renaming", "upper", {})
    with mounted(api.view("view", "upper", {}), at) as root:
        assert content(root) == {"a/file": b"1", "c": b"2", "moved/inner": b"3"}
        assert (root / "renamed").is_dir()
        assert (root / "a/link").is_symlink()


@pytest.mark.parametrize("count", [1, 2])
def test_view_readonly(api: Api, at: Path, count: int) -> None:
    parent = ""
    for number in range(count):
        parent = layer(api, at, str(number), parent, {f"file{number}": b"x"})
    with mounted(api.view("view", parent, {}), at) as root, pytest.raises(OSError):
        (root / "new").write_bytes(b"")


def test_stat_in_walk(api: Api, at: Path) -> None:
    layer(api, at, "one", "", {})
    api.prepare("two", "one", {})
    assert [api.stat(one.name) for one in api.walk([])] == list(api.walk([]))


def test_root_permission(api: Api, at: Path) -> None:
    layer(api, at, "base", "", {})
    for name, parent in (("first", ""), ("second", "base")):
        with mounted(api.prepare(name, parent, {}), at) as root:
            assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_128_layers_mount(api: Api, at: Path) -> None:
    parent, expected = "", dict[str, bytes]()
    for number in range(128):
        change = {f"file-{number}": b"%d" % number}
        parent = layer(api, at, f"{number}", parent, change)
        expected |= change
    with mounted(api.view("view", parent, {}), at) as root:
        assert content(root) == expected


def test_what_is_answered_again(api: Api, at: Path) -> None:
    layer(api, at, "base", "", {"file": b"x" * 10_000})
    prepared = api.prepare("active", "base", {})
    assert api.mounts("active") == prepared
    viewed = api.view("view", "base", {})
    assert viewed == api.mounts("view")
    assert viewed[0].options == ("ro", "rbind")
    assert prepared[0].options[-1].startswith("lowerdir=") or "userxattr" in prepared[0].options
    with pytest.raises(StateError):
        api.mounts("base")
    with pytest.raises(NotFoundError):
        api.mounts("nobody")
    with pytest.raises(UsageError):
        api.prepare("child", "active", {})
    with pytest.raises(NotFoundError):
        api.prepare("child", "nobody", {})
    with pytest.raises(StateError):
        api.commit("view", "committed", {})
    with pytest.raises(NotFoundError):
        api.commit("nobody", "committed", {})
    with pytest.raises(AlreadyExistsError):
        api.commit("active", "base", {})
    with pytest.raises(UsageError):
        api.commit("active", "other", {}, "other-parent")
    api.commit("active", "other", {"a": "b"}, "base")
    assert api.stat("other").labels == {"a": "b"}
    with pytest.raises(SociError):
        api.prepare("", "", {})


def test_usage(api: Api, at: Path) -> None:
    with mounted(api.prepare("active", "", {}), at) as root:
        before = api.usage("active")
        assert before.inodes == 1
        apply(root, {"dir/file": b"x" * 100_000})
        os.link(root / "dir/file", root / "again")
        os.sync()
        during = api.usage("active")
    assert during.inodes == 3
    assert 100_000 <= during.size - before.size < 120_000
    api.commit("active", "committed", {})
    assert api.usage("committed") == during
    with pytest.raises(NotFoundError):
        api.usage("nobody")


def test_nothing_is_left(api: Api, at: Path, snapshotter: Snapshotter, tmp_path: Path) -> None:
    layer(api, at, "base", "", {"dir/file": b"x"})
    api.prepare("active", "base", {})
    stray = tmp_path / "root/snapshots/77/fs/dir"
    stray.mkdir(parents=True)
    api.cleanup()
    assert sorted(path.name for path in (tmp_path / "root/snapshots").iterdir()) == ["1", "2"]
    api.remove("active")
    api.remove("base")
    api.cleanup()
    assert not list((tmp_path / "root/snapshots").iterdir())
    api.prepare("new", "", {})
    assert [path.name for path in (tmp_path / "root/snapshots").iterdir()] == ["3"]


def test_a_thousand_are_listed_quickly(api: Api) -> None:
    for number in range(1000):
        api.prepare(f"default/{number}/extract-{number} sha256:x", "", {"a": "b" * 100})
    begin = time.monotonic()
    assert len(list(api.walk([]))) == 1000
    assert time.monotonic() - begin < 5  # 0.02 s where nothing else runs


def test_the_root_belongs_to_whom_the_lower_one_does(api: Api, at: Path) -> None:
    with mounted(api.prepare("changing", "", {}), at) as root:
        os.chown(root, 5, 6)
    api.commit("changing", "base", {})
    with mounted(api.prepare("above", "base", {}), at) as root:
        assert (root.stat().st_uid, root.stat().st_gid) == (5, 6)
