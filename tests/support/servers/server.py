"""What the servers written in Python share: threads on loopback, keep-alive, a clean end."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from soci_cli.closing import Closing
from tests.support.servers.ca import KeyPair


class Server(Closing, ABC):
    """An HTTP/1.1 server at `host`, that is 127.0.0.1 and a free port; with TLS when given a key.

    A defect in `serve` is raised again by `close`. A client that goes away is none.
    """

    def __init__(self, tls: KeyPair | None = None) -> None:
        self.stopping = threading.Event()
        self._listener = _Listener(self.serve, _context(tls) if tls else None)
        self.host = f"127.0.0.1:{self._listener.server_address[1]}"
        self.url = f"http{'s' if tls else ''}://{self.host}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()

    @abstractmethod
    def serve(self, request: Request) -> None:
        """Answers one request; runs in the thread of its connection."""

    @property
    def connections(self) -> int:
        """How many connections clients have made so far."""
        return self._listener.accepted

    @property
    def open_connections(self) -> int:
        """How many of them are open now."""
        return len(self._listener.open)

    def close(self) -> None:
        """Stops, and breaks the connections that are open. Raises what went wrong in `serve`."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        self._listener.break_connections()
        if self._listener.defects:
            raise self._listener.defects[0]


class Request(BaseHTTPRequestHandler):
    """A request as http.server reads it; `connection_number` counts from 1."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.connection_number = self.server.open[self.connection]

    def log_message(self, format: str, *arguments: object) -> None:
        """Writes nothing."""

    def _serve(self) -> None:
        self.server.serve(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = _serve


class _Listener(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, serve: Callable[[Request], None], tls: ssl.SSLContext | None) -> None:
        self.serve = serve
        self.accepted = 0
        self.open: dict[socket.socket, int] = {}  # with their numbers
        self.defects: list[BaseException] = []
        self._tls = tls
        super().__init__(("127.0.0.1", 0), Request)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, peer = self.socket.accept()
        if self._tls is not None:  # the handshake comes with the first read, in the other thread
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self.accepted += 1
        self.open[connection] = self.accepted
        return connection, peer

    def shutdown_request(self, request: object) -> None:
        """Closes without the FIN that the base class sends first: a reset must be a reset."""
        assert isinstance(request, socket.socket)
        self.open.pop(request, None)
        request.close()

    def break_connections(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # gone already
                continue

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.defects.append(error)


def _context(tls: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    return context
