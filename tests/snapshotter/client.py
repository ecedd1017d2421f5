"""A client of a snapshots service over its socket, with the calls and errors of `Snapshotter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from soci_cli.closing import Closing
from soci_cli.errors import (
    AlreadyExistsError,
    NotFoundError,
    SociError,
    StateError,
    UnavailableError,
    UsageError,
)
from soci_cli.snapshotter.metadata import Kind, Snapshot, Usage
from soci_cli.snapshotter.snapshots import Mount
from soci_cli.targets.containerd.api import snapshots_pb2 as pb
from soci_cli.targets.containerd.api import snapshots_pb2_grpc

_ERRORS = {
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: StateError,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


class Client(Closing):
    """`snapshotter` is a name that containerd knows, where it is containerd that is asked."""

    def __init__(
        self, address: str, snapshotter: str = "soci", namespace: str = "", timeout: float = 30
    ) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}")
        self._stub: Any = snapshots_pb2_grpc.SnapshotsStub(self._channel)
        self._name = snapshotter
        self._metadata = [("containerd-namespace", namespace)] if namespace else []
        self._timeout = timeout

    def close(self) -> None:
        self._channel.close()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return _mounts(self._call("Prepare", request))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return _mounts(self._call("View", request))

    def mounts(self, key: str) -> list[Mount]:
        return _mounts(self._call("Mounts", pb.MountsRequest(snapshotter=self._name, key=key)))

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str = "") -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name, key=key, name=name, labels=labels, parent=parent
        )
        self._call("Commit", request)

    def remove(self, key: str) -> None:
        self._call("Remove", pb.RemoveSnapshotRequest(snapshotter=self._name, key=key))

    def stat(self, key: str) -> Snapshot:
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=key)
        return _snapshot(self._call("Stat", request).info)

    def usage(self, key: str) -> Usage:
        answer = self._call("Usage", pb.UsageRequest(snapshotter=self._name, key=key))
        return Usage(answer.size, answer.inodes)

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=pb.Info(name=name, labels=labels),
            update_mask=FieldMask(paths=paths),
        )
        return _snapshot(self._call("Update", request).info)

    def walk(self, filters: Sequence[str]) -> Iterator[Snapshot]:
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        with _errors():
            for answer in self._stub.List(request, metadata=self._metadata, timeout=self._timeout):
                yield from map(_snapshot, answer.info)

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(snapshotter=self._name))

    def _call(self, name: str, request: object) -> Any:
        with _errors():
            return getattr(self._stub, name)(
                request, metadata=self._metadata, timeout=self._timeout
            )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        kind = _ERRORS.get(error.code(), SociError)
        raise kind(f"{error.code()}: {error.details()}") from error


def _mounts(answer: Any) -> list[Mount]:
    return [Mount(one.type, one.source, tuple(one.options)) for one in answer.mounts]


def _snapshot(info: Any) -> Snapshot:
    return Snapshot(
        0,
        info.name,
        info.parent,
        Kind(info.kind),
        info.created_at.ToNanoseconds(),
        info.updated_at.ToNanoseconds(),
        dict(info.labels),
    )
