"""Ending real mounts, also in use, covered, hanging or never served."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from soci_cli.errors import BusyError, CoveredError, InvalidDataError, NotMountedError
from soci_cli.kernel.points import mount_at, mount_points
from soci_cli.kernel.unmount import unmount, unmount_below
from soci_cli.lazy import LayerBytes, LazyImage, LazyLayer
from soci_cli.lazy.fuse import MountOptions, is_image, mount_image
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.ztoc import LayerFiles
from tests.lazy.fuse.tools import (
    PATIENCE,
    Bytes,
    content,
    file,
    image_with,
    layer_of,
    mounted,
)
from tests.lazy.tools import LAYER

pytestmark = pytest.mark.usefixtures("need_fuse")


@pytest.fixture
def image() -> LazyImage:
    return image_with([file("top", 0, 10)])


def test_leftovers(image: LazyImage, tmp_path: Path) -> None:
    """What a crash leaves mounted in a scratch folder can be taken away."""
    (tmp_path / "scratch/deep").mkdir(parents=True)
    (tmp_path / "aside").mkdir()
    made = mount_image(image, tmp_path / "scratch/deep", tmp_path / "aside", MountOptions(), print)
    unmount_below(tmp_path / "scratch", is_image)
    assert mount_at(str(tmp_path / "scratch/deep")) is None
    made.serve()


def test_unmounting(image: LazyImage, tmp_path: Path) -> None:
    """What is in use stays, unless it is forced; then the server ends with the last user."""
    with mounted(image, tmp_path) as (made, target, _):
        with (target / "top").open("rb") as used:
            with pytest.raises(BusyError, match="in use"):
                unmount(target, made.identity)
            unmount(target, made.identity, force=True)
            assert mount_at(str(target)) is None
            assert used.read() == content(0, 10)
        made.serve()
    with mounted(image, tmp_path) as (made, target, _):
        subprocess.run(["umount", target], check=True)
        made.serve()


def test_another_mount_on_top(image: LazyImage, tmp_path: Path) -> None:
    """Only what was mounted is unmounted, never what somebody mounted over it."""
    with mounted(image, tmp_path) as (made, target, _):
        subprocess.run(["mount", "-t", "tmpfs", "other", target], check=True)
        (target / "kept").write_text("kept")
        for force in (False, True):
            with pytest.raises(CoveredError, match=f"{target} is covered by .* tmpfs other"):
                unmount(target, made.identity, force=force)
        with pytest.raises(CoveredError):
            made.abort()
        assert (target / "kept").read_text() == "kept"
        subprocess.run(["umount", target], check=True)
        assert (target / "top").read_bytes() == content(0, 10)
        subprocess.run(["mount", "--bind", target, target], check=True)
        with pytest.raises(CoveredError):
            made.unmount()
        subprocess.run(["umount", target], check=True)
        if made.identity.unique:  # another mount that got the numbers of this one
            with pytest.raises(NotMountedError):
                unmount(target, replace(made.identity, unique=made.identity.unique + 1))
        made.unmount()
        with pytest.raises(NotMountedError):
            made.unmount()


@pytest.mark.parametrize("writable", [False, True])
def test_a_layer_that_cannot_be_opened(tmp_path: Path, writable: bool) -> None:
    """Nothing is mounted that nobody serves: whoever looked at it would hang."""

    class Broken:
        def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
            raise InvalidDataError("its zTOC is damaged")

        def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
            return ()

    image = image_with([file("top", 0, 10)], LazyLayer(LAYER, Broken(), "sha256:0"))
    options = MountOptions(writable=writable)
    with pytest.raises(InvalidDataError, match="damaged"), mounted(image, tmp_path, options):
        pass
    assert not any(point.path.startswith(str(tmp_path)) for point in mount_points())


def test_abort_of_what_others_have_still(image: LazyImage, tmp_path: Path) -> None:
    """It is mounted nowhere any more, and nobody asks anything: the connection ends all the same."""
    with mounted(image, tmp_path) as (made, target, _):
        # The kernel asks at the first close of a file only. The child of `subprocess` closes what is open
        # here, and where Python uses vfork, the server, which is in this process, waits for the child.
        (target / "top").read_bytes()
        used = os.open(target / "top", os.O_RDONLY)
        try:
            subprocess.run(["umount", "-l", target], check=True)
            made.abort()
            assert made._session.wait(0)
        finally:
            os.close(used)


@pytest.fixture
def hanging() -> Iterator[tuple[LazyImage, Bytes]]:
    """An image of which one file cannot be read now."""
    archive = Bytes()
    archive.far = range(1 << 20, 2 << 20)
    layer = layer_of(file("near", 8, 9_000), file("far", 1 << 20, 9_000), archive=archive)
    yield image_with(layer), archive
    archive.go()


def wait_for(archive: Bytes) -> None:
    deadline = time.monotonic() + PATIENCE
    while not archive.fetched and time.monotonic() < deadline:
        time.sleep(0.01)


def test_reads_that_hang(hanging: tuple[LazyImage, Bytes], tmp_path: Path) -> None:
    """Others go on, and who waits can be killed."""
    image, archive = hanging
    with mounted(image, tmp_path) as (_, target, _):
        with subprocess.Popen(["cat", target / "far"], stdout=subprocess.PIPE) as reader:
            wait_for(archive)
            assert (target / "near").read_bytes() == content(8, 9_000)
            reader.send_signal(signal.SIGKILL)
            assert reader.wait(PATIENCE) == -signal.SIGKILL
        archive.go()
        assert (target / "far").read_bytes() == content(1 << 20, 9_000)


def test_abort_of_reads_that_hang(hanging: tuple[LazyImage, Bytes], tmp_path: Path) -> None:
    """They fail at once, and the mount is gone."""
    image, archive = hanging
    with mounted(image, tmp_path) as (made, target, _):
        with subprocess.Popen(
            ["cat", target / "far"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as reader:
            wait_for(archive)
            with pytest.raises(BusyError):
                unmount(target, made.identity)
            made.abort()
            assert mount_at(str(target)) is None
            assert reader.wait(PATIENCE) == 1
        made.serve()
