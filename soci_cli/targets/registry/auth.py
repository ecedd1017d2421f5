"""Who one is to a registry: Basic, or tokens that are kept by scope and renewed.

See docs "Token Authentication Specification" of the distribution project. oras-py makes the headers; its
`TokenAuth` keeps one token for all scopes and never renews it, so here is one for each, with the time it
ends. It is imported when a registry asks who one is. What helpers and config files say is in
`credentials.py`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import requests

from soci_cli.errors import RegistryError
from soci_cli.oci.canonical import loads
from soci_cli.targets.registry.messages import redacted
from soci_cli.targets.registry.options import Credentials
from soci_cli.text import brief

_DEFAULT_LIFE = 60.0  # seconds, when a token server does not say
_MARGIN = 10.0
_TOKEN_LIMIT = 1 << 20
_CLIENT = "soci"
_CHALLENGE = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)\s*=\s*("((?:[^"\\]|\\.)*)"|[^\s,]+)')
_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?=\s|$)", re.IGNORECASE)
_ECR = re.compile(
    r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws)"
)


@dataclass(frozen=True)
class Challenge:
    """What a WWW-Authenticate header asks for (RFC 9110, section 11.6.1)."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


@dataclass(frozen=True)
class _Token:
    header: str
    renew_at: float


TokenCall = Callable[[str, str, Mapping[str, str], Sequence[tuple[str, str]]], bytes]
"""Fetches a token document: (method, realm, headers, parameters) to its bytes, at most a limit."""


def parse_challenge(header: str) -> Challenge | None:
    """The Bearer challenge of a header, else the Basic one; None for anything else."""
    starts = list(_SCHEME.finditer(header))
    found: dict[str, Challenge] = {}
    for start, end in zip(
        starts, [*(one.start() for one in starts[1:]), len(header)], strict=False
    ):
        values = {
            match[1].lower(): match[2] if match[3] is None else re.sub(r"\\(.)", r"\1", match[3])
            for match in _CHALLENGE.finditer(header[start.end() : end])
        }
        scheme = start[1].lower()
        found.setdefault(
            scheme,
            Challenge(
                scheme,
                values.get("realm", ""),
                values.get("service", ""),
                values.get("scope", ""),
            ),
        )
    return found.get("bearer") or found.get("basic")


def basic(credentials: Credentials) -> str:
    """The Authorization header of Basic authentication (RFC 7617)."""
    from oras.auth.basic import BasicAuth

    auth = BasicAuth()
    auth.set_basic_auth(credentials.username, credentials.password)
    return str(auth.get_auth_header()["Authorization"])


class RegistryAuth:
    """The Authorization headers for one endpoint. May be used by several threads."""

    def __init__(
        self, server: str, find: Callable[[], Credentials | None], call_token: TokenCall
    ) -> None:
        """`server` is the endpoint's HOST[:PORT]; with none, Amazon's credentials are for nobody.

        `find` looks the credentials up, anew each time; `call_token` talks to token servers.
        """
        self._server = server
        self._find = find
        self._call_token = call_token
        self._challenge: Challenge | None = None
        self._basic: str | None = None
        self._tokens: dict[str, _Token] = {}
        self._lock = threading.RLock()

    @property
    def anonymous(self) -> bool:
        """Whether nobody is logged in; what is asked for may then be there for others."""
        return self._find() is None

    def authorization(self, scope: str) -> str | None:
        """The header to send with a request of that scope; None when none was ever asked for."""
        with self._lock:
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                return self._basic
            token = self._tokens.get(scope)
            if token is None or token.renew_at <= time.monotonic():
                token = self._tokens[scope] = self._fetch(self._challenge, scope)
            return token.header

    def answer(self, response: requests.Response, scope: str, sent: str | None) -> str | None:
        """A header to send instead of `sent`, which was refused; None when there is no better one.

        `response` is the refusal, a 401 or 403.
        """
        challenge = parse_challenge(response.headers.get("WWW-Authenticate", ""))
        with self._lock:
            if challenge is None:
                # 403: a token may have ended without the registry saying so.
                if self._challenge is None or sent is None or self._challenge.scheme == "basic":
                    return None
                challenge = self._challenge
            if challenge.scheme == "basic":
                header = self._basic_header()
                if header is None or header == sent:
                    return None
                self._challenge, self._basic = challenge, header
                return header
            if not challenge.realm:
                return None
            known = self._tokens.get(scope)
            if known is not None and known.header != sent and known.renew_at > time.monotonic():
                return known.header  # another thread was quicker
            self._challenge = Challenge("bearer", challenge.realm, challenge.service)
            token = self._fetch(challenge, scope)
            self._tokens[scope] = token
            return None if token.header == sent else token.header

    def _basic_header(self) -> str | None:
        credentials = self._find()
        if credentials is not None:
            return basic(credentials)
        ecr = _ECR.fullmatch(self._server)
        return _ecr_header(self._server, ecr[1]) if ecr else None

    def _fetch(self, challenge: Challenge, scope: str) -> _Token:
        """Gets a token for what is intended and what the challenge names."""
        credentials = self._find()
        scopes = _merge(scope, challenge.scope)
        started = time.monotonic()
        if credentials is not None and credentials.identity_token:
            data = self._call_token(
                "POST",
                challenge.realm,
                {},
                [
                    ("grant_type", "refresh_token"),
                    ("service", challenge.service),
                    ("client_id", _CLIENT),
                    ("scope", " ".join(scopes)),
                    ("refresh_token", credentials.identity_token),
                ],
            )
        else:
            headers = {} if credentials is None else {"Authorization": basic(credentials)}
            parameters = [("service", challenge.service)] if challenge.service else []
            data = self._call_token(
                "GET", challenge.realm, headers, parameters + [("scope", one) for one in scopes]
            )
        return _parse_token(data, challenge.realm, started)


def _merge(*scopes: str) -> list[str]:
    """The different scopes of several lists, actions on the same repository joined."""
    actions: dict[str, list[str]] = {}
    for scope in " ".join(scopes).split():
        resource, colon, names = scope.rpartition(":")
        if not colon:
            resource, names = scope, ""
        known = actions.setdefault(resource, [])
        known += [name for name in names.split(",") if name and name not in known]
    return [
        f"{resource}:{','.join(names)}" if names else resource
        for resource, names in actions.items()
    ]


def _parse_token(data: bytes, realm: str, started: float) -> _Token:
    what = f"the answer of {redacted(realm)}"
    if len(data) > _TOKEN_LIMIT:
        raise RegistryError(f"{what} is no token: it is too large")
    document = loads(data, f"{what} is no token", kind=RegistryError)
    if not isinstance(document, dict):
        raise RegistryError(f"{what} is no token")
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
        raise RegistryError(f"{what} has no token in it")
    life = document.get("expires_in")
    seconds = float(life) if isinstance(life, (int, float)) and 0 < life < 1e9 else _DEFAULT_LIFE
    from oras.auth.token import TokenAuth

    auth = TokenAuth()
    auth.set_token_auth(token)
    header = str(auth.get_auth_header()["Authorization"])
    return _Token(header, started + seconds - min(_MARGIN, seconds / 4))


def _ecr_header(server: str, region: str) -> str | None:
    """The header for Amazon ECR by the AWS SDK; None where that is not installed.

    Not by `EcrAuth` of oras-py, which knows neither China nor FIPS endpoints and breaks on them.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    try:
        answer = boto3.client("ecr", region_name=region).get_authorization_token()
    except (BotoCoreError, ClientError) as error:
        raise RegistryError(f"AWS gave no credentials for {server}: {brief(str(error))}") from error
    return f"Basic {answer['authorizationData'][0]['authorizationToken']}"


__all__ = ["Challenge", "RegistryAuth", "TokenCall", "basic", "parse_challenge"]
