"""The world of the documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.world import World, make_files, make_images
from tests.support.machine import PROJECT, need
from tests.support.servers.containerd import DEBIAN, ContainerdServer, programs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_files(folder)
    make_images(folder)
    return folder


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, images: Path, need_fuse: None
) -> Iterator[World]:
    """The world of the document `path`; with containerd where a command of it is ctr."""
    for tool in ("unshare", "umoci", "skopeo", "jq", "curl", "docker", "docker-registry"):
        need(tool)
    path: Path = request.node.callspec.params["path"]
    if "\n$ ctr " not in (PROJECT / path).read_text():
        with World(tmp_path / "me", images, None) as world:
            yield world
        return
    found = programs(DEBIAN)
    if found is None:
        pytest.skip("containerd is not installed")
    with (
        ContainerdServer(tmp_path / "containerd", found) as server,
        World(tmp_path / "me", images, server.address) as world,
    ):
        yield world
