"""Layers that a snapshotter mounts, joined by overlayfs: the same files that umoci unpacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_points
from soci_cli.snapshotter.metadata import Kind
from tests.integration.mounts import Facts, facts
from tests.integration.published import Published, compare
from tests.snapshotter.client import Client
from tests.snapshotter.pulling import PREFIX, pull
from tests.snapshotter.test_conformance import mounted
from tests.snapshotter.world import Daemon
from tests.support.machine import need_erofs

pytestmark = pytest.mark.usefixtures("need_fuse")


@pytest.fixture(params=["erofs", "fuse"])
def engine(request: pytest.FixtureRequest) -> str:
    engine: str = request.param
    if engine == "erofs":
        need_erofs()
    return engine


@pytest.fixture
def daemon(tmp_path: Path, engine: str) -> Iterator[Daemon]:
    config = f'[background_fetch]\ndisable = true\n[soci]\nengine = "{engine}"\n'
    with Daemon(tmp_path / "daemon", config=config) as made:
        yield made


def test_all_kinds_of_files(
    odd: Published, unpacked: Facts, daemon: Daemon, tmp_path: Path
) -> None:
    with Client(daemon.address) as client:
        top = pull(client, odd)[-1]
        with mounted(client.view("view", top, {}), tmp_path / "view") as root:
            compare(facts(root), unpacked)
        with mounted(client.prepare("box", top, {}), tmp_path / "box") as root:
            compare(facts(root), unpacked)
            (root / "etc/hosts").write_bytes(b"written")
            (root / "bin/tool").rename(root / "bin/moved")
        with mounted(client.mounts("box"), tmp_path / "box") as root:
            found = facts(root)
            assert found["bin/moved"]["sha256"] == unpacked["bin/tool"]["sha256"]
            assert "bin/tool" not in found
        client.remove("box")
        with mounted(client.mounts("view"), tmp_path / "view") as root:
            compare(facts(root), unpacked)


def test_each_layer_by_itself(odd: Published, daemon: Daemon, engine: str) -> None:
    """A layer that is mounted over another image's lower layers is still what it is."""
    with Client(daemon.address) as client:
        chain = pull(client, odd)
        for name in chain:
            assert client.stat(name).kind is Kind.COMMITTED
            labels = client.stat(name).labels
            assert labels[f"{PREFIX}remote"] == "remote snapshot"
            assert labels[f"{PREFIX}remote/has.soci.index.digest"] == "true"
            assert labels["containerd.io/snapshot.ref"] == name
    assert len(daemon.mounted()) == len(chain)
    kinds = [point.kind for point in mount_points() if point.path in daemon.mounted()]
    assert set(kinds) == {"erofs" if engine == "erofs" else "fuse.rawBridge"}
    roots = [Path(path).stat() for path in daemon.mounted()]
    assert len({one.st_dev for one in roots}) == len(chain)
