"""The body of a request, read in pieces as it arrives (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import re
from email.message import Message
from io import BufferedReader

from soci_cli.errors import InvalidDataError

_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LINE_LIMIT = 4096
_MAX_TRAILERS = 100
_DISCARD = 64 * 1024


class ClientGone(ConnectionError):
    """The client closed the connection, or was silent for too long, before its request ended."""


class BadBody(InvalidDataError):
    """A body of which nobody knows where it ends."""


class Body:
    """A body whose length was announced, in bytes."""

    def __init__(self, stream: BufferedReader, length: int) -> None:
        self.length: int | None = length
        self.received = 0
        self._stream = stream
        self._left = length

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return self._left == 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes; 0 at the end.

        Raises ClientGone, and BadBody for a body that cannot be read.
        """
        window = buffer[: self._left]
        if not window.nbytes:
            return 0
        count = self._fill(window)
        self._left -= count
        return count

    def read(self, limit: int) -> bytes:
        """The whole body, or `limit` + 1 bytes of a longer one."""
        data = bytearray()
        buffer = memoryview(bytearray(_DISCARD))
        while len(data) <= limit and (count := self.readinto(buffer[: limit + 1 - len(data)])):
            data += buffer[:count]
        return bytes(data)

    def discard(self, limit: int) -> bool:
        """Read on and forget; whether the end came within `limit` bytes."""
        buffer = memoryview(bytearray(_DISCARD))
        while limit > 0 and (count := self.readinto(buffer)):
            limit -= count
        return self.ended

    def _fill(self, window: memoryview) -> int:
        try:
            count = self._stream.readinto(window)
        except OSError as error:
            raise ClientGone("the connection broke in the middle of a request") from error
        if not count:
            raise ClientGone("the request ended too early")
        self.received += count
        return count


class ChunkedBody(Body):
    """A body in chunks, whose length is not known before its end."""

    def __init__(self, stream: BufferedReader) -> None:
        super().__init__(stream, 0)
        self.length = None
        self._ended = False
        self._first = True

    @property
    def ended(self) -> bool:
        return self._ended

    def readinto(self, buffer: memoryview) -> int:
        filled = 0
        while filled < buffer.nbytes and not self._ended:
            if self._left == 0:
                self._next_chunk()
            else:
                filled += super().readinto(buffer[filled:])
        return filled

    def _next_chunk(self) -> None:
        if not self._first and self._line() not in (b"\r\n", b"\n"):
            raise BadBody("a chunk of the body is longer than it says")
        self._first = False
        match = _CHUNK.fullmatch(self._line())
        if match is None:
            raise BadBody("the body is not in chunks")
        self._left = int(match[1], 16)
        if self._left == 0:
            for _ in range(_MAX_TRAILERS):
                if self._line() in (b"\r\n", b"\n"):
                    self._ended = True
                    return
            raise BadBody("too many trailers")

    def _line(self) -> bytes:
        try:
            line = self._stream.readline(_LINE_LIMIT)
        except OSError as error:
            raise ClientGone("the connection broke in the middle of a request") from error
        if not line.endswith(b"\n"):
            if len(line) < _LINE_LIMIT:
                raise ClientGone("the request ended too early")
            raise BadBody("a line between chunks is too long")
        return line


def body_of(headers: Message, stream: BufferedReader) -> Body:
    """The body that the headers announce.

    BadBody when they contradict each other: then where the next request begins is unknown.
    """
    lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
    codings = headers.get_all("Transfer-Encoding", [])
    if codings:
        if lengths or [coding.strip().lower() for coding in codings] != ["chunked"]:
            raise BadBody("Transfer-Encoding must be chunked, and without Content-Length")
        return ChunkedBody(stream)
    if not lengths:
        return Body(stream, 0)
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise BadBody("Content-Length is no number of bytes")
    return Body(stream, int(length))
