"""Certificates of the test's authority pass the strictest check that Python has."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.support.servers.ca import make_ca
from tests.support.servers.server import Request, Server


class _Silent(Server):
    def serve(self, request: Request) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "trusted"), [("127.0.0.1", True), ("registry.test", True), ("other.test", False)]
)
def test_names(tmp_path: Path, name: str, trusted: bool) -> None:
    ca = make_ca(tmp_path)
    context = ssl.create_default_context(cafile=str(ca.cert))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with _Silent(ca.issue("127.0.0.1", "registry.test")) as server:
        port = int(server.host.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as plain:
            if trusted:
                context.wrap_socket(plain, server_hostname=name).close()
            else:
                with pytest.raises(ssl.SSLCertVerificationError):
                    context.wrap_socket(plain, server_hostname=name)
