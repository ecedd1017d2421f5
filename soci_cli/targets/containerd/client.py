"""containerd's gRPC API: images, content, leases; one connection, one namespace.

What is used is the same in containerd 1.6 to 2.x. Each message is whole, also where most versions do
without a field: a server may take for granted what containerd's own client always sends. So an update
sends back all that containerd answered, with the change in it. Errors of gRPC become ours here, in one
line.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from soci_cli.closing import Closing
from soci_cli.errors import NotFoundError, SociError, StorageError, UsageError, explaining
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import parse_digest
from soci_cli.targets.containerd.api import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    version_pb2_grpc,
)
from soci_cli.text import brief

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
DEFAULT_NAMESPACE = "default"
_PROBE_SECONDS = 1.0
CONNECT_SECONDS = 10.0
_LEASE_TIME = timedelta(hours=24)
_MESSAGE_LIMIT = 16 << 20
_EXPIRE = "containerd.io/gc.expire"
_TRIES = 3
# containerd's rule for identifiers.
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_NAMESPACE_LENGTH = 76


@dataclass(frozen=True)
class ContainerdImage:
    """An image of containerd: its name, what it is, and its labels."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ContentInfo:
    """A blob of the content store; `created` is its time in UTC, None when unknown."""

    digest: str
    size: int
    labels: Mapping[str, str]
    created: datetime | None = None


class Containerd(Closing):
    """A connection to containerd. Several threads may use it.

    `timeout` are the seconds that a call may take, None for no limit; reading and writing a blob is one
    call. Raises SociError: NotFoundError for what is not there, StorageError for everything else.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        namespace: str = DEFAULT_NAMESPACE,
        timeout: float | None = None,
    ) -> None:
        """Nothing is sent yet. UsageError for an address that cannot be meant."""
        path = address.removeprefix("unix://")
        if not path.startswith("/"):
            raise UsageError(
                f"not an address of containerd: {brief(address)}; give a socket's path"
            )
        if len(namespace) > _NAMESPACE_LENGTH or not _NAMESPACE.fullmatch(namespace):
            raise UsageError(
                f"not a namespace of containerd: {brief(repr(namespace))}; expected letters and "
                "digits, with single dots, dashes and underscores between"
            )
        self.address = path
        self.namespace = namespace
        self._timeout = timeout
        self.channel = grpc.insecure_channel(
            f"unix:{quote(path)}",
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", _MESSAGE_LIMIT),
                # A proxy of the environment is no way to a socket.
                ("grpc.enable_http_proxy", 0),
                # As long does gRPC wait for somebody who takes the connection and says nothing.
                ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
                # A containerd that was started again is there at once.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self.content = content_pb2_grpc.ContentStub(self.channel)
        self._images = images_pb2_grpc.ImagesStub(self.channel)
        self.leases = leases_pb2_grpc.LeasesStub(self.channel)
        self._version = version_pb2_grpc.VersionStub(self.channel)

    def close(self) -> None:
        """End the connection."""
        self.channel.close()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes along with every call."""
        return [("containerd-namespace", self.namespace)]

    @property
    def _call(self) -> dict[str, Any]:
        return {"metadata": self.metadata, "timeout": self._timeout}

    @property
    def deadline(self) -> float | None:
        """The seconds that a call may take."""
        return self._timeout

    @contextmanager
    def errors(self, what: str, since: float | None = None) -> Iterator[None]:
        """Turns an error of gRPC into ours; `what` was tried, `since` a time of the monotonic clock."""
        since = time.monotonic() if since is None else since
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(what, error, since) from error

    def error(self, what: str, error: grpc.RpcError, since: float) -> SociError:
        """Our error for one of gRPC, as for `errors`."""
        code, details = code_of(error), brief(_details(error))
        where = f"containerd ({self.address}, namespace {self.namespace})"
        if code == grpc.StatusCode.NOT_FOUND:
            return NotFoundError(f"{where}: {what}: {details}")
        if code == grpc.StatusCode.UNAVAILABLE:
            return StorageError(f"{where} cannot be reached: {what}: {self._why_not(details)}")
        late = self._timeout is not None and time.monotonic() - since >= self._timeout
        # A server that watches the time too may be the first to end the call, and say something else.
        if code == grpc.StatusCode.DEADLINE_EXCEEDED or late:
            return StorageError(f"{where}: {what}: no answer in time; give a longer --timeout")
        return StorageError(f"{where}: {what}: {details or (code.name if code else 'failed')}")

    def _why_not(self, details: str) -> str:
        try:
            if not stat.S_ISSOCK(Path(self.address).stat().st_mode):
                return "that is no socket; see --address"
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_PROBE_SECONDS)
                probe.connect(self.address)
        except FileNotFoundError:
            return "there is no such socket; is containerd running? See --address"
        except ConnectionRefusedError:
            return "nobody listens there; is containerd running?"
        except PermissionError:
            return "no access to the socket; try as root"
        except OSError as error:
            return f"{error.strerror or error}"
        return details

    def version(self) -> str:
        """containerd's version."""
        with self.errors("its version"):
            answer = self._version.Version(
                Empty(), metadata=self.metadata, timeout=self._timeout or CONNECT_SECONDS
            )
        return str(answer.version)

    # Images.

    def image(self, name: str) -> ContainerdImage:
        """The image with exactly this name. NotFoundError."""
        with self.errors(f"image {brief(name)}"):
            return _image(self._get_image(name))

    def images(self, *filters: str) -> list[ContainerdImage]:
        """The images, sorted by name; see containerd's filter syntax."""
        with self.errors("its images"):
            answer = self._images.List(images_pb2.ListImagesRequest(filters=filters), **self._call)
        return sorted(map(_image, answer.images), key=lambda image: image.name)

    def put_image(
        self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None
    ) -> None:
        """Makes a name mean `target`, with these labels; without `labels` those that it has stay."""
        now = Timestamp()
        now.GetCurrentTime()
        new = images_pb2.Image(
            name=name, labels=labels, target=_target(target), created_at=now, updated_at=now
        )
        with self.errors(f"image {brief(name)}"):
            # Others may make or remove the image in between.
            for left in reversed(range(_TRIES)):
                try:
                    self._images.Create(images_pb2.CreateImageRequest(image=new), **self._call)
                    return
                except grpc.RpcError as error:
                    if code_of(error) != grpc.StatusCode.ALREADY_EXISTS:
                        raise
                try:
                    image = self._get_image(name)
                    image.target.CopyFrom(new.target)
                    paths = ["target"]
                    if labels is not None:
                        image.ClearField("labels")
                        image.labels.update(labels)
                        paths.append("labels")
                    self._update_image(image, paths)
                    return
                except grpc.RpcError as error:
                    if code_of(error) != grpc.StatusCode.NOT_FOUND or not left:
                        raise

    def label_image(self, name: str, labels: Mapping[str, str]) -> None:
        """Sets labels of an image; others stay. An empty value takes a label away."""
        with self.errors(f"the labels of image {brief(name)}"):
            image = self._get_image(name)
            if changed := _set_labels(image.labels, labels):
                self._update_image(image, changed)

    def delete_image(self, name: str) -> None:
        """Forgets an image, and waits until its blobs are collected. NotFoundError."""
        with self.errors(f"image {brief(name)}"):
            request = images_pb2.DeleteImageRequest(name=name, sync=True)
            self._images.Delete(request, **self._call)

    def _get_image(self, name: str) -> images_pb2.Image:
        answer: images_pb2.GetImageResponse = self._images.Get(
            images_pb2.GetImageRequest(name=name), **self._call
        )
        return answer.image

    def _update_image(self, image: images_pb2.Image, paths: list[str]) -> None:
        mask = FieldMask(paths=paths)
        request = images_pb2.UpdateImageRequest(image=image, update_mask=mask)
        self._images.Update(request, **self._call)

    # Content.

    def info(self, digest: str) -> ContentInfo:
        """What is known of a blob. NotFoundError."""
        with self.errors(f"blob {digest}"):
            return _info(self._get_info(digest))

    def list_content(self, *filters: str) -> Iterator[ContentInfo]:
        """The blobs of the namespace; see containerd's filter syntax."""
        with self.errors("its content"):
            request = content_pb2.ListContentRequest(filters=filters)
            for answer in self.content.List(request, **self._call):
                for info in answer.info:
                    yield _info(info)

    def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        """Sets labels of a blob; others stay. An empty value takes a label away."""
        if not labels:
            return
        with self.errors(f"the labels of blob {digest}"):
            info = self._get_info(digest)
            if changed := _set_labels(info.labels, labels):
                mask = FieldMask(paths=changed)
                request = content_pb2.UpdateRequest(info=info, update_mask=mask)
                self.content.Update(request, **self._call)

    def delete_content(self, digest: str) -> None:
        """Removes a blob. NotFoundError."""
        with self.errors(f"blob {digest}"):
            self.content.Delete(content_pb2.DeleteContentRequest(digest=digest), **self._call)

    def _get_info(self, digest: str) -> content_pb2.Info:
        answer: content_pb2.InfoResponse = self.content.Info(
            content_pb2.InfoRequest(digest=digest), **self._call
        )
        return answer.info


class Lease(Closing):
    """Keeps what is written or put under it from garbage collection, until it is closed.

    It is taken when it is first used, and ends by itself a day later when this program dies. Several
    threads may use it. Errors are those of `Containerd`.
    """

    def __init__(self, client: Containerd) -> None:
        self._client = client
        self._id = ""
        self._mutex = threading.Lock()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes along with a call whose results are to be kept."""
        return [*self._client.metadata, ("containerd-lease", self._taken())]

    def keep(self, digest: str) -> None:
        """Puts a blob under the lease; when it is there afterwards, it stays."""
        lease = self._taken()
        with self._client.errors(f"a lease on {digest}"):
            self._client.leases.AddResource(
                leases_pb2.AddResourceRequest(
                    id=lease, resource=leases_pb2.Resource(id=digest, type="content")
                ),
                metadata=self._client.metadata,
                timeout=self._client.deadline,
            )

    def close(self) -> None:
        """Gives the lease back; what has no other reason to stay may go."""
        with self._mutex:
            lease, self._id = self._id, ""
        if lease:
            # If that fails, it ends by itself.
            with suppress(grpc.RpcError):
                self._client.leases.Delete(
                    leases_pb2.DeleteRequest(id=lease),
                    metadata=self._client.metadata,
                    timeout=CONNECT_SECONDS,
                )

    def _taken(self) -> str:
        with self._mutex:
            if not self._id:
                end = datetime.now(timezone.utc) + _LEASE_TIME
                request = leases_pb2.CreateRequest(
                    id=f"soci-{os.getpid()}-{secrets.token_hex(8)}",
                    labels={_EXPIRE: end.strftime("%Y-%m-%dT%H:%M:%SZ")},
                )
                with self._client.errors("a lease"):
                    answer = self._client.leases.Create(
                        request, metadata=self._client.metadata, timeout=self._client.deadline
                    )
                self._id = str(answer.lease.id)
            return self._id


def code_of(error: grpc.RpcError) -> grpc.StatusCode | None:
    """The status of an error; None when it has none."""
    return error.code() if isinstance(error, grpc.Call) else None


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.Call) else str(error)


def _image(image: images_pb2.Image) -> ContainerdImage:
    target = image.target
    with explaining(f"image {brief(image.name)} of containerd"):
        parse_digest(target.digest)
    descriptor = Descriptor(
        target.media_type, target.digest, target.size, annotations=dict(target.annotations)
    )
    return ContainerdImage(image.name, descriptor, dict(image.labels))


def _set_labels(present: MutableMapping[str, str], labels: Mapping[str, str]) -> list[str]:
    """Sets labels that are not set yet; the paths of those, as a field mask has them."""
    changed = {key: value for key, value in labels.items() if present.get(key, "") != value}
    present.update(changed)
    return [f"labels.{key}" for key in changed]


def _target(descriptor: Descriptor) -> images_pb2.Descriptor:
    return images_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def _info(info: content_pb2.Info) -> ContentInfo:
    created = None
    if info.created_at.seconds > 0:
        created = datetime.fromtimestamp(info.created_at.seconds, timezone.utc)
    return ContentInfo(info.digest, info.size, dict(info.labels), created)
