"""Fixtures of the tests of commands that are about containerd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.containerd.machine import (
    NAMESPACE,
    Machine,
)
from tests.support.commands import Soci
from tests.support.servers.containerd import ContainerdServer
from tests.support.servers.docker_registry import DockerRegistry


@pytest.fixture
def docker_registry(need_docker_registry: str, tmp_path: Path) -> Iterator[DockerRegistry]:
    """A new registry, since every containerd pushes under the same names."""
    with DockerRegistry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def machine(containerd: ContainerdServer, soci: Soci, tmp_path: Path) -> Iterator[Machine]:
    yield Machine(containerd, soci, tmp_path)
    for name in containerd.ctr("images", "ls", "-q", namespace=NAMESPACE).split():
        containerd.ctr("images", "rm", "--sync", name, namespace=NAMESPACE)
