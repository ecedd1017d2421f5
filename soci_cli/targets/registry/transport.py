"""The HTTP session of one registry: TLS by endpoint, proxies as Go's clients read them, no cookies.

Redirects are not followed here: `client.py` does that, because credentials must not go along.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from soci_cli.closing import Closing
from soci_cli.targets.registry.bodies import NETWORK_ERRORS
from soci_cli.targets.registry.hosts import Endpoint, TlsSettings, is_loopback, ssl_context
from soci_cli.targets.registry.locations import Guard
from soci_cli.targets.registry.messages import reason_of, redacted
from soci_cli.targets.registry.request import Body

_LOG = logging.getLogger("soci_cli.registry")
_POOL = 32
_NO_PROXY = {"http": "", "https": "", "all": ""}
_CONNECT_SECONDS = 15.0


class Transport(Closing):
    """Sends requests to the servers of one registry, and to those that it leads to."""

    def __init__(
        self, endpoints: Iterable[Endpoint], others: TlsSettings, guard: Guard, timeout: float
    ) -> None:
        """`others` is for the servers that the registry leads to, such as token servers and blob stores.

        `timeout` are the seconds that a peer may be silent.
        """
        self._timeout = timeout
        self._session = session = requests.Session()
        # An authenticator of its own keeps requests from sending what stands in a .netrc file.
        session.auth = _as_it_is
        # Even where it does not follow a redirect, requests reads all of its body and parses its Location.
        session.get_redirect_target = _nowhere  # type: ignore[method-assign,assignment]
        session.headers.update({"User-Agent": "soci", "Accept-Encoding": "identity"})
        session.mount("http://", _GuardedAdapter(others, guard))
        session.mount("https://", _GuardedAdapter(others, guard))
        for endpoint in endpoints:
            server = urlsplit(endpoint.url).netloc
            # Both schemes: what was taken for plain HTTP on loopback may turn out to speak TLS.
            session.mount(f"http://{server}/", HTTPAdapter(pool_maxsize=_POOL))
            session.mount(f"https://{server}/", TlsAdapter(endpoint.tls))
            if endpoint.tls.skip_verify:
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None = None,
        *,
        attempt: int = 1,
        dial_timeout: float | None = None,
    ) -> requests.Response:
        """The answer of one server, its body not read yet. Raises NETWORK_ERRORS; RegistryError when the
        guard refuses. `attempt` is for the log.
        """
        connect = min(dial_timeout or _CONNECT_SECONDS, self._timeout)
        with _logged(method, url, attempt) as answers:
            response = self._session.request(
                method,
                url,
                headers=headers,
                data=body,  # type: ignore[arg-type]
                stream=True,
                allow_redirects=False,
                timeout=(connect, self._timeout),
                proxies=_proxies_for(url),
            )
            answers.append(response)
        return response

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


@contextmanager
def _logged(method: str, url: str, attempt: int) -> Iterator[list[requests.Response]]:
    """Logs one request when it ends: the answer that the block put into the list, or the error."""
    answers: list[requests.Response] = []
    started = time.monotonic()
    said = "not sent"
    try:
        yield answers
        said = str(answers[0].status_code)
    except NETWORK_ERRORS as error:
        said = reason_of(error)
        raise
    finally:
        took = time.monotonic() - started
        _LOG.debug("%s %s: %s (attempt %d, %.3f s)", method, redacted(url), said, attempt, took)


def _proxies_for(url: str) -> dict[str, str] | None:
    """None for what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say; no proxy for loopback, as in Go."""
    return _NO_PROXY if is_loopback(urlsplit(url).hostname or "") else None


class TlsAdapter(HTTPAdapter):
    """Connections with an SSL context of our own, made when the first one is needed."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        super().__init__(pool_maxsize=_POOL)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if self._context is None and (request.url or "").startswith("https:"):
            # Reading the authorities takes a while, so only who speaks TLS does it.
            context = ssl_context(self._tls)
            self.poolmanager.connection_pool_kw["ssl_context"] = context
            self._context = context
        return super().send(request, *args, **kwargs)

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


class _GuardedAdapter(TlsAdapter):
    """Connections to servers that a registry leads to: those that the guard lets pass.

    A proxy is the user's choice and may be anywhere; what it connects to, it resolves itself.
    """

    def __init__(self, tls: TlsSettings, guard: Guard) -> None:
        self._guard = guard
        super().__init__(tls)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        guard = self._guard

        class Plain(_GuardedConnection, HTTPConnection):
            _guard = guard

        class Secure(_GuardedConnection, HTTPSConnection):
            _guard = guard

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        parts = urlsplit(request.url or "")
        self._guard.check_literal(parts.hostname or "", parts.port)
        return super().send(request, *args, **kwargs)


class _GuardedConnection(HTTPConnection):
    """A connection to one of the addresses that were checked, so that no second look-up changes them."""

    _guard: Guard

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        try:
            addresses = self._guard.addresses(name.strip("[]"), self.port)
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
        except UnicodeError as error:
            raise urllib3.exceptions.LocationParseError(name) from error
        failure: Exception | None = None
        try:
            for self._dns_host in addresses:
                try:
                    return super()._new_conn()
                except (
                    urllib3.exceptions.NewConnectionError,
                    urllib3.exceptions.ConnectTimeoutError,
                ) as error:
                    failure = error
        finally:
            self._dns_host = name  # by which the certificate is checked
        assert failure is not None
        raise failure


def _nowhere(response: requests.Response) -> None:
    return None


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
