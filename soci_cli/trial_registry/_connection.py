"""One connection of a client: HTTP/1.1 with keep-alive, on the standard library's parser."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader
from typing import TYPE_CHECKING, Protocol

from soci_cli.errors import SociError
from soci_cli.trial_registry._body import BadBody, Body, ClientGone, body_of
from soci_cli.trial_registry._http import (
    FileRegion,
    Refused,
    Request,
    Response,
    error_response,
    split_target,
)

RequestObserver = Callable[[str, str, int, int, int], None]
"""Told of every request: method, path, status, bytes of the bodies sent and received.

Status 499 means that the client went away before its request ended.
"""

_CLIENT_GONE = 499
_SILENCE_SECONDS = 60
_DISCARD_LIMIT = 1 << 20
_LINGER_SECONDS = 2.0


class Service(Protocol):
    """Answers requests, and tells of them."""

    answer: Callable[[Request], Response]
    observer: RequestObserver


class Connection(BaseHTTPRequestHandler):
    """Reads requests, and sends what the service of its server answers."""

    protocol_version = "HTTP/1.1"
    timeout = _SILENCE_SECONDS
    disable_nagle_algorithm = True

    if TYPE_CHECKING:
        rfile: BufferedReader
        connection: socket.socket

    @property
    def _service(self) -> Service:
        service: Service = self.server.service  # type: ignore[attr-defined]
        return service

    def _serve(self) -> None:
        if self.request_version != "HTTP/1.1":
            self.close_connection = True
        body = Body(self.rfile, 0)
        try:
            body = body_of(self.headers, self.rfile)
            response = self._answer(body)
        except BadBody as error:
            # The body cannot be read to its end, so there is no next request.
            self._refuse(Refused(400, "UNSUPPORTED", str(error)), body.received)
        except ClientGone:
            self.close_connection = True
            self._service.observer(self.command, self.path, _CLIENT_GONE, 0, body.received)
        else:
            # A small rest of the body is read, so that the next request can be.
            with suppress(ClientGone, BadBody):
                body.read(0 if self.close_connection else _DISCARD_LIMIT)
            self.close_connection |= not body.ended
            self._send(response, body.received)
            if not body.ended:
                self._linger()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the parser refuses."""
        status = 405 if code == HTTPStatus.NOT_IMPLEMENTED else int(code)
        self._refuse(Refused(status, "UNSUPPORTED", message or HTTPStatus(status).phrase), 0)

    def log_message(self, format: str, *args: object) -> None:
        """The observer is told instead."""

    def _answer(self, body: Body) -> Response:
        try:
            path, query = split_target(self.path)
            return self._service.answer(Request(self.command, path, query, self.headers, body))
        except Refused as refused:
            return error_response(refused)
        except BadBody:
            raise
        except SociError as error:
            return error_response(Refused(500, "DENIED", str(error)))

    def _refuse(self, refused: Refused, received: int) -> None:
        self.close_connection = True
        self._send(error_response(refused), received)
        self._linger()

    def _send(self, response: Response, received: int) -> None:
        body = response.body
        length = body.length if isinstance(body, FileRegion) else len(body)
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if response.status != HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {length}")
        if self.close_connection:
            lines.append("Connection: close")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        method = self.command or "-"
        sent = 0
        try:
            self.connection.sendall(
                head if isinstance(body, FileRegion) or method == "HEAD" else head + body
            )
            if method != "HEAD":
                sent = self._send_file(body) if isinstance(body, FileRegion) else length
        except OSError:
            self.close_connection = True
        finally:
            if isinstance(body, FileRegion):
                os.close(body.fd)
        self._service.observer(method, getattr(self, "path", ""), response.status, sent, received)

    def _send_file(self, region: FileRegion) -> int:
        """Send bytes of a file without reading them; the number that was sent."""
        if not region.length:
            return 0
        with os.fdopen(region.fd, "rb", closefd=False) as file, suppress(OSError):
            self.connection.sendfile(file, region.start, region.length)
        sent = os.lseek(region.fd, 0, os.SEEK_CUR) - region.start
        self.close_connection |= sent < region.length
        return sent

    def _linger(self) -> None:
        """Let the client read the answer: a connection with unread bytes is reset when closed."""
        end = time.monotonic() + _LINGER_SECONDS
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            while time.monotonic() < end and self.connection.recv(1 << 16):
                pass
