"""Reading blobs: streams that go on where a connection broke off."""

from __future__ import annotations

import re
import time

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, RegistryError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.registry.client import NETWORK_ERRORS, Answer, Client
from soci_cli.targets.registry.messages import failure, redacted
from soci_cli.targets.registry.transport import raw_stream

_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_SKIPPED = 1 << 20


class BlobStream(Closing):
    """The bytes `start` to `start + length` of a blob, not verified. Implements `BlobReader`.

    After a connection that broke off, or ended too early, the rest is asked for with a Range header; where
    the registry ignores that, what is known already is skipped. Opening it asks for the blob at once.
    """

    def __init__(
        self, client: Client, path: str, scope: str, descriptor: Descriptor, start: int, length: int
    ) -> None:
        """NotFoundError and RegistryError; IntegrityError when the blob there has another size."""
        self._client = client
        self._path = path
        self._scope = scope
        self._descriptor = descriptor
        self._position = start
        self._end = start + length
        self._failures = 0
        self._answer: Answer | None = None
        if length:
            self._open()

    def read(self, size: int = -1, /) -> bytes:
        """See `BlobReader.read`."""
        if size < 0:
            pieces = []
            while piece := self.read(1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        wanted = min(size, self._end - self._position)
        while wanted:
            piece = self._attempt(wanted)
            if piece:
                self._position += len(piece)
                self._failures = 0
                return piece
        return b""

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """See `BlobReader.readinto`."""
        view = memoryview(buffer).cast("B")
        piece = self.read(view.nbytes)
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Let go of the connection; it is used again when everything was read."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _attempt(self, wanted: int) -> bytes:
        """The next bytes; empty after a failure from which the stream has been opened again."""
        assert self._answer is not None
        url = self._answer.url
        try:
            piece = raw_stream(self._answer.response).read(wanted, decode_content=False)
            if piece:
                return piece
            error: Exception = ConnectionError("the connection ended in the middle of the answer")
        except NETWORK_ERRORS as caught:
            error = caught
        self.close()
        self._failures += 1
        policy = self._client.options.retries
        if self._failures >= policy.attempts:
            raise failure("GET", url, error, self._failures) from error
        time.sleep(policy.pause(self._failures))
        self._open()
        return b""

    def _open(self) -> None:
        whole = self._position == 0 and self._end == self._descriptor.size
        headers = {} if whole else {"Range": f"bytes={self._position}-{self._end - 1}"}
        answer = self._client.call(
            "GET", self._path, scope=self._scope, headers=headers, ok=(200, 206)
        )
        try:
            self._check(answer, whole)
        except BaseException:
            answer.close()
            raise
        self._answer = answer
        if answer.status == 200 and not whole:
            self._skip(answer)

    def _check(self, answer: Answer, whole: bool) -> None:
        size = self._descriptor.size
        if answer.status == 200:
            told = answer.headers.get("Content-Length")
            if told is not None and told.isdigit() and int(told) != size:
                raise IntegrityError(
                    f"blob {self._descriptor.digest} at {redacted(answer.url)} has {told} "
                    f"bytes, not the {size} of its descriptor"
                )
            return
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        right = match and int(match[1]) == self._position and match[3] in ("*", str(size))
        if whole or not right:
            raise RegistryError(
                f"GET {redacted(answer.url)}: the registry answered with another range "
                f"than was asked for: {answer.headers.get('Content-Range')!r}"
            )

    def _skip(self, answer: Answer) -> None:
        """Read up to the position, because the registry sent everything."""
        left = self._position
        stream = raw_stream(answer.response)
        while left:
            try:
                piece = stream.read(min(left, _SKIPPED), decode_content=False)
            except NETWORK_ERRORS:
                piece = b""
            if not piece:
                return  # the next read meets the same end, and tries again
            left -= len(piece)
