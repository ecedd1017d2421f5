"""The requests session of one registry: TLS by endpoint, proxies as Go's clients read them, no cookies.

Redirects are not followed here: `client.py` does that, because credentials must not go along.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from soci_cli.targets.registry.hosts import Endpoint, TlsSettings, is_loopback, ssl_context

_POOL = 32
_PIECE = 1 << 20
_NO_PROXY = {"http": "", "https": "", "all": ""}


def prepare_session(
    session: requests.Session, endpoints: Iterable[Endpoint], others: TlsSettings
) -> None:
    """Fits a session of requests to a registry: each endpoint with its TLS settings.

    `others` are those for servers that the registry leads to, such as token servers and blob stores.
    """
    # An authenticator of its own keeps requests from sending what stands in a .netrc file.
    session.auth = _as_it_is
    # Even where it does not follow a redirect, requests reads all of its body and parses its Location.
    session.get_redirect_target = _nowhere  # type: ignore[method-assign,assignment]
    session.headers.update({"User-Agent": "soci", "Accept-Encoding": "identity"})
    session.mount("http://", HTTPAdapter(pool_maxsize=_POOL))
    session.mount("https://", TlsAdapter(others))
    for endpoint in endpoints:
        parts = urlsplit(endpoint.url)
        # Both schemes: what was taken for plain HTTP on loopback may turn out to speak TLS.
        session.mount(f"https://{parts.netloc}/", TlsAdapter(endpoint.tls))
        if endpoint.tls.skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def proxies_for(url: str) -> dict[str, str] | None:
    """None for what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say; no proxy for loopback, as in Go."""
    return _NO_PROXY if is_loopback(urlsplit(url).hostname or "") else None


class TlsAdapter(HTTPAdapter):
    """Connections with an SSL context of our own, made when the first one is needed."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        super().__init__(pool_maxsize=_POOL)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        if self._context is None:
            # Reading the authorities takes a while, so only who speaks TLS does it.
            context = ssl_context(self._tls)
            self.poolmanager.connection_pool_kw["ssl_context"] = context
            self._context = context
        return super().send(*args, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def build_connection_pool_key_attributes(
        self, request: Any, verify: Any, cert: Any = None
    ) -> Any:
        host, tls = super().build_connection_pool_key_attributes(request, True, None)
        kept = {
            key: value
            for key, value in tls.items()
            if key not in ("ssl_context", "cert_reqs", "ca_certs", "ca_cert_dir")
        }
        return host, kept

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the context says it all."""


def _nowhere(response: requests.Response) -> None:
    return None


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def raw_stream(response: requests.Response) -> urllib3.response.BaseHTTPResponse:
    """The body as it arrives."""
    return cast(urllib3.response.BaseHTTPResponse, response.raw)


def read_pieces(response: requests.Response, limit: int, seconds: float) -> Iterator[bytes]:
    """The first `limit` bytes of a body, decoded; TimeoutError when they take longer than `seconds`.

    A timeout of the socket alone lets a peer that sends a byte now and then hold a client for hours.
    """
    deadline = time.monotonic() + seconds
    stream = raw_stream(response)
    while limit and (piece := stream.read1(min(limit, _PIECE), decode_content=True)):
        yield piece
        limit -= len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
