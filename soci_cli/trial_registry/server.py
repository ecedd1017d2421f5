"""A small OCI registry over an OCI image layout."""

from __future__ import annotations

import shutil
import socket
import socketserver
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from soci_cli.closing import Closing
from soci_cli.errors import SociError, UsageError
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import LayoutFolder
from soci_cli.trial_registry._api import Api
from soci_cli.trial_registry._connection import Connection, RequestObserver

_POLL_SECONDS = 0.02
_JOIN_SECONDS = 5.0
_TIDY_SECONDS = 60.0


class RegistryServer(Closing):
    """Serves the OCI distribution API 1.1 from background threads, from its creation to `close`.

    It is made for trials, demos and tests: there is no TLS and no authentication, and blobs are not
    synced to the disk, so a crash of the machine may damage what was pushed last.
    """

    def __init__(
        self,
        root: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        referrers_api: bool = True,
        observer: RequestObserver | None = None,
    ) -> None:
        """`root` is the folder of the layout, made when it is missing, or None for a temporary one.

        Port 0 is any free one. Without `referrers_api` referrers are not listed and subjects are
        not confirmed, as in registries of the distribution spec 1.0. `observer` is told of every
        request, from several threads.

        Raises SociError when the address cannot be had, StorageError and InvalidDataError when the
        folder is no layout.
        """
        self._listener = _listen(host, port, observer or _ignore)
        self._temporary: Path | None = None
        self._api: Api | None = None
        self._thread: threading.Thread | None = None
        try:
            if root is None:
                with disk_errors("create", "a temporary folder"):
                    self._temporary = Path(tempfile.mkdtemp(prefix="soci-registry-"))
            self.root = root or self._temporary or Path()
            self._api = Api(LayoutFolder(self.root, f"oci:{self.root}"), referrers_api)
            self._listener.start(self._api)
            self._thread = threading.Thread(
                target=self._listener.serve_forever,
                args=(_POLL_SECONDS,),
                name="soci-registry",
                daemon=True,
            )
            self._thread.start()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where it listens: `127.0.0.1:5000`."""
        host, port = self._listener.server_address[:2]
        text = host.decode() if isinstance(host, bytes) else str(host)
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

    def close(self) -> None:
        """Stop listening, break open connections, remove unfinished uploads and a temporary folder."""
        if self._thread is not None:
            self._listener.shutdown()
            self._thread.join()
            self._thread = None
        self._listener.server_close()
        self._listener.break_connections()
        if self._api is not None:
            self._api.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, family: int, address: tuple[Any, ...], observer: RequestObserver) -> None:
        self.address_family = family
        self._observer = observer
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._api: Api | None = None
        self._tidy_at = time.monotonic() + _TIDY_SECONDS
        super().__init__(address, socketserver.BaseRequestHandler)

    def start(self, api: Api) -> None:
        """Say who answers the requests, before the first of them."""
        self._api = api

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection, in a thread of its own."""
        assert self._api is not None
        Connection(request, client_address, self, self._api, self._observer)

    def service_actions(self) -> None:
        """Called between connections, many times a second."""
        if self._api is not None and time.monotonic() > self._tidy_at:
            self._api.tidy()
            self._tidy_at = time.monotonic() + _TIDY_SECONDS

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows the traceback of a defect; that a client broke its connection is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection, and remembers both."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._connections[request] = thread
        try:
            thread.start()
        except RuntimeError:  # too many threads
            with self._lock:
                del self._connections[request]
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Runs in that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.pop(request, None)

    def break_connections(self) -> None:
        """End the threads of all connections."""
        with self._lock:
            open_ones = dict(self._connections)
        for connection in open_ones:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in open_ones.values():
            thread.join(_JOIN_SECONDS)


def _listen(host: str, port: int, observer: RequestObserver) -> _Listener:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"{port} is no port; choose one from 0 to 65535")
    where = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return _Listener(family, address, observer)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SociError(f"cannot listen on {where}: {reason}; choose another address") from error


def _ignore(_: str, __: str, ___: int, ____: int, _____: int) -> None:
    pass
