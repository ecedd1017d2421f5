"""Blobs of containerd's content store as streams: reading ranges, and writing with resume and commit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, LostUploadError, NotFoundError, SociError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of
from soci_cli.targets.blobs import BytesLike, ContentCheck
from soci_cli.targets.containerd.api import content_pb2
from soci_cli.targets.containerd.client import CONNECT_SECONDS, Containerd, Lease, code_of

_MESSAGE = 1 << 20  # bytes; containerd sends as many at a time
_AHEAD = 2  # messages that are read before they are asked for
_UNANSWERED = 4  # messages that are sent before the first of them is answered
_LOCKED_SECONDS = 600.0
_LOCKED_PAUSE = 0.2
_LOCKED_PAUSES = 10


class ContentStream(Closing):
    """The bytes `start` to `start + length` of a blob, not verified. Implements `BlobReader`."""

    skipped = 0

    def __init__(self, client: Containerd, digest: str, start: int, length: int) -> None:
        """Reading begins at once. Errors come with the first read."""
        self._client = client
        self._what = f"blob {digest}"
        self._since = time.monotonic()
        self._left = length
        self._piece = b""
        self._taken = 0  # bytes of the piece that were handed out
        self._call: _Reading | None = None
        self._ahead: _Ahead | None = None
        if length:
            self._call = client.content.Read(
                content_pb2.ReadContentRequest(digest=digest, offset=start, size=length),
                metadata=client.metadata,
                timeout=client.deadline,
            )
        if self._call is not None and length > _MESSAGE:
            # What is read is worked on meanwhile, so the next messages are fetched beside that.
            self._ahead = _Ahead(self._call)

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
            call.cancel()
        if self._ahead is not None:
            self._ahead.finish()

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
        assert self._call is not None, "the stream is closed"
        with self._client.errors(f"reading {self._what}", self._since):
            for answer in self._ahead or self._call:
                return answer.data
        raise IntegrityError(f"containerd: {self._what} was cut short while it was read")


class _Reading(Protocol):
    """The answers of a call, as gRPC hands them out."""

    def __iter__(self) -> Iterator[content_pb2.ReadContentResponse]: ...

    def __next__(self) -> content_pb2.ReadContentResponse: ...

    def cancel(self) -> bool: ...


@dataclass(frozen=True)
class _End:
    """The end of a call, with the error that it ended with."""

    error: grpc.RpcError | None


class _Ahead:
    """The answers of a call, a few of which are fetched by a thread before they are asked for."""

    def __init__(self, call: _Reading) -> None:
        self._queue: queue.Queue[content_pb2.ReadContentResponse | _End] = queue.Queue(_AHEAD)
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._fetch, args=(call,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[content_pb2.ReadContentResponse]:
        while self._end is None:
            answer = self._queue.get()
            if not isinstance(answer, _End):
                yield answer
                continue
            self._end = answer
        if self._end.error is not None:
            raise self._end.error

    def finish(self) -> None:
        """Waits for the thread, whose call has been cancelled."""
        with suppress(grpc.RpcError):
            for _ in self:
                continue
        self._thread.join()

    def _fetch(self, call: _Reading) -> None:
        end = _End(None)
        try:
            for answer in call:
                self._queue.put(answer)
        except grpc.RpcError as error:
            end = _End(error)
        finally:
            self._queue.put(end)


class ContentWriter:
    """One blob that is written to the content store. Implements `Writer`.

    An unfinished write of the same blob, as a crash leaves it, is gone on with: what containerd has of it
    is not sent again, and containerd hashes all of it at the end. While another process writes the blob,
    this waits, and takes what that process has written.
    """

    def __init__(
        self,
        client: Containerd,
        lease: Lease,
        descriptor: Descriptor,
        place: str,
        labels: Mapping[str, str],
    ) -> None:
        """`labels` are those that the blob gets when it is new."""
        self._client = client
        self._lease = lease
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, place)
        self._labels = labels
        self._ref = f"soci-{descriptor.digest}"
        self._offset = 0  # bytes that were given to `write`
        self._there = 0  # bytes that containerd had when this began
        self._done = False  # committed, here or by another process
        self._since = time.monotonic()
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
            self._send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, ref=self._ref, offset=start, data=bytes(piece)
                )
            )
            start += piece.nbytes
            new = new[piece.nbytes :]
        return view.nbytes

    def commit(self) -> None:
        """See `Writer.commit`. LostUploadError when containerd has other bytes than these."""
        self._check.verify()
        if not self._done:
            self._send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.COMMIT,
                    ref=self._ref,
                    offset=self._descriptor.size,
                    total=self._descriptor.size,
                    expected=self._descriptor.digest,
                    labels=self._labels,
                ),
                unanswered=0,
            )
        if self._done:
            # Others have written it, and only their lease may keep it.
            self._keep()
        self._done = True
        self._end()

    def abort(self) -> None:
        """See `Writer.abort`. containerd forgets the bytes."""
        if self._call is None:
            return
        if not self._done:
            # First of all: as soon as the call ends, another process may go on with these bytes.
            with suppress(grpc.RpcError):
                self._client.content.Abort(
                    content_pb2.AbortRequest(ref=self._ref),
                    metadata=self._client.metadata,
                    timeout=CONNECT_SECONDS,
                )
        self._end()

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.end()

    def _keep(self) -> None:
        digest = self._descriptor.digest
        self._lease.keep(digest)
        try:
            self._client.info(digest)
        except NotFoundError:
            raise LostUploadError(
                f"containerd: blob {digest}, which another process wrote, is gone again; try again"
            ) from None

    def _open(self) -> _Writing | None:
        """Begins the call and asks how much is there; waits while another process writes the blob."""
        deadline = time.monotonic() + _LOCKED_SECONDS
        while True:
            self._since = time.monotonic()
            call = _Writing(self._client, self._lease)
            begun = False
            try:
                answer = call.ask(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.STAT,
                        ref=self._ref,
                        total=self._descriptor.size,
                        expected=self._descriptor.digest,
                    )
                )
                if answer.offset <= self._descriptor.size:
                    self._there = answer.offset
                    begun = True
                    return call
                self._client.content.Abort(
                    content_pb2.AbortRequest(ref=self._ref),
                    metadata=self._client.metadata,
                    timeout=self._client.deadline,
                )
                continue
            except grpc.RpcError as error:
                if code_of(error) == grpc.StatusCode.ALREADY_EXISTS:
                    self._done = True
                    return None
                if not self._is_locked(error):
                    raise self._failed(error) from error
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"containerd: blob {self._descriptor.digest} is being written by another "
                        "process that does not come to an end"
                    ) from error
            finally:
                if not begun:
                    call.end()
            self._pause()

    def _is_locked(self, error: grpc.RpcError) -> bool:
        """Whether somebody else writes to the reference, or has just ended.

        It is "unavailable" then, as is a containerd that is gone; that one does not know its version.
        """
        if code_of(error) != grpc.StatusCode.UNAVAILABLE:
            return False
        try:
            self._client.version()
        except SociError:
            return False
        return True

    def _pause(self) -> None:
        """Waits until somebody has written the blob, but not for long.

        Asking for a reference that is locked holds up all of containerd 1.x for a moment, so that is not
        done often.
        """
        for _ in range(_LOCKED_PAUSES):
            time.sleep(_LOCKED_PAUSE)
            with suppress(NotFoundError):
                self._client.info(self._descriptor.digest)
                return

    def _send(
        self, request: content_pb2.WriteContentRequest, unanswered: int = _UNANSWERED
    ) -> None:
        """Sends a message, and waits for answers until only so many are missing."""
        assert self._call is not None, "the blob is committed or given up"
        try:
            self._call.send(request, unanswered)
        except grpc.RpcError as error:
            if code_of(error) != grpc.StatusCode.ALREADY_EXISTS:
                raise self._failed(error) from error
            self._done = True

    def _failed(self, error: grpc.RpcError) -> SociError:
        digest = self._descriptor.digest
        if code_of(error) == grpc.StatusCode.FAILED_PRECONDITION:
            # The bytes were checked here, so those that were there already are others.
            if self._there:
                return LostUploadError(
                    f"containerd had other bytes from an unfinished write of blob {digest}, "
                    "which are gone now; try again"
                )
            if algorithm_of(digest) != "sha256":
                return StorageError(
                    f"containerd before 2.3 takes no blobs with {algorithm_of(digest)} digests, "
                    f"such as {digest}; use a newer one"
                )
        return self._client.error(f"writing blob {digest}", error, self._since)


class _Writing:
    """A call that writes: messages go into a queue, from which gRPC takes them in a thread."""

    def __init__(self, client: Containerd, lease: Lease) -> None:
        self._requests: queue.SimpleQueue[content_pb2.WriteContentRequest | None] = (
            queue.SimpleQueue()
        )
        self._unanswered = 0
        self._call = client.content.Write(
            iter(self._requests.get, None), metadata=lease.metadata, timeout=client.deadline
        )

    def ask(self, request: content_pb2.WriteContentRequest) -> content_pb2.WriteContentResponse:
        """Sends a message and waits for its answer. Raises grpc.RpcError."""
        self._requests.put(request)
        return self._answer()

    def send(self, request: content_pb2.WriteContentRequest, unanswered: int) -> None:
        """Sends a message; waits until not more than `unanswered` are without an answer."""
        self._requests.put(request)
        self._unanswered += 1
        while self._unanswered > unanswered:
            self._answer()
            self._unanswered -= 1

    def _answer(self) -> content_pb2.WriteContentResponse:
        for answer in self._call:
            found: content_pb2.WriteContentResponse = answer
            return found
        raise StorageError("containerd ended the writing of a blob before all of it was there")

    def end(self) -> None:
        """Lets go of the reference; what was written stays, unfinished or committed."""
        self._requests.put(None)
        self._call.cancel()
