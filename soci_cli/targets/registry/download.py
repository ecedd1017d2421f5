"""Reading blobs: streams that go on where a connection broke off."""

from __future__ import annotations

import re
from collections.abc import Callable

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, RegistryError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of, new_hash
from soci_cli.parallel import no_check
from soci_cli.targets.registry.asking import Asking
from soci_cli.targets.registry.bodies import NETWORK_ERRORS, raw_stream
from soci_cli.targets.registry.messages import failure, redacted
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.request import Answer, Request
from soci_cli.text import brief

_NUMBER = re.compile("[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_SKIPPED = 1 << 20
_MUCH = 1 << 16


class BlobStream(Closing):
    """The bytes `start` to `start + length` of a blob, not verified. Implements `BlobReader`.

    After a connection that broke off, or ended too early, the rest is asked for with a Range header; where
    the registry ignores that, what is known already is skipped. Opening it asks for the blob at once.
    """

    skipped = 0
    """Bytes before the range that were read and dropped, because the registry ignores Range."""

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        start: int,
        length: int,
        check: Callable[[], None] = no_check,
    ) -> None:
        """NotFoundError and RegistryError; IntegrityError when the blob there has another size.

        `check` is called before each attempt but the first; what it raises ends reading.
        """
        self._repository = repository
        self._descriptor = descriptor
        self._position = start
        self._end = start + length
        self._asking: Asking | None = None
        self._answer: Answer | None = None
        self._progress = 0  # bytes since the last failure
        self._error: SociError | None = None
        self._mirrored = ""
        self._hash = None
        if length:
            self._asking = repository.client.asking(self._request(), check=check)
            if length == descriptor.size and self._asking.has_mirrors:
                self._hash = new_hash(descriptor.digest)
            self._answer = self._asking.run(self._opened)

    def read(self, size: int = -1, /) -> bytes:
        """See `BlobReader.read`. Less than `size` only at the end."""
        left = self._end - self._position
        buffer = bytearray(left if size < 0 else min(size, left))
        view = memoryview(buffer)
        while view.nbytes:
            view = view[self._next(view) :]
        return bytes(buffer)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """See `BlobReader.readinto`: as much as has come, so that a slow line is seen to move."""
        return self._next(memoryview(buffer).cast("B")[: self._end - self._position])

    def _next(self, view: memoryview) -> int:
        """Reads what has come; connections that break are replaced. An error is raised again later."""
        if self._error is not None:
            raise self._error
        piece = b""
        while view.nbytes and not piece:
            try:
                piece = self._piece(view.nbytes)
            except SociError as error:
                self._error = error
                raise
        view[: len(piece)] = piece
        self._position += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
            if self._position == self._end:
                self._check_mirrored(self._hash.hexdigest())
        return len(piece)

    def _check_mirrored(self, encoded: str) -> None:
        """IntegrityError that names the mirror when bytes of a mirror are wrong; it is not asked again."""
        if self._mirrored and encoded != encoded_of(self._descriptor.digest):
            error = IntegrityError(
                f"blob {self._descriptor.digest} from the mirror {redacted(self._mirrored)} "
                "does not have that digest; take the mirror out of hosts.toml"
            )
            self._repository.client.mirror_failed(self._mirrored, error)
            raise error

    def close(self) -> None:
        """Let go of the connection; it is used again when everything was read."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _piece(self, wanted: int) -> bytes:
        """The next bytes; empty after a failure, which costs the connection."""
        assert self._asking is not None
        if self._answer is None:
            self._asking.request = self._request()
            self._answer = self._asking.run(self._opened)
        answer = self._answer
        try:
            # What has come is taken at once: with a link that breaks often, little is read twice.
            piece = raw_stream(answer.response).read1(wanted, decode_content=False)
            if piece:
                self._progress += len(piece)
                return piece
            raise ConnectionError("the connection ended in the middle of the answer")
        except NETWORK_ERRORS as error:
            self.close()
            # A peer that sends a few bytes each time is not asked for ever.
            progressed, self._progress = self._progress >= _MUCH, 0
            self._asking.failed(failure("GET", answer.url, error), progressed=progressed)
            return b""

    def _request(self) -> Request:
        whole = self._position == 0 and self._end == self._descriptor.size
        byte_range = "" if whole else f"bytes={self._position}-{self._end - 1}"
        return self._repository.reading(
            "pull", "blobs", self._descriptor.digest, byte_range=byte_range, ok=(200, 206)
        )

    def _opened(self, answer: Answer) -> Answer:
        """An answer that was checked and stands at the position."""
        whole = self._position == 0 and self._end == self._descriptor.size
        self._check(answer, whole)
        self._mirrored = answer.mirror or self._mirrored
        if answer.status == 200 and not whole:
            self._skip(answer)
        return answer

    def _check(self, answer: Answer, whole: bool) -> None:
        size = self._descriptor.size
        if answer.status == 200:
            told = answer.headers.get("Content-Length", "")
            if _NUMBER.fullmatch(told) and int(told) != size:
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
                f"than was asked for: {brief(answer.headers.get('Content-Range', 'none'))}"
            )

    def _skip(self, answer: Answer) -> None:
        """Read up to the position, because the registry sent everything."""
        left = self._position
        stream = raw_stream(answer.response)
        while left:
            try:
                piece = stream.read1(min(left, _SKIPPED), decode_content=False)
            except NETWORK_ERRORS:
                piece = b""
            if not piece:
                return  # the next read meets the same end, and tries again
            left -= len(piece)
            self.skipped += len(piece)
