"""Somebody who mounts images, and an image that is in a registry behind a proxy."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from soci_cli.kernel.points import mount_at
from tests.support.commands import SOCI, Done, environment, process
from tests.support.holders import crash
from tests.support.machine import need_erofs
from tests.support.servers.fault_proxy import FaultProxy

PATIENCE = 60.0
both_engines = pytest.mark.parametrize("home", ["erofs", "fuse"], indirect=True)
"""A test with a `home` whose mounts are served by EROFS, and once more by FUSE."""


class Home:
    """A user's folders, and the mounts of that user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "mnt"
        self.target.mkdir()
        self.targets = [self.target]
        self.env: dict[str, str] = {}

    def use_engine(self, engine: str) -> None:
        """All mounts are served by this engine from now on, as far as it can serve them."""
        if engine == "erofs":
            need_erofs()
            engine = "auto"
        self.env["SOCI_CONFIG"] = str(self.folder / "engine.toml")
        (self.folder / "engine.toml").write_text(f'soci.engine = "{engine}"\n')

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
        for target in (self.target, *self.targets):
            subprocess.run(["umount", "-l", target], capture_output=True, check=False)
        for path in (self.folder / ".local/state/soci/mounts").glob("*/mount.json"):
            with suppress(OSError, ValueError):
                crash(json.loads(path.read_text())["pid"])


def until(condition: Callable[[], object]) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Remote:
    """The image in a registry behind a proxy."""

    def __init__(self, upstream: str, layers: list[str]) -> None:
        self.proxy = FaultProxy(upstream)
        self.image = f"docker://{self.proxy.host}/app:1"
        self.lower, self.upper = layers
