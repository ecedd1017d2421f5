"""containerd's gRPC API: images, content, leases; one connection, one namespace.

What is used is the same in containerd 1.6 to 2.x. Errors of gRPC become ours here, in one line.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import grpc
from google.protobuf import empty_pb2, field_mask_pb2

from soci_cli.closing import Closing
from soci_cli.errors import NotFoundError, SociError, StorageError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets._disk import shown
from soci_cli.targets.containerd.api import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    version_pb2_grpc,
)

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
DEFAULT_NAMESPACE = "default"
_CONNECT_SECONDS = 10.0
_LEASE_HOURS = 24
_MESSAGE_LIMIT = 16 << 20
_EXPIRE = "containerd.io/gc.expire"


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
                f"not an address of containerd: {shown(address)}; give a socket's path"
            )
        if not namespace or not namespace.isascii() or not namespace.isprintable():
            raise UsageError(f"not a namespace of containerd: {shown(namespace)!r}")
        self.address = path
        self.namespace = namespace
        self._timeout = timeout
        self._lease = ""
        self._mutex = threading.Lock()
        self._channel = grpc.insecure_channel(
            f"unix://{path}",
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", _MESSAGE_LIMIT),
                # A proxy of the environment is no way to a socket.
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.content = content_pb2_grpc.ContentStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self._leases = leases_pb2_grpc.LeasesStub(self._channel)
        self._version = version_pb2_grpc.VersionStub(self._channel)
        self._namespaces = namespaces_pb2_grpc.NamespacesStub(self._channel)

    def close(self) -> None:
        """Give the lease back and end the connection."""
        self.end_lease()
        self._channel.close()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes along with every call."""
        found = [("containerd-namespace", self.namespace)]
        return [*found, ("containerd-lease", self._lease)] if self._lease else found

    @property
    def deadline(self) -> float | None:
        """The seconds that a call may take."""
        return self._timeout

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turns an error of gRPC into ours; `what` was tried."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(what, error) from error

    def error(self, what: str, error: grpc.RpcError) -> SociError:
        """Our error for one of gRPC."""
        code, details = code_of(error), shown(_details(error))
        where = f"containerd ({self.address}, namespace {self.namespace})"
        if code == grpc.StatusCode.NOT_FOUND:
            return NotFoundError(f"{where}: {what}: {details}")
        if code == grpc.StatusCode.UNAVAILABLE:
            return StorageError(f"{where} cannot be reached: {what}: {self._why_not(details)}")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return StorageError(f"{where}: {what}: no answer in time; give a longer --timeout")
        return StorageError(f"{where}: {what}: {details or (code.name if code else 'failed')}")

    def _why_not(self, details: str) -> str:
        path = Path(self.address)
        try:
            if not path.is_socket():
                return f"there is no socket {path}; is containerd running? See --address"
        except OSError:
            return f"no access to {path}; try as root"
        if not os.access(path, os.W_OK):
            return f"no access to {path}; try as root"
        return details

    def version(self) -> str:
        """containerd's version."""
        with self.errors("its version"):
            answer = self._version.Version(
                empty_pb2.Empty(), timeout=self._timeout or _CONNECT_SECONDS
            )
        return str(answer.version)

    def namespaces(self) -> list[str]:
        """The namespaces that have something in them."""
        with self.errors("its namespaces"):
            answer = self._namespaces.List(
                namespaces_pb2.ListNamespacesRequest(), timeout=self._timeout
            )
        return sorted(one.name for one in answer.namespaces)

    # Leases.

    def begin_lease(self) -> None:
        """Takes a lease: what is written or used from now on is safe from garbage collection.

        It ends with `close`, or by itself a day later when this program dies.
        """
        with self._mutex:
            if self._lease:
                return
            expire = datetime.fromtimestamp(
                datetime.now(timezone.utc).timestamp() + _LEASE_HOURS * 3600, timezone.utc
            )
            request = leases_pb2.CreateRequest(
                id=f"soci-{os.getpid()}-{secrets.token_hex(8)}",
                labels={_EXPIRE: expire.strftime("%Y-%m-%dT%H:%M:%SZ")},
            )
            with self.errors("a lease"):
                answer = self._leases.Create(request, metadata=self.metadata, timeout=self._timeout)
            self._lease = answer.lease.id

    def keep(self, digest: str) -> None:
        """Puts a blob that is there already under the lease."""
        if self._lease:
            resource = leases_pb2.Resource(id=digest, type="content")
            request = leases_pb2.AddResourceRequest(id=self._lease, resource=resource)
            with self.errors(f"a lease on {digest}"):
                self._leases.AddResource(request, metadata=self.metadata, timeout=self._timeout)

    def end_lease(self) -> None:
        """Gives the lease back; what has no other reason to stay may go."""
        with self._mutex:
            lease, self._lease = self._lease, ""
        if lease:
            with suppress(grpc.RpcError):
                self._leases.Delete(
                    leases_pb2.DeleteRequest(id=lease),
                    metadata=self.metadata,
                    timeout=_CONNECT_SECONDS,
                )

    # Images.

    def image(self, name: str) -> ContainerdImage:
        """The image with exactly this name. NotFoundError."""
        with self.errors(f"image {shown(name)}"):
            answer = self._images.Get(
                images_pb2.GetImageRequest(name=name), metadata=self.metadata, timeout=self._timeout
            )
        return _image(answer.image)

    def images(self, *filters: str) -> list[ContainerdImage]:
        """The images, sorted by name; see containerd's filter syntax."""
        with self.errors("its images"):
            answer = self._images.List(
                images_pb2.ListImagesRequest(filters=filters),
                metadata=self.metadata,
                timeout=self._timeout,
            )
        return sorted(map(_image, answer.images), key=lambda image: image.name)

    def put_image(self, name: str, target: Descriptor) -> None:
        """Makes a name mean `target`; the labels that it has stay."""
        image = images_pb2.Image(name=name, target=_target(target))
        with self.errors(f"image {shown(name)}"):
            try:
                self._images.Create(
                    images_pb2.CreateImageRequest(image=image),
                    metadata=self.metadata,
                    timeout=self._timeout,
                )
                return
            except grpc.RpcError as error:
                if code_of(error) != grpc.StatusCode.ALREADY_EXISTS:
                    raise
            self._images.Update(
                images_pb2.UpdateImageRequest(
                    image=image, update_mask=field_mask_pb2.FieldMask(paths=["target"])
                ),
                metadata=self.metadata,
                timeout=self._timeout,
            )

    def label_image(self, name: str, labels: Mapping[str, str]) -> None:
        """Sets labels of an image; others stay. An empty value takes a label away."""
        image = images_pb2.Image(name=name, labels=labels)
        paths = [f"labels.{key}" for key in labels]
        with self.errors(f"the labels of image {shown(name)}"):
            self._images.Update(
                images_pb2.UpdateImageRequest(
                    image=image, update_mask=field_mask_pb2.FieldMask(paths=paths)
                ),
                metadata=self.metadata,
                timeout=self._timeout,
            )

    def delete_image(self, name: str) -> None:
        """Forgets an image. NotFoundError."""
        with self.errors(f"image {shown(name)}"):
            self._images.Delete(
                images_pb2.DeleteImageRequest(name=name, sync=True),
                metadata=self.metadata,
                timeout=self._timeout,
            )

    # Content.

    def info(self, digest: str) -> ContentInfo:
        """What is known of a blob. NotFoundError."""
        with self.errors(f"blob {digest}"):
            answer = self.content.Info(
                content_pb2.InfoRequest(digest=digest),
                metadata=self.metadata,
                timeout=self._timeout,
            )
        return _info(answer.info)

    def list_content(self, *filters: str) -> Iterator[ContentInfo]:
        """The blobs of the namespace; see containerd's filter syntax."""
        with self.errors("its content"):
            for answer in self.content.List(
                content_pb2.ListContentRequest(filters=filters),
                metadata=self.metadata,
                timeout=self._timeout,
            ):
                for info in answer.info:
                    yield _info(info)

    def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        """Sets labels of a blob; others stay. An empty value takes a label away."""
        info = content_pb2.Info(digest=digest, labels=labels)
        paths = [f"labels.{key}" for key in labels]
        with self.errors(f"the labels of blob {digest}"):
            self.content.Update(
                content_pb2.UpdateRequest(
                    info=info, update_mask=field_mask_pb2.FieldMask(paths=paths)
                ),
                metadata=self.metadata,
                timeout=self._timeout,
            )

    def delete_content(self, digest: str) -> None:
        """Removes a blob. NotFoundError."""
        with self.errors(f"blob {digest}"):
            self.content.Delete(
                content_pb2.DeleteContentRequest(digest=digest),
                metadata=self.metadata,
                timeout=self._timeout,
            )


def code_of(error: grpc.RpcError) -> grpc.StatusCode | None:
    """The status of an error; None when it has none."""
    return error.code() if isinstance(error, grpc.Call) else None


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.Call) else str(error)


def _image(image: images_pb2.Image) -> ContainerdImage:
    target = image.target
    descriptor = Descriptor(
        target.media_type, target.digest, target.size, annotations=dict(target.annotations)
    )
    return ContainerdImage(image.name, descriptor, dict(image.labels))


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
