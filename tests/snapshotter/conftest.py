"""Snapshotters, asked directly and over their socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from soci_cli.snapshotter.service import add_to
from soci_cli.snapshotter.snapshots import Snapshotter
from tests.integration.published import Published, publish
from tests.snapshotter.client import Client
from tests.snapshotter.world import DATA, TOOLS, programs_tar
from tests.support.images import LayoutMaker, gz, sha256, tar_of
from tests.support.servers import DockerRegistry
from tests.support.tools import skopeo

Api = Snapshotter | Client


@pytest.fixture
def snapshotter(tmp_path: Path, need_root: None) -> Iterator[Snapshotter]:
    """One that leaves all layers to containerd."""
    before = os.umask(0)
    with Snapshotter(tmp_path / "root") as made:
        yield made
    os.umask(before)


@pytest.fixture(params=["calls", "socket"])
def api(request: pytest.FixtureRequest, snapshotter: Snapshotter, tmp_path: Path) -> Iterator[Api]:
    """The snapshotter itself, and a client of its service."""
    if request.param == "calls":
        yield snapshotter
        return
    server = grpc.server(ThreadPoolExecutor(4))
    add_to(server, snapshotter, lambda *text, **fields: None)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    with Client(f"{tmp_path}/s") as client:
        yield client
    server.stop(None).wait()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, docker_registry: DockerRegistry) -> Published:
    """An image with programs, of three layers; the last is too small for a zTOC."""
    folder = tmp_path_factory.mktemp("runs")
    maker = LayoutMaker(folder / "layout")
    tars = [
        programs_tar(TOOLS, {"etc/gone": b"x"}),
        tar_of({"data/noise": DATA, "etc/.wh.gone": b"", "data/old": b"old"}),
        tar_of({"data/small": b"a small layer\n", "data/.wh.old": b""}),
    ]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    return publish(folder, docker_registry.host, "runs", maker.root, 10 << 10)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, docker_registry: DockerRegistry) -> str:
    """The name of an image without an index."""
    maker = LayoutMaker(tmp_path_factory.mktemp("other") / "layout")
    tars = [programs_tar(("cat",)), tar_of({"data/file": b"plain\n"})]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    name = f"{docker_registry.host}/without:1"
    skopeo(f"oci:{maker.root}:latest", f"docker://{name}", "--dest-tls-verify=false")
    return name
