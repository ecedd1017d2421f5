"""Which engine serves a mount, and what is said of it; kernels that lack something."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from soci_cli.kernel import calls
from soci_cli.kernel.points import mount_at
from tests.commands.mounting import Home, both_engines, until
from tests.commands.test_reading import BIG
from tests.index.test_layers import sparse_tar
from tests.support.holders import crash
from tests.support.images import gz, make_image, sha256
from tests.support.machine import need_erofs


@pytest.fixture(autouse=True)
def _erofs() -> None:
    need_erofs()


def test_auto_takes_erofs(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    point = mount_at(str(home.target))
    assert point is not None
    assert point.kind == "erofs"
    (mount,) = home.mounts()
    assert (mount["kind"], mount["engine"], mount["reason"]) == ("erofs", "erofs", "")
    assert home("mounts").text.splitlines()[1].split()[-1] == "erofs"
    assert "metadata" in home("cache", "ls").good().text
    assert "\nserved by EROFS\n" in home("stats").good().text
    stats = home.stats()
    assert (stats["engine"], stats["reason"]) == ("erofs", "")
    # What is mounted keeps its metadata.
    home("cache", "prune").good()
    assert "metadata" in home("cache", "ls").good().text
    home("umount", home.target).good()
    home("cache", "prune").good()
    assert "metadata" not in home("cache", "ls").good().text


def test_the_engine_that_was_asked_for(home: Home, layout: Path) -> None:
    image = f"oci:{layout}"
    home("mount", "--engine", "fuse", image, home.target).good()
    (mount,) = home.mounts()
    assert (mount["kind"], mount["engine"], mount["reason"]) == (
        "overlay",
        "fuse",
        "FUSE was asked for",
    )
    assert "fuse: FUSE was asked for" in home("mounts").text
    assert "served by FUSE: FUSE was asked for" in home("stats").text
    home("umount", home.target).good()
    home.use_engine("fuse")
    home("mount", image, home.target).good()
    assert home.mounts()[0]["engine"] == "fuse"
    home("umount", home.target).good()
    home("mount", "--engine", "erofs", image, home.target).good()
    assert home.mounts()[0]["engine"] == "erofs"
    home("umount", home.target).good()
    home.env["SOCI_WITHOUT"] = "erofs"
    home("mount", "--engine", "erofs", image, home.target).bad(1, "this kernel has no EROFS")
    assert not home.is_mounted()
    assert home.left == []


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ("files", ""),
        ("erofs", "this kernel has no EROFS"),
        ("fsopen", "this kernel has no fsopen"),
        ("files loops", "files: none here; loop devices: none here"),
        ("errors", "loop devices: reading beyond the end of a device gives zeros"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--rw"]])
def test_kernels_that_lack_something(
    home: Home, layout: Path, without: str, reason: str, flags: list[str]
) -> None:
    """Each way around is taken, and the reason shown."""
    home.env["SOCI_WITHOUT"] = without
    lines = home("mounts", "--engines", "--format", "json").good().text.splitlines()
    by_erofs, by_fuse = map(json.loads, lines)
    assert (by_erofs["engine"], by_erofs["available"]) == ("erofs", not reason)
    assert reason in by_erofs["reason"]
    assert (by_fuse["engine"], by_fuse["available"]) == ("fuse", True)
    home("mount", *flags, f"oci:{layout}", home.target).good()
    (mount,) = home.mounts()
    assert mount["engine"] == ("fuse" if reason else "erofs")
    assert reason in mount["reason"]
    assert (home.target / "usr/big").read_bytes() == BIG
    home("umount", home.target).good()
    until(lambda: home.left == [])


def test_a_layer_that_erofs_cannot_show(home: Home) -> None:
    """The mount is served by FUSE, and says which layer is why."""
    layer = gz(sparse_tar(1000))
    image = make_image(home.folder / "sparse", [layer]).root
    home("mount", f"oci:{image}", home.target).good()
    assert (home.target / "sparse").read_bytes() == bytes(1000)
    (mount,) = home.mounts()
    assert mount["engine"] == "fuse"
    assert mount["reason"] == f"layer {sha256(layer)}: it has sparse files"
    assert mount["reason"] in home("stats").good().text
    home("umount", home.target).good()
    home("mount", "--engine", "erofs", f"oci:{image}", home.target).bad(1, "it has sparse files")


def test_engines_as_text(home: Home) -> None:
    head, first, second = home("mounts", "--engines").good().text.splitlines()
    assert head.split() == ["ENGINE", "HERE", "WHY"]
    assert first.split()[:2] == ["erofs", "yes"]
    assert second.split(None, 2) == ["fuse", "yes", "FUSE and overlayfs"]
    assert home("mounts", "--engines", "-q").good().text == "erofs\nfuse\n"
    home.env["SOCI_WITHOUT"] = "erofs"
    assert home("mounts", "--engines", "-q").good().text == "fuse\n"


def test_the_end_of_the_server_leaves_errors_and_no_hang(home: Home, layout: Path) -> None:
    home("mount", "--engine", "erofs", f"oci:{layout}", home.target).good()
    crash(home.mounts()[0]["pid"])
    until(lambda: home.mounts()[0]["state"] == "crashed")
    assert (home.target / "usr/big").stat().st_size == len(BIG)
    with pytest.raises(OSError, match="Input/output"):
        (home.target / "usr/big").read_bytes()
    home("stats").bad(1, "crashed", "soci umount")
    home("mount", f"oci:{layout}", home.target).bad(1, "whose server crashed", "soci umount")
    home("umount", home.target).good()
    assert not home.is_mounted()
    home("mount", f"oci:{layout}", home.target).good()


@both_engines
def test_what_is_not_there_and_numbers(home: Home, layout: Path) -> None:
    """Attributes that a file lacks, and numbers of files that 32-bit programs can use."""
    home("mount", f"oci:{layout}", home.target).good()
    for path in (home.target / "usr/big", home.target / "usr"):
        for name in ("user.absent", "trusted.absent", "security.absent"):
            with pytest.raises(OSError, match="No data available"):
                os.getxattr(path, name)
    numbers = [path.lstat().st_ino for path in home.target.rglob("*")]
    assert numbers
    assert max(numbers) < 1 << 32
    home("umount", home.target).good()


def test_a_copy_in_another_mount_namespace(home: Home, layout: Path) -> None:
    """It is named; it holds the server until it ends, or until --force ends that."""
    home("mount", f"oci:{layout}", home.target).good()
    with subprocess.Popen(["unshare", "-m", "sleep", "600"]) as other:
        try:
            until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
            home("umount", home.target).bad(
                1, "is unmounted here", f"sleep ({other.pid}) has it in another mount namespace"
            )
            assert home.left
            home("umount", "--force", home.target).good()
            assert home.left == []
        finally:
            other.kill()


@pytest.mark.parametrize("home", ["erofs", "fuse"], indirect=True)
def test_what_holds_a_mount_without_a_place(home: Home, layout: Path) -> None:
    """A clone that is in no mount namespace keeps no server."""
    home("mount", f"oci:{layout}", home.target).good()
    clone = calls.syscall(428, -100, os.fsencode(home.target), 0x80001)  # open_tree(2), of a copy
    try:
        home("umount", home.target).good()
        assert home.left == []
    finally:
        os.close(clone)
