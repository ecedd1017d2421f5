"""`soci mount`, `umount`, `mounts`, `stats` and `cache`, as real processes with real mounts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from soci_cli import inspect, open_source, parse_place
from soci_cli.kernel.points import mount_at
from soci_cli.trial_registry import RegistryServer
from tests.commands.test_reading import BIG, indexed_layout
from tests.support.commands import SOCI, Done, environment, process
from tests.support.images import make_image, noise, run_convert
from tests.support.machine import PROJECT, need
from tests.support.servers.actions import Hang, Reply
from tests.support.servers.fault_proxy import Fault, FaultProxy

PATIENCE = 60.0


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return indexed_layout(tmp_path_factory.mktemp("mounting"))


class Home:
    """A user's folders, and the mounts of that user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "mnt"
        self.target.mkdir()
        self.env: dict[str, str] = {}

    def __call__(self, *arguments: str | Path) -> Done:
        return process(*arguments, home=self.folder, env=self.env)

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Starts a command, in a session of its own so that it can be stopped as on a terminal."""
        return subprocess.Popen(
            [*SOCI, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=environment(self.folder, **self.env),
            start_new_session=True,
        )

    def mounts(self) -> list[dict[str, Any]]:
        """What `soci mounts` says."""
        lines = self("mounts", "--format", "json").good().text.splitlines()
        return [json.loads(line) for line in lines]

    def stats(self) -> dict[str, Any]:
        """What `soci stats` says of the only mount."""
        value: dict[str, Any] = json.loads(self("stats", "--format", "json").good().text)
        return value

    @property
    def left(self) -> list[str]:
        """The state of mounts that is there."""
        folder = self.folder / ".local/state/soci/mounts"
        return [path.name for path in folder.glob("[!.]*")]

    def is_mounted(self) -> bool:
        return mount_at(str(self.target)) is not None

    def clean(self) -> None:
        """Takes everything away, whatever state it is in."""
        subprocess.run(["umount", "-l", self.target], capture_output=True, check=False)
        for path in (self.folder / ".local/state/soci/mounts").glob("*/mount.json"):
            with suppress(OSError, ValueError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def home(tmp_path: Path, need_fuse: None) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.clean()


def until(condition: Callable[[], object]) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def registry(
    layout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RegistryServer, list[str]]]:
    """A registry that has the image; the digests of its layers, from the lowest."""
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        image = f"docker://{server.address}/app:1"
        run_convert(layout, image)
        with open_source(parse_place(image), layout) as source:
            (manifest,) = (one for one in inspect(source).manifests if one.layers)
        yield server, [layer.digest for layer in manifest.layers]


class Remote:
    """The image in a registry behind a proxy."""

    def __init__(self, upstream: str, layers: list[str]) -> None:
        self.proxy = FaultProxy(upstream)
        self.image = f"docker://{self.proxy.host}/app:1"
        self.lower, self.upper = layers


@pytest.fixture
def remote(registry: tuple[RegistryServer, list[str]]) -> Iterator[Remote]:
    made = Remote(registry[0].address, registry[1])
    with made.proxy:
        yield made


# A mount and its end


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


def test_umount_by_others_ends_the_server(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    subprocess.run(["umount", home.target], check=True)
    until(lambda: home.left == [])


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


# Servers that crash and hang


def test_a_server_that_crashed(home: Home, layout: Path) -> None:
    home("mount", "--rw", f"oci:{layout}", home.target).good()
    (home.target / "usr/new").write_text("new")
    (mount,) = home.mounts()
    os.kill(mount["pid"], signal.SIGKILL)
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


def test_what_a_crash_left_without_a_mount(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    os.kill(mount["pid"], signal.SIGKILL)
    subprocess.run(["umount", "-l", home.target], check=True)
    until(lambda: home.mounts()[0]["state"] == "crashed")
    done = home("umount", home.target).good()
    assert "was not mounted; the state of its mount is removed" in done.err
    assert home.left == []


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
    os.kill(mount["pid"], signal.SIGKILL)
    subprocess.run(["umount", home.target], check=True)
    home("umount", "--all").good()
    assert home.left == []


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


def test_a_mount_in_a_mount(home: Home, layout: Path) -> None:
    inner = home.target / "usr"
    home("mount", f"oci:{layout}", home.target).good()
    home("mount", f"oci:{layout}", inner).good()
    home("umount", home.target).bad(1, f"something mounted in it, {inner}")
    home("umount", inner).good()
    home("mount", f"oci:{layout}", inner).good()
    assert home("umount", "-f", home.target).good().err == ""
    until(lambda: home.left == [])


def test_told_to_end(home: Home, layout: Path) -> None:
    """SIGTERM, as when the machine shuts down, even while it is in use."""
    home("mount", f"oci:{layout}", home.target).good()
    with (home.target / "usr/big").open("rb"):
        os.kill(home.mounts()[0]["pid"], signal.SIGTERM)
        until(lambda: home.left == [])
        assert not home.is_mounted()


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


def test_what_is_mounted_over_a_crashed_one_stays(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    os.kill(home.mounts()[0]["pid"], signal.SIGKILL)
    until(lambda: home.mounts()[0]["state"] == "crashed")
    subprocess.run(["mount", "-t", "tmpfs", "other", home.target], check=True)
    (home.target / "kept").write_text("kept")
    home("umount", home.target).bad(1, f"{home.target} is covered", "tmpfs other")
    assert (home.target / "kept").read_text() == "kept"
    subprocess.run(["umount", home.target], check=True)
    home("umount", home.target).good()
    assert not home.is_mounted()
    assert home.left == []


# In the foreground


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


# What is known of it


def test_stats(home: Home, remote: Remote) -> None:
    lower, upper = remote.lower, remote.upper
    assert home("stats").good().text == ""
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    found = home.stats()
    assert found["demand"]["spans"] == 0
    assert [layer["size_here"] for layer in found["layers"]] == [0, 0]
    assert (home.target / "usr/big").read_bytes() == BIG
    found = home.stats()
    assert found["image"] == remote.image
    assert found["demand"]["uncompressed"] >= len(BIG)
    assert found["demand"]["fetched"] > 0
    assert {file["layer"] for file in found["files"]} == {lower}
    assert any(file["file"] == "usr/big" for file in found["files"])
    assert [layer["digest"] for layer in found["layers"]] == [lower, upper]
    assert found["layers"][0]["size_here"] >= len(BIG)
    text = home("stats", home.target).good().text
    assert text.startswith(f"{remote.image} at {home.target}\n")
    assert "usr/big" in text
    assert text == home("stats", remote.image.removeprefix("docker://")).good().text
    home("stats", "other").bad(1, "no folder and no image that you mounted")
    remote.proxy.add(Fault(Reply(403), upper))
    with pytest.raises(OSError, match="Input/output"):
        (home.target / "usr/upper").read_bytes()
    found = home.stats()
    assert found["errors"] >= 1
    assert any("usr/upper" in line and upper in line for line in found["log_recent"])
    assert upper in Path(home.mounts()[0]["log"]).read_text()
    home("umount", home.target).good()
    # What was fetched is in the cache for the next one.
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG
    found = home.stats()
    assert found["demand"]["spans"] == 0
    assert found["cache"]["uncompressed"] >= len(BIG)


def test_record_and_prefetch(home: Home, remote: Remote) -> None:
    """What one mount records another fetches before it is read."""
    lower, upper = remote.lower, remote.upper
    record = home.folder / "files.json"
    home("mount", "--record", "files.json", remote.image, home.target).good()
    assert json.loads(record.read_text()) == []
    (home.target / "usr/upper").read_bytes()
    (home.target / "etc/hosts").read_bytes()
    (home.target / "odd \x1b[31m\n").read_bytes()
    (home.target / "usr/upper").read_bytes()
    expected = ["/usr/upper", "/etc/hosts", "/odd \x1b[31m\n"]
    until(lambda: json.loads(record.read_text()) == expected)
    (home.target / "usr/small").read_bytes()
    home("umount", home.target).good()
    assert json.loads(record.read_text()) == [*expected, "/usr/small"]

    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    size = ("--soci-span-size", "65536")
    again = remote.image.replace("app:1", "app:2")
    done = home(*convert, *size, "--prefetch-files-json", record, remote.image, again).good()
    assert "not found" not in done.err
    home("cache", "prune").good()
    home("mount", "--no-background-fetch", again, home.target).good()
    until(lambda: home.stats()["prefetch"]["spans"] >= 2)
    remote.proxy.add(Fault(Reply(500), f"{lower}|{upper}", "GET"))
    assert (home.target / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)


def test_a_mount_keeps_its_image_in_the_store_and_no_other(
    home: Home, layout: Path, tmp_path: Path
) -> None:
    other = make_image(tmp_path / "other").root
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    home(*convert, f"oci:{layout}", "example.com/kept:1").good()
    home(*convert, f"oci:{other}", "example.com/other:1").good()
    home("mount", "example.com/kept:1", home.target).good()
    done = home("rmi", "example.com/other:1").good()
    assert "Deleted: " in done.text
    assert "kept" not in done.err
    # Of its own image the list of platforms is not needed.
    assert home("rmi", "example.com/kept:1").good().text.count("Deleted: ") == 1
    assert (home.target / "usr/big").read_bytes() == BIG
    home("umount", home.target).good()


def test_settings_of_the_background(home: Home, remote: Remote) -> None:
    settings = home.folder / "config.toml"
    home.env["SOCI_CONFIG"] = str(settings)
    settings.write_text(
        "[background_fetch]\nsilence_period_msec = 1\nfetch_period_msec = 1\n[prefetch]\nenable = false\n"
    )
    home("mount", remote.image, home.target).good()

    def is_here() -> bool:
        return all(layer["size_here"] >= layer["size"] for layer in home.stats()["layers"])

    until(is_here)
    found = home.stats()
    assert found["background"]["spans"] > 1
    assert found["demand"]["spans"] == 0
    home("umount", home.target).good()
    home("cache", "prune").good()
    settings.write_text("background_fetch = {disable = true, silence_period_msec = 1}")
    home("mount", remote.image, home.target).good()
    assert home.stats()["background"]["spans"] == 0


# Somebody else


def test_as_an_ordinary_user(layout: Path, need_fuse: None) -> None:
    need("fusermount3")
    mode = stat.S_IMODE(Path("/dev/fuse").stat().st_mode)
    with tempfile.TemporaryDirectory() as name:  # those of pytest are root's alone
        folder = Path(name)
        shutil.copytree(layout, folder / "image")
        (folder / "mnt").mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)

        def soci(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *SOCI]
            return subprocess.run(
                [*command, *map(str, arguments)],
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment(folder),
            )

        if "soci" not in soci("--version").stdout:
            pytest.skip("an ordinary user cannot run this Python")
        Path("/dev/fuse").chmod(0o666)
        try:
            done = soci("mount", "oci:image", "mnt")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"{folder}/mnt\n"
            code = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
            read = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
            size = subprocess.run(
                [*read, "-c", code, folder / "mnt/usr/big"], capture_output=True, text=True
            )
            assert size.stdout == f"{len(BIG)}\n"
            facts = json.loads(soci("mounts", "--format", "json").stdout)
            assert (facts["state"], facts["kind"]) == ("serving", "fuse")
            os.kill(facts["pid"], signal.SIGKILL)
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


# The cache


def test_cache_ls_and_prune(home: Home, layout: Path, tmp_path: Path) -> None:
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert (facts["size"], facts["entries"]) == (0, [])
    home("cat", f"oci:{layout}", "/usr/big", "/usr/upper").good()
    plain = make_image(tmp_path / "plain").root
    home("ls", f"oci:{plain}").good()
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert facts["folder"] == f"{home.folder}/.cache/soci"
    kinds = [entry["kind"] for entry in facts["entries"]]
    assert kinds.count("spans") == 2
    assert kinds.count("archives") == 2
    assert facts["size"] == sum(entry["size"] for entry in facts["entries"]) > len(BIG)
    assert facts["size"] < facts["limit"]
    lines = home("cache", "ls").good().text.splitlines()
    assert lines[0].split() == ["DIGEST", "KIND", "ENTRIES", "SIZE", "LAST", "USED"]
    assert len(lines) == len(facts["entries"]) + 2
    assert "of at most" in lines[-1]
    assert set(home("cache", "ls", "-q").text.split()) == {e["digest"] for e in facts["entries"]}

    assert home("cache", "prune", "--older-than", "1h").good().text == "0 B freed\n"
    home("cache", "prune", "--older-than", "soon").bad(2, "not a duration")
    home("cache", "prune", "--keep", "some").bad(2, "not a size")
    freed = int(home("cache", "prune", "--keep", "1MiB", "-q").good().text)
    assert freed > len(BIG) - (1 << 20)
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert facts["size"] <= 1 << 20
    assert "freed" in home("cache", "prune").good().text
    assert json.loads(home("cache", "ls", "--format", "json").good().text)["entries"] == []
    assert home("cat", f"oci:{layout}", "/usr/big").good().out == BIG


def test_pruning_under_a_mount(home: Home, remote: Remote) -> None:
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG
    home("cache", "prune").good()
    with (home.target / "usr/big").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == BIG
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)
