"""Reading blobs: streams that go on where a connection broke off."""

from __future__ import annotations

import re
import time

from soci_cli.closing import Closing
from soci_cli.errors import IntegrityError, RegistryError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of, new_hash
from soci_cli.targets.registry.client import NETWORK_ERRORS, Answer
from soci_cli.targets.registry.messages import failure, redacted
from soci_cli.targets.registry.transport import raw_stream
from soci_cli.targets.registry.upload import Repository
from soci_cli.text import brief

_NUMBER = re.compile("[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
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
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> None:
        """NotFoundError and RegistryError; IntegrityError when the blob there has another size."""
        self._client = repository.client
        self._repository = repository
        self._capability = repository.asked("pull")
        self._descriptor = descriptor
        self._position = start
        self._end = start + length
        self._failures = 0
        self._answer: Answer | None = None
        self._progress = 0  # bytes since the last failure
        self._error: SociError | None = None
        self._mirrored: Answer | None = None
        self._hash = None
        if length == descriptor.size and len(self._client.endpoints_for(self._capability)) > 1:
            self._hash = new_hash(descriptor.digest)
        if length:
            self._open()

    def read(self, size: int = -1, /) -> bytes:
        """See `BlobReader.read`. Less than `size` only at the end."""
        left = self._end - self._position
        buffer = bytearray(left if size < 0 else min(size, left))
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """See `BlobReader.readinto`. Fills the whole buffer, but at the end."""
        view = memoryview(buffer).cast("B")[: self._end - self._position]
        self._fill(view)
        return view.nbytes

    def _fill(self, view: memoryview) -> None:
        """Reads until `view` is full; connections that break are replaced.

        What came before an error is lost with it, so no later read gives what comes after.
        """
        if self._error is not None:
            raise self._error
        filled = 0
        while filled < view.nbytes:
            try:
                piece = self._attempt(view.nbytes - filled)
            except SociError as error:
                self._error = error
                raise
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
            if self._hash is not None:
                self._hash.update(piece)
        if self._hash is not None and self._position == self._end:
            self._check_mirrored(self._hash.hexdigest())

    def _check_mirrored(self, encoded: str) -> None:
        """IntegrityError that names the mirror when bytes of a mirror are wrong; it is not asked again."""
        if self._mirrored is not None and encoded != encoded_of(self._descriptor.digest):
            self._client.mirror_failed(self._mirrored, badly=True)
            raise IntegrityError(
                f"blob {self._descriptor.digest} from the mirror {redacted(self._mirrored.mirror)} "
                "does not have that digest; take the mirror out of hosts.toml"
            )

    def close(self) -> None:
        """Let go of the connection; it is used again when everything was read."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _attempt(self, wanted: int) -> bytes:
        """The next bytes; empty after a failure, which costs the connection."""
        if self._answer is None:
            self._open()
        assert self._answer is not None
        answer = self._answer
        try:
            # What has come is taken at once: with a link that breaks often, little is read twice.
            piece = raw_stream(answer.response).read1(wanted, decode_content=False)
            if piece:
                self._progress += len(piece)
                return piece
            error: Exception = ConnectionError("the connection ended in the middle of the answer")
        except NETWORK_ERRORS as caught:
            error = caught
        self.close()
        if self._client.mirror_failed(answer):
            return b""
        # A peer that sends a few bytes each time is not asked for ever.
        self._failures = 1 if self._progress >= _MUCH else self._failures + 1
        self._progress = 0
        policy = self._client.options.retries
        if self._failures >= policy.attempts:
            raise failure("GET", answer.url, error, self._failures) from error
        time.sleep(policy.pause(self._failures))
        return b""

    def _open(self) -> None:
        whole = self._position == 0 and self._end == self._descriptor.size
        headers = {} if whole else {"Range": f"bytes={self._position}-{self._end - 1}"}
        while True:
            answer = self._client.call(
                "GET",
                self._repository.path("blobs", self._descriptor.digest),
                scope=self._repository.pull_scope,
                capability=self._capability,
                headers=headers,
                ok=(200, 206),
            )
            try:
                self._check(answer, whole)
                break
            except (IntegrityError, RegistryError):
                answer.close()
                if not self._client.mirror_failed(answer, badly=True):
                    raise
        if answer.mirror:
            self._mirrored = answer
        self._answer = answer
        if answer.status == 200 and not whole:
            self._skip(answer)

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
