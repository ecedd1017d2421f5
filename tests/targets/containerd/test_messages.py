"""The messages themselves: containerd's versions differ in what they take for granted, so all is there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.containerd.api import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    version_pb2,
    version_pb2_grpc,
)
from soci_cli.targets.containerd.client import Containerd
from tests.support.places import describe, push_image
from tests.targets.containerd.tools import FULL, source_at, target_at

FIRST = Descriptor("application/vnd.oci.image.index.v1+json", f"sha256:{'1' * 64}", 11)
SECOND = Descriptor(
    "application/vnd.oci.image.manifest.v1+json", f"sha256:{'2' * 64}", 22, annotations={"c": "d"}
)
# A field that no version has yet: number 99, with the text "new".
OF_THE_FUTURE = b"\x9a\x06\x03new"


class Server(
    images_pb2_grpc.ImagesServicer,
    content_pb2_grpc.ContentServicer,
    leases_pb2_grpc.LeasesServicer,
    version_pb2_grpc.VersionServicer,
):
    """Keeps every request, and answers as containerd does. It has one image, and every blob."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.image = images_pb2.Image(
            name=FULL,
            labels={"a": "b", "stays": "here"},
            target=images_pb2.Descriptor(
                media_type=FIRST.media_type,
                digest=FIRST.digest,
                size=FIRST.size,
                annotations={"of": "first"},
            ),
            created_at=Timestamp(seconds=1, nanos=2),
            updated_at=Timestamp(seconds=3, nanos=4),
        )
        self.image.MergeFromString(OF_THE_FUTURE)
        self.blob = content_pb2.Info(
            digest=FIRST.digest,
            size=FIRST.size,
            created_at=Timestamp(seconds=5),
            updated_at=Timestamp(seconds=6),
            labels={"a": "b", "stays": "here"},
        )
        self.blob.MergeFromString(OF_THE_FUTURE)
        self.sizes = {FIRST.digest: FIRST.size}

    def of(self, kind: type[Message]) -> list[Any]:
        """The requests of a kind."""
        return [one for one in self.requests if isinstance(one, kind)]

    def _keep(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        assert dict(context.invocation_metadata())["containerd-namespace"] == "ns"

    def Get(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        if request.name != FULL:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such image")
        return images_pb2.GetImageResponse(image=self.image)

    def Create(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        if isinstance(request, leases_pb2.CreateRequest):
            return leases_pb2.CreateResponse(lease=leases_pb2.Lease(id=request.id))
        if request.image.name == FULL:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "there already")
        return images_pb2.CreateImageResponse(image=request.image)

    def Update(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        if isinstance(request, content_pb2.UpdateRequest):
            return content_pb2.UpdateResponse(info=request.info)
        return images_pb2.UpdateImageResponse(image=request.image)

    def List(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        if isinstance(request, content_pb2.ListContentRequest):
            return iter([content_pb2.ListContentResponse(info=[self.blob])])
        return images_pb2.ListImagesResponse(images=[self.image])

    def Delete(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        return Empty()

    AddResource = Abort = Delete

    def Version(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        return version_pb2.VersionResponse(version="9")

    def Info(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        info = content_pb2.Info()
        info.CopyFrom(self.blob)
        if request.digest not in self.sizes:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        info.digest, info.size = request.digest, self.sizes[request.digest]
        return content_pb2.InfoResponse(info=info)

    def Read(self, request: Any, context: Any) -> Iterator[Any]:
        self._keep(request, context)
        yield content_pb2.ReadContentResponse(data=bytes(request.size))

    def Write(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        for request in request_iterator:
            self._keep(request, context)
            if request.action == content_pb2.COMMIT:
                self.sizes[request.expected] = request.total
            yield content_pb2.WriteContentResponse(action=request.action)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Containerd, Server]]:
    server, stub = grpc.server(futures.ThreadPoolExecutor(4)), Server()
    images_pb2_grpc.add_ImagesServicer_to_server(stub, server)
    content_pb2_grpc.add_ContentServicer_to_server(stub, server)
    leases_pb2_grpc.add_LeasesServicer_to_server(stub, server)
    version_pb2_grpc.add_VersionServicer_to_server(stub, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    with Containerd(f"{tmp_path}/s", "ns") as client:
        yield client, stub
    server.stop(None).wait()


def test_labels_of_an_image(server: tuple[Containerd, Server]) -> None:
    client, stub = server
    client.label_image(FULL, {"a": "", "e": "f", "stays": "here"})
    (update,) = stub.of(images_pb2.UpdateImageRequest)
    wanted = images_pb2.Image()
    wanted.CopyFrom(stub.image)
    wanted.labels["a"], wanted.labels["e"] = "", "f"
    assert update.image == wanted
    assert sorted(update.update_mask.paths) == ["labels.a", "labels.e"]
    assert OF_THE_FUTURE in update.image.SerializeToString()

    client.label_image(FULL, {"a": "b", "none": ""})
    assert len(stub.of(images_pb2.UpdateImageRequest)) == 1, "what is so already is not sent"


def test_target_of_an_image(server: tuple[Containerd, Server]) -> None:
    client, stub = server
    client.put_image(FULL, SECOND)
    (update,) = stub.of(images_pb2.UpdateImageRequest)
    wanted = images_pb2.Image()
    wanted.CopyFrom(stub.image)
    wanted.target.CopyFrom(
        images_pb2.Descriptor(
            media_type=SECOND.media_type, digest=SECOND.digest, size=22, annotations={"c": "d"}
        )
    )
    assert update.image == wanted
    assert list(update.update_mask.paths) == ["target"]
    assert OF_THE_FUTURE in update.image.SerializeToString()


def test_labels_of_a_blob(server: tuple[Containerd, Server]) -> None:
    client, stub = server
    client.label_content(FIRST.digest, {"a": "", "e": "f"})
    (update,) = stub.of(content_pb2.UpdateRequest)
    wanted = content_pb2.Info()
    wanted.CopyFrom(stub.blob)
    wanted.labels["a"], wanted.labels["e"] = "", "f"
    assert update.info == wanted
    assert sorted(update.update_mask.paths) == ["labels.a", "labels.e"]
    assert OF_THE_FUTURE in update.info.SerializeToString()
    client.label_content(FIRST.digest, {})
    assert len(stub.of(content_pb2.UpdateRequest)) == 1


def missing(message: Message) -> list[str]:
    """The messages inside of a message that are not there."""
    found = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        # Of lists and maps nothing can be missing.
        if isinstance(value, Message):
            if not message.HasField(field.name):
                found.append(field.name)
            found += [f"{field.name}.{one}" for one in missing(value)]
    return found


def test_nothing_is_missing_in_any_message(server: tuple[Containerd, Server]) -> None:
    client, stub = server
    client.version()
    client.images("name~=x")
    client.label_image(FULL, {"e": "f"})
    client.put_image("new", FIRST)
    client.put_image(FULL, SECOND)
    client.delete_image("new")
    assert [one.digest for one in client.list_content()] == [FIRST.digest]
    client.label_content(FIRST.digest, {"e": "f"})
    client.delete_content(FIRST.digest)
    with source_at(client).fetch(FIRST) as stream:
        assert len(stream.read()) == FIRST.size
    with target_at(client) as target:
        root = push_image(target)
        assert target.exists(root)
        target.open_writer(describe(b"given up")).abort()
    kinds = {type(request) for request in stub.requests}
    for request in stub.requests:
        assert not missing(request), f"{type(request).__name__}: {missing(request)}"
    services = (images_pb2, content_pb2, leases_pb2, version_pb2)
    for service in services:
        for method in next(iter(service.DESCRIPTOR.services_by_name.values())).methods:
            assert any(kind.DESCRIPTOR is method.input_type for kind in kinds), method.full_name
    for request in stub.of(images_pb2.CreateImageRequest):
        assert request.image.name
        assert request.image.target.digest
        assert request.image.created_at.seconds > 1_700_000_000
    for request in stub.of(content_pb2.WriteContentRequest):
        assert request.ref
    for request in stub.of(leases_pb2.AddResourceRequest):
        assert request.id.startswith("soci-")
        assert request.resource.type == "content"
        assert request.resource.id == root.digest
