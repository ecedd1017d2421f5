"""containerd as a process of its own, with folders and a socket of its own: Debian's, or a newer one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soci_cli.closing import Closing

_START_SECONDS = 15.0
_STOP_SECONDS = 10.0
# Kubernetes, other people's file systems, and what would write outside of the folder.
_DISABLED = (
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.nri.v1.nri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)
DEBIAN = "1.6"
NEWER = "2.4.2"  # also in tests/install-tools.sh
VERSIONS = (DEBIAN, NEWER)


@dataclass(frozen=True)
class Programs:
    """The paths of containerd and of ctr, in one version."""

    version: str
    containerd: str
    ctr: str


def programs(version: str) -> Programs | None:
    """The programs of a version, one of `VERSIONS`; None where it is not installed."""
    folder = None
    if version != DEBIAN:
        folder = str(Path(os.environ["SOCI_TESTS_TOOLS"], f"containerd-{version}"))
    found = shutil.which("containerd", path=folder), shutil.which("ctr", path=folder)
    return Programs(version, found[0], found[1]) if found[0] and found[1] else None


_CONFIG = """\
version = 2
root = {root}
state = {state}
disabled_plugins = {disabled}
[grpc]
address = {address}
[ttrpc]
address = {ttrpc}
[debug]
level = "info"
# So small a part of the time may garbage collection take, that it never comes by itself.
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 1e-9
deletion_threshold = 0
mutation_threshold = 1000000
startup_delay = "24h"
"""


class ContainerdServer(Closing):
    """A containerd at `address`, a socket's path. Needs root.

    It keeps its content below the folder, where it finds it again after `stop` and `start`, and writes to
    `log`. Garbage is collected by `collect` and by deletions with `sync` only.
    """

    def __init__(
        self, folder: Path, programs: Programs, settings: str = "", short: Path | None = None
    ) -> None:
        """`settings` are lines of its config.toml besides those that all have.

        `short` is a folder for the socket, where its address must be known before: `short / "s"`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.version = programs.version
        self._programs = programs
        self.log = folder / "containerd.log"
        # The path of a socket has at most 107 bytes.
        self._short = short or Path(tempfile.mkdtemp(prefix="ctrd-"))
        self.address = str(self._short / "s")
        self._config = folder / "config.toml"
        quoted = {
            "root": folder / "root",
            "state": self._short / "state",
            "address": self.address,
            "ttrpc": self._short / "t",
        }
        self._config.write_text(
            _CONFIG.format(
                disabled=json.dumps(_DISABLED),
                **{key: json.dumps(str(value)) for key, value in quoted.items()},
            )
            + settings
        )
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's ID."""
        assert self._process is not None, "containerd is stopped"
        return self._process.pid

    @property
    def command(self) -> list[str]:
        """How ctr is called, for the namespace "default"."""
        return [self._programs.ctr, "--address", self.address, "--namespace", "default"]

    @property
    def content(self) -> Path:
        """Where the content store is on disk: `blobs/sha256` and `ingest`."""
        return self.folder / "root" / "io.containerd.content.v1.content"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CONTAINERD_")}
        # The shim that starts containers is of the same version.
        own = str(Path(self._programs.containerd).parent)
        kept["PATH"] = os.pathsep.join((own, kept.get("PATH", os.defpath)))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs.containerd, "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=kept,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.address) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError(f"containerd did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """Stops it; everything on disk stays."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """Stops it without any warning, as a crash does; the socket stays behind."""
        self._end(subprocess.Popen.kill)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._short, ignore_errors=True)

    def ctr(self, *arguments: str | Path, namespace: str = "default") -> str:
        """Runs ctr, which must succeed; its stdout."""
        command = [*self.command[:-1], namespace, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"ctr {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout

    def collect(self, namespace: str = "default") -> None:
        """Collects the garbage of all namespaces, and comes back when that is done."""
        lease = self.ctr("leases", "create", namespace=namespace).strip()
        self.ctr("leases", "delete", "--sync", lease, namespace=namespace)

    def blobs(self, namespace: str = "default") -> set[str]:
        """The digests of all that a namespace has."""
        return set(self.ctr("content", "ls", "--quiet", namespace=namespace).split())

    def leases(self, namespace: str = "default") -> Sequence[str]:
        """The leases that are held in a namespace."""
        return self.ctr("leases", "ls", "--quiet", namespace=namespace).split()

    def ingests(self, namespace: str = "default") -> Sequence[str]:
        """The unfinished writes of a namespace, by their references."""
        listed = self.ctr("content", "active", namespace=namespace).splitlines()
        return [line.split()[0] for line in listed[1:]]

    def _end(self, how: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert callable(how)
        how(process)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
