"""Pulls that do not say which image a layer is of."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.integration.published import Published
from tests.snapshotter.world import PLUGIN, PULL, RUN, UNPACK, Daemon, name_of
from tests.support.servers.containerd import NEWER, ContainerdServer
from tests.support.servers.fixtures import need_containerd


def test_lazy_without_labels(image: Published, other: str, tmp_path: Path, need_fuse: None) -> None:
    """As nerdctl's page configures containerd: no label says which image a layer is of."""
    programs = need_containerd(NEWER)
    short = Path(tempfile.mkdtemp(prefix="ctrd-"))
    with (
        Daemon(tmp_path / "daemon", str(short / "s")) as own,
        ContainerdServer(
            tmp_path / "containerd", programs, PLUGIN.format(address=own.address) + UNPACK, short
        ) as server,
    ):
        name = name_of(image)
        # Without an image that says it, containerd has not kept the registry's port.
        server.ctr(*PULL, name)
        assert not own.mounted()
        assert own.logged("remote-snapshot-prepared", "true") == 0
        assert server.ctr(*RUN, name, "box", "/bin/cat", "/data/small") == "a small layer\n"
        server.ctr("images", "rm", "--sync", name)
        server.ctr("images", "pull", "--plain-http", other)
        server.ctr(*PULL, name)
        assert len(own.mounted()) == 3
        assert not server.blobs() & set(image.layers)
        assert server.ctr(*RUN, name, "box", "/bin/cat", "/data/small") == "a small layer\n"
        for one in (name, other):
            server.ctr("images", "rm", "--sync", one)
