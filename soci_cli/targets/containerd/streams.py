"""Blobs of containerd's content store as streams: reading ranges, and writing with resume and commit."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import grpc

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, SociError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets._disk import ContentCheck
from soci_cli.targets.containerd.api import content_pb2
from soci_cli.targets.containerd.client import Containerd, code_of
from soci_cli.targets.protocol import BytesLike

_MESSAGE = 1 << 20
_LOCKED_SECONDS = 600.0
_LOCKED_PAUSE = 0.2


class ContentStream(Closing):
    """The bytes `start` to `start + length` of a blob, not verified. Implements `BlobReader`."""

    def __init__(self, client: Containerd, digest: str, start: int, length: int) -> None:
        """Reading begins at once. NotFoundError comes with the first read."""
        self._client = client
        self._what = f"blob {digest}"
        self._left = length
        self._piece = b""
        self._taken = 0  # bytes of the piece that were handed out
        self._call: Iterator[content_pb2.ReadContentResponse] | None = None
        if length:
            self._call = client.content.Read(
                content_pb2.ReadContentRequest(digest=digest, offset=start, size=length),
                metadata=client.metadata,
                timeout=client.deadline,
            )

    def read(self, size: int = -1, /) -> bytes:
        """See `BlobReader.read`."""
        if size < 0:
            pieces = []
            while piece := self.read(_MESSAGE):
                pieces.append(piece)
            return b"".join(pieces)
        return bytes(self._next(size))

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """See `BlobReader.readinto`."""
        view = memoryview(buffer).cast("B")
        piece = self._next(view.nbytes)
        view[: piece.nbytes] = piece
        return piece.nbytes

    def close(self) -> None:
        """Ends the call."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()  # type: ignore[attr-defined]

    def _next(self, size: int) -> memoryview:
        wanted = min(size, self._left)
        if not wanted:
            return memoryview(b"")
        while self._taken == len(self._piece):
            self._piece, self._taken = self._message(), 0
        piece = memoryview(self._piece)[self._taken : self._taken + wanted]
        self._taken += piece.nbytes
        self._left -= piece.nbytes
        return piece

    def _message(self) -> bytes:
        assert self._call is not None
        with self._client.errors(f"reading {self._what}"):
            for answer in self._call:
                return answer.data
        raise IntegrityError(f"containerd: {self._what} was cut short while it was read")


class ContentWriter:
    """One blob that is written to the content store. Implements `Writer`.

    An unfinished write of the same blob, as a crash leaves it, is gone on with: what containerd has of it
    is not sent again, and containerd hashes all of it at the end. While another process writes the blob,
    this waits, and takes what that process has written.
    """

    def __init__(
        self, client: Containerd, descriptor: Descriptor, place: str, labels: Mapping[str, str]
    ) -> None:
        self._client = client
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, place)
        self._labels = labels
        self._ref = f"soci-{descriptor.digest}"
        self._requests: queue.SimpleQueue[content_pb2.WriteContentRequest | None] = (
            queue.SimpleQueue()
        )
        self._offset = 0  # bytes that were given to `write`
        self._there = 0  # bytes that containerd had when this began
        self._done = False  # committed, here or by another process
        self._ended = False
        self._call = self._open()

    def write(self, data: BytesLike, /) -> int:
        """See `Writer.write`."""
        view = memoryview(data).cast("B")
        self._check.add(view)
        new = view[max(0, self._there - self._offset) :]
        start = self._offset + view.nbytes - new.nbytes
        self._offset += view.nbytes
        while new.nbytes and not self._done:
            piece = new[:_MESSAGE]
            self._ask(
                content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, ref=self._ref, offset=start, data=bytes(piece)
                )
            )
            start += piece.nbytes
            new = new[piece.nbytes :]
        return view.nbytes

    def commit(self) -> None:
        """See `Writer.commit`."""
        self._check.verify()
        if not self._done:
            self._ask(
                content_pb2.WriteContentRequest(
                    action=content_pb2.COMMIT,
                    ref=self._ref,
                    offset=self._descriptor.size,
                    total=self._descriptor.size,
                    expected=self._descriptor.digest,
                    labels=self._labels,
                )
            )
        self._end()

    def abort(self) -> None:
        """See `Writer.abort`. containerd forgets the bytes."""
        if self._ended:
            return
        self._end()
        with suppress(grpc.RpcError):
            self._client.content.Abort(
                content_pb2.AbortRequest(ref=self._ref),
                metadata=self._client.metadata,
                timeout=10.0,
            )

    def _end(self) -> None:
        self._ended = True
        self._requests.put(None)

    def _open(self) -> Iterator[content_pb2.WriteContentResponse]:
        """Begins the call and asks how much is there; waits while another process writes the blob."""
        deadline = time.monotonic() + _LOCKED_SECONDS
        while True:
            self._requests = queue.SimpleQueue()
            call: Iterator[content_pb2.WriteContentResponse] = self._client.content.Write(
                iter(self._requests.get, None),
                metadata=self._client.metadata,
                timeout=self._client.deadline,
            )
            self._requests.put(
                content_pb2.WriteContentRequest(
                    action=content_pb2.STAT,
                    ref=self._ref,
                    total=self._descriptor.size,
                    expected=self._descriptor.digest,
                )
            )
            try:
                answer = next(call)
            except grpc.RpcError as error:
                self._requests.put(None)
                code = code_of(error)
                if code == grpc.StatusCode.ALREADY_EXISTS:
                    self._done = True
                    return call
                # A reference that somebody writes to is locked, which containerd calls unavailable.
                locked = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
                if not locked or "locked" not in (error.details() or "").lower():
                    raise self._failed(error) from error
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"containerd: blob {self._descriptor.digest} is being written by another "
                        "process that does not come to an end"
                    ) from error
                time.sleep(_LOCKED_PAUSE)
                continue
            self._there = answer.offset
            if self._there > self._descriptor.size:
                self._requests.put(None)
                self._client.content.Abort(
                    content_pb2.AbortRequest(ref=self._ref), metadata=self._client.metadata
                )
                continue
            return call

    def _ask(self, request: content_pb2.WriteContentRequest) -> None:
        """Sends one message and waits for its answer, so that memory does not grow."""
        self._requests.put(request)
        try:
            next(self._call)
        except StopIteration:
            raise StorageError(
                f"containerd ended the writing of blob {self._descriptor.digest}"
            ) from None
        except grpc.RpcError as error:
            if code_of(error) == grpc.StatusCode.ALREADY_EXISTS:
                self._done = True
                return
            raise self._failed(error) from error

    def _failed(self, error: grpc.RpcError) -> SociError:
        return self._client.error(f"writing blob {self._descriptor.digest}", error)
