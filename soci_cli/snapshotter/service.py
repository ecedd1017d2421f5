"""containerd's snapshots service: messages of gRPC to calls of a `Snapshotter`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from soci_cli.errors import (
    AlreadyExistsError,
    NotFoundError,
    SociError,
    StateError,
    StorageError,
    UnavailableError,
    UsageError,
)
from soci_cli.snapshotter.metadata import Snapshot
from soci_cli.snapshotter.snapshots import Mount, Snapshotter
from soci_cli.targets.containerd.api import snapshots_pb2, snapshots_pb2_grpc

NAMESPACE_HEADER = "containerd-namespace"
_BATCH = 100  # snapshots in a message of List
_NANO = 10**9
_STATUS = (
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (StateError, grpc.StatusCode.FAILED_PRECONDITION),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
)

Log = Callable[..., None]
"""Is given a level, a message, and fields."""


class SnapshotsService(snapshots_pb2_grpc.SnapshotsServicer):
    """Answers containerd. Which snapshotter a request names does not matter."""

    def __init__(self, snapshotter: Snapshotter, log: Log) -> None:
        self._snapshotter = snapshotter
        self._log = log

    # The names are those of the service.

    def Prepare(self, request: Any, context: Any) -> Any:
        """A new active snapshot."""
        with self._errors(context, "Prepare", request.key):
            namespace = _namespace(context)
            mounts = self._snapshotter.prepare(
                request.key, request.parent, dict(request.labels), namespace
            )
            return snapshots_pb2.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    def View(self, request: Any, context: Any) -> Any:
        """A new snapshot that is only read."""
        with self._errors(context, "View", request.key):
            mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels))
            return snapshots_pb2.ViewSnapshotResponse(mounts=map(_mount, mounts))

    def Mounts(self, request: Any, context: Any) -> Any:
        """How to mount a snapshot."""
        with self._errors(context, "Mounts", request.key):
            mounts = self._snapshotter.mounts(request.key)
            return snapshots_pb2.MountsResponse(mounts=map(_mount, mounts))

    def Commit(self, request: Any, context: Any) -> Any:
        """An active snapshot becomes a committed one."""
        with self._errors(context, "Commit", request.key):
            labels = dict(request.labels)
            self._snapshotter.commit(request.key, request.name, labels, request.parent)
            return Empty()

    def Remove(self, request: Any, context: Any) -> Any:
        """A snapshot is forgotten."""
        with self._errors(context, "Remove", request.key):
            self._snapshotter.remove(request.key)
            return Empty()

    def Stat(self, request: Any, context: Any) -> Any:
        """What is known of a snapshot."""
        with self._errors(context, "Stat", request.key):
            found = self._snapshotter.stat(request.key)
            return snapshots_pb2.StatSnapshotResponse(info=_info(found))

    def Update(self, request: Any, context: Any) -> Any:
        """A snapshot gets other labels."""
        with self._errors(context, "Update", request.info.name):
            info, paths = request.info, list(request.update_mask.paths)
            found = self._snapshotter.update(info.name, dict(info.labels), paths)
            return snapshots_pb2.UpdateSnapshotResponse(info=_info(found))

    def List(self, request: Any, context: Any) -> Iterator[Any]:
        """The snapshots that a filter wants."""
        with self._errors(context, "List", ""):
            found = map(_info, self._snapshotter.walk(list(request.filters)))
            while batch := list(islice(found, _BATCH)):
                yield snapshots_pb2.ListSnapshotsResponse(info=batch)

    def Usage(self, request: Any, context: Any) -> Any:
        """What a snapshot has of its own."""
        with self._errors(context, "Usage", request.key):
            usage = self._snapshotter.usage(request.key)
            return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: Any, context: Any) -> Any:
        """What belongs to no snapshot is removed."""
        with self._errors(context, "Cleanup", ""):
            self._snapshotter.cleanup()
            return Empty()

    @contextmanager
    def _errors(self, context: Any, call: str, key: str) -> Iterator[None]:
        """Ends the call with the status of an error."""
        try:
            yield
        except SociError as error:
            if not isinstance(error, (AlreadyExistsError, NotFoundError)):
                level = "error" if isinstance(error, StorageError) else "warning"
                self._log(level, f"{call} failed", key=key, error=str(error))
            context.abort(_status(error), str(error))


def add_to(server: grpc.Server, snapshotter: Snapshotter, log: Log) -> None:
    """Has a server of gRPC answer for a snapshotter."""
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsService(snapshotter, log), server)


def _status(error: SociError) -> grpc.StatusCode:
    return next(
        (code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.UNKNOWN
    )


def _namespace(context: Any) -> str:
    """containerd's namespace, "" where the call does not say it."""
    metadata: Mapping[str, str] = dict(context.invocation_metadata())
    return metadata.get(NAMESPACE_HEADER, "")


def _mount(mount: Mount) -> Any:
    return snapshots_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(snapshot: Snapshot) -> Any:
    info = snapshots_pb2.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=snapshots_pb2.Kind.Name(snapshot.kind),
        labels=snapshot.labels,
    )
    info.created_at.seconds, info.created_at.nanos = divmod(snapshot.created, _NANO)
    info.updated_at.seconds, info.updated_at.nanos = divmod(snapshot.updated, _NANO)
    return info
