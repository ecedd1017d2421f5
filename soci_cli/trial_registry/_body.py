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
_PIECE = 64 * 1024


class ClientGone(ConnectionError):
    """The client closed the connection, or was silent for too long, before its request ended."""


class BadBody(InvalidDataError):
    """A body of which nobody knows where it ends."""


class Body:
    """A body of a number of bytes, or in chunks, when `length` is None."""

    def __init__(self, stream: BufferedReader, length: int | None) -> None:
        self.length = length
        self.received = 0
        self.ended = length == 0
        self._stream = stream
        self._left = length or 0  # of the chunk, if it is in chunks
        self._is_first = True

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes; 0 at the end. Raises ClientGone and BadBody."""
        filled = 0
        while filled < buffer.nbytes and not self.ended:
            if self._left == 0:
                self._next_chunk()
                continue
            try:
                count = self._stream.readinto(buffer[filled : filled + self._left])
            except OSError as error:
                raise ClientGone("the connection broke in the middle of a request") from error
            if not count:
                raise ClientGone("the request ended too early")
            self.received += count
            self._left -= count
            filled += count
            self.ended = self.length is not None and self._left == 0
            if self.length is not None:
                break  # what is here is written before more is waited for
        return filled

    def read(self, limit: int) -> bytes:
        """The whole body, or `limit` + 1 bytes of a longer one."""
        data = bytearray()
        buffer = memoryview(bytearray(_PIECE))
        while len(data) <= limit and (count := self.readinto(buffer[: limit + 1 - len(data)])):
            data += buffer[:count]
        return bytes(data)

    def _next_chunk(self) -> None:
        if not self._is_first and self._line() not in (b"\r\n", b"\n"):
            raise BadBody("a chunk of the body is longer than it says")
        self._is_first = False
        match = _CHUNK.fullmatch(self._line())
        if match is None:
            raise BadBody("the body is not in chunks")
        self._left = int(match[1], 16)
        if self._left == 0:
            for _ in range(_MAX_TRAILERS):
                if self._line() in (b"\r\n", b"\n"):
                    self.ended = True
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
        return Body(stream, None)
    length = lengths.pop() if lengths else "0"
    if lengths or not _LENGTH.fullmatch(length):
        raise BadBody("Content-Length is no number of bytes")
    return Body(stream, int(length))
