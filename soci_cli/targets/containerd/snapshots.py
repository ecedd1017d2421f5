"""containerd's snapshots, as who pulls an image uses them: what a snapshotter has need not be fetched.

The labels are those by which containerd and nerdctl tell a snapshotter of which image a layer is.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from soci_cli.errors import SociError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.containerd.api import snapshots_pb2, snapshots_pb2_grpc
from soci_cli.targets.containerd.client import Containerd, code_of
from soci_cli.text import brief

_LABEL = "containerd.io/snapshot"
TARGET = f"{_LABEL}.ref"
"""The label of a Prepare for a layer of an image: its value is the chain ID to commit it as."""
IMAGE = f"{_LABEL}/cri.image-ref"
MANIFEST = f"{_LABEL}/cri.manifest-digest"
LAYER = f"{_LABEL}/cri.layer-digest"
LAYERS = f"{_LABEL}/cri.image-layers"
INDEX = f"{_LABEL}/remote/soci.index.digest"
SIZE = f"{_LABEL}/remote/soci.size"
NAMESPACE = f"{_LABEL}/remote/namespace"
HAS_INDEX = f"{_LABEL}/remote/has.soci.index.digest"

GC_SNAPSHOT = "containerd.io/gc.ref.snapshot"
"""A label of a config: with the name of a snapshotter, by which the top layer's snapshot is kept."""

_MAX_LABEL = 4096  # bytes of key and value


@dataclass(frozen=True)
class LayeredImage:
    """An image whose layers are wanted: the reference, its manifest, its layers and their chain IDs.

    `index` is the SOCI index that is to be used, "" for the one that is found.
    """

    reference: str
    manifest: str
    layers: Sequence[Descriptor]
    chain: Sequence[str | None]
    index: str = ""


class Snapshots:
    """The snapshots of one snapshotter in one namespace. Errors are those of `Containerd`."""

    def __init__(self, client: Containerd, name: str) -> None:
        """`name` is containerd's of the snapshotter, such as "soci"."""
        self.name = name
        self._client = client
        self._stub: Any = snapshots_pb2_grpc.SnapshotsStub(client.channel)

    def is_loaded(self) -> bool:
        """Whether containerd has such a snapshotter."""
        since = time.monotonic()
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.name, key=_new_key())
        try:
            self._stub.Stat(request, metadata=self._client.metadata, timeout=self._client.deadline)
        except grpc.RpcError as error:
            if code_of(error) == grpc.StatusCode.NOT_FOUND:
                return True
            if code_of(error) == grpc.StatusCode.INVALID_ARGUMENT:
                return False
            raise self._client.error(f"snapshotter {self.name}", error, since) from error
        return True

    def prepare(self, image: LayeredImage, metadata: Sequence[tuple[str, str]]) -> int:
        """How many layers, from the lowest, need not be fetched: the snapshotter has them now.

        `metadata` go along with each call, such as a lease.
        """
        parent = ""
        for number, chain_id in enumerate(image.chain):
            if chain_id is None:
                return number
            labels = _labels(image, number, self._client.namespace)
            key = f"extract-{_new_key()} {chain_id}"
            request = snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self.name, key=key, parent=parent, labels=labels
            )
            since = time.monotonic()
            try:
                self._stub.Prepare(request, metadata=metadata, timeout=self._client.deadline)
            except grpc.RpcError as error:
                if code_of(error) != grpc.StatusCode.ALREADY_EXISTS:
                    raise self._refused(chain_id, error, since) from error
            else:
                self._remove(key, metadata)
                return number
            parent = chain_id
        return len(image.chain)

    def keep(self, config: str, chain_id: str) -> None:
        """Keeps the layers up to a chain ID as long as the config blob of their image."""
        self._client.label_content(config, {f"{GC_SNAPSHOT}.{self.name}": chain_id})

    def _remove(self, key: str, metadata: Sequence[tuple[str, str]]) -> None:
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.name, key=key)
        with self._client.errors(f"snapshot {brief(key)}"):
            self._stub.Remove(request, metadata=metadata, timeout=self._client.deadline)

    def _refused(self, chain_id: str, error: grpc.RpcError, since: float) -> SociError:
        if code_of(error) == grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(f"containerd has no snapshotter {self.name}; see its [proxy_plugins]")
        return self._client.error(f"layer {chain_id}", error, since)


def _labels(image: LayeredImage, number: int, namespace: str) -> Mapping[str, str]:
    layer = image.layers[number]
    room, listed = _MAX_LABEL - len(LAYERS), ""
    for one in image.layers[number:]:
        more = f"{listed},{one.digest}" if listed else one.digest
        if len(more) > room:
            break
        listed = more
    labels = {
        TARGET: image.chain[number] or "",
        IMAGE: image.reference,
        MANIFEST: image.manifest,
        LAYER: layer.digest,
        LAYERS: listed,
        SIZE: str(layer.size),
        NAMESPACE: namespace,
    }
    return {**labels, INDEX: image.index} if image.index else labels


def _new_key() -> str:
    return f"soci-{secrets.token_hex(8)}"
