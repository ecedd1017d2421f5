"""Mounts of images that are here as a whole: no process serves them, and the cache keeps them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_at
from tests.commands.mounting import Home, Remote, until
from tests.commands.test_reading import BIG
from tests.support.images import LayoutMaker, make_image, noise, tar_of, zst
from tests.support.machine import need_erofs

QUICK = "background_fetch.silence_period_msec = 1\nbackground_fetch.fetch_period_msec = 1\n"


@pytest.fixture(autouse=True)
def _erofs() -> None:
    need_erofs()


def hosts(home: Home) -> list[Path]:
    """The processes that serve mounts."""
    return list((home.folder / ".local/state/soci/hosts").glob("[!.]*"))


def devices(home: Home) -> list[Path]:
    """The complete devices in the cache."""
    found = (home.folder / ".cache/soci/devices").rglob("*")
    return sorted(path for path in found if path.is_file() and path.suffix != ".ztoc")


def check(target: Path) -> None:
    """The image is there."""
    assert (target / "usr/big").read_bytes() == BIG
    assert (target / "usr/big").samefile(target / "usr/big2")
    assert (target / "usr/upper").read_bytes() == noise(1, 70_000)


def eagerly(home: Home, image: str) -> None:
    home("mount", "--eager", "--engine", "erofs", image, home.target).good()


def test_nothing_stays_running(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    until(lambda: not hosts(home))
    check(home.target)
    (mount,) = home.mounts()
    assert (mount["state"], mount["kind"], mount["engine"]) == ("complete", "erofs", "erofs")
    assert len(devices(home)) == 2
    assert home.stats()["complete"]
    assert "no process serves it" in home("stats").good().text
    home("mounts", "--restart").good()
    home("mount", remote.image, home.target).bad(1, "has an image mounted already")
    assert not home("cache", "ls", "--format", "json").text.count('"spans"')
    home("umount", home.target).good()
    assert not home.is_mounted()
    assert home.left == []
    assert home.mounts() == []


def test_the_next_mount_asks_for_no_layer(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    home("umount", home.target).good()
    before = len(remote.proxy.seen("GET", "/blobs/"))
    home("mount", remote.image, home.target).good()
    check(home.target)
    assert home.mounts()[0]["state"] == "complete"
    # The registry says which manifest it is; all else is in the cache.
    assert len(remote.proxy.seen("GET", "/blobs/")) - before <= 1
    home("umount", home.target).good()


def test_layers_without_a_ztoc(home: Home, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "zstd")
    layer = maker.blob(
        zst(tar_of({"f": b"x" * 5000})), "application/vnd.oci.image.layer.v1.tar+zstd"
    )
    maker.tag(maker.manifest([layer], maker.config()))
    for place in (make_image(tmp_path / "plain").root, maker.root):
        home("mount", "--engine", "erofs", f"oci:{place}", home.target).good()
        assert home.mounts()[0]["state"] == "complete"
        assert any(path.is_file() for path in home.target.rglob("*"))
        until(lambda: not hosts(home))
        home("umount", home.target).good()


def test_of_a_mixed_image_only_what_is_lazy_is_served(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    home("umount", home.target).good()
    small, large = sorted(devices(home), key=lambda path: path.stat().st_size)
    small.unlink()
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert home.mounts()[0]["state"] == "serving"
    subprocess.run(["cat", home.target / "usr/big"], stdout=subprocess.DEVNULL, check=True)
    assert home.stats()["demand"]["spans"] == 0
    check(home.target)
    assert home.stats()["demand"]["spans"] > 0
    os.kill(home.mounts()[0]["pid"], 0)
    home("umount", home.target).good()
    assert large.exists()


def test_a_device_that_was_cut_or_changed_is_made_again(home: Home, remote: Remote) -> None:
    for change in (lambda path: os.truncate(path, 5000), lambda path: path.write_bytes(b"x")):
        eagerly(home, remote.image)
        home("umount", home.target).good()
        for path in devices(home):
            change(path)
        home("mount", "--no-background-fetch", remote.image, home.target).good()
        assert home.mounts()[0]["state"] == "serving"
        check(home.target)
        home("umount", home.target).good()


def test_the_cache_keeps_what_is_mounted(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    until(lambda: not hosts(home))
    home("cache", "prune").good()
    assert len(devices(home)) == 2
    check(home.target)
    home("umount", home.target).good()
    home("cache", "prune").good()
    assert devices(home) == []


def test_somebody_else_unmounts_it(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    until(lambda: not hosts(home))
    subprocess.run(["umount", home.target], check=True)
    assert home.mounts() == []
    assert home.left == []
    home("mount", remote.image, home.target).good()
    check(home.target)
    home("umount", home.target).good()


def test_in_use(home: Home, remote: Remote) -> None:
    eagerly(home, remote.image)
    with (home.target / "usr/big").open("rb") as file:
        home("umount", home.target).bad(1, "is in use by")
        home("umount", "--force", home.target).good()
        assert file.read() == BIG
    assert not home.is_mounted()


def test_writing(home: Home, remote: Remote) -> None:
    home("mount", "--eager", "--rw", remote.image, home.target).good()
    until(lambda: not hosts(home))
    (home.target / "usr/new").write_bytes(b"new")
    (home.target / "usr/big").write_bytes(b"other")
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)
    home("umount", home.target).good()
    assert home.left == []


def test_in_the_foreground_somebody_serves(home: Home, remote: Remote) -> None:
    process = home.start("mount", "--foreground", "--eager", remote.image, home.target)
    until(home.is_mounted)
    check(home.target)
    process.terminate()
    process.communicate(timeout=60)
    assert not home.is_mounted()


def test_what_comes_in_the_background_becomes_complete(home: Home, remote: Remote) -> None:
    (home.folder / "quick.toml").write_text(QUICK)
    home.env["SOCI_CONFIG"] = str(home.folder / "quick.toml")
    home("mount", remote.image, home.target).good()
    until(lambda: len(devices(home)) == 2)
    assert home.mounts()[0]["state"] == "serving"
    check(home.target)
    layers = home.stats()["layers"]
    assert [layer["size_here"] for layer in layers] == [layer["size"] for layer in layers]
    home("umount", home.target).good()
    home("mount", remote.image, home.target).good()
    assert home.mounts()[0]["state"] == "complete"
    check(home.target)


def test_a_reader_goes_on_while_a_layer_becomes_complete(home: Home, remote: Remote) -> None:
    (home.folder / "quick.toml").write_text(QUICK)
    home.env["SOCI_CONFIG"] = str(home.folder / "quick.toml")
    home("mount", remote.image, home.target).good()
    deadline = time.monotonic() + 60
    while len(devices(home)) < 2:
        assert time.monotonic() < deadline
        with (home.target / "usr/big").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == BIG
    point = mount_at(str(home.target))
    assert point is not None
    assert point.kind == "erofs"
