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
from socketserver import BaseServer
from typing import TYPE_CHECKING

from soci_cli.errors import SociError
from soci_cli.trial_registry._api import Api
from soci_cli.trial_registry._body import BadBody, ClientGone, body_of
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
_LINGER_LIMIT = 64 << 20


class Connection(BaseHTTPRequestHandler):
    """Reads requests, and sends what the API answers."""

    protocol_version = "HTTP/1.1"
    timeout = _SILENCE_SECONDS
    disable_nagle_algorithm = True

    if TYPE_CHECKING:
        rfile: BufferedReader
        connection: socket.socket

    def __init__(
        self,
        connection: socket.socket,
        client_address: object,
        server: BaseServer,
        api: Api,
        observer: RequestObserver,
    ) -> None:
        self._api = api
        self._observer = observer
        super().__init__(connection, client_address, server)

    def _serve(self) -> None:
        if self.request_version != "HTTP/1.1":
            self.close_connection = True
        try:
            body = body_of(self.headers, self.rfile)
        except BadBody as error:
            self.close_connection = True
            self._send(error_response(Refused(400, "UNSUPPORTED", str(error))), 0)
            self._linger()
            return
        try:
            path, query = split_target(self.path)
            response = self._api.answer(Request(self.command, path, query, self.headers, body))
        except Refused as refused:
            response = error_response(refused)
        except BadBody as error:
            # The body cannot be read to its end, so there is no next request.
            self.close_connection = True
            response = error_response(Refused(400, "UNSUPPORTED", str(error)))
        except SociError as error:
            response = error_response(Refused(500, "DENIED", str(error)))
        except ClientGone:
            self.close_connection = True
            self._observer(self.command, self.path, _CLIENT_GONE, 0, body.received)
            return
        try:
            if not self.close_connection and not body.discard(_DISCARD_LIMIT):
                self.close_connection = True
        except (ClientGone, BadBody):
            self.close_connection = True
        self._send(response, body.received)
        if self.close_connection and not body.ended:
            self._linger()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the parser refuses."""
        self.close_connection = True
        status = 405 if code == HTTPStatus.NOT_IMPLEMENTED else int(code)
        refused = Refused(status, "UNSUPPORTED", message or HTTPStatus(status).phrase)
        self._send(error_response(refused), 0)
        self._linger()

    def log_message(self, format: str, *args: object) -> None:
        """The observer is told instead."""

    def _send(self, response: Response, received: int) -> None:
        body = response.body
        length = body.length if isinstance(body, FileRegion) else len(body)
        method = self.command or "-"
        sent = 0
        try:
            lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in response.headers.items()]
            if response.status != HTTPStatus.NO_CONTENT:
                lines.append(f"Content-Length: {length}")
            if self.close_connection:
                lines.append("Connection: close")
            head = "\r\n".join([*lines, "", ""]).encode("latin-1")
            if method == "HEAD":
                self.connection.sendall(head)
            elif isinstance(body, FileRegion):
                self.connection.sendall(head)
                sent = self._send_file(body)
            else:
                self.connection.sendall(head + body)
                sent = length
        except OSError:
            self.close_connection = True
        finally:
            if isinstance(body, FileRegion):
                os.close(body.fd)
        self._observer(method, getattr(self, "path", ""), response.status, sent, received)

    def _send_file(self, region: FileRegion) -> int:
        """Send bytes of a file without reading them; the number that was sent."""
        with os.fdopen(region.fd, "rb", closefd=False) as file:
            try:
                if region.length:
                    self.connection.sendfile(file, region.start, region.length)
            except OSError:
                self.close_connection = True
            sent = file.tell() - region.start if region.length else 0
        if sent < region.length:
            self.close_connection = True
        return sent

    def _linger(self) -> None:
        """Let the client read the answer: a connection with unread bytes is reset when closed."""
        end = time.monotonic() + _LINGER_SECONDS
        left = _LINGER_LIMIT
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and time.monotonic() < end:
                self.connection.settimeout(_LINGER_SECONDS)
                piece = self.connection.recv(1 << 16)
                if not piece:
                    return
                left -= len(piece)
