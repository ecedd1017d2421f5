"""What tests need of the machine, as fixtures that skip where it is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.machine import need


@pytest.fixture(scope="session")
def need_root() -> None:
    """A test with this fixture has the mark `root`."""
    machine.need_root()


@pytest.fixture(scope="session")
def need_fuse(need_root: None) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")


@pytest.fixture(scope="session")
def need_skopeo() -> str:
    return need("skopeo")


@pytest.fixture(scope="session")
def need_umoci() -> str:
    return need("umoci")


@pytest.fixture(scope="session")
def need_pigz() -> str:
    return need("pigz")


@pytest.fixture(scope="session")
def need_zstd() -> str:
    return need("zstd")


@pytest.fixture
def small_disk(need_root: None, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size such as "3m" at tmp_path/disk; unmounted at the end."""
    with ExitStack() as stack:

        def mount(size: str) -> Path:
            path = tmp_path / "disk"
            path.mkdir()
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True
            )
            if mounted.returncode:
                pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
            stack.callback(lambda: subprocess.run(["umount", path], check=True))
            return path

        yield mount
