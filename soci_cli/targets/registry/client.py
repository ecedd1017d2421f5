"""Requests to one registry: which servers are asked, again where that helps, credentials and redirects."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

import urllib3

from soci_cli.closing import Closing
from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    RegistryError,
    SociError,
    UnreachableError,
)
from soci_cli.parallel import no_check
from soci_cli.targets.registry.asking import Asking
from soci_cli.targets.registry.auth import RegistryAuth
from soci_cli.targets.registry.bodies import NETWORK_ERRORS, read_pieces
from soci_cli.targets.registry.credentials import find_credentials
from soci_cli.targets.registry.hosts import (
    Endpoint,
    TlsSettings,
    endpoints,
    is_loopback,
    system_tls,
)
from soci_cli.targets.registry.locations import Guard, led_to, same_server
from soci_cli.targets.registry.messages import failure, redacted, refusal
from soci_cli.targets.registry.options import Credentials, RegistryOptions
from soci_cli.targets.registry.redirects import REFUSED, Redirected, Redirects, referer
from soci_cli.targets.registry.request import Answer, Request
from soci_cli.targets.registry.retry import RETRIED_STATUSES, Attempts, retry_after
from soci_cli.targets.registry.transport import Transport

_T = TypeVar("_T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({400, 401, 403, 410})
_MAX_REDIRECTS = 10
_TOKEN_LIMIT = 1 << 20
_TLS_HINTS = (b"HTTPS server", b"HTTPS port")  # Go's and nginx' answer to plain HTTP
_HINT_BYTES = 64 << 10
_HINT_SECONDS = 5.0
_SLOWNESS = 5.0  # a small document may take so many timeouts in all
_STRIKES = 3


class Client(Closing):
    """The HTTP side of one registry. May be used by several threads."""

    def __init__(self, domain: str, options: RegistryOptions, environ: Mapping[str, str]) -> None:
        """`domain` is the registry as references have it. Nothing is sent yet. ConfigError."""
        self.domain = domain
        self.options = options
        self._environ = environ
        self._endpoints = list(endpoints(domain, options, environ))
        self._auths: dict[tuple[str, str], RegistryAuth] = {}
        self._strikes: dict[str, int] = {}
        self.redirects = Redirects()
        self.largest_body = sys.maxsize
        """Bytes of a request's body that the registry, or what is before it, is known to take at most."""
        self._mutex = threading.Lock()
        own = self._endpoints[-1]
        on_loopback = is_loopback(urlsplit(own.url).hostname or "")
        self._transport = Transport(
            self._endpoints,
            _tls_elsewhere(own.tls, environ),
            Guard(domain, on_loopback, options.redirect_hosts),
            options.timeout,
        )

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

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
        return [*(one for one in mirrors if not self.has_struck_out(one)), last]

    def has_struck_out(self, mirror: Endpoint) -> bool:
        """Whether a mirror failed so often, or so badly, that it is not asked again."""
        return self._strikes.get(mirror.url, 0) >= _STRIKES

    def mirror_failed(self, url: str, error: SociError) -> None:
        """Takes note of what a mirror did: one strike for no answer, all of them for wrong bytes."""
        weight = 0
        if isinstance(error, RegistryError) and error.status is not None:
            weight = 1 if error.status >= 500 else 0
        elif isinstance(error, UnreachableError):
            weight = 1
        elif isinstance(error, (RegistryError, IntegrityError, InvalidDataError)):
            weight = _STRIKES
        with self._mutex:
            self._strikes[url] = self._strikes.get(url, 0) + weight

    def call(self, request: Request, attempts: int | None = None) -> Answer:
        """The answer to a request, its body not read yet.

        NotInRegistryError for 404, UnreachableError where there is no answer, RegistryError for every other
        status that is not in `request.ok`; all after the attempts that make sense, or at most `attempts`.
        """
        return self.asking(request, attempts).run(_as_it_is)

    def document(
        self, request: Request, limit: int, what: str, use: Callable[[bytes, Answer], _T]
    ) -> _T:
        """What `use` makes of a small document and the answer it came with.

        `use` raises an error for a document that is wrong; where it is a mirror's, another server is asked.
        """
        seconds = self.options.timeout * _SLOWNESS
        return self.asking(request).run(
            lambda answer: use(answer.read(limit, what, seconds), answer)
        )

    def ping(self) -> None:
        """Asks the registry itself, no mirror, whether it is one and lets us in. RegistryError."""
        request = Request("GET", "/", missing=f"is {self.domain} a registry?")
        Asking(self, request, self._endpoints[-1:], None).run(_as_it_is).finish()

    def asking(
        self,
        request: Request,
        attempts: int | None = None,
        check: Callable[[], None] = no_check,
    ) -> Asking:
        """A request that is to be asked of the servers that may answer it."""
        if request.path.startswith("/"):
            servers = self.endpoints_for(request.capability)
        else:
            servers = [self._endpoint_of(request.path)]
        return Asking(self, request, servers, attempts, check)

    # One attempt.

    def attempt(self, request: Request, endpoint: Endpoint, number: int) -> Answer:
        """The answer of one server to one attempt, with a status that is wanted."""
        sending = _Sending(request, endpoint, number)
        key = endpoint.url, request.path
        kept = self.redirects.get(key) if request.keeps_redirect else None
        try:
            answer = self._answer_of(kept, sending) if kept else self._authenticated(sending)
            if kept and answer.status in REFUSED:
                answer.finish()
                self.redirects.forget(key, refused=True)
                kept, answer = None, self._authenticated(sending)
        except NETWORK_ERRORS as error:
            raise failure(request.method, kept.url if kept else sending.url, error) from error
        if answer.status in request.ok:
            if kept:
                self.redirects.used(key)
            elif request.keeps_redirect and answer.redirected:
                self.redirects.keep(key, Redirected(answer.url, answer.led_by))
            return answer
        # The place that was redirected to may be good for a short time only: ask anew.
        again = RETRIED_STATUSES | (_EXPIRED if answer.redirected else frozenset())
        hint = self._hint(answer, sending)
        raise refusal(
            request.method, answer.url, answer.response, hint, transient=answer.status in again
        )

    def _hint(self, answer: Answer, sending: _Sending) -> str:
        """Advice for a status that is not wanted."""
        if hint := self._pause_hint(answer):
            return hint
        if answer.status == 401:
            if self._auth(sending).anonymous:
                return f"log in with: soci login {self.domain}"
            return f"check the credentials, or log in again with: soci login {self.domain}"
        if answer.status == 413:
            return (
                "the registry, or a proxy before it, limits the size of requests, such as nginx by "
                "client_max_body_size; 1 MiB is enough for blobs, 4 MiB for everything"
            )
        if answer.status == 429:
            return "it is asked too often; try again later"
        return sending.request.missing if answer.status == 404 else ""

    def _pause_hint(self, answer: Answer) -> str:
        asked = retry_after(answer.headers.get("Retry-After"), answer.headers.get("Date"))
        patience = self.options.retries.patience
        return (
            "" if asked is None or asked <= patience else f"it asks to wait for {asked:.0f} seconds"
        )

    def _authenticated(self, sending: _Sending) -> Answer:
        """Sends once, and again when the first is refused for want of a valid token."""
        auth = self._auth(sending)
        scope = sending.request.scope
        sent = auth.authorization(scope)
        answer = self._sent(sending, sent)
        for _ in range(2):
            if answer.status not in (401, 403) or answer.redirected:
                break
            try:
                better = auth.answer(answer.response, scope, sent)
            except BaseException:
                answer.close()
                raise
            if better is None:
                break
            answer.finish()
            sent = better
            answer = self._sent(sending, sent)
        return answer

    def _sent(self, sending: _Sending, authorization: str | None) -> Answer:
        """Sends, over TLS where a server that was taken for plain HTTP says that it speaks that."""
        answer = self._followed(sending, authorization)
        if not sending.endpoint.assumed_http or answer.status != 400 or sending.over_tls:
            return answer
        refused = answer.response
        if sending.request.method == "HEAD":  # which has no body to look into
            answer.finish()
            refused = self._transport.send("GET", sending.url, {}, attempt=sending.number)
        with refused:
            said = b"".join(read_pieces(refused, _HINT_BYTES, _HINT_SECONDS))
        if any(hint in said for hint in _TLS_HINTS):
            self._turn_to_tls(sending.endpoint)
            return self._followed(replace(sending, over_tls=True), authorization)
        # What was read is put back, for the message of an error.
        answer.response.raw = urllib3.HTTPResponse(io.BytesIO(said), preload_content=False)
        return answer

    def _answer_of(self, kept: Redirected, sending: _Sending) -> Answer:
        """The answer of the place that the registry led to before."""
        authorization = self._auth(sending).authorization(sending.request.scope)
        return self._followed(sending, authorization, kept)

    def _followed(
        self, sending: _Sending, authorization: str | None, kept: Redirected | None = None
    ) -> Answer:
        """Sends and follows redirects. Credentials go to the first server only."""
        request, endpoint = sending.request, sending.endpoint
        first = sending.url
        url, led_by = (kept.url, kept.led_by) if kept else (first, "")
        for _ in range(_MAX_REDIRECTS + 1):
            headers = dict(request.headers)
            if same_server(url, first):
                headers.update(endpoint.headers)
                if authorization is not None:
                    headers["Authorization"] = authorization
            if led_by and (before := referer(led_by, url)):
                headers["Referer"] = before
            response = self._transport.send(
                request.method,
                url,
                headers,
                request.body,
                attempt=sending.number,
                dial_timeout=endpoint.dial_timeout,
            )
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return Answer(response, url, redirected=url != first, led_by=led_by)
            Answer(response, url).finish()
            led_by = url
            url = led_to(url, location, "redirected", plain=self.options.skip_verify)
        raise RegistryError(f"{request.method} {redacted(first)}: redirected too often")

    # Who we are.

    def _auth(self, sending: _Sending) -> RegistryAuth:
        """Who we are to a server; that may differ by repository."""
        endpoint = sending.endpoint
        scope = sending.request.scope.partition(" ")[0]
        repository = scope.removeprefix("repository:").rpartition(":")[0]
        with self._mutex:
            auth = self._auths.get((endpoint.url, repository))
            if auth is None:
                server = urlsplit(endpoint.url).netloc if endpoint.capabilities else ""

                def find() -> Credentials | None:
                    return self._credentials(endpoint, repository)

                def call_token(
                    method: str,
                    realm: str,
                    headers: Mapping[str, str],
                    parameters: Sequence[tuple[str, str]],
                ) -> bytes:
                    return self._token_document(endpoint, method, realm, headers, parameters)

                auth = self._auths[endpoint.url, repository] = RegistryAuth(
                    server, find, call_token
                )
            return auth

    def _credentials(self, endpoint: Endpoint, repository: str) -> Credentials | None:
        if not endpoint.capabilities:
            return None
        domain = urlsplit(endpoint.url).netloc if endpoint.namespace else self.domain
        given = self.options.credentials.get(domain)
        return given or find_credentials(domain, repository, self._environ)

    def _token_document(
        self,
        endpoint: Endpoint,
        method: str,
        realm: str,
        headers: Mapping[str, str],
        parameters: Sequence[tuple[str, str]],
    ) -> bytes:
        """What a token server answers. See `TokenCall`."""
        secret = bool(headers) or method == "POST"
        realm = led_to(endpoint.url, realm, f"{self.domain} sends for a token", plain=True)
        parts = urlsplit(realm)
        plain = parts.scheme == "http" and not is_loopback(parts.hostname or "")
        if secret and plain and endpoint.url.startswith("https:"):
            raise RegistryError(
                f"{self.domain} wants credentials sent in plain text to {redacted(realm)}; not done"
            )
        body = None
        url = realm
        if method == "POST":
            body = urlencode(parameters).encode()
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        else:
            url = _with_query(realm, parameters)
        attempts = Attempts(self.options.retries)

        def attempt() -> bytes:
            try:
                response = self._transport.send(method, url, headers, body, attempt=attempts.number)
            except NETWORK_ERRORS as error:
                raise failure(method, realm, error) from error
            answer = Answer(response, realm)
            if answer.status == 200:
                return answer.read(_TOKEN_LIMIT, "the token", self.options.timeout * _SLOWNESS)
            again = answer.status in RETRIED_STATUSES
            hint = self._pause_hint(answer)
            if answer.status in (400, 401, 403):
                hint = f"log in again with: soci login {self.domain}"
            # A token server that does not know its own address is no missing image.
            raise refusal(method, realm, response, hint, transient=again, missing=RegistryError)

        try:
            return attempts.run(attempt)
        except RegistryError as error:
            error.transient = False  # the request that needs the token is not worth another attempt
            raise

    # Where the servers are.

    def _endpoint_of(self, url: str) -> Endpoint:
        """The endpoint whose headers and credentials belong to a whole URL."""
        for endpoint in self._endpoints:
            if same_server(url, endpoint.url):
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
class _Sending:
    """One attempt to have a request answered by one server."""

    request: Request
    endpoint: Endpoint
    number: int
    over_tls: bool = False

    @property
    def url(self) -> str:
        path = self.request.path
        url = self.endpoint.url + path if path.startswith("/") else path
        if self.over_tls:
            url = url.replace("http://", "https://", 1)
        named = [("ns", self.endpoint.namespace)] if self.endpoint.namespace else []
        return _with_query(url, [*self.request.query, *named])


def check_login(
    domain: str,
    credentials: Credentials,
    options: RegistryOptions,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Tries credentials at a registry's `/v2/`; RegistryError when they are refused."""
    with Client(domain, replace(options, credentials={domain: credentials}), environ) as client:
        client.ping()


def _with_query(url: str, query: Sequence[tuple[str, str]]) -> str:
    """A URL with more parameters."""
    if not query:
        return url
    parts = urlsplit(url)
    joined = "&".join(filter(None, (parts.query, urlencode(query))))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, joined, ""))


def _as_it_is(answer: Answer) -> Answer:
    return answer


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
