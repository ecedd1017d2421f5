"""Mounts in use, covered, hanging and crashed; and those of others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_at
from tests.commands.mounting import PATIENCE, Home, Remote, both_engines, until
from tests.commands.test_reading import BIG
from tests.integration.mounts import NOBODY, Person, python_for
from tests.support.commands import environment
from tests.support.holders import crash
from tests.support.images import noise
from tests.support.machine import PROJECT, need
from tests.support.servers.actions import Hang
from tests.support.servers.fault_proxy import Fault


@both_engines
def test_a_server_that_crashed(home: Home, layout: Path) -> None:
    home("mount", "--rw", f"oci:{layout}", home.target).good()
    (home.target / "usr/new").write_text("new")
    (mount,) = home.mounts()
    crash(mount["pid"])
    until(lambda: home.mounts()[0]["state"] == "crashed")
    with pytest.raises(OSError, match=r"Transport endpoint|Input/output"):
        (home.target / "usr/big").read_bytes()
    home("stats").bad(1, "crashed", mount["log"])
    home("mount", f"oci:{layout}", home.target).bad(1, "whose server crashed")
    done = home("umount", home.target).good()
    assert done.err == ""
    assert not home.is_mounted()
    assert home.left == []
    home("mount", f"oci:{layout}", home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG


@pytest.mark.parametrize("home", ["fuse"], indirect=True)
@pytest.mark.parametrize("flags", [[], ["--rw"]])
def test_commands_where_a_mount_crashed(home: Home, layout: Path, flags: list[str]) -> None:
    """Each says in one line what happened and what to do."""
    image = f"oci:{layout}"
    (home.folder / "other").mkdir()
    home("mount", *flags, image, home.target).good()
    crash(home.mounts()[0]["pid"])
    until(lambda: home.mounts()[0]["state"] == "crashed")
    for command in (
        ("mount", image, "mnt"),
        ("mount", image, home.target / "usr"),
        ("mount", "oci:mnt", "other"),
        ("ls", "oci:mnt"),
        ("cp", f"{image}:/etc/hosts", "mnt/hosts"),
        ("image", "convert", "--soci", image, "oci:mnt/new"),
        ("stats", "mnt"),
    ):
        home(*command).bad(1, str(home.target), "crashed", "soci umount")
    home("umount", "mnt").good()
    home("mount", image, "mnt").good()


@both_engines
def test_what_a_crash_left_without_a_mount(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    crash(mount["pid"])
    subprocess.run(["umount", "-l", home.target], check=True)
    until(lambda: home.mounts()[0]["state"] == "crashed")
    done = home("umount", home.target).good()
    assert "was not mounted; the state of its mount is removed" in done.err
    assert home.left == []


@both_engines
def test_damaged_state_is_removed(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    Path(mount["log"]).with_name("mount.json").write_text("{")
    assert home.mounts() == []
    # It is still known by its mount.
    home("umount", home.target).good()
    until(lambda: home.left == [])
    home("mount", f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    Path(mount["log"]).with_name("mount.json").write_text("{")
    crash(mount["pid"])
    subprocess.run(["umount", home.target], check=True)
    home("umount", "--all").good()
    assert home.left == []


@both_engines
@pytest.mark.parametrize("stopped", [False, True])
def test_a_registry_that_hangs(home: Home, remote: Remote, stopped: bool) -> None:
    """A read waits for ever; unmounting says who reads, and --force ends it."""
    lower = remote.lower
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    remote.proxy.add(Fault(Hang(), lower, "GET"))
    with subprocess.Popen(
        ["cat", home.target / "usr/big"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as reader:
        until(lambda: remote.proxy.seen("GET", lower))
        # Other layers are read, and known files found.
        assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)
        assert home.stats()["demand"]["spans"] >= 1
        done = home("umount", home.target).bad(1, "in use by", f"cat ({reader.pid})", "--force")
        assert home.is_mounted()
        if stopped:  # the server itself does nothing any more
            os.kill(home.mounts()[0]["pid"], signal.SIGSTOP)
        done = home("umount", "--force", home.target).good()
        assert done.err == ""
        assert not home.is_mounted()
        assert home.left == []
        assert reader.wait(timeout=PATIENCE) == 1
        assert reader.stderr is not None
        assert b"usr/big" in reader.stderr.read()


@both_engines
def test_a_mount_in_use(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    with subprocess.Popen(["sleep", "600"], cwd=home.target / "usr") as user:
        try:
            home("umount", home.target).bad(1, f"in use by sleep ({user.pid})")
            assert home.mounts()[0]["state"] == "serving"
            home("umount", "-f", home.target).good()
            assert home.left == []
        finally:
            user.kill()


@both_engines
def test_a_mount_in_a_mount(home: Home, layout: Path) -> None:
    inner = home.target / "usr"
    home("mount", f"oci:{layout}", home.target).good()
    home("mount", f"oci:{layout}", inner).good()
    home("umount", home.target).bad(1, f"something mounted in it, {inner}")
    home("umount", inner).good()
    home("mount", f"oci:{layout}", inner).good()
    assert home("umount", "-f", home.target).good().err == ""
    until(lambda: home.left == [])


@both_engines
def test_told_to_end(home: Home, layout: Path) -> None:
    """SIGTERM, as when the machine shuts down, even while it is in use."""
    home("mount", f"oci:{layout}", home.target).good()
    with (home.target / "usr/big").open("rb"):
        os.kill(home.mounts()[0]["pid"], signal.SIGTERM)
        until(lambda: home.left == [])
        assert not home.is_mounted()


@both_engines
def test_what_is_mounted_over_it_stays(home: Home, layout: Path) -> None:
    """Neither umount nor SIGTERM takes away what somebody else mounted, and both are tried again."""
    home("mount", f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    subprocess.run(["mount", "-t", "tmpfs", "other", home.target], check=True)
    (home.target / "kept").write_text("kept")
    for flags in ([], ["--force"]):
        home("umount", *flags, home.target).bad(1, f"{home.target} is covered", "tmpfs other")
    os.kill(mount["pid"], signal.SIGTERM)
    until(lambda: "is covered" in Path(mount["log"]).read_text())
    assert (home.target / "kept").read_text() == "kept"
    assert home.mounts()[0]["state"] == "serving"
    subprocess.run(["umount", home.target], check=True)
    until(lambda: home.left == [])
    assert not home.is_mounted()


@both_engines
def test_what_is_mounted_over_a_crashed_one_stays(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    crash(home.mounts()[0]["pid"])
    until(lambda: home.mounts()[0]["state"] == "crashed")
    subprocess.run(["mount", "-t", "tmpfs", "other", home.target], check=True)
    (home.target / "kept").write_text("kept")
    home("umount", home.target).bad(1, f"{home.target} is covered", "tmpfs other")
    assert (home.target / "kept").read_text() == "kept"
    subprocess.run(["umount", home.target], check=True)
    home("umount", home.target).good()
    assert not home.is_mounted()
    assert home.left == []


def test_as_an_ordinary_user(layout: Path, need_fuse: None) -> None:
    need("fusermount3")
    mode = stat.S_IMODE(Path("/dev/fuse").stat().st_mode)
    with tempfile.TemporaryDirectory() as name:  # those of pytest are root's alone
        folder = Path(name)
        shutil.copytree(layout, folder / "image")
        (folder / "mnt").mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)

        person = Person(folder, python_for(NOBODY), NOBODY)

        def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
            done = person.run(*command)
            return subprocess.CompletedProcess(command, done.status, done.text, done.err)

        def soci(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return run(person.python, "-m", "soci_cli", *arguments)

        Path("/dev/fuse").chmod(0o666)
        try:
            done = soci("mount", "oci:image", "mnt")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"{folder}/mnt\n"
            code = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
            size = run(person.python, "-c", code, folder / "mnt/usr/big")
            assert size.stdout == f"{len(BIG)}\n"
            facts = json.loads(soci("mounts", "--format", "json").stdout)
            assert (facts["state"], facts["kind"]) == ("serving", "fuse")
            crash(facts["pid"])
            until(
                lambda: json.loads(soci("mounts", "--format", "json").stdout)["state"] == "crashed"
            )
            done = soci("umount", "mnt")
            assert (done.returncode, done.stderr) == (0, "")
            assert mount_at(f"{folder}/mnt") is None
            assert soci("mount", "oci:image", "mnt").returncode == 0
            done = soci("umount", "--all")
            assert (done.returncode, done.stderr) == (0, "")
            assert mount_at(f"{folder}/mnt") is None
        finally:
            Path("/dev/fuse").chmod(mode)
            subprocess.run(["umount", "-l", folder / "mnt"], capture_output=True, check=False)


def test_a_mount_in_a_namespace_of_its_own(home: Home, layout: Path) -> None:
    """A mount that is not to be seen from here is ended by its server."""
    script = (
        f'{sys.executable} -m soci_cli mount "oci:{layout}" mnt && cat mnt/usr/small && sleep 600'
    )
    inside = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home.folder,
        env=environment(home.folder, PYTHONPATH=str(PROJECT)),
        start_new_session=True,
    )
    try:
        assert inside.stdout is not None
        first = inside.stdout.readline()
        if not first:
            assert inside.stderr is not None
            pytest.skip(f"no user namespaces here: {inside.stderr.read().decode()}")
        assert first.decode() == f"{home.target}\n"
        assert inside.stdout.readline() == b"small\n"
        assert home.mounts()[0]["state"] == "serving"
        assert not home.is_mounted()
        home("umount", home.target).good()
        assert home.left == []
    finally:
        os.killpg(inside.pid, signal.SIGKILL)
        inside.wait()
        assert inside.stderr is not None
        inside.stderr.close()
