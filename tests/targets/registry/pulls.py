"""The image that tests pull through proxies that break."""

from __future__ import annotations

from soci_cli.targets.registry.place import RegistrySource
from tests.support.images import noise
from tests.support.places import describe
from tests.support.servers.fault_proxy import FaultProxy
from tests.targets.registry.tools import (
    source_at,
)

SIZE = 300_000
LAYER = noise(0, SIZE)
BLOB = "/blobs/sha256:" + describe(LAYER).digest[7:]
MANIFEST = "/manifests/"


def app(proxy: FaultProxy, **changes: object) -> RegistrySource:
    return source_at(proxy.host, "pull/app:1", **changes)
