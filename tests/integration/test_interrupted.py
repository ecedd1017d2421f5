"""Signals in the middle, several processes at once, full and read-only disks, other users."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import SOCI, environment
from tests.support.images import (
    check_complete,
    gz,
    layer_tar,
    listing,
    make_image,
    options,
    run_convert,
    temporary,
)
from tests.support.tools import CONVERT, soci, start

PLACES = {"layout": "oci:d:v1", "archive": "oci-archive:a.tar:v1", "store": "app:v1"}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


def store_of(home: Path) -> Path:
    return home / ".local" / "share" / "soci"


def absolute(place: str, home: Path) -> str:
    return place.replace("oci:", f"oci:{home}/").replace("oci-archive:", f"oci-archive:{home}/")


def wait_until_writing(process: subprocess.Popen[str], home: Path) -> None:
    """Returns when a few MB of the layer are in an unfinished file."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for path in home.rglob(".*"):
            if temporary([path.name]):
                try:
                    if path.stat().st_blocks * 512 > 4 << 20:
                        return
                except FileNotFoundError:
                    continue
        time.sleep(0.002)
    raise AssertionError("nothing was written")


def tagged(home: Path) -> dict[str, bytes]:
    """What says which images there are."""
    found = {str(path): path.read_bytes() for path in home.rglob("index.json")}
    return found | {str(path): path.read_bytes() for path in home.glob("*.tar")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", STATUS)
def test_a_signal_in_the_middle(
    tmp_path: Path, large_archive: Path, place: str, number: signal.Signals
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    target = PLACES[place]
    # There is an image already, which must stay.
    old = make_image(tmp_path / "old", [gz(layer_tar(1))]).root
    soci(*CONVERT, f"oci:{old}", target, home=home)
    before = tagged(home)
    command = (*CONVERT, f"oci-archive:{large_archive}", target)
    process = start(*command, home=home)
    wait_until_writing(process, home)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == STATUS[number]
    assert "Traceback" not in errors
    assert len(errors.split("\n")) <= 3
    assert tagged(home) == before
    check_complete(absolute(target, home), store=store_of(home))
    left = temporary(listing(home))
    assert bool(left) == (number == signal.SIGKILL)
    # A killed run leaves its file; runs that begin a day later remove it.
    for name in left:
        long_ago = time.time() - 2 * 24 * 3600
        os.utime(home / name, (long_ago, long_ago))
    digest = soci(*command, home=home).split()[-1]
    assert digest in check_complete(absolute(target, home), store=store_of(home))
    assert not temporary(listing(home))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_was_anything(
    tmp_path: Path, large_archive: Path, number: signal.Signals
) -> None:
    """Also what was created for the first image is undone."""
    for place in PLACES.values():
        home = tmp_path / place.partition(":")[0]
        home.mkdir()
        process = start(*CONVERT, f"oci-archive:{large_archive}", place, home=home)
        wait_until_writing(process, home)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == STATUS[number]
        left = listing(home)
        assert not temporary(left)
        assert not tagged(home)
        assert all(size < 1 << 20 for size, _ in left.values())


def test_a_signal_while_a_ztoc_is_built(tmp_path: Path, large_archive: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start("ztoc", "build", "-o", "z", fifo, home=tmp_path)
    with fifo.open("wb") as stream:
        stream.write(gz(layer_tar(1))[:1000])
        stream.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


# Several at once


@pytest.mark.parametrize("place", ["oci:d:", "app:"])
@pytest.mark.parametrize("same", [False, True])
def test_several_processes_at_once(tmp_path: Path, place: str, same: bool) -> None:
    """Into one layout and one store, under one tag and under several; layers are shared."""
    layers = [gz(layer_tar(number, 2 << 20)) for number in range(4)]
    images = [make_image(tmp_path / f"i{n}", layers[n : n + 2]).root for n in range(3)]
    expected = [run_convert(image, tmp_path / f"x{n}").descriptor for n, image in enumerate(images)]
    flags = ("--soci-span-size", str(1 << 16))
    for _ in range(2):
        processes = [
            start(
                *CONVERT,
                *flags,
                f"oci:{image}",
                f"{place}{'same' if same else f'v{number}'}",
                home=tmp_path,
            )
            for number, image in enumerate(images)
        ]
        for process, descriptor in zip(processes, expected, strict=True):
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert out.split()[-1] == descriptor.digest
    for number, descriptor in enumerate(expected):
        tag = "same" if same else f"v{number}"
        blobs = check_complete(absolute(f"{place}{tag}", tmp_path), store=store_of(tmp_path))
        assert same or descriptor.digest in blobs
    assert not temporary(listing(tmp_path))


def test_converting_beside_removing(tmp_path: Path) -> None:
    """A sweep never takes what a conversion has written but not named yet."""
    image = make_image(tmp_path / "image").root
    for number in range(3):
        soci(*CONVERT, f"oci:{image}", f"old:{number}", home=tmp_path)
    processes = [
        start(*CONVERT, f"oci:{image}", f"new:{number}", home=tmp_path) for number in range(2)
    ]
    removers = [start("rmi", f"old:{number}", home=tmp_path) for number in range(3)]
    for process in (*processes, *removers):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    for number in range(2):
        check_complete(f"new:{number}", store=store_of(tmp_path))


# Disks


@pytest.fixture
def disk(small_disk: Callable[[str], Path]) -> Path:
    """A file system of 3 MB."""
    return small_disk("3m")


def fails(*arguments: str | Path, home: Path, words: str) -> None:
    """The command fails with status 1 and one line that holds `words`."""
    done = subprocess.run(
        [*SOCI, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home),
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("place", ["oci:disk/d:v1", "oci-archive:disk/a.tar:v1", "app:v1"])
def test_a_full_disk(tmp_path: Path, disk: Path, place: str) -> None:
    root = ("--root", disk / "store")
    old = make_image(tmp_path / "old", [gz(layer_tar(1))]).root
    soci(*root, *CONVERT, f"oci:{old}", place, home=tmp_path)
    before = tagged(disk)
    complete = check_complete(absolute(place, tmp_path), store=disk / "store")
    large = make_image(tmp_path / "large", [gz(layer_tar(2, 6 << 20)), gz(layer_tar(3))]).root
    fails(*root, *CONVERT, f"oci:{large}", place, home=tmp_path, words="No space left on device")
    assert tagged(disk) == before
    assert not temporary(listing(disk))
    assert check_complete(absolute(place, tmp_path), store=disk / "store") == complete
    # What fits can still be written.
    other = make_image(tmp_path / "other", [gz(layer_tar(4))]).root
    soci(*root, *CONVERT, f"oci:{other}", place, home=tmp_path)
    check_complete(absolute(place, tmp_path), store=disk / "store")


def test_a_full_disk_for_small_outputs(tmp_path: Path, disk: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(gz(layer_tar(1, 5 << 20)))
    (disk / "z").write_text("as before")
    (disk / "fill").write_bytes(bytes((3 << 20) - 64 * 1024))
    build = ("ztoc", "build", "--span-size", "64KiB", layer)
    fails(*build, "-o", disk / "z", home=tmp_path, words="No space left on device")
    assert (disk / "z").read_text() == "as before"
    soci("ztoc", "build", "-o", "z", layer, home=tmp_path)
    get = ("ztoc", "get-file", "z", layer, "data/1.bin", "-o", disk / "out")
    fails(*get, home=tmp_path, words="No space left on device")
    assert sorted(path.name for path in disk.iterdir()) == ["fill", "z"]


@pytest.mark.parametrize("place", ["oci:disk/d:v2", "oci-archive:disk/a.tar", "app:v2"])
def test_a_read_only_disk(tmp_path: Path, disk: Path, place: str) -> None:
    image = make_image(tmp_path / "image").root
    root = ("--root", disk / "store")
    for old in ("oci:disk/d:v1", "oci-archive:disk/a.tar:v1", "app:v1"):
        soci(*root, *CONVERT, f"oci:{image}", old, home=tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = listing(disk)
    other = make_image(tmp_path / "other", [gz(layer_tar(9))]).root
    fails(*root, *CONVERT, f"oci:{other}", place, home=tmp_path, words="Read-only file system")
    assert listing(disk) == before
    # Reading works, and so does finding out that nothing would change.
    soci(*root, "image", "inspect", "app:v1", home=tmp_path)
    soci(*root, "images", home=tmp_path)
    soci(*root, *CONVERT, f"oci:{image}", "oci:disk/d:v1", home=tmp_path)
    soci(*root, *CONVERT, "app:v1", "oci:copy", home=tmp_path)
    check_complete(tmp_path / "copy")


# Another user


@pytest.fixture
def nobody(need_root: None) -> list[str]:
    """The words that run a command as a user without any rights."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_a_user_without_rights(tmp_path: Path, nobody: list[str]) -> None:
    image = make_image(tmp_path / "image").root
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = environment(home, PYTHONDONTWRITEBYTECODE="1")
        return subprocess.run(
            [*nobody, *SOCI, *arguments], capture_output=True, text=True, cwd=home, env=env
        )

    for place in PLACES.values():
        done = as_nobody(*CONVERT, f"oci:{image}", place)
        assert done.returncode == 0, done.stderr
        check_complete(absolute(place, home), store=store_of(home))
    assert all(path.stat().st_uid == 65534 for path in home.rglob("*"))
    assert stat.S_IMODE(store_of(home).stat().st_mode) == 0o700
    # Where that user may not write, or not read, one line says so.
    for arguments in (
        (*CONVERT, f"oci:{image}", f"oci:{image}"),
        (*CONVERT, f"oci:{image}", f"oci:{tmp_path}/new"),
        (*CONVERT, f"oci:{image}", f"oci-archive:{tmp_path}/new.tar"),
    ):
        done = as_nobody(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "Permission denied" in done.stderr
    (image / "index.json").chmod(0o600)
    done = as_nobody("image", "inspect", f"oci:{image}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    run_convert(image, tmp_path / "d", options())
