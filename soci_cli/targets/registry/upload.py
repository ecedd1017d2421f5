"""Writing blobs: streams that are sent while they are made, in chunks that can be sent again.

See the OCI distribution spec, "Pushing blobs". A small blob is kept in memory and sent by one PUT. A
larger one is sent by a thread of its own in PATCH requests, each begun as soon as its first bytes are there
and kept in memory until the registry has taken it, so that a connection that breaks costs a part of one
chunk.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from soci_cli.errors import LostUploadError, NotFoundError, RegistryError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.blobs import BytesLike, ContentCheck
from soci_cli.targets.registry.locations import led_to
from soci_cli.targets.registry.messages import redacted
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.request import Answer
from soci_cli.targets.registry.retry import Attempts

CHUNK = 8 << 20
SMALLEST_PIECE = 1 << 20  # what nginx takes by default
_LARGEST_PIECE = 256 << 20
_FORGOT = "the registry forgot it"
_PIECE = 64 << 10  # each must be on its way within the timeout, over slow links too
_SIZE = re.compile(r"[0-9]{1,19}")
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_OCTETS = {"Content-Type": "application/octet-stream"}
_JOIN_SECONDS = 10.0


class BlobUpload:
    """One blob that is being written to a registry. Implements `Writer`."""

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        place: str,
        opened: OpenedUpload | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """`opened` is an upload that the registry has opened already, if any."""
        self._repository = repository
        self._client = repository.client
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, place)
        self._location: str | None = None
        self._chunk = min(chunk, max(1, descriptor.size))
        self._buffer = bytearray(self._chunk)
        self._piece = min(self._chunk, repository.client.largest_body)  # bytes of one PATCH at most
        self._least = 0  # bytes of any PATCH but the last
        self._accepted = 0  # bytes of the largest PATCH that was taken
        self._broken = False  # whether a PATCH of this upload broke off
        self._stalls = 0  # connections that ended before anything arrived
        self._start = 0  # where in the blob the buffer begins
        self._filled = 0  # bytes in the buffer
        self._mutex = threading.Condition()
        self._error: SociError | None = None
        self._aborted = False
        self._ended = False
        self._thread: threading.Thread | None = None
        if opened is not None:
            self._take(opened)

    def write(self, data: BytesLike, /) -> int:
        """See `Writer.write`. What the registry refuses is raised by a later write or by `commit`.

        After a `LostUploadError` is in sight the rest is taken and dropped, so that who reads and sends
        at once can finish reading.
        """
        view = memoryview(data).cast("B")
        self._check.add(view)
        if self._thread is None and self._descriptor.size > self._chunk:
            self._thread = threading.Thread(target=self._send, name="soci-upload", daemon=True)
            self._thread.start()
        left = view
        while left.nbytes:
            with self._mutex:
                while not (room := self._room()) and not (self._error or self._aborted):
                    self._mutex.wait()
                if self._aborted:
                    raise _Aborted
                if self._error:
                    if isinstance(self._error, LostUploadError):
                        return view.nbytes
                    raise self._error
                count = min(left.nbytes, room)
                # Copied outside of nobody's way: the sender reads only what is counted as filled.
                self._buffer[self._filled : self._filled + count] = left[:count]
                self._filled += count
                self._mutex.notify_all()
            left = left[count:]
        return view.nbytes

    def commit(self) -> None:
        """See `Writer.commit`. LostUploadError when the blob must be sent again."""
        self._check.verify()
        if self._thread is not None:
            self._thread.join()
            if self._error:
                raise self._error
            self._finish_large()
        elif self._filled > self._client.largest_body:
            self._send_in_pieces()
        else:
            self._send_at_once()
        self._end()

    def _room(self) -> int:
        """How many bytes may be written now. A piece is all that the buffer need hold."""
        most = len(self._buffer)
        if self._thread is not None:
            most = min(most, self._piece)
        return max(0, most - self._filled)

    @property
    def ended(self) -> bool:
        """Whether the blob was committed or aborted."""
        return self._ended

    def _end(self) -> None:
        self._ended = True
        self._buffer = bytearray()  # who keeps the writer does not keep a chunk

    def abort(self) -> None:
        """See `Writer.abort`."""
        if self._ended:
            return
        with self._mutex:
            self._aborted = True
            self._mutex.notify_all()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
        self._end()
        location, self._location = self._location, None
        if location is not None:
            with suppress(SociError):
                request = self._repository.writing("DELETE", location, ok=(200, 202, 204))
                self._client.call(request, attempts=1).finish()

    # A small blob.

    def _send_at_once(self) -> None:
        body = _Chunk(self, 0, self._filled)
        attempts = Attempts(self._client.options.retries)

        def attempt() -> bool:
            """Whether the blob is there; else it must go in pieces."""
            if self._location is None:
                self._begin()
            try:
                self._finish(body)
                return True
            except RegistryError as error:
                # A new upload: what a broken one holds of the body, nobody knows.
                self._location = None
                hung_up = error.status is None and attempts.number > 1
                if self._filled <= SMALLEST_PIECE or not (hung_up or error.status == 413):
                    raise
                self._shrink(SMALLEST_PIECE if hung_up else self._filled // 2)
                if not hung_up:
                    self._client.largest_body = min(self._client.largest_body, self._piece)
                return False

        if not attempts.run(attempt):
            self._send_in_pieces()

    def _send_in_pieces(self) -> None:
        self._send_pieces()
        self._finish_large()

    # A blob in pieces: a large one in the thread, as it comes.

    def _send(self) -> None:
        try:
            self._send_pieces()
        except _Aborted:
            pass
        except SociError as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001 - a thread must not die in silence
            self._give_up(
                RegistryError(f"the upload of {self._descriptor.digest} failed: {error!r}")
            )

    def _give_up(self, error: SociError) -> None:
        with self._mutex:
            self._error = error
            self._mutex.notify_all()

    def _send_pieces(self) -> None:
        """Sends all of the blob, piece by piece, each as it comes; again what did not arrive."""
        if self._location is None:
            Attempts(self._client.options.retries).run(self._begin)
        attempts = Attempts(self._client.options.retries)
        total = self._descriptor.size
        while self._start < total:
            length = min(self._piece, total - self._start)
            try:
                self._send_piece(length)
            except LostUploadError:
                raise
            except RegistryError as error:
                if self._aborted:
                    raise _Aborted from None
                self._drop(self._recover(error, length, attempts))
            else:
                self._accepted = max(self._accepted, length)
                attempts.progressed()
                self._drop(length)

    def _drop(self, count: int) -> None:
        """The registry has the buffer's first bytes, so that there is room for others."""
        with self._mutex:
            left = self._filled - count
            if count and left:
                self._buffer[:left] = self._buffer[count : self._filled]
            self._filled = left
            self._start += count
            self._mutex.notify_all()

    def _recover(self, error: RegistryError, length: int, attempts: Attempts) -> int:
        """How much of the buffer the registry has, after a PATCH of `length` bytes that failed."""
        status = error.status
        if status not in (413, 416):
            self._failed(error, attempts)
            self._broken = True
        taken = self._find_out(attempts)
        if taken >= SMALLEST_PIECE:
            attempts.progressed()  # slowly it goes on
        elif status is None and not taken:
            # What limits bodies may hang up before its answer can be read.
            self._stalls += 1
            if self._stalls > 1:
                self._shrink(SMALLEST_PIECE)
        elif status == 413:
            if not self._shrink(length // 2):
                raise error
            self._client.largest_body = min(self._client.largest_body, self._piece)
        elif status == 416 and not taken:
            # Some registries say that of what is too large (GHCR). Others stand elsewhere than they
            # told after a break (ECR), and then no piece will fit.
            too_large = length > self._accepted and not self._broken
            if not (too_large and self._shrink(length // 2)):
                self._failed(error, attempts)
                return self._begin_again("the registry stands elsewhere than it says")
        return taken

    def _shrink(self, length: int) -> bool:
        """Makes pieces smaller from now on; False when they are as small as they may be."""
        wanted = max(length, SMALLEST_PIECE, self._least)
        with self._mutex:
            smaller = wanted < self._piece
            self._piece = min(wanted, self._piece)
        return smaller

    def _find_out(self, attempts: Attempts) -> int:
        while True:
            try:
                return self._arrived()
            except LostUploadError:
                raise
            except RegistryError as error:
                if self._aborted:
                    raise _Aborted from None
                self._failed(error, attempts)

    def _failed(self, error: RegistryError, attempts: Attempts) -> None:
        try:
            attempts.failed(error, again=_may_pass(error))
        except NotFoundError as missing:
            raise self._lost(_FORGOT) from missing

    def _send_piece(self, length: int) -> None:
        """One PATCH with the first bytes of the buffer."""
        assert self._location is not None
        headers = {
            **_OCTETS,
            "Content-Range": f"{self._start}-{self._start + length - 1}",
            "Content-Length": str(length),
        }
        body = _Chunk(self, 0, length)
        request = self._repository.writing(
            "PATCH", self._location, ok=(202, 201, 204), headers=headers, body=body
        )
        answer = self._client.call(request, attempts=1)
        # The Range of a good answer is not looked at: ECR's stays at the first chunk. What is missing
        # after all is told by the next answer, or by the digest.
        self._take_location(answer)
        answer.finish()

    def _arrived(self) -> int:
        """How much of the buffer the registry has, after a PATCH that failed."""
        assert self._location is not None
        request = self._repository.writing("GET", self._location, ok=(204, 200, 202))
        try:
            answer = self._client.call(request, attempts=1)
        except RegistryError as error:
            if error.status is None or error.status >= 500:
                raise
            return self._begin_again()
        told = _RANGE.fullmatch(answer.headers.get("Range", ""))
        self._take_location(answer)
        answer.finish()
        if told is None:
            return self._begin_again()
        taken = int(told[1]) + 1 - self._start
        if self._start == 0 and taken <= 1:
            # "0-0" is what registries say of nothing and of one byte.
            return self._begin_again()
        with self._mutex:
            filled = self._filled
        if not 0 <= taken <= filled:
            return self._begin_again()
        return taken

    def _begin_again(self, why: str = _FORGOT) -> int:
        """A new upload, possible as long as everything so far is in the buffer."""
        if self._start:
            raise self._lost(why)
        self._begin()
        return 0

    # Single requests.

    def _begin(self) -> None:
        path = self._repository.path("blobs", "uploads/")
        answer = self._client.call(self._repository.writing("POST", path, ok=(202,)), attempts=1)
        answer.finish()
        opened = opened_upload(answer)
        if opened is None:
            raise RegistryError(f"POST {redacted(answer.url)}: the answer has no Location")
        self._broken = False
        self._take(opened)

    def _take(self, opened: OpenedUpload) -> None:
        """Goes on in this upload, with chunks that are as large as it wants them."""
        total = self._descriptor.size
        least = min(opened.least, total)
        if least > _LARGEST_PIECE:
            raise RegistryError(
                f"the upload to {redacted(opened.location)} takes only chunks of {least} bytes and more"
            )
        with self._mutex:
            self._location, self._least = opened.location, least
            self._piece = max(self._piece, least)
            if self._piece > len(self._buffer):
                self._buffer = self._buffer.ljust(self._piece, b"\0")
            self._mutex.notify_all()

    def _finish_large(self) -> None:
        """Ends an upload whose bytes are all there, so that trying again costs nothing."""

        def attempt() -> None:
            try:
                self._finish(b"")
            except LostUploadError as error:
                error.transient = error.status in (None, 408, 429) or error.status >= 500
                raise

        Attempts(self._client.options.retries).run(attempt)

    def _finish(self, body: bytes | _Chunk) -> None:
        """The PUT that ends an upload. LostUploadError when sending the blob again may help."""
        assert self._location is not None
        request = self._repository.writing(
            "PUT",
            self._location,
            ok=(201, 204),
            headers={**_OCTETS, "Content-Length": str(len(body))},
            body=body,
            query=[("digest", self._descriptor.digest)],
        )
        try:
            self._client.call(request, attempts=1).finish()
        except RegistryError as error:
            if error.status is None and not error.transient:
                raise
            # It may have been done all the same, with only the answer lost, or at the last PATCH.
            with suppress(RegistryError):
                if self._repository.has_blob(self._descriptor, attempts=1):
                    return
            if not _may_pass(error) and not self._broken:
                raise
            lost = LostUploadError(error.message, error.status, error.retry_after, transient=True)
            raise lost from error

    def _take_location(self, answer: Answer) -> None:
        self._location = _upload_location(answer) or self._location

    def _lost(self, why: str) -> LostUploadError:
        where = redacted(self._location or "")
        return LostUploadError(f"the upload of {self._descriptor.digest} to {where} is lost: {why}")

    def pieces(self, position: int, end: int) -> Iterator[memoryview]:
        """The buffer from `position` to `end`, as it fills. Raises when the upload is aborted."""
        view = memoryview(self._buffer)
        while position < end:
            with self._mutex:
                while self._filled <= position and not self._aborted:
                    self._mutex.wait()
                if self._aborted:
                    raise _Aborted
                until = min(self._filled, end, position + _PIECE)
            yield view[position:until]
            position = until


@dataclass(frozen=True)
class OpenedUpload:
    """An upload that a registry has opened, and the bytes that its chunks must have but the last."""

    location: str
    least: int


def opened_upload(answer: Answer) -> OpenedUpload | None:
    """The upload that an answer to POST opens; None without a Location. RegistryError for nonsense."""
    location = _upload_location(answer)
    told = answer.headers.get("OCI-Chunk-Min-Length", "").strip()
    least = int(told) if _SIZE.fullmatch(told) else 0
    return OpenedUpload(location, least) if location else None


def _upload_location(answer: Answer) -> str | None:
    """Where an upload goes on: the answer's Location as a whole URL. RegistryError for nonsense."""
    location = answer.headers.get("Location")
    if not location:
        return None
    what = "the upload is redirected"
    new = led_to(answer.url, location, what, plain=True)
    asked, parts = urlsplit(answer.url), urlsplit(new)
    if parts.netloc == asked.netloc:
        # A registry behind a proxy that ends TLS often does not know its own scheme.
        new = urlunsplit((asked.scheme, *parts[1:]))
    return led_to(answer.url, new, what)


_STALE = frozenset({404, 408, 416, 429})


def _may_pass(error: RegistryError) -> bool:
    """Whether sending once more may help, in a new upload if need be."""
    return error.transient or error.status in _STALE or (error.status or 0) >= 500


class _Aborted(RegistryError):
    """The writer was aborted; it ends the request that is under way."""

    def __init__(self) -> None:
        super().__init__("aborted")


@dataclass(frozen=True)
class _Chunk:
    """A part of an upload's buffer as a request body."""

    upload: BlobUpload
    position: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[memoryview]:
        return self.upload.pieces(self.position, self.position + self.length)
