"""A small OCI registry over an OCI image layout."""

from __future__ import annotations

import shutil
import socket
import socketserver
import sys
import tempfile
import threading
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
        try:
            if root is None:
                with disk_errors("create", "a temporary folder"):
                    self._temporary = root = Path(tempfile.mkdtemp(prefix="soci-registry-"))
            self.root = root
            self._api = Api(LayoutFolder(root, f"oci:{root}"), referrers_api)
            self._listener.begin(self._api)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where it listens: `127.0.0.1:5000`."""
        host, port = self._listener.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop listening, break open connections, remove unfinished uploads and a temporary folder."""
        self._listener.end()
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
        self.service = self  # for Connection
        self.observer = observer
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._thread: threading.Thread | None = None
        super().__init__(address, Connection)

    def begin(self, api: Api) -> None:
        """Serve what `api` answers, in threads."""
        self.answer = api.answer
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="soci-registry", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Stop listening, and end the threads of all connections."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(_JOIN_SECONDS)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Runs in the thread of a connection."""
        self._connections[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows the traceback of a defect; that a client broke its connection is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _listen(host: str, port: int, observer: RequestObserver) -> _Listener:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"{port} is no port; choose one from 0 to 65535")
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return _Listener(family, address, observer)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SociError(
            f"cannot listen on {host}:{port}: {reason}; choose another address"
        ) from error


def _ignore(_: str, __: str, ___: int, ____: int, _____: int) -> None:
    pass
