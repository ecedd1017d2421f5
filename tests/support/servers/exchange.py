"""One request on its way through a proxy, and its answer on the way back; bodies are streamed."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse

from tests.support.servers.server import Request

PIECE = 64 << 10

_TIMEOUT = 30.0  # seconds that the upstream may be silent
_OWN_HEADERS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "expect"}

Headers = list[tuple[str, str]]


class Gone(Exception):
    """The connection to the client is over; whoever serves the request lets go of it."""


@dataclass
class Seen:
    """What a server saw of a request and said to it; filled in while it is served.

    `path` has the query. Names of headers are in small letters. `status` is None until there is an
    answer; `body_bytes` and `answer_bytes` count bodies without their framing.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    connection: int
    body_bytes: int = 0
    status: int | None = None
    answer_bytes: int = 0


class Body:
    """Bytes that come in pieces and can be read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._back = b""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._back:
            return next(self._pieces)
        piece, self._back = self._back, b""
        return piece

    def first(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, or as many as there are; the others stay."""
        while size and (piece := next(self, b"")):
            self._back = piece[size:]
            size -= len(piece[:size])
            yield piece[: len(piece) - len(self._back)]


@dataclass(frozen=True)
class Answer:
    """What the upstream answered, its body still to be read."""

    status: int
    headers: Headers
    body: Body


class Exchange:
    """A request and all that can be done to it. `upstream` is HOST:PORT, `path` has the query."""

    def __init__(
        self, request: Request, upstream: str, path: str, stopping: threading.Event
    ) -> None:
        self.request = request
        self.method = request.command
        self.path = path
        self.upstream = upstream
        self.seen = see(request, path)
        self._stopping = stopping
        self._left = Body(self._read_body())

    def body(self) -> Body:
        """The rest of the request's body, as it comes."""
        return self._left

    def drain(self) -> None:
        """Reads the rest of the request's body, so that the connection can be used again."""
        for _ in self._left:
            pass

    def ask(
        self,
        *,
        method: str = "",
        without: Collection[str] = (),
        body: Iterable[bytes] | None = None,
    ) -> Answer:
        """Passes the request on; `without` are headers, in small letters, to leave out.

        `body` stands in for the request's own. Host goes along, so that the upstream's links lead
        back here.
        """
        connection = HTTPConnection(self.upstream, timeout=_TIMEOUT)
        try:
            connection.putrequest(
                method or self.method, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.request.headers.items():
                if name.lower() not in _OWN_HEADERS and name.lower() not in without:
                    connection.putheader(name, value)
            chunked = "transfer-encoding" in self.seen.headers
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            if self._scheme == "https":
                connection.putheader("X-Forwarded-Proto", "https")
            connection.putheader("Connection", "close")
            connection.endheaders()
            _send_body(connection, self.body() if body is None else body, chunked)
            if body is None:
                self.drain()
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            return _bad_gateway(f"{self.upstream}: {error}")
        except Gone:
            connection.close()
            raise
        headers = [
            (name, self._link(value) if name.lower() == "location" else value)
            for name, value in response.getheaders()
            if name.lower() not in _OWN_HEADERS
        ]
        return Answer(response.status, headers, Body(_read_answer(connection, response)))

    def answer(self, status: int, headers: Headers, body: Iterable[bytes]) -> None:
        """Answers the client. Without a Content-Length among the headers the body goes in chunks.

        A body that ends too early closes the connection.
        """
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        bodiless = self.method == "HEAD" or status in (204, 304)
        chunked = not lengths and not bodiless
        self.seen.status = status
        self._send_head(status, [*headers, *([("Transfer-Encoding", "chunked")] * chunked)])
        for piece in body:
            if piece and not bodiless:
                self.seen.answer_bytes += len(piece)
                self._write(_chunk(piece) if chunked else piece)
        if chunked:
            self._write(b"0\r\n\r\n")
        elif not bodiless and self.seen.answer_bytes < int(lengths[0]):
            self.hang_up()

    def wait(self, seconds: float | None) -> None:
        """Waits; None means until the server is closed, which ends every wait."""
        if self._stopping.wait(seconds):
            raise Gone

    def reset(self) -> None:
        """Breaks the connection with a RST."""
        linger = struct.pack("ii", 1, 0)
        self.request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise Gone

    def hang_up(self) -> None:
        """Closes the connection cleanly."""
        raise Gone

    def refuse_body(self) -> None:
        """Closes the connection while the client may still be sending, as Go's server does.

        The answer has a moment to arrive before the reset that unread bytes cause.
        """
        self.request.connection.shutdown(socket.SHUT_WR)
        self.wait(0.2)
        raise Gone

    @property
    def _scheme(self) -> str:
        return "https" if isinstance(self.request.connection, ssl.SSLSocket) else "http"

    def _link(self, url: str) -> str:
        """A link to the upstream, which may not have heeded Host, as one that leads back here."""
        own = f"{self._scheme}://{self.seen.headers.get('host', '')}/"
        upstream = f"http://{self.upstream}/"
        return own + url.removeprefix(upstream) if url.startswith(upstream) else url

    def _send_head(self, status: int, headers: Headers) -> None:
        self.request.send_response_only(status)
        for name, value in headers:
            self.request.send_header(name, value)
        with _client():
            self.request.end_headers()

    def _write(self, data: bytes) -> None:
        with _client():
            self.request.wfile.write(data)

    def _read_body(self) -> Iterator[bytes]:
        for piece in read_body(self.request):
            self.seen.body_bytes += len(piece)
            yield piece


def see(request: Request, path: str) -> Seen:
    """The record of a request."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Seen(request.command, path, headers, request.connection_number)


def read_body(request: Request) -> Iterator[bytes]:
    """The body of a request as it comes. Raises Gone when the client leaves before its end."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        yield from _read_exactly(request, int(request.headers.get("Content-Length", 0)))
        return
    while size := int(_read_line(request).partition(b";")[0], 16):
        yield from _read_exactly(request, size)
        _read_line(request)
    while _read_line(request).strip():
        pass  # trailers


def _read_exactly(request: Request, size: int) -> Iterator[bytes]:
    while size:
        with _client():
            piece = request.rfile.read1(min(size, PIECE))
        if not piece:
            raise Gone
        size -= len(piece)
        yield piece


def _read_line(request: Request) -> bytes:
    with _client():
        line = request.rfile.readline(PIECE)
    if not line:
        raise Gone
    return line


@contextlib.contextmanager
def _client() -> Iterator[None]:
    """Turns errors of the connection to the client into Gone."""
    try:
        yield
    except OSError as error:
        raise Gone from error


def _send_body(connection: HTTPConnection, body: Iterable[bytes], chunked: bool) -> None:
    """Sends the body until the upstream wants no more; what it answers tells why."""
    for piece in body:
        try:
            connection.send(_chunk(piece) if chunked else piece)
        except OSError:
            return
    if chunked:
        with contextlib.suppress(OSError):
            connection.send(b"0\r\n\r\n")


def _read_answer(connection: HTTPConnection, response: HTTPResponse) -> Iterator[bytes]:
    with contextlib.closing(connection):
        try:
            while piece := response.read1(PIECE):
                yield piece
        except (OSError, HTTPException) as error:  # the client shall see no proper end either
            raise Gone from error


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _bad_gateway(message: str) -> Answer:
    text = message.encode()
    return Answer(502, [("Content-Length", str(len(text)))], Body(iter([text])))
