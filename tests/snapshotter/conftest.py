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
from tests.snapshotter.client import Client

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
