"""The daemon as a process, containerd that asks it, and an image whose programs run."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree, which
from typing import Any

from soci_cli.closing import Closing
from soci_cli.kernel import calls
from soci_cli.kernel.points import mount_points
from soci_cli.lazy.mounts.records import Hosts
from tests.integration.published import Published
from tests.support.commands import environment
from tests.support.holders import crash
from tests.support.images import noise

PATIENCE = 30.0
KILLED = signal.SIGKILL
PLUGIN = """
[proxy_plugins.soci]
type = "snapshot"
address = "{address}"
"""
# What makes a pull through containerd's transfer service (2.1 and newer) lazy.
TRANSFER = """
[proxy_plugins.soci.exports]
enable_remote_snapshot_annotations = "true"
"""
# Without which it unpacks nothing.
UNPACK = """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "soci"
"""


class Daemon(Closing):
    """`soci-snapshotter-grpc` below a folder; its log is in the file `log`."""

    def __init__(self, folder: Path, containerd: str = "/nowhere/at/all", config: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "root"
        self.log = folder / "log"
        self._folder = folder
        self._short = Path(tempfile.mkdtemp(prefix="soci-"))
        self.address = str(self._short / "s")
        self._config = folder / "config.toml"
        self.containerd = containerd
        self._more = config
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._config.write_text(
            f"{self._more}\n[content_store]\ncontainerd_address = {json.dumps(self.containerd)}\n"
        )
        seen = len(self.lines()) if self.log.exists() else 0
        command = [sys.executable, "-m", "soci_cli.commands.snapshotter"]
        flags = ["--address", self.address, "--root", str(self.root), "--config", str(self._config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *flags],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=environment(self._folder),
            )
        started = "soci-snapshotter-grpc successfully started"
        self.wait_for(
            lambda: (
                any(line["msg"] == started for line in self.lines()[seen:])
                or self._process is None
                or self._process.poll() is not None
            )
        )
        assert self._process.poll() is None, self.log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def logged(self, field: str, value: str | None = None) -> int:
        """How many lines have a field, or a message where `value` is not given."""
        if value is None:
            return sum(line["msg"] == field for line in self.lines())
        return sum(line.get(field) == value for line in self.lines())

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.02)

    def hosts(self) -> list[int]:
        """The processes that serve layers."""
        found = Hosts(self.root / "mounts").all()
        return [record.pid for folder, record in found if folder.is_alive()]

    def mounted(self) -> list[str]:
        """Where layers are mounted."""
        return [one.path for one in mount_points() if one.path.startswith(f"{self.root}/")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit status. What it mounted stays."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(PATIENCE)

    def close(self) -> None:
        """Ends it, and all that it left."""
        self.stop(signal.SIGKILL)
        for pid in self.hosts():
            crash(pid)
        self.wait_for(lambda: not self.hosts())
        for path in self.mounted():
            calls.umount2(Path(path), calls.MNT_DETACH)
        rmtree(self._short, ignore_errors=True)


def programs_tar(names: Sequence[str], files: dict[str, bytes] | None = None) -> bytes:
    """An archive with programs of this machine in /bin, and the libraries that they need."""
    out = io.BytesIO()
    done: set[str] = set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, source: str) -> None:
            if name not in done:
                done.add(name)
                info = tarfile.TarInfo(name)
                data = Path(source).read_bytes()
                info.size, info.mode, info.mtime = len(data), 0o755, 1_700_000_000
                tar.addfile(info, io.BytesIO(data))

        for name in ("bin/", "dev/", "etc/", "lib/", "proc/", "sys/", "tmp/"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp/" else 0o755
            tar.addfile(info)
        for name in names:
            path = which(name)
            assert path, name
            add(f"bin/{name}", os.path.realpath(path))
            needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
            for library in re.findall(r"(/\S+) \(0x", needed):
                add(library.lstrip("/"), os.path.realpath(library))
        for name, data in (files or {}).items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


TOOLS = ("sh", "cat", "ls", "mv", "rm", "mkdir", "sha256sum", "sleep")
DATA = noise(3, 700_000)
SOCI = ("--snapshotter", "soci")
RUN = ("run", "--rm", "--snapshotter", "soci")
Pull = Callable[..., None]
PULL = ("images", "pull", "--snapshotter", "soci", "--plain-http")


def name_of(image: Published, host: str = "") -> str:
    return f"{host or image.host}/{image.repository}:soci"
