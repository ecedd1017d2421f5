"""Uploads through proxies that break."""

from __future__ import annotations

from soci_cli.errors import (
    NotFoundError,
)
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.manifest import parse_manifest
from soci_cli.targets.copy import read_blob
from soci_cli.targets.layout import Layout
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.upload import BlobUpload
from tests.support.images import noise
from tests.support.places import describe
from tests.support.servers.fault_proxy import FaultProxy
from tests.targets.registry.tools import (
    source_at,
    target_at,
)

CHUNK = 100_000
SIZE = 350_000
BLOB = noise(99, SIZE)
UPLOAD = "/blobs/uploads/."


def own(name: str, proxy: FaultProxy) -> str:
    """A repository that no other test has."""
    return f"{name}-{proxy.host.rpartition(':')[2]}"


def upload(proxy: FaultProxy, data: bytes = BLOB, **more: object) -> BlobUpload:
    target = target_at(proxy.host, f"{own('app', proxy)}:1", **more)
    return BlobUpload(
        Repository(target._client, target.reference, True), describe(data), target.name, None, CHUNK
    )


def send(writer: BlobUpload, data: bytes = BLOB) -> None:
    try:
        for start in range(0, len(data), 10_000):
            writer.write(data[start : start + 10_000])
        writer.commit()
    finally:
        writer.abort()


def stored(proxy: FaultProxy, data: bytes = BLOB) -> bool:
    proxy.clear()
    source = source_at(proxy.host, f"{own('app', proxy)}:1")
    try:
        return read_blob(source, describe(data), len(data)) == data
    except NotFoundError:
        return False


def layout_blobs(layout: Layout) -> list[Descriptor]:
    manifest = parse_manifest(read_blob(layout, layout.resolve()), "")
    return [manifest.config, *manifest.layers]
