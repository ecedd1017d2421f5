"""Requests to one registry: retried, authenticated, redirected; errors in one line.

The client is oras-py's `Registry` with what is wrong there for this purpose mended in `do_request`: its
retries begin at three seconds and repeat every error, one token serves all scopes, redirects and 429 are
left to chance. `call` is what the rest of this package uses.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit, urlunsplit

import oras.provider
import requests
import urllib3

from soci_cli.errors import NotFoundError, RegistryError, SociError
from soci_cli.targets.registry.auth import RegistryAuth
from soci_cli.targets.registry.credentials import find_credentials
from soci_cli.targets.registry.hosts import (
    Endpoint,
    TlsSettings,
    endpoints,
    is_loopback,
    system_tls,
)
from soci_cli.targets.registry.messages import causes, failure, reason_of, redacted, refusal
from soci_cli.targets.registry.options import Credentials, RegistryOptions
from soci_cli.targets.registry.retry import RETRIED_STATUSES, retry_after
from soci_cli.targets.registry.transport import (
    prepare_session,
    proxies_for,
    read_pieces,
)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({400, 401, 403, 410})
_MAX_REDIRECTS = 10
_CONNECT_SECONDS = 15.0
_TOKEN_LIMIT = 1 << 20
_MAX_URL = 16_000
_TLS_HINTS = (b"HTTPS server", b"HTTPS port")  # Go's and nginx' answer to plain HTTP
_HINT_BYTES = 64 << 10
_REST_BYTES = 64 << 10
_REST_SECONDS = 5.0
_SLOWNESS = 5.0  # a small document may take so many timeouts in all
_STRIKES = 3
_REFUSALS = 4
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What a connection that fails raises, before and while a body is read."""


class Body(Protocol):
    """A request body of known length that can be sent again from its start."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[memoryview]: ...


@dataclass(frozen=True)
class Answer:
    """An answer, the URL that gave it in the end, and whether that is another one than was asked.

    `mirror` is the endpoint's URL when a mirror was asked and not the registry itself.
    """

    response: requests.Response
    url: str
    redirected: bool = False
    mirror: str = ""

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def close(self) -> None:
        self.response.close()

    def read(self, limit: int, what: str, seconds: float) -> bytes:
        """The whole body, decoded.

        RegistryError when it is larger than `limit`, Interrupted when it breaks off or takes too long.
        """
        with self.response:
            try:
                data = b"".join(read_pieces(self.response, limit + 1, seconds))
            except NETWORK_ERRORS as error:
                raise Interrupted(
                    f"{what} from {redacted(self.url)}: {reason_of(error)}"
                ) from error
        if len(data) > limit:
            raise RegistryError(
                f"{what} from {redacted(self.url)} is larger than {limit} bytes, which is not accepted"
            )
        return data

    def finish(self) -> None:
        """Drop a short body, so that its connection can be used again."""
        with suppress(*NETWORK_ERRORS), self.response:
            for _ in read_pieces(self.response, _REST_BYTES, _REST_SECONDS):
                pass


class Interrupted(RegistryError):
    """An answer broke off; the request may be tried again."""


class Client(oras.provider.Registry):  # type: ignore[misc]
    """The HTTP side of one registry. May be used by several threads.

    Scopes are those of the token specification, such as `repository:library/app:pull,push`.
    """

    def __init__(self, domain: str, options: RegistryOptions, environ: Mapping[str, str]) -> None:
        """`domain` is the registry as references have it. Nothing is sent yet. ConfigError."""
        super().__init__(hostname=domain)
        self.domain = domain
        self.options = options
        self._environ = environ
        self._endpoints = list(endpoints(domain, options, environ))
        self._auths: dict[tuple[str, str], RegistryAuth] = {}
        self._strikes: dict[str, int] = {}
        self._mutex = threading.Lock()
        prepare_session(
            self.session, self._endpoints, _tls_elsewhere(self._endpoints[-1].tls, environ)
        )
        self.prefix = urlsplit(self._endpoints[-1].url).scheme

    def close(self) -> None:
        """Close all connections."""
        self.session.close()

    def endpoints_for(self, capability: str) -> list[Endpoint]:
        """The servers to ask, in order, for "pull", "resolve" or "push".

        What is pushed goes to one server: the registry itself or, where hosts.toml says that this may not
        take it, the first mirror that may.
        """
        found = [one for one in self._endpoints if capability in one.capabilities]
        if not found:
            raise RegistryError(f"no server for {self.domain} may {capability}; see its hosts.toml")
        if capability == "push":
            return [found[-1] if found[-1] == self._endpoints[-1] else found[0]]
        *mirrors, last = found
        return [*(one for one in mirrors if self._strikes.get(one.url, 0) < _STRIKES), last]

    def mirror_failed(self, answer: Answer, *, badly: bool = False) -> bool:
        """Takes note of a mirror whose answer broke off or, `badly`, was wrong.

        After some failures it is not asked again; at once after a bad one. False when the answer is not a
        mirror's, so that asking again may give the same.
        """
        if answer.mirror:
            self._strike(answer.mirror, _STRIKES if badly else 1)
        return bool(answer.mirror)

    def _strike(self, mirror: str, weight: int = 1) -> None:
        with self._mutex:
            self._strikes[mirror] = self._strikes.get(mirror, 0) + weight

    def ping(self) -> None:
        """Asks the registry itself, no mirror, whether it is one and lets us in. RegistryError."""
        endpoint = self._endpoints[-1]
        url = f"{endpoint.url}/"
        self._retried("GET", url, (), endpoint, "", (200,), None, None, None).finish()

    def document(
        self,
        path: str,
        limit: int,
        what: str,
        *,
        scope: str,
        capability: str = "pull",
        headers: Mapping[str, str] | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> tuple[bytes, Answer]:
        """A small document as a whole, read again when it breaks off, and the answer it came with."""
        policy = self.options.retries
        failures = 0
        while True:
            answer = self.call(
                "GET", path, scope=scope, capability=capability, headers=headers, query=query
            )
            try:
                return answer.read(limit, what, self.options.timeout * _SLOWNESS), answer
            except Interrupted:
                failures += 1
                if not self.mirror_failed(answer) and failures >= policy.attempts:
                    raise
            except RegistryError:
                if not self.mirror_failed(answer, badly=True):
                    raise
                continue
            time.sleep(policy.pause(failures))

    def call(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        capability: str = "pull",
        ok: Sequence[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        query: Sequence[tuple[str, str]] = (),
        attempts: int | None = None,
    ) -> Answer:
        """Sends one request and gives the answer, whose body is not read yet.

        `path` is below `/v2`, such as `/library/app/manifests/latest`, or a whole URL, such as an upload's
        Location. Mirrors are asked in turn. NotFoundError for 404, RegistryError for every other status
        that is not in `ok` and for a peer that cannot be reached, both after the retries that make sense.
        """
        if not path.startswith("/"):
            whole = self._upload_endpoint(path)
            return self._retried(method, path, query, whole, scope, ok, headers, body, attempts)
        found = self.endpoints_for(capability)
        for endpoint in found[:-1]:
            try:
                # A mirror is a help, not a must: it is not waited for.
                answer = self._retried(
                    method, endpoint.url + path, query, endpoint, scope, ok, headers, body, 1
                )
                return replace(answer, mirror=endpoint.url)
            except RegistryError as error:
                if error.status is None or error.status >= 500:
                    self._strike(endpoint.url)
            except SociError:
                continue
        endpoint = found[-1]
        return self._retried(
            method, endpoint.url + path, query, endpoint, scope, ok, headers, body, attempts
        )

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: dict[str, Any] | bytes | None = None,
        headers: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """One request for the methods of oras-py, with this client's retries, tokens and redirects.

        Any status is an answer here. Bodies are bytes; `json` is not used, because a manifest must be sent
        as the very bytes that were hashed.
        """
        if json is not None or isinstance(data, dict):
            raise TypeError("send the bytes themselves")
        repository = urlsplit(url).path.removeprefix("/v2/").rpartition("/manifests/")[0]
        actions = "pull" if method in ("GET", "HEAD") else "pull,push"
        scope = f"repository:{repository}:{actions}" if repository else ""
        answer = self._retried(
            method,
            url,
            (),
            self._upload_endpoint(url),
            scope,
            range(100, 600),
            headers,
            data,
            None,
        )
        if not stream:
            _ = answer.response.content
        return answer.response

    # One request, again and again.

    def _retried(
        self,
        method: str,
        url: str,
        query: Sequence[tuple[str, str]],
        endpoint: Endpoint,
        scope: str,
        ok: Sequence[int],
        headers: Mapping[str, str] | None,
        body: bytes | Body | None,
        attempts: int | None,
    ) -> Answer:
        policy = self.options.retries
        most = policy.attempts if attempts is None else attempts
        request = _Request(method, url, endpoint, scope, headers or {}, body, tuple(query))
        failures = 0
        while True:
            asked: float | None = None
            try:
                answer = self._authenticated(request)
            except NETWORK_ERRORS as error:
                failures += 1
                # A server that is about to start gets a moment; usually there is none.
                patience = min(most, _REFUSALS) if _is_refused(error) else most
                if failures >= patience or _is_final(error):
                    raise failure(method, url, error, failures) from error
            else:
                if answer.status in ok:
                    return answer
                failures += 1
                # The place that was redirected to may be good for a short time only: ask anew.
                again = RETRIED_STATUSES | (_EXPIRED if answer.redirected else frozenset())
                if answer.status not in again or failures >= most:
                    hint = self._hint(answer, request)
                    raise refusal(method, answer.url, answer.response, hint)
                asked = retry_after(answer.headers.get("Retry-After"))
                if asked is not None and asked > policy.patience:
                    hint = f"it asks to wait for {asked:.0f} seconds"
                    raise refusal(method, answer.url, answer.response, hint)
                answer.finish()
            time.sleep(policy.pause(failures, asked))

    def _authenticated(self, request: _Request) -> Answer:
        """One attempt, with another one when the first is refused for want of a valid token."""
        auth = self._auth(request.endpoint, request.scope)
        sent = auth.authorization(request.scope)
        answer = self._sent(request, sent)
        for _ in range(2):
            if answer.status not in (401, 403) or answer.redirected:
                break
            try:
                better = auth.answer(answer.response, request.scope, sent)
            except BaseException:
                answer.close()
                raise
            if better is None:
                break
            answer.finish()
            sent = better
            answer = self._sent(request, sent)
        return answer

    def _sent(self, request: _Request, authorization: str | None) -> Answer:
        """One request with its redirects. Credentials go to the first server only."""
        answer = self._followed(request, authorization)
        if request.endpoint.assumed_http and answer.status == 400 and not request.tls:
            refused = answer.response
            if request.method == "HEAD":  # which has no body to look into
                answer.finish()
                refused = self._once("GET", request.url, {}, None, request.endpoint.dial_timeout)
            with refused:
                said = b"".join(read_pieces(refused, _HINT_BYTES, _REST_SECONDS))
            if any(hint in said for hint in _TLS_HINTS):
                self._turn_to_tls(request.endpoint)
                return self._followed(request.over_tls(), authorization)
            # What was read is put back, for the message of an error.
            answer.response.raw = urllib3.HTTPResponse(io.BytesIO(said), preload_content=False)
        return answer

    def _followed(self, request: _Request, authorization: str | None) -> Answer:
        url = first = request.full_url
        for _ in range(_MAX_REDIRECTS + 1):
            headers = dict(request.headers)
            if _same_server(url, first):
                headers.update(request.endpoint.headers)
                if authorization is not None:
                    headers["Authorization"] = authorization
            response = self._once(
                request.method, url, headers, request.body, request.endpoint.dial_timeout
            )
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return Answer(response, url, redirected=url != first)
            Answer(response, url).finish()
            url = _redirected(url, location, self.options.skip_verify)
        raise RegistryError(f"{request.method} {redacted(first)}: redirected too often")

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None,
        dial: float | None,
    ) -> requests.Response:
        response: requests.Response = self.session.request(
            method,
            url,
            headers=headers,
            data=body,
            stream=True,
            allow_redirects=False,
            timeout=(min(dial or _CONNECT_SECONDS, self.options.timeout), self.options.timeout),
            proxies=proxies_for(url),
        )
        return response

    # Who we are.

    def _auth(self, endpoint: Endpoint, scope: str) -> RegistryAuth:
        """Who we are to a server; that may differ by repository."""
        repository = scope.partition(" ")[0].removeprefix("repository:").rpartition(":")[0]
        key = endpoint.url, repository
        with self._mutex:
            auth = self._auths.get(key)
            if auth is None:
                find = self._finder(endpoint, repository)
                server = urlsplit(endpoint.url).netloc if endpoint.capabilities else ""
                auth = RegistryAuth(server, find, self._call_token_for(endpoint))
                self._auths[key] = auth
            return auth

    def _finder(self, endpoint: Endpoint, repository: str) -> Callable[[], Credentials | None]:
        def find() -> Credentials | None:
            if not endpoint.capabilities:
                return None
            domain = self.domain
            if endpoint.namespace:
                domain = urlsplit(endpoint.url).netloc
            given = self.options.credentials.get(domain)
            return given or find_credentials(domain, repository, self._environ)

        return find

    def _call_token_for(
        self, endpoint: Endpoint
    ) -> Callable[[str, str, Mapping[str, str], list[tuple[str, str]]], bytes]:
        def call(
            method: str, realm: str, headers: Mapping[str, str], parameters: list[tuple[str, str]]
        ) -> bytes:
            try:
                realm = urljoin(endpoint.url, realm)
                parts = urlsplit(realm)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            except ValueError:
                usable = False
            if not usable:
                raise RegistryError(
                    f"{self.domain} names no usable token server: {redacted(realm)}"
                )
            secret = bool(headers) or method == "POST"
            if (
                secret
                and parts.scheme == "http"
                and endpoint.url.startswith("https:")
                and not is_loopback(parts.hostname or "")
            ):
                raise RegistryError(
                    f"{self.domain} wants credentials sent in plain text to {redacted(realm)}; not done"
                )
            return self._token_document(method, realm, headers, parameters)

        return call

    def _token_document(
        self,
        method: str,
        realm: str,
        headers: Mapping[str, str],
        parameters: Sequence[tuple[str, str]],
    ) -> bytes:
        policy = self.options.retries
        for failures in range(1, policy.attempts + 1):
            asked: float | None = None
            last = failures == policy.attempts
            try:
                response = self.session.request(
                    method,
                    realm,
                    params=list(parameters) if method == "GET" else None,
                    data=list(parameters) if method == "POST" else None,
                    headers=dict(headers),
                    stream=True,
                    allow_redirects=False,
                    timeout=(_CONNECT_SECONDS, self.options.timeout),
                    proxies=proxies_for(realm),
                )
                if response.status_code == 200:
                    seconds = self.options.timeout * _SLOWNESS
                    return Answer(response, realm).read(_TOKEN_LIMIT, "the token", seconds)
                asked = retry_after(response.headers.get("Retry-After"))
                hint = ""
                if asked is not None and asked > policy.patience:
                    last = True
                    hint = f"it asks to wait for {asked:.0f} seconds"
                if response.status_code not in RETRIED_STATUSES or last:
                    if response.status_code in (400, 401, 403):
                        hint = f"log in again with: soci login {self.domain}"
                    raise _as_registry_error(refusal(method, realm, response, hint))
                Answer(response, realm).finish()
            except (*NETWORK_ERRORS, Interrupted) as error:
                if isinstance(error, Interrupted):
                    if last:
                        raise
                elif last or _is_final(error):
                    raise failure(method, realm, error, failures) from error
            time.sleep(policy.pause(failures, asked))
        raise AssertionError

    def _hint(self, answer: Answer, request: _Request) -> str:
        if answer.status == 401:
            if self._auth(request.endpoint, request.scope).anonymous:
                return f"log in with: soci login {self.domain}"
            return f"check the credentials, or log in again with: soci login {self.domain}"
        if answer.status == 429:
            return "it is asked too often; try again later"
        return ""

    # Where the servers are.

    def _upload_endpoint(self, url: str) -> Endpoint:
        """The endpoint whose headers and credentials belong to a whole URL."""
        for endpoint in self._endpoints:
            if _same_server(url, endpoint.url):
                return endpoint
        parts = urlsplit(url)
        # Another server, to which nothing of ours is told: it may do nothing for the registry.
        bare = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        return Endpoint(bare, frozenset(), {}, self._endpoints[-1].tls)

    def _turn_to_tls(self, endpoint: Endpoint) -> None:
        """Loopback was taken for plain HTTP, but a TLS server is there."""
        with self._mutex:
            for position, one in enumerate(self._endpoints):
                if one == endpoint:
                    secure = one.url.replace("http://", "https://", 1)
                    self._endpoints[position] = replace(one, url=secure, assumed_http=False)


@dataclass(frozen=True)
class _Request:
    method: str
    url: str
    endpoint: Endpoint
    scope: str
    headers: Mapping[str, str]
    body: bytes | Body | None
    query: tuple[tuple[str, str], ...]

    @property
    def tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def full_url(self) -> str:
        query = list(self.query)
        if self.endpoint.namespace:
            query.append(("ns", self.endpoint.namespace))
        if not query:
            return self.url
        parts = urlsplit(self.url)
        more = requests.compat.urlencode(query)
        joined = f"{parts.query}&{more}" if parts.query else more
        return urlunsplit((parts.scheme, parts.netloc, parts.path, joined, ""))

    def over_tls(self) -> _Request:
        return replace(self, url=self.url.replace("http://", "https://", 1))


def check_login(
    domain: str,
    credentials: Credentials,
    options: RegistryOptions,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Tries credentials at a registry's `/v2/`; RegistryError when they are refused."""
    chosen = replace(options, credentials={domain: credentials})
    client = Client(domain, chosen, environ)
    try:
        client.ping()
    except NotFoundError as error:
        raise RegistryError(f"{error}; is {domain} a registry?") from error
    finally:
        client.close()


def _same_server(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common, so that credentials may go along."""
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, _port(first)) == (
        second.scheme,
        second.hostname,
        _port(second),
    )


def _port(parts: Any) -> int | None:
    try:
        port: int | None = parts.port
    except ValueError:
        return None
    return port or {"http": 80, "https": 443}.get(parts.scheme)


def _redirected(url: str, location: str, insecure: bool) -> str:
    """Where a redirect leads. RegistryError for one that must not be followed."""
    try:
        new = urljoin(url, location)
        parts = urlsplit(new)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and len(new) < _MAX_URL
    except ValueError:
        usable = False
    if not usable:
        raise RegistryError(f"{redacted(url)}: redirected to a URL that cannot be used")
    if url.startswith("https:") and parts.scheme == "http" and not insecure:
        raise RegistryError(
            f"{redacted(url)}: redirected from HTTPS to plain HTTP ({redacted(new)}), not followed"
        )
    return new


def _is_refused(error: Exception) -> bool:
    return any(isinstance(one, ConnectionRefusedError) for one in causes(error))


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: a certificate, a proxy's settings, a URL that is none."""
    if isinstance(
        error,
        (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.InvalidHeader,
            requests.exceptions.InvalidProxyURL,
        ),
    ):
        return True
    found = causes(error)
    if isinstance(error, requests.exceptions.SSLError):
        # A peer that hung up in the middle of a handshake may have been busy.
        return not any(isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) for one in found)
    return any(isinstance(one, socket.gaierror) and one.errno == socket.EAI_NONAME for one in found)


def _tls_elsewhere(own: TlsSettings, environ: Mapping[str, str]) -> TlsSettings:
    """TLS to servers that a registry leads to: what is trusted for it is trusted there too.

    Its token server often has a certificate by the same authority, its blob store one by a public
    authority. A client's certificate is for the registry alone.
    """
    trusted = (
        *system_tls(environ).authorities,
        *own.authorities,
        *([own.only] if own.only else []),
    )
    return TlsSettings(own.skip_verify, tuple(dict.fromkeys(trusted)))


def _as_registry_error(error: SociError) -> SociError:
    # A token server that does not know its own address is no missing image.
    return RegistryError(str(error), 404) if isinstance(error, NotFoundError) else error
