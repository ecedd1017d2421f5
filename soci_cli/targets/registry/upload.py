"""Writing blobs: streams that are sent while they are made, in chunks that can be sent again.

See the OCI distribution spec, "Pushing blobs". A small blob is kept in memory and sent by one PUT. A
larger one is sent by a thread of its own in PATCH requests, each begun as soon as its first bytes are there
and kept in memory until the registry has taken it, so that a connection that breaks costs a part of one
chunk.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit, urlunsplit

from soci_cli.errors import LostUploadError, NotFoundError, RegistryError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import Reference
from soci_cli.targets._disk import ContentCheck
from soci_cli.targets.protocol import BytesLike
from soci_cli.targets.registry.client import Answer, Client
from soci_cli.targets.registry.messages import redacted

CHUNK = 8 << 20
_SMALLEST_CHUNK = 1 << 20
_TOO_LARGE = frozenset({413, 416})
_PIECE = 64 << 10  # each must be on its way within the timeout, over slow links too
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_OCTETS = {"Content-Type": "application/octet-stream"}
_JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class Repository:
    """A repository of a registry, and the paths and scopes of what is in it.

    A repository that is `written` is read where it is written: what a mirror has need not be there.
    """

    client: Client
    reference: Reference
    written: bool

    @property
    def name(self) -> str:
        return self.reference.repository

    @property
    def pull_scope(self) -> str:
        return f"repository:{self.name}:pull"

    @property
    def push_scope(self) -> str:
        return f"repository:{self.name}:pull,push"

    def path(self, kind: str, what: str) -> str:
        """`/REPO/KIND/WHAT`, where kind is blobs, manifests or referrers."""
        return f"/{self.name}/{kind}/{what}"

    def asked(self, capability: str) -> str:
        """What the servers that are asked for something must be able to do."""
        return "push" if self.written else capability

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there with the descriptor's size."""
        try:
            answer = self.client.call(
                "HEAD",
                self.path("blobs", descriptor.digest),
                scope=self.pull_scope,
                capability=self.asked("pull"),
            )
        except NotFoundError:
            return False
        answer.finish()
        size = answer.headers.get("Content-Length")
        return size is None or size == str(descriptor.size)


class BlobUpload:
    """One blob that is being written to a registry. Implements `Writer`."""

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        place: str,
        location: str | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """`location` is an upload that the registry has opened already, if any."""
        self._repository = repository
        self._client = repository.client
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, place)
        self._location = location
        self._chunk = min(chunk, max(1, descriptor.size))
        self._buffer = bytearray(self._chunk)
        self._piece = self._chunk  # bytes of one PATCH at most
        self._start = 0  # where in the blob the buffer begins
        self._filled = 0  # bytes in the buffer
        self._mutex = threading.Condition()
        self._error: SociError | None = None
        self._aborted = False
        self._ended = False
        self._thread: threading.Thread | None = None

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
                while self._filled == self._chunk and not (self._error or self._aborted):
                    self._mutex.wait()
                if self._aborted:
                    raise _Aborted
                if self._error:
                    if isinstance(self._error, LostUploadError):
                        return view.nbytes
                    raise self._error
                count = min(left.nbytes, self._chunk - self._filled)
                # Copied outside of nobody's way: the sender reads only what is counted as filled.
                self._buffer[self._filled : self._filled + count] = left[:count]
                self._filled += count
                self._mutex.notify_all()
            left = left[count:]
        return view.nbytes

    def commit(self) -> None:
        """See `Writer.commit`. LostUploadError when the blob must be sent again."""
        self._check.verify()
        if self._thread is None:
            self._send_at_once()
        else:
            self._thread.join()
            if self._error:
                raise self._error
            self._finish_large()
        self._end()

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
                scope = self._repository.push_scope
                answer = self._client.call(
                    "DELETE", location, scope=scope, ok=(200, 202, 204), attempts=1
                )
                answer.finish()

    # A small blob.

    def _send_at_once(self) -> None:
        body = _Chunk(self, 0, self._filled)
        policy = self._client.options.retries
        for failures in range(1, policy.attempts + 1):
            try:
                if self._location is None:
                    self._begin()
                self._finish(body)
                return
            except LostUploadError as error:
                # A new upload: what a broken one holds of the body, nobody knows.
                self._location = None
                if failures == policy.attempts:
                    raise
                self._wait(failures, error)

    def _wait(self, failures: int, error: SociError) -> None:
        """The pause before another attempt. Raises the error when the registry asks for a long one."""
        policy = self._client.options.retries
        asked = error.retry_after if isinstance(error, RegistryError) else None
        if asked is not None and asked > policy.patience:
            raise error
        time.sleep(policy.pause(failures, asked))

    # A large blob, in the thread.

    def _send(self) -> None:
        try:
            if self._location is None:
                self._begin()
            total = self._descriptor.size
            while self._start < total:
                length = min(self._chunk, total - self._start)
                self._send_chunk(length)
                with self._mutex:
                    self._start += length
                    self._filled = 0
                    self._mutex.notify_all()
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

    def _send_chunk(self, length: int) -> None:
        """Sends the buffer's first `length` bytes, as they come; again what did not arrive."""
        policy = self._client.options.retries
        sent = failures = 0
        while sent < length:
            assert self._location is not None
            piece = min(self._piece, length - sent)
            first = self._start + sent
            headers = {
                **_OCTETS,
                "Content-Range": f"{first}-{first + piece - 1}",
                "Content-Length": str(piece),
            }
            try:
                answer = self._client.call(
                    "PATCH",
                    self._location,
                    scope=self._repository.push_scope,
                    headers=headers,
                    body=_Chunk(self, sent, piece),
                    ok=(202, 201, 204),
                    attempts=1,
                )
            except SociError as error:
                if self._aborted:
                    raise _Aborted from None
                status = error.status if isinstance(error, RegistryError) else None
                if status in _TOO_LARGE and piece > _SMALLEST_CHUNK:
                    before, sent = sent, self._arrived()
                    if status == 413 or sent == before:
                        # Some registries take small chunks only; GHCR refuses others with 416.
                        self._piece = max(_SMALLEST_CHUNK, piece // 2)
                    continue
                failures += 1
                final = status is not None and 400 <= status < 500 and status not in _STALE
                if final or failures >= policy.attempts:
                    if isinstance(error, NotFoundError):
                        raise self._lost("the registry forgot it") from error
                    raise
                self._wait(failures, error)
                before, sent = sent, self._arrived()
                if sent - before >= _SMALLEST_CHUNK:
                    failures = 0  # slowly it goes on
                continue
            # The Range of a good answer is not looked at: ECR's stays at the first chunk. What is missing
            # after all is told by the next answer, or by the digest.
            self._take_location(answer)
            answer.finish()
            sent += piece

    def _arrived(self) -> int:
        """How much of the buffer the registry has, after a PATCH that failed."""
        assert self._location is not None
        try:
            answer = self._client.call(
                "GET", self._location, scope=self._repository.push_scope, ok=(204, 200, 202)
            )
        except NotFoundError:
            return self._begin_again()
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

    def _begin_again(self) -> int:
        """A new upload, possible as long as everything so far is in the buffer."""
        if self._start:
            raise self._lost("the registry forgot it")
        self._begin()
        return 0

    # Single requests.

    def _begin(self) -> None:
        answer = self._client.call(
            "POST",
            self._repository.path("blobs", "uploads/"),
            scope=self._repository.push_scope,
            capability="push",
            ok=(202,),
        )
        self._location = None
        self._take_location(answer)
        answer.finish()
        if self._location is None:
            raise RegistryError(f"POST {redacted(answer.url)}: the answer has no Location")

    def _finish_large(self) -> None:
        """Ends an upload whose bytes are all there, so that trying again costs nothing."""
        policy = self._client.options.retries
        for failures in range(1, policy.attempts + 1):
            try:
                self._finish(b"")
                return
            except LostUploadError as error:
                if error.status in (404, 416) or failures == policy.attempts:
                    raise
                self._wait(failures, error)

    def _finish(self, body: bytes | _Chunk) -> None:
        """The PUT that ends an upload. LostUploadError when sending the blob again may help."""
        assert self._location is not None
        try:
            answer = self._client.call(
                "PUT",
                self._location,
                scope=self._repository.push_scope,
                headers={**_OCTETS, "Content-Length": str(len(body))},
                body=body,
                query=[("digest", self._descriptor.digest)],
                ok=(201, 204),
                attempts=1,
            )
            answer.finish()
        except SociError as error:
            asked = error.retry_after if isinstance(error, RegistryError) else None
            if isinstance(error, NotFoundError):
                status: int | None = 404
            elif isinstance(error, RegistryError):
                status = error.status
            else:
                raise
            final = status is not None and status < 500 and status not in _STALE
            if final or (asked or 0.0) > self._client.options.retries.patience:
                raise
            # It may have been done all the same, with only the answer lost.
            if self._repository.has_blob(self._descriptor):
                return
            raise LostUploadError(str(error), status, asked) from error

    def _take_location(self, answer: Answer) -> None:
        self._location = upload_location(answer) or self._location

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


def upload_location(answer: Answer) -> str | None:
    """Where an upload goes on: the answer's Location as a whole URL. RegistryError for nonsense."""
    location = answer.headers.get("Location")
    if not location:
        return None
    asked = urlsplit(answer.url)
    try:
        new = urljoin(answer.url, location)
        parts = urlsplit(new)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise RegistryError(f"{redacted(answer.url)}: the answer's Location cannot be used")
    if parts.netloc == asked.netloc and parts.scheme != asked.scheme:
        # A registry behind a proxy that ends TLS often does not know its own scheme.
        return urlunsplit((asked.scheme, *parts[1:]))
    if asked.scheme == "https" and parts.scheme == "http":
        raise RegistryError(
            f"{redacted(answer.url)}: the upload is to go on over plain HTTP ({redacted(new)}), not done"
        )
    return new


_STALE = frozenset({404, 408, 416, 429})


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
