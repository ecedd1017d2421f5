"""A forward proxy, as HTTP_PROXY and HTTPS_PROXY name it, for host names that no DNS knows."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.servers.actions import Reply, pass_on
from tests.support.servers.exchange import PIECE, Exchange, Gone
from tests.support.servers.server import Request, Server


@dataclass(frozen=True)
class Proxied:
    """A request to a proxy: an absolute URL, or HOST:PORT when the method is CONNECT."""

    method: str
    target: str
    authorization: str | None


class ForwardProxy(Server):
    """Passes requests for the host names in `hosts` on to their HOST:PORT, whatever port they name.

    All other hosts are answered 502. `log` has all requests; those inside a tunnel are not seen.
    """

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self.log: list[Proxied] = []
        self._hosts = dict(hosts)
        super().__init__()

    def serve(self, request: Request) -> None:
        tunnel = request.command == "CONNECT"
        url = urlsplit(f"//{request.path}" if tunnel else request.path)
        login = request.headers.get("Proxy-Authorization")
        self.log.append(Proxied(request.command, request.path, login))
        upstream = self._hosts.get(url.hostname or "", "")
        path = url._replace(scheme="", netloc="").geturl() or "/"
        exchange = Exchange(request, upstream, path, self.stopping)
        try:
            if not upstream:
                Reply(502, body=b"unknown host\n")(exchange)
            elif tunnel:
                _tunnel(request, upstream)
            else:
                pass_on(exchange, exchange.ask(without={"proxy-authorization"}))
        except Gone:
            request.close_connection = True


def _tunnel(request: Request, upstream: str) -> None:
    """Carries bytes both ways until one side closes."""
    host, _, port = upstream.rpartition(":")
    with socket.create_connection((host, int(port))) as far:
        near = request.connection
        request.send_response_only(200)
        request.end_headers()
        other = {near: far, far: near}
        with contextlib.suppress(OSError):
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    piece = ready.recv(PIECE)
                    if not piece:
                        raise Gone
                    other[ready].sendall(piece)
        raise Gone
