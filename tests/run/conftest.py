"""Fixtures of the tests with real containers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.mounting import Home
from tests.run.shell_image import make_shell_image
from tests.support.commands import Soci
from tests.support.machine import need, need_root

UNIFIED = Path("/sys/fs/cgroup/unified")


@pytest.fixture(scope="session")
def shell_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A place with an image that has a shell."""
    need_root()
    config = {"Cmd": ["sh", "-c", "echo default"], "Labels": {"from": "image"}}
    return f"oci:{make_shell_image(tmp_path_factory.mktemp('shell'), config)}"


@pytest.fixture
def soci(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Soci:
    """The command line, with a store of its own."""
    return Soci(capfdbinary, tmp_path / "store")


@pytest.fixture
def home(tmp_path: Path, need_fuse: None) -> Iterator[Home]:
    """Somebody who runs containers; what is left of them is taken away."""
    made = Home(tmp_path)
    yield made
    made("run", "oci:/nowhere")  # which takes away what others left
    made.clean()


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a runtime that works here.

    crun does not where cgroups v1 are used and v2 has controllers: so v2 is taken away for a while, from
    this process and its children.
    """
    name: str = request.param
    need(name)
    is_hybrid = (UNIFIED / "cgroup.controllers").exists() and name == "crun"
    if is_hybrid:
        subprocess.run(["umount", UNIFIED], check=True)
    yield name
    if is_hybrid:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", UNIFIED], check=True)
