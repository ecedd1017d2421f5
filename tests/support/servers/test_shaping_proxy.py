"""The shaping proxy keeps to its rate and delay, and counts what it carries."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.servers.server import Request, Server
from tests.support.servers.shaping_proxy import ShapingProxy


class Zeros(Server):
    """Answers as many zeros as the path says."""

    def serve(self, request: Request) -> None:
        size = int(request.path[1:])
        request.send_response_only(200)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        request.wfile.write(bytes(size))


@pytest.fixture(scope="module")
def zeros() -> Iterator[Zeros]:
    with Zeros() as server:
        yield server


def fetch(connection: http.client.HTTPConnection, size: int) -> None:
    connection.request("GET", f"/{size}")
    assert connection.getresponse().read() == bytes(size)


def connect(host: str) -> socket.socket:
    name, _, port = host.partition(":")
    return socket.create_connection((name, int(port)), timeout=30)


def test_connections_share_the_rate(zeros: Zeros) -> None:
    with ShapingProxy(zeros.host, 8e6, 0.005) as proxy:

        def work() -> None:
            connection = http.client.HTTPConnection(proxy.host)
            for _ in range(2):
                fetch(connection, 400_000)
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start
        assert took > 2_400_000 / 8e6
        assert took < 10
        carried = proxy.carried()
    assert carried.connections == 3
    assert 2_400_000 < carried.down < 2_402_000
    assert 0 < carried.up < 2000


def test_every_byte_is_late(zeros: Zeros) -> None:
    with ShapingProxy(zeros.host, None, 0.05) as proxy:
        connection = http.client.HTTPConnection(proxy.host)
        start = time.monotonic()
        fetch(connection, 10)
        connected = time.monotonic()
        assert connected - start >= 0.2  # a connection and a request
        fetch(connection, 5_000_000)
        assert time.monotonic() - connected >= 0.1
        connection.close()


def test_ends_pass_through(zeros: Zeros) -> None:
    with ShapingProxy(zeros.host) as proxy:
        connection = http.client.HTTPConnection(proxy.host)
        fetch(connection, 10)
        connection.close()
        with connect(proxy.host) as raw:
            raw.sendall(b"GET /100 HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := raw.recv(4096):
                answer += piece
        assert answer.endswith(bytes(100))
        left = http.client.HTTPConnection(proxy.host, timeout=30)
        fetch(left, 10)
    with pytest.raises((OSError, http.client.HTTPException)):
        fetch(left, 10)


def test_no_server_behind_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    with ShapingProxy(host) as proxy:
        connection = http.client.HTTPConnection(proxy.host, timeout=30)
        with pytest.raises((OSError, http.client.HTTPException)):
            fetch(connection, 10)
