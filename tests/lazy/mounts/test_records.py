"""What is written down of mounts, and of the processes that serve them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import ConfigError, StorageError
from soci_cli.kernel.points import MountIdentity
from soci_cli.lazy.mounts.records import HostRecord, Hosts, MountRecord, Mounts, state_root
from soci_cli.processes import folder as folder_module
from soci_cli.processes.folder import Folder, OwnFolder
from soci_cli.processes.identity import this_process
from tests.support.machine import PROJECT


def record_of(target: str = "/mnt/app", **more: object) -> MountRecord:
    this = this_process()
    record = MountRecord(
        "docker://example.com/app:1",
        "",
        "linux/amd64",
        target,
        this.pid,
        this.started,
        this.boot_id,
        1.5,
    )
    return replace(record, **more)  # type: ignore[arg-type]  # by the tests themselves


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    return Mounts(tmp_path / "state")


def crash(folder: OwnFolder) -> None:
    """Lets go of the lock, as a killed server does."""
    os.close(folder._lock)
    folder._lock = -1


def test_where_it_is() -> None:
    assert state_root({"SOCI_STATE": "a", "XDG_STATE_HOME": "/b", "HOME": "/c"}) == Path("a")
    assert state_root({"XDG_STATE_HOME": "/b", "HOME": "/c"}) == Path("/b/soci")
    assert state_root({"XDG_STATE_HOME": "b", "HOME": "/c"}) == Path("/c/.local/state/soci")
    with pytest.raises(ConfigError, match="set SOCI_STATE, or HOME"):
        state_root({})


def test_the_life_of_a_folder(mounts: Mounts) -> None:
    assert mounts.all() == []
    assert mounts.find(Path("/mnt/app")) is None
    with mounts.claim(record_of()) as own:
        assert own.path.stat().st_mode & 0o777 == 0o700
        assert own.scratch.is_dir()
        ((folder, record),) = mounts.all()
        assert record == record_of()
        assert folder.is_alive()
        own.write(replace(record, kind="overlay", device="0:7"))
        found = mounts.find(Path("/mnt/app"))
        assert found is not None
        assert found[1].device == "0:7"
        assert mounts.find(Path("/mnt")) is None
    assert mounts.all() == []
    assert not own.path.exists()
    assert [path.name for path in mounts.root.iterdir()] == [".lock"]


def test_one_mount_for_a_target(mounts: Mounts) -> None:
    with mounts.claim(record_of()), mounts.claim(record_of("/mnt/other")):
        with pytest.raises(StorageError, match="has an image mounted already"):
            mounts.claim(record_of())
        assert len(mounts.all()) == 2
    left = mounts.claim(record_of())
    crash(left)
    with pytest.raises(StorageError, match="whose server crashed; soci umount"):
        mounts.claim(record_of())
    left.remove()
    mounts.claim(record_of()).close()


def test_a_lock_ends_with_its_process(mounts: Mounts) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from soci_cli.lazy.mounts.records import *\n"
        "from soci_cli.processes.identity import this_process\n"
        "this = this_process()\n"
        "record = MountRecord('i', '', '', '/t', this.pid, this.started, this.boot_id, 1.0)\n"
        "own = Mounts(Path(sys.argv[1])).claim(record)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, mounts.root.parent], stdout=subprocess.PIPE, cwd=PROJECT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        ((folder, record),) = mounts.all()
        assert record.pid == process.pid
        assert folder.is_alive()
        assert not folder.wait(0.05)
        server = record.process
        assert not replace(server, started=server.started + 1).send_signal(signal.SIGKILL)
        assert not replace(server, boot_id="another").send_signal(signal.SIGKILL)
        assert server.send_signal(signal.SIGKILL)
        assert folder.wait(60)
    assert mounts.all() == [(folder, record)] or len(mounts.all()) == 1
    assert not record.process.send_signal(signal.SIGTERM)
    folder.remove()
    assert mounts.all() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"image": 1}',
        json.dumps({**record_of().__dict__, "pid": True}),
        json.dumps({**record_of().__dict__, "pid": -1}),
        json.dumps({**record_of().__dict__, "target": "relative"}),
        json.dumps({**record_of().__dict__, "target": "/a\0b"}),
        json.dumps({**record_of().__dict__, "layers": "2"}),
        "[" * 100_000,
    ],
)
def test_damaged_records(mounts: Mounts, text: str) -> None:
    own = mounts.claim(record_of())
    (own.path / "mount.json").write_text(text)
    assert mounts.all() == []
    assert mounts.damaged() == []  # it is locked
    crash(own)
    assert [one.path for one in mounts.damaged()] == [own.path]


def test_records_of_the_version_before(mounts: Mounts) -> None:
    """It wrote down less of a mount, which is found all the same."""
    own = mounts.claim(record_of(kind="overlay", device="0:7"))
    value = json.loads((own.path / "mount.json").read_text())
    for name in ("mount_id", "unique_id", "namespace", "owner", "host", "layer_digests"):
        del value[name]
    (own.path / "mount.json").write_text(json.dumps(value))
    ((_, record),) = mounts.all()
    assert record.identity == MountIdentity("0:7", 0, 0, "")
    assert (record.owner, record.host) == ("person", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(record_of().__dict__)), JSON, max_size=3))
def test_any_record(tmp_path_factory: pytest.TempPathFactory, changed: dict[str, object]) -> None:
    root = tmp_path_factory.mktemp("any")
    folder = Folder(root / "0123456789ab")
    folder.path.mkdir()
    (folder.path / "mount.json").write_text(json.dumps({**record_of().__dict__, **changed}))
    record = Mounts(root).read(folder)
    if record is not None:
        assert record.target.startswith("/")
        assert not folder.is_alive()


def test_folders_of_others_are_not_trusted(mounts: Mounts) -> None:
    mounts.claim(record_of()).close()
    mounts.root.chmod(0o777)
    with pytest.raises(StorageError, match="nobody else can write; set SOCI_STATE"):
        mounts.all()
    mounts.root.rename(mounts.root.with_name("real"))
    mounts.root.symlink_to(mounts.root.with_name("real"))
    with pytest.raises(StorageError, match="must be a folder of your own"):
        mounts.claim(record_of())


def test_a_folder_that_is_covered_later(mounts: Mounts) -> None:
    """What is written and removed is what was made."""
    with mounts.claim(record_of()) as own:
        mounts.root.rename(mounts.root.with_name("away"))
        (mounts.root / own.name).mkdir(parents=True, mode=0o700)
        own.write(record_of(kind="overlay"))
        assert list((mounts.root / own.name).iterdir()) == []
        assert "overlay" in (mounts.root.with_name("away") / own.name / "mount.json").read_text()
    assert not (mounts.root.with_name("away") / own.name).exists()
    assert (mounts.root / own.name).exists()


def test_a_lock_that_is_held_for_ever(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_PATIENCE", 0.05)
    with mounts.turn(), pytest.raises(StorageError, match="held by another soci command"):
        mounts.claim(record_of())


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mounts = Mounts(tmp_path / "file" / "state")
    with pytest.raises(StorageError, match="set SOCI_STATE to another folder"):
        mounts.claim(record_of())
    assert mounts.all() == []


def test_leftovers_of_killed_processes(mounts: Mounts) -> None:
    mounts.claim(record_of()).close()
    old, new = mounts.root / ".0123456789ab", mounts.root / ".0123456789ac.gone"
    for path in (old, new):
        (path / "scratch").mkdir(parents=True)
    os.utime(old, (1, 1))
    mounts.claim(record_of()).close()
    assert not old.exists()
    assert new.exists()


def test_owners(mounts: Mounts) -> None:
    with mounts.claim(record_of()), mounts.claim(record_of("/mnt/other", owner="snapshotter")):
        assert [record.target for _, record in mounts.of("person")] == ["/mnt/app"]
        assert [record.target for _, record in mounts.of("snapshotter")] == ["/mnt/other"]
        assert len(mounts.of(None)) == 2


def test_hosts_by_their_key(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    assert hosts.living("a") == []
    this = this_process()
    with hosts.turn():
        keys = ("a", "b", "", "a")
        made = [hosts.create(HostRecord(this.pid, this.started, this.boot_id, key)) for key in keys]
    crash(made[3])
    assert [one.path for one in hosts.living("a")] == [made[0].path]
    for one in made:
        one.close()
