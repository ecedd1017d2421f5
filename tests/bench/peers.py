"""The same images as containerd has them: unpacked for overlayfs, and as its EROFS snapshotter's layers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from soci_cli.closing import Closing
from tests.bench.mounted import ReadingError
from tests.support.servers.containerd import NEWER, ContainerdServer, programs

_SETTINGS = """
[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]
[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
"""


class Peer(Closing):
    """A containerd whose snapshots of images are mounted read-only; needs root."""

    def __init__(self, folder: Path, host: str) -> None:
        """`host` is a registry."""
        found = programs(NEWER)
        if found is None:
            raise ReadingError(f"containerd {NEWER} is not installed")
        self._host = host
        self._server = ContainerdServer(folder, found, _SETTINGS if mkfs_version() else "")
        self._mounts = 0
        self._pulled: set[tuple[str, str]] = set()

    def close(self) -> None:
        self._server.close()

    def seconds_to_pull(self, snapshotter: str, image: str) -> float:
        """How long it takes to pull, unpack and mount an image; once for each."""
        name, chosen = f"{self._host}/{image}", ("--snapshotter", snapshotter)
        place = self._server.folder / "first"
        place.mkdir()
        start = perf_counter()
        self._server.ctr("images", "pull", "--local", "--plain-http", *chosen, name)
        self._server.ctr("images", "mount", *chosen, name, place)
        seconds = perf_counter() - start
        self._pulled.add((snapshotter, image))
        self._server.ctr("images", "unmount", "--rm", *chosen, place)
        place.rmdir()
        return seconds

    @contextmanager
    def mounted(self, snapshotter: str, image: str) -> Iterator[Path]:
        """A new mount of an image, which is pulled and unpacked the first time."""
        self._mounts += 1  # containerd takes no name twice
        place = self._server.folder / f"mount-{self._mounts}"
        name = f"{self._host}/{image}"
        chosen = ("--snapshotter", snapshotter)
        if (snapshotter, image) not in self._pulled:
            self._pulled.add((snapshotter, image))
            self._server.ctr("images", "pull", "--local", "--plain-http", *chosen, name)
            os.sync()
        place.mkdir()
        self._server.ctr("images", "mount", *chosen, name, place)
        try:
            yield place
        finally:
            self._server.ctr("images", "unmount", "--rm", *chosen, place)
            place.rmdir()

    def drop_pages(self) -> None:
        """Lets the kernel forget the bytes of all snapshots, not their names."""
        drop_pages(self._server.folder / "root")


def drop_pages(folder: Path) -> None:
    """Lets the kernel forget the bytes of all files below a folder, not their names."""
    os.sync()
    for above, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(above, name)  # noqa: PTH118 - many of them
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def mkfs_version() -> str:
    """The version of mkfs.erofs where it is one that containerd can use; "" where there is none."""
    program = shutil.which("mkfs.erofs")
    if program is None:
        return ""
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    version = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)?", version.stdout + version.stderr)
    return found[0] if found and "--tar=" in done.stdout + done.stderr else ""
