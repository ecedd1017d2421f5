"""examples/snapshotter: the same as what the tests with real containerds add to its configuration."""

from __future__ import annotations

import tomli

from tests.examples.images import EXAMPLES
from tests.snapshotter.world import PLUGIN, TRANSFER, UNPACK

SOCKET = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"


def test_configurations_of_containerd() -> None:
    plugin = PLUGIN.format(address=SOCKET)
    for name, version, added in (
        ("containerd-1.toml", 2, plugin),
        ("containerd-2.toml", 3, plugin + TRANSFER + UNPACK),
    ):
        example = tomli.loads((EXAMPLES / "snapshotter" / name).read_text())
        assert example == {"version": version, **tomli.loads(added)}
