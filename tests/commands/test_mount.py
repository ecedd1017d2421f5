"""`soci mount` and `soci umount`, as real processes with real mounts."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.mounting import PATIENCE, Home, Remote, both_engines, until
from tests.commands.test_reading import BIG
from tests.support.images import noise
from tests.support.servers.actions import Hang, Reply
from tests.support.servers.fault_proxy import Fault

# A mount and its end


@both_engines
def test_mount_and_umount(home: Home, layout: Path) -> None:
    done = home("mount", f"oci:{layout}", home.target).good()
    assert (done.text, done.err) == (f"{home.target}\n", "")
    usr = home.target / "usr"
    assert sorted(path.name for path in usr.iterdir()) == ["big", "big2", "dir", "small", "upper"]
    assert (usr / "big").read_bytes() == BIG
    assert (usr / "big").samefile(usr / "big2")
    assert (usr / "upper").read_bytes() == noise(1, 70_000)
    assert stat.S_ISFIFO((home.target / "dev/pipe").lstat().st_mode)
    with pytest.raises(OSError, match="Read-only"):
        (usr / "new").write_text("")
    (mount,) = home.mounts()
    assert mount["image"] == f"oci:{layout}"
    assert mount["folder"] == str(home.target)
    assert (mount["state"], mount["rw"], mount["layers"], mount["lazy_layers"]) == (
        "serving",
        False,
        2,
        2,
    )
    assert mount["digest"].startswith("sha256:")
    assert mount["platform"] == "linux/amd64"
    assert Path(f"/proc/{mount['pid']}/cwd").readlink() == Path("/")
    assert home("mounts", "-q").text == f"{home.target}\n"
    lines = home("mounts").text.splitlines()
    assert lines[0].split()[:5] == ["IMAGE", "FOLDER", "PLATFORM", "LAYERS", "STATE"]
    assert "2 of 2 lazy   serving   ro" in lines[1]
    done = home("umount", home.target).good()
    assert (done.text, done.err) == ("", "")
    assert not home.is_mounted()
    assert home.left == []
    assert list(home.target.iterdir()) == []
    home("umount", home.target).bad(1, "has no image mounted by soci")


def test_relative_names_outlive_the_folder(home: Home, layout: Path) -> None:
    shutil.copytree(layout, home.folder / "soci")
    (home.folder / "link").symlink_to("mnt/")
    home.env |= {"SOCI_CACHE": "cache", "SOCI_STATE": ".local/state/soci"}
    done = home("mount", "oci:soci", "./mnt/").good()
    assert done.text == f"{home.target}\n"
    assert (home.target / "usr/big").read_bytes() == BIG
    assert home.mounts()[0]["image"] == f"oci:{home.folder}/soci"
    assert home("stats", "oci:soci").good().text.startswith(f"oci:{home.folder}/soci at ")
    home("umount", "link/").good()
    assert not home.is_mounted()


@both_engines
def test_umount_by_others_ends_the_server(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    subprocess.run(["umount", home.target], check=True)
    until(lambda: home.left == [])


@both_engines
def test_umount_all(home: Home, layout: Path) -> None:
    home("mount", "--rw", f"oci:{layout}", home.target).good()
    inner = home.target / "inner"
    inner.mkdir()
    home("mount", f"oci:{layout}", inner).good()
    assert home("mounts", "-q").text == f"{home.target}\n{inner}\n"
    home("umount", "--all").good()
    assert not home.is_mounted()
    assert home.left == []
    home("umount", "--all").good()


def test_umount_needs_folders_or_all(home: Home) -> None:
    home("umount").bad(2, "--all")
    home("umount", "--all", home.target).bad(2, "--all")


@both_engines
def test_writing(home: Home, layout: Path) -> None:
    home("mount", "-o", "rw", f"oci:{layout}", home.target).good()
    (home.target / "usr/new").write_text("new")
    (home.target / "usr/small").unlink()
    assert home.mounts()[0]["rw"] is True
    home("umount", home.target).good()
    assert home.left == []
    home("mount", "--rw", f"oci:{layout}", home.target).good()
    assert (home.target / "usr/small").read_bytes() == b"small\n"
    assert not (home.target / "usr/new").exists()
    home("umount", home.target).good()


@both_engines
def test_options(home: Home, layout: Path) -> None:
    home("mount", "-o", "suid,dev", f"oci:{layout}", home.target).good()
    with (home.target / "dev/null").open("rb") as device:
        assert device.read() == b""
    home("umount", home.target).good()
    home("mount", "--rw", "-o", "ro,suid,dev", "-o", "nodev", f"oci:{layout}", home.target).good()
    with pytest.raises(PermissionError):
        (home.target / "dev/null").open("rb")
    home("mount", "-o", "fast", f"oci:{layout}", home.target).bad(2, "'fast'", "suid, nosuid")


# Failures before there is a mount


@both_engines
def test_what_cannot_be_mounted(home: Home, layout: Path) -> None:
    image = f"oci:{layout}"
    home("mount", "oci:/nowhere", home.target).bad(1, "/nowhere")
    home("mount", image, home.folder / "absent").bad(1, "absent")
    home("mount", image, home.target, "--platform", "linux/arm64").bad(1, "linux/amd64")
    home("mount", image, home.target, "--record", "/proc/x").bad(1, "/proc/x")
    assert home.left == []
    assert not home.is_mounted()
    home("mount", image, home.target).good()
    home("mount", image, home.target).bad(1, "has an image mounted already", "soci umount")


def test_folders_that_the_server_needs(home: Home, layout: Path, tmp_path: Path) -> None:
    """A mount over the cache and the like would wait for itself at the first read."""
    image = f"oci:{layout}"
    data = home.folder / ".local/share"
    (data / "soci").mkdir(parents=True)
    refused = {
        home.folder: "the cache",
        data: "the local store",
        data / "soci": "the local store",
        layout.parent: "the image",
        Path("/etc"): "the settings of this machine",
        Path(sys.base_prefix): "Python",
    }
    for folder, what in refused.items():
        home("mount", image, folder).bad(1, f"{folder} cannot be mounted on: {what}")
    (home.folder / "link").symlink_to(home.target)
    home.env["SOCI_STATE"] = str(home.folder / "link/state")
    home("mount", image, home.target).bad(1, "the state of mounts is in it")
    del home.env["SOCI_STATE"]
    record = home.target / "files"
    home("mount", "--record", record, image, home.target).bad(1, "the list of files")
    assert not home.is_mounted()
    assert home.left == []


@pytest.mark.parametrize(
    ("number", "group", "status"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, True, None),
    ],
)
def test_stopping_before_it_is_ready(
    home: Home, remote: Remote, number: signal.Signals, group: bool, status: int | None
) -> None:
    """A zTOC hangs in the registry; nothing is left behind."""
    remote.proxy.add(Fault(Hang(), "/blobs/", "GET", skip=1))
    running = home.start("mount", remote.image, home.target)
    until(lambda: len(remote.proxy.seen("GET", "/blobs/")) > 1)
    until(lambda: home.left)
    if group:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    _, err = running.communicate(timeout=PATIENCE)
    if status is not None:
        assert running.returncode == status
        assert err.decode().strip() == ("soci: interrupted" if status == 130 else "")
    until(lambda: home.left == [])
    assert not home.is_mounted()


def test_killed_before_it_is_ready(home: Home, remote: Remote) -> None:
    remote.proxy.add(Fault(Hang(), "/blobs/", "GET"))
    running = home.start("mount", remote.image, home.target)
    until(lambda: home.left)
    assert home.mounts()[0]["state"] == "starting"
    # What umount does with it: the server is told to end, and does.
    home("umount", home.target).good()
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 143
    assert home.left == []


# In the foreground


@both_engines
@pytest.mark.parametrize("how", ["umount", "SIGINT", "SIGTERM"])
def test_foreground(home: Home, layout: Path, how: str) -> None:
    running = home.start("mount", "--foreground", f"oci:{layout}", home.target)
    assert running.stdout is not None
    assert running.stdout.readline().decode() == f"{home.target}\n"
    assert (home.target / "usr/big").read_bytes() == BIG
    assert home.mounts()[0]["pid"] == running.pid
    if how == "umount":
        home("umount", home.target).good()
    else:
        running.send_signal(getattr(signal, how))
    _, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, err) == (0, b"")
    assert not home.is_mounted()
    assert home.left == []


def test_the_log_in_the_foreground(home: Home, remote: Remote) -> None:
    lower = remote.lower
    flags = ("--foreground", "--no-background-fetch")
    running = home.start("mount", *flags, remote.image, home.target)
    assert running.stdout is not None
    running.stdout.readline()
    remote.proxy.add(Fault(Reply(403), lower))
    with pytest.raises(OSError, match="Input/output"):
        (home.target / "usr/big").read_bytes()
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=PATIENCE)
    assert lower in err.decode()
    assert "usr/big" in err.decode()
